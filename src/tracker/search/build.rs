//! An index from all that is known, at a start: parts of it are built on all cores, words found by hash, and put in order
//! once. Entering one torrent after the other takes several times as long.

use std::collections::HashMap;

use super::word::Word;
use super::words::{MAX_WORDS, Words};
use super::{BuildKeyedHasher, Document, Index, Postings, Set, Standing, Torrent};

/// Words of a torrent: all of most.
const LOOKED_UP_AT_ONCE: usize = 64;

/// A part of an index to be: torrents that stand one after the other, oldest first.
#[derive(Default)]
pub struct Builder {
    torrents: Vec<Torrent>,
    vocabulary: Vocabulary,
    /// The words of all torrents, the first torrent's first, each of them once.
    words: Vec<WordNumber>,
    /// How many of them are of each torrent.
    counts: Vec<u32>,
    /// Room for words to come.
    waiting: Vec<Word>,
}

/// In the order in which words came first: so those that stand in one torrent alone are counted and listed side by side.
type WordNumber = u32;

/// Words by number. What is looked up for each word of each torrent lies close together: a start waits for little else
/// than memory.
#[derive(Default)]
struct Vocabulary {
    /// Most words: no text is compared.
    short: HashMap<u64, WordNumber, BuildKeyedHasher>,
    long: HashMap<Word, WordNumber>,
    uses: Vec<Uses>,
}

struct Uses {
    torrents: u32,
    last: u32,
}

impl Vocabulary {
    /// Its number, unless this torrent has it already.
    fn enter(&mut self, word: Word, torrent: u32) -> Option<WordNumber> {
        let next = self.uses.len() as WordNumber;
        let number = match word.short() {
            Some(short) => *self.short.entry(short).or_insert(next),
            None => *self.long.entry(word).or_insert(next),
        };
        match self.uses.get_mut(number as usize) {
            Some(uses) if uses.last == torrent => return None,
            Some(uses) => *uses = Uses { torrents: uses.torrents + 1, last: torrent },
            None => self.uses.push(Uses { torrents: 1, last: torrent }),
        }
        Some(number)
    }
}

/// A torrent about to be entered.
struct Entering<'a> {
    number: u32,
    vocabulary: &'a mut Vocabulary,
    words: &'a mut Vec<WordNumber>,
    /// Different ones that were looked up.
    came: u32,
    /// Looked up together: then the memory of several is waited for at once.
    waiting: &'a mut Vec<Word>,
}

impl Entering<'_> {
    fn look_up(&mut self) {
        for word in self.waiting.drain(..) {
            if let Some(number) = self.vocabulary.enter(word, self.number) {
                self.words.push(number);
                self.came += 1;
            }
        }
    }
}

impl Words for Entering<'_> {
    fn push(&mut self, word: &str) {
        self.waiting.push(Word::new(word));
        if self.waiting.len() == LOOKED_UP_AT_ONCE {
            self.look_up();
        }
    }

    fn is_full(&mut self) -> bool {
        self.came as usize >= MAX_WORDS
    }
}

impl Builder {
    /// For about so many torrents, of which most bring a word of their own.
    pub fn with_capacity(torrents: usize) -> Builder {
        let short = HashMap::with_capacity_and_hasher(torrents, BuildKeyedHasher);
        let vocabulary = Vocabulary { short, ..Vocabulary::default() };
        let (torrents, counts) = (Vec::with_capacity(torrents), Vec::with_capacity(torrents));
        Builder { torrents, counts, vocabulary, ..Builder::default() }
    }

    /// The newest so far, which was not there before.
    pub fn push(&mut self, document: Document<'_>) {
        let Ok(number) = u32::try_from(self.torrents.len()) else { return };
        let Builder { torrents, vocabulary, words, counts, waiting } = self;
        let mut entering = Entering { number, vocabulary, words, came: 0, waiting };
        torrents.push(document.tell(&mut entering));
        entering.look_up();
        counts.push(entering.came);
    }

    /// The slow end of it, still without the other parts.
    pub fn finish(self) -> Part {
        let Builder { torrents, vocabulary: Vocabulary { short, long, uses }, words, counts, .. } = self;
        let mut postings: Vec<Postings> = Vec::with_capacity(uses.len());
        let mut rest = words.iter();
        for (torrent, count) in (0..).zip(counts) {
            for number in rest.by_ref().take(count as usize) {
                match postings.get_mut(*number as usize) {
                    Some(postings) => postings.push(torrent),
                    None => postings.push(Postings::first(torrent, uses[*number as usize].torrents as usize)),
                }
            }
        }
        let short = short.into_iter().map(|(short, number)| (Word::of_short(short), number));
        let mut in_order: Vec<(Word, WordNumber)> = short.chain(long).collect();
        in_order.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut take = |number: WordNumber| std::mem::replace(&mut postings[number as usize], Postings::One(0));
        Part { torrents, words: in_order.into_iter().map(|(word, number)| (word, take(number))).collect() }
    }
}

/// A part with its words in order.
pub struct Part {
    torrents: Vec<Torrent>,
    words: Vec<(Word, Postings)>,
}

impl Index {
    /// The whole of the parts, the oldest first.
    pub fn of_parts(parts: Vec<Part>) -> Index {
        let mut index = Index::default();
        let mut words: Vec<(Word, Postings)> = Vec::new();
        for part in parts {
            let Ok(first) = u32::try_from(index.torrents.len()) else { break };
            let before = words.len();
            index.torrents.extend(part.torrents);
            words.extend(part.words);
            words[before..].iter_mut().for_each(|(_, postings)| postings.shift(first));
        }
        // Stable, and fast on what is sorted in parts: of equal words the older torrents come first.
        words.sort_by(|(one, _), (other, _)| one.cmp(other));
        words.dedup_by(|(word, later), (other, earlier)| {
            let same = word == other;
            if same {
                earlier.append(later);
            }
            same
        });
        words.iter_mut().for_each(|(_, postings)| postings.pack());
        index.letters = words.iter().flat_map(|(word, _)| word.beyond_ascii()).collect();
        index.dictionary = words.into_iter().collect();
        index.standings = index.torrents.iter().map(|torrent| Standing::new(torrent.names)).collect();
        index.numbers = index.torrents.iter().zip(0..).map(|(torrent, number)| (torrent.key, number)).collect();
        index.live = Set::first(index.torrents.len());
        index
    }
}

#[cfg(test)]
mod tests {
    use super::super::queries::NAMES;
    use super::super::tests::{catalogue, named, prepared};
    use super::*;
    use crate::wire::catalogue::SearchQuery;

    #[test]
    fn parts_make_the_same_index_as_one_torrent_after_the_other() {
        let entered = {
            let mut index = catalogue();
            (0..NAMES.len()).for_each(|n| index.set_seeders(&prepared(n).key(), 0));
            index
        };
        for parts in [1, 2, 5, NAMES.len()] {
            let numbers: Vec<usize> = (0..NAMES.len()).collect();
            let parts = numbers.chunks(NAMES.len().div_ceil(parts)).map(|numbers| {
                let mut builder = Builder::default();
                numbers.iter().for_each(|n| named(*n, |document| builder.push(document)));
                builder.finish()
            });
            let mut built = Index::of_parts(parts.collect());
            for text in ["", "got5", "thrones", "s01", "lak", "kermel", "ежик", "東京", "москга", "poem", "xyzzy"]
            {
                let query = SearchQuery::words(text);
                assert_eq!(built.search(&query), entered.search(&query), "{text}");
            }
            // And it goes on growing.
            built.remove(&prepared(1).key());
            assert_eq!(built.search(&SearchQuery::words("got5")).unwrap().total, 1);
            built.insert(prepared(1));
            assert_eq!(built.search(&SearchQuery::words("got5")).unwrap().total, 2);
        }
        assert!(Index::of_parts(Vec::new()).is_empty());
    }
}
