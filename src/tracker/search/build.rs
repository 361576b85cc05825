//! An index from all that is known, at a start: parts of it are built on all cores, words found by hash, and put in order
//! once. Entering one torrent after the other takes several times as long.

use std::collections::HashMap;

use super::{Index, Postings, Prepared, Set, Standing, Torrent};

/// A part of an index to be: torrents that stand one after the other, oldest first.
#[derive(Default)]
pub struct Builder {
    torrents: Vec<Torrent>,
    words: HashMap<Box<str>, Postings>,
}

impl Builder {
    /// The newest so far, which was not there before.
    pub fn push(&mut self, prepared: Prepared) {
        let Ok(number) = u32::try_from(self.torrents.len()) else { return };
        let Prepared { key, size, words, names } = prepared;
        for word in words.iter() {
            match self.words.get_mut(word) {
                Some(postings) => postings.push(number),
                None => {
                    self.words.insert(word.into(), Postings::One(number));
                }
            }
        }
        self.torrents.push(Torrent { key, size, names });
    }

    /// The slow end of it, still without the other parts.
    pub fn finish(self) -> Part {
        let mut words: Vec<(Box<str>, Postings)> = self.words.into_iter().collect();
        words.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Part { torrents: self.torrents, words }
    }
}

/// A part with its words in order.
pub struct Part {
    torrents: Vec<Torrent>,
    words: Vec<(Box<str>, Postings)>,
}

impl Index {
    /// The whole of the parts, the oldest first.
    pub fn of_parts(parts: Vec<Part>) -> Index {
        let mut index = Index::default();
        let mut words: Vec<(Box<str>, Postings)> = Vec::new();
        for part in parts {
            let Ok(first) = u32::try_from(index.torrents.len()) else { break };
            index.torrents.extend(part.torrents);
            words.extend(part.words.into_iter().map(|(word, postings)| (word, postings.moved(first))));
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
        index.letters = words.iter().flat_map(|(word, _)| word.chars().filter(|char| !char.is_ascii())).collect();
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
    use super::super::tests::{catalogue, prepared};
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
                numbers.iter().for_each(|n| builder.push(prepared(*n)));
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
