//! Which torrents answer a query, and in what order. In memory, derived from the registry.
//!
//! Every word has the list of torrents that it occurs in. A query's words each make a set of torrents; their
//! intersection is the answer: of exact words first, then of prefixes, and only if neither finds anything with one typo
//! forgiven in longer words.

mod best;
mod build;
mod postings;
mod set;
mod typo;
mod word;
mod words;

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};

use super::keyed_hash::BuildKeyedHasher;
use crate::wire::catalogue::{Match, SearchQuery};
use crate::wire::id::InfoHash;
use crate::wire::name::split_extension;
use best::Best;
pub use build::{Builder, Part};
use postings::{Postings, Within};
use set::Set;
use word::Word;
use words::{QueryWord, WordList, Words};

/// Words of one query: what a person types, and no lever for slow queries.
pub const MAX_QUERY_WORDS: usize = 32;
/// A typo is forgiven from here on: shorter words have too many neighbours.
const TYPO_FROM_CHARS: usize = 5;
/// A shorter word that stands somewhere is meant as it stands: every tenth word begins with `s`.
const PREFIX_FROM_CHARS: usize = 3;
/// So many torrents are looked up one by one in a further word's list, in place of the whole list.
const FEW: u64 = 4_096;
/// What is thought of a word that is not in the dictionary: it may begin many others.
const FREQUENCY_OF_OTHERS: usize = 10_000;
/// Withdrawn torrents are swept out of the lists when they outnumber the others by this factor's inverse, and this many.
const COMPACT_FROM: usize = 10_000;
/// Begins the dictionary's entries for types: sorts before every letter, occurs in no word.
const TYPE_MARK: char = '\u{1}';

/// What is indexed of one torrent.
pub struct Document<'a> {
    pub key: InfoHash,
    pub name: &'a str,
    /// The path below upload/ and those of the files of a multi-file torrent.
    pub paths: &'a mut dyn Iterator<Item = Cow<'a, str>>,
    /// Extensions of its files.
    pub types: &'a BTreeSet<Cow<'a, str>>,
    pub size: u64,
}

/// A document taken apart: the slow half of indexing, done without the index.
pub struct Prepared {
    key: InfoHash,
    size: u64,
    /// Each once.
    words: WordList,
    names: [u64; 2],
}

impl Prepared {
    /// The torrent's.
    pub fn key(&self) -> InfoHash {
        self.key
    }

    pub fn new(document: Document<'_>) -> Prepared {
        let mut words = WordList::default();
        let Torrent { key, size, names } = document.tell(&mut words);
        words.each_once();
        Prepared { key, size, words, names }
    }
}

impl Document<'_> {
    /// Tells the words that it is found by, with repetitions, and what is kept of it beside them.
    fn tell(self, words: &mut impl Words) -> Torrent {
        let Document { key, name, paths, types, size } = self;
        words::name_words(name, words);
        for path in paths {
            words::name_words(&path, words);
            if words.is_full() {
                break;
            }
        }
        types.iter().for_each(|file_type| words.push(&type_word(file_type)));
        let (stem, _) = split_extension(name);
        let names = [digest(&words::plain(name)), digest(&words::plain(stem))];
        Torrent { key, size, names }
    }
}

/// Torrents in the order of the answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// All that match, before `limit` and `offset`.
    pub total: u64,
    pub hits: Vec<(InfoHash, Match)>,
}

/// Words of a query beyond [`MAX_QUERY_WORDS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("more than {MAX_QUERY_WORDS} words")]
pub struct TooManyWords;

#[derive(Default)]
pub struct Index {
    /// Torrents by number, the newest last.
    torrents: Vec<Torrent>,
    /// Of each what decides its place among the hits, apart: common words have hundreds of thousands.
    standings: Vec<Standing>,
    numbers: HashMap<InfoHash, u32, BuildKeyedHasher>,
    live: Set,
    dictionary: BTreeMap<Word, Postings>,
    /// Letters beyond ASCII that occur: what a typo may have replaced.
    letters: BTreeSet<char>,
}

struct Torrent {
    key: InfoHash,
    size: u64,
    /// Digests of the plain form of the name, and of the name without its extension.
    names: [u64; 2],
}

#[derive(Clone, Copy)]
struct Standing {
    seeders: u32,
    /// The ends of the digests: where they differ from the query's the name is another.
    names: [u16; 2],
}

impl Standing {
    fn new(names: [u64; 2]) -> Standing {
        Standing { seeders: 0, names: names.map(end_of) }
    }
}

/// Better first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    Name,
    Stem,
    Words,
    Prefix,
    Typo,
}

impl Rank {
    fn shown(self) -> Match {
        match self {
            Rank::Name | Rank::Stem => Match::Exact,
            Rank::Words => Match::Words,
            Rank::Prefix => Match::Prefix,
            Rank::Typo => Match::Typo,
        }
    }
}

/// Torrents that hold one word of the query: as it stands, and as the beginning of a longer one or so.
struct WordSets {
    exact: Set,
    prefix: Set,
}

impl Index {
    /// Torrents that can be found.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Enters a torrent as the newest. One that is there already stays as it is.
    pub fn insert(&mut self, prepared: Prepared) {
        if self.numbers.contains_key(&prepared.key) {
            return;
        }
        let Ok(number) = u32::try_from(self.torrents.len()) else { return };
        for word in prepared.words.iter() {
            match self.dictionary.entry(Word::new(word)) {
                Entry::Occupied(mut known) => {
                    known.get_mut().push(number);
                    known.get_mut().pack();
                }
                Entry::Vacant(new) => {
                    self.letters.extend(new.key().beyond_ascii());
                    new.insert(Postings::One(number));
                }
            }
        }
        let Prepared { key, size, names, .. } = prepared;
        self.torrents.push(Torrent { key, size, names });
        self.standings.push(Standing::new(names));
        self.numbers.insert(key, number);
        self.live.insert(number);
    }

    pub fn remove(&mut self, key: &InfoHash) {
        if let Some(number) = self.numbers.remove(key) {
            self.live.remove(number);
            if self.torrents.len() > COMPACT_FROM + 2 * self.numbers.len() {
                self.compact();
            }
        }
    }

    /// The order of the hits follows it.
    pub fn set_seeders(&mut self, key: &InfoHash, seeders: u32) {
        if let Some(standing) = self.numbers.get(key).and_then(|number| self.standings.get_mut(*number as usize)) {
            standing.seeders = seeders;
        }
    }

    /// The same for all torrents.
    pub fn set_all_seeders(&mut self, seeders: impl Fn(&InfoHash) -> u32) {
        for (torrent, standing) in self.torrents.iter().zip(&mut self.standings) {
            standing.seeders = seeders(&torrent.key);
        }
    }

    /// # Errors
    /// When the query has more than [`MAX_QUERY_WORDS`] words.
    pub fn search(&self, query: &SearchQuery) -> Result<Found, TooManyWords> {
        let words = words::query_words(&query.q);
        if words.len() > MAX_QUERY_WORDS {
            return Err(TooManyWords);
        }
        let mut allowed = self.live.clone();
        if let Some(file_type) = &query.file_type {
            allowed.intersect(&self.exact(&type_word(file_type), None));
        }
        if words.is_empty() {
            return Ok(self.newest(&allowed, query));
        }
        let (exact, prefix) = self.matching(&words, &allowed, false);
        let mut best = Best::new(query.offset, query.limit);
        let name = digest(&words::plain(&query.q));
        self.offer(&exact, query, &mut best, |number, standing| self.rank_of_exact(number, standing, name));
        self.offer(&prefix, query, &mut best, |_, _| Rank::Prefix);
        if best.is_empty() {
            let (_, near) = self.matching(&words, &allowed, true);
            self.offer(&near, query, &mut best, |_, _| Rank::Typo);
        }
        let (total, page) = best.page();
        let hit = |(rank, number): (Rank, u32)| Some((self.torrents.get(number as usize)?.key, rank.shown()));
        Ok(Found { total, hits: page.filter_map(hit).collect() })
    }

    fn rank_of_exact(&self, number: u32, standing: Standing, name: u64) -> Rank {
        if !standing.names.contains(&end_of(name)) {
            return Rank::Words;
        }
        match self.torrents.get(number as usize).map(|torrent| torrent.names) {
            Some([whole, _]) if whole == name => Rank::Name,
            Some([_, stem]) if stem == name => Rank::Stem,
            _ => Rank::Words,
        }
    }

    fn offer(&self, set: &Set, query: &SearchQuery, best: &mut Best, rank: impl Fn(u32, Standing) -> Rank) {
        let sized = query.min_size.is_some() || query.max_size.is_some();
        let fits = |number: u32| self.torrents.get(number as usize).is_some_and(|torrent| fits(torrent, query));
        for number in set.iter() {
            let Some(standing) = self.standings.get(number as usize) else { break };
            if !sized || fits(number) {
                best.offer(rank(number, *standing), standing.seeders, number);
            }
        }
    }

    fn newest(&self, allowed: &Set, query: &SearchQuery) -> Found {
        let mut found = Found { total: 0, hits: Vec::new() };
        let (from, limit) = (u64::from(query.offset), query.limit as usize);
        let unrestricted = query.min_size.is_none() && query.max_size.is_none();
        for number in allowed.iter_back() {
            let Some(torrent) = self.torrents.get(number as usize).filter(|torrent| fits(torrent, query)) else {
                continue;
            };
            if found.total >= from && found.hits.len() < limit {
                found.hits.push((torrent.key, Match::Prefix));
            }
            found.total += 1;
            if unrestricted && found.hits.len() == limit {
                found.total = allowed.count();
                break;
            }
        }
        found
    }

    /// Those of `allowed` in which every word stands as it is, and the others in which every word stands in some way.
    fn matching(&self, words: &[QueryWord], allowed: &Set, typos: bool) -> (Set, Set) {
        let mut rarest_first: Vec<&QueryWord> = words.iter().collect();
        rarest_first.sort_by_cached_key(|word| self.frequency(word));
        let (mut exact, mut either) = (allowed.clone(), allowed.clone());
        let mut within: Option<Vec<u32>> = None;
        for word in rarest_first {
            let mut sets = self.sets(word, within.as_deref());
            if typos {
                self.add_typos(word, within.as_deref(), &mut sets.prefix);
            }
            exact.intersect(&sets.exact);
            either.intersect_either(&sets.exact, &sets.prefix);
            match either.count() {
                0 => break,
                left if left <= FEW => within = Some(either.iter().collect()),
                _ => {}
            }
        }
        exact.intersect(&either);
        either.subtract(&exact);
        (exact, either)
    }

    fn postings(&self, word: &str) -> Option<&Postings> {
        self.dictionary.get(&Word::new(word))
    }

    /// About how many torrents have the word.
    fn frequency(&self, word: &QueryWord) -> usize {
        let of = |word: &str| self.postings(word).map_or(0, Postings::len);
        let parts = word.parts.iter().map(|part| of(part)).min().unwrap_or_default();
        match of(&word.whole) + parts {
            0 => FREQUENCY_OF_OTHERS,
            frequency => frequency,
        }
    }

    fn sets(&self, word: &QueryWord, within: Within<'_>) -> WordSets {
        let mut exact = self.exact(&word.whole, within);
        if !word.parts.is_empty() {
            exact.unite(&self.all_of(&word.parts, within));
        }
        if word.unspaced && !word.parts.is_empty() {
            // Found anywhere within a run is as good as the run.
            return WordSets { exact, prefix: Set::default() };
        }
        let mut prefix = match word.unspaced {
            true => self.prefix(&word.whole, within),
            false => self.beginning(&word.whole, within),
        };
        if let [whole @ .., last] = &word.parts[..] {
            let mut parts = self.beginning(last, within);
            parts.intersect(&self.all_of(whole, within));
            prefix.unite(&parts);
        }
        WordSets { exact, prefix }
    }

    fn all_of(&self, parts: &[String], within: Within<'_>) -> Set {
        let mut all = self.live.clone();
        for part in parts {
            all.intersect(&self.exact(part, within));
        }
        all
    }

    /// As prefix, unless the word is short and stands somewhere.
    fn beginning(&self, word: &str, within: Within<'_>) -> Set {
        let short = word.chars().count() < PREFIX_FROM_CHARS;
        if short && self.postings(word).is_some() { self.exact(word, within) } else { self.prefix(word, within) }
    }

    fn exact(&self, word: &str, within: Within<'_>) -> Set {
        let mut set = Set::default();
        if let Some(postings) = self.postings(word) {
            postings.add_to(&mut set, within);
        }
        set
    }

    fn prefix(&self, word: &str, within: Within<'_>) -> Set {
        let mut set = Set::default();
        let from = Word::new(word);
        let onward = self.dictionary.range::<Word, _>(&from..);
        for (_, postings) in onward.take_while(|(other, _)| other.starts_with(&from, word.len())) {
            postings.add_to(&mut set, within);
        }
        set
    }

    fn add_typos(&self, word: &QueryWord, within: Within<'_>, set: &mut Set) {
        if !word.unspaced && word.whole.chars().count() >= TYPO_FROM_CHARS {
            typo::one_away(&word.whole, &self.letters, |near| {
                if let Some(postings) = self.postings(near) {
                    postings.add_to(set, within);
                }
            });
        }
    }

    /// Numbers the living anew, in their order.
    fn compact(&mut self) {
        let mut new_numbers = vec![u32::MAX; self.torrents.len()];
        let mut torrents = Vec::with_capacity(self.numbers.len());
        let mut standings = Vec::with_capacity(self.numbers.len());
        for (number, torrent) in std::mem::take(&mut self.torrents).into_iter().enumerate() {
            if self.live.contains(number as u32) {
                new_numbers[number] = torrents.len() as u32;
                torrents.push(torrent);
                standings.push(self.standings[number]);
            }
        }
        let new = |number: u32| Some(new_numbers[number as usize]).filter(|new| *new != u32::MAX);
        self.dictionary.retain(|_, postings| match postings.renumbered(new) {
            Some(renumbered) => {
                *postings = renumbered;
                true
            }
            None => false,
        });
        self.numbers = torrents.iter().enumerate().map(|(number, torrent)| (torrent.key, number as u32)).collect();
        self.live = Set::first(torrents.len());
        self.torrents = torrents;
        self.standings = standings;
    }
}

fn fits(torrent: &Torrent, query: &SearchQuery) -> bool {
    query.min_size.is_none_or(|min| torrent.size >= min) && query.max_size.is_none_or(|max| torrent.size <= max)
}

fn type_word(file_type: &str) -> String {
    format!("{TYPE_MARK}{}", file_type.to_lowercase())
}

fn end_of(digest: u64) -> u16 {
    digest as u16
}

/// Two names share one by chance once in 2^64, and then a hit ranks too high.
fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod queries;
#[cfg(test)]
mod tests {
    use super::queries::NAMES;
    use super::*;

    fn number(n: usize) -> InfoHash {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
        InfoHash::new(bytes)
    }

    fn document<T>(n: usize, name: &str, path: &str, size: u64, take: impl FnOnce(Document<'_>) -> T) -> T {
        let types = BTreeSet::from([Cow::from(split_extension(name).1)]);
        let paths = &mut std::iter::once(Cow::from(path));
        take(Document { key: number(n), name, paths, types: &types, size })
    }

    fn enter(index: &mut Index, n: usize, name: &str, path: &str, size: u64) {
        index.insert(document(n, name, path, size, Prepared::new));
    }

    /// The `n`th of [`NAMES`].
    pub(super) fn named<T>(n: usize, take: impl FnOnce(Document<'_>) -> T) -> T {
        let (name, path, _) = NAMES[n];
        document(n, name, path, 1_000 * n as u64, take)
    }

    pub(super) fn prepared(n: usize) -> Prepared {
        named(n, Prepared::new)
    }

    pub(super) fn catalogue() -> Index {
        let mut index = Index::default();
        for (n, (_, _, seeders)) in NAMES.iter().enumerate() {
            index.insert(prepared(n));
            index.set_seeders(&number(n), *seeders);
        }
        index
    }

    pub(super) fn names(found: &Found) -> Vec<&'static str> {
        let place = |key: &InfoHash| (0..NAMES.len()).find(|n| number(*n) == *key).unwrap();
        found.hits.iter().map(|(key, _)| NAMES[place(key)].0).collect()
    }

    #[test]
    fn filters_and_pages() {
        let index = catalogue();
        let all = SearchQuery { limit: 3, ..SearchQuery::words("") };
        let newest = index.search(&all).unwrap();
        assert_eq!(
            (newest.total, names(&newest)),
            (23, vec!["lake poem (draft).txt", "Lakeside Poem.txt", "Lake Poem.txt"])
        );
        let rest = index.search(&SearchQuery { offset: 22, ..all.clone() }).unwrap();
        assert_eq!((rest.total, names(&rest)), (23, vec!["got5.mp4"]));
        let of_type = SearchQuery { file_type: Some("PDF".into()), ..all.clone() };
        assert_eq!(index.search(&of_type).unwrap().total, 4);
        let no_type = SearchQuery { file_type: Some("-".into()), ..all.clone() };
        assert_eq!(names(&index.search(&no_type).unwrap()), ["???", "got5"]);
        let sized = SearchQuery { min_size: Some(2_000), max_size: Some(3_000), ..all.clone() };
        assert_eq!(
            names(&index.search(&sized).unwrap()),
            ["Game of Thrones S01E03.mkv", "Game.of.Thrones.S01E02.1080p.mkv"]
        );
        let second = SearchQuery { offset: 1, limit: 1, ..SearchQuery::words("linux") };
        let second = index.search(&second).unwrap();
        assert_eq!((second.total, names(&second)), (2, vec!["Linux Kernel Development.pdf"]));
        let past = index.search(&SearchQuery { offset: u32::MAX, ..SearchQuery::words("linux") }).unwrap();
        assert_eq!((past.total, past.hits.len()), (2, 0));
        assert_eq!(index.search(&SearchQuery::words("a ".repeat(33))), Err(TooManyWords));
    }

    #[test]
    fn the_withdrawn_are_gone_and_swept_out_in_the_end() {
        let mut index = catalogue();
        index.remove(&number(1));
        assert_eq!(names(&index.search(&SearchQuery::words("got5")).unwrap()), ["got5.mp4"]);
        for n in 100..100 + COMPACT_FROM + 200 {
            enter(&mut index, n, &format!("temporary {n}"), "", 1);
            index.remove(&number(n));
        }
        assert!(index.torrents.len() < COMPACT_FROM);
        assert_eq!(index.search(&SearchQuery::words("temporary")).unwrap().total, 0);
        assert_eq!(names(&index.search(&SearchQuery::words("linux")).unwrap()).len(), 2);
        assert_eq!(index.len(), NAMES.len() - 1);
        enter(&mut index, 1, "got5", "", 1);
        assert_eq!(names(&index.search(&SearchQuery::words("got5")).unwrap()), ["got5", "got5.mp4"]);
    }
}
