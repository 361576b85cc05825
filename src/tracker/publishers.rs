//! Who publishes: each key once, by number, with how many torrents it publishes now.

use std::collections::HashMap;

use super::auth::Publisher;
use super::keyed_hash::BuildKeyedHasher;

/// What a torrent remembers of its publishers: 4 bytes in place of 32 for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublisherNumber(u32);

/// The publishers of all torrents.
#[derive(Default)]
pub struct Publishers {
    numbers: HashMap<Publisher, PublisherNumber, BuildKeyedHasher>,
    rows: Vec<Row>,
    /// Numbers of those that publish nothing any more.
    free: Vec<PublisherNumber>,
}

struct Row {
    key: Publisher,
    torrents: u32,
}

impl Publishers {
    /// Its number, if it publishes anything.
    pub fn number(&self, key: &Publisher) -> Option<PublisherNumber> {
        self.numbers.get(key).copied()
    }

    /// Torrents that it publishes now.
    pub fn torrents(&self, key: &Publisher) -> usize {
        self.number(key).and_then(|number| self.rows.get(number.0 as usize)).map_or(0, |row| row.torrents as usize)
    }

    /// It publishes one more.
    pub fn add(&mut self, key: &Publisher) -> PublisherNumber {
        let (rows, free) = (&mut self.rows, &mut self.free);
        let number = *self.numbers.entry(*key).or_insert_with(|| {
            let row = Row { key: *key, torrents: 0 };
            if let Some(number) = free.pop() {
                rows[number.0 as usize] = row;
                return number;
            }
            rows.push(row);
            PublisherNumber(rows.len() as u32 - 1)
        });
        self.rows[number.0 as usize].torrents += 1;
        number
    }

    /// It publishes one less; its key.
    pub fn remove(&mut self, number: PublisherNumber) -> Publisher {
        let row = &mut self.rows[number.0 as usize];
        row.torrents -= 1;
        let key = row.key;
        if row.torrents == 0 {
            self.numbers.remove(&key);
            self.free.push(number);
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_counted_and_forgotten() {
        let mut publishers = Publishers::default();
        let (one, two) = ([1; 32], [2; 32]);
        let number = publishers.add(&one);
        assert_eq!(publishers.add(&one), number);
        assert_eq!((publishers.torrents(&one), publishers.torrents(&two)), (2, 0));
        assert_eq!(publishers.remove(number), one);
        assert_eq!(publishers.number(&one), Some(number));
        publishers.remove(number);
        assert_eq!((publishers.number(&one), publishers.torrents(&one)), (None, 0));
        assert_eq!(publishers.add(&two), number, "its place is taken again");
        assert_eq!((publishers.torrents(&two), publishers.torrents(&one)), (1, 0));
    }
}
