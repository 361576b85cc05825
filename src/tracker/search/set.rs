//! Sets of torrent numbers: one bit each. A million are 125 KB, and sets are joined 64 torrents at a time.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    words: Vec<u64>,
}

impl Set {
    /// The numbers below `n`.
    pub fn first(n: usize) -> Set {
        let mut set = Set::default();
        (0..n as u32).for_each(|number| set.insert(number));
        set
    }

    pub fn insert(&mut self, number: u32) {
        let (word, bit) = place(number);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
    }

    pub fn remove(&mut self, number: u32) {
        let (word, bit) = place(number);
        if let Some(word) = self.words.get_mut(word) {
            *word &= !bit;
        }
    }

    pub fn contains(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// `numbers` ascend, so that the last is the largest.
    pub fn extend(&mut self, numbers: &[u32]) {
        let Some(&last) = numbers.last() else { return };
        let words = place(last).0 + 1;
        if words > self.words.len() {
            self.words.resize(words, 0);
        }
        for &number in numbers {
            let (word, bit) = place(number);
            self.words[word] |= bit;
        }
    }

    pub fn unite(&mut self, other: &Set) {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    pub fn intersect(&mut self, other: &Set) {
        self.words.truncate(other.words.len());
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= other;
        }
    }

    /// With the union of `a` and `b`.
    pub fn intersect_either(&mut self, a: &Set, b: &Set) {
        self.words.truncate(a.words.len().max(b.words.len()));
        for (at, word) in self.words.iter_mut().enumerate() {
            *word &= a.words.get(at).copied().unwrap_or(0) | b.words.get(at).copied().unwrap_or(0);
        }
    }

    pub fn subtract(&mut self, other: &Set) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(at, word)| bits(*word).map(move |bit| at as u32 * 64 + bit))
    }

    /// Descending.
    pub fn iter_back(&self) -> impl Iterator<Item = u32> {
        let words = self.words.iter().enumerate().rev();
        words.flat_map(|(at, word)| bits(word.reverse_bits()).map(move |bit| at as u32 * 64 + 63 - bit))
    }
}

fn place(number: u32) -> (usize, u64) {
    ((number / 64) as usize, 1 << (number % 64))
}

fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(numbers: &BTreeSet<u32>) -> Set {
        let mut set = Set::default();
        set.extend(&numbers.iter().copied().collect::<Vec<_>>());
        set
    }

    proptest! {
        #[test]
        fn sets_are_sets(
            a in prop::collection::btree_set(0_u32..400, 0..60),
            b in prop::collection::btree_set(0_u32..300, 0..60),
            c in prop::collection::btree_set(0_u32..500, 0..60),
        ) {
            let list = |set: &Set| set.iter().collect::<BTreeSet<u32>>();
            let mut both = set(&a);
            both.intersect(&set(&b));
            prop_assert_eq!(list(&both), &a & &b);
            let mut either = set(&a);
            either.unite(&set(&b));
            prop_assert_eq!(list(&either), &a | &b);
            let mut rest = set(&a);
            rest.subtract(&set(&b));
            prop_assert_eq!(list(&rest), &a - &b);
            let mut within = set(&c);
            within.intersect_either(&set(&a), &set(&b));
            prop_assert_eq!(list(&within), &c & &(&a | &b));
            let back: Vec<u32> = set(&a).iter_back().collect();
            prop_assert_eq!(back, a.iter().rev().copied().collect::<Vec<_>>());
            prop_assert_eq!(set(&a).count(), a.len() as u64);
        }
    }
}
