//! The torrents in which a word occurs.

use std::borrow::Cow;

use super::set::Set;

/// Looking one up in a list costs as much as taking so many of its numbers.
const LOOKUP_COST: usize = 32;
/// A number takes 32 bits in a list: a word of more than every 32nd torrent is smaller as a set, and joined to others in a
/// hundredth of the time.
const BITS_PER_NUMBER: usize = 32;
/// Below, a list is small enough.
const DENSE_FROM: usize = 4_096;

/// The only torrents that still matter, ascending, when they are few.
pub type Within<'a> = Option<&'a [u32]>;

/// Numbers of torrents, ascending. Most words occur once.
pub enum Postings {
    One(u32),
    Many(Vec<u32>),
    /// And how many they are.
    Dense(Set, usize),
}

impl Postings {
    pub fn len(&self) -> usize {
        match self {
            Postings::One(_) => 1,
            Postings::Many(numbers) => numbers.len(),
            Postings::Dense(_, count) => *count,
        }
    }

    fn numbers(&self) -> Cow<'_, [u32]> {
        match self {
            Postings::One(number) => std::slice::from_ref(number).into(),
            Postings::Many(numbers) => numbers.into(),
            Postings::Dense(set, _) => set.iter().collect::<Vec<u32>>().into(),
        }
    }

    /// Of one number, with room for as many as will come.
    pub fn first(number: u32, will_be: usize) -> Postings {
        if will_be <= 1 {
            return Postings::One(number);
        }
        let mut numbers = Vec::with_capacity(will_be);
        numbers.push(number);
        Postings::Many(numbers)
    }

    /// A number greater than all before.
    pub fn push(&mut self, number: u32) {
        match self {
            Postings::One(first) => *self = Postings::Many(vec![*first, number]),
            Postings::Many(numbers) => numbers.push(number),
            Postings::Dense(set, count) => {
                set.insert(number);
                *count += 1;
            }
        }
    }

    /// Takes the smaller form.
    pub fn pack(&mut self) {
        if let Postings::Many(numbers) = self
            && let (count @ DENSE_FROM.., Some(last)) = (numbers.len(), numbers.last())
            && count * BITS_PER_NUMBER > *last as usize
        {
            let mut set = Set::default();
            set.extend(numbers);
            *self = Postings::Dense(set, count);
        }
    }

    /// Those of them that matter.
    pub fn add_to(&self, set: &mut Set, within: Within<'_>) {
        match (self, within) {
            (Postings::One(number), _) => set.insert(*number),
            (Postings::Many(numbers), Some(few)) if few.len() * LOOKUP_COST < numbers.len() => {
                few.iter()
                    .filter(|number| numbers.binary_search(number).is_ok())
                    .for_each(|number| set.insert(*number));
            }
            (Postings::Many(numbers), _) => set.extend(numbers),
            (Postings::Dense(all, _), Some(few)) => {
                few.iter().filter(|number| all.contains(**number)).for_each(|number| set.insert(*number));
            }
            (Postings::Dense(all, _), None) => set.unite(all),
        }
    }

    /// Adds as much to each number.
    pub fn shift(&mut self, by: u32) {
        match self {
            Postings::One(number) => *number += by,
            Postings::Many(numbers) => numbers.iter_mut().for_each(|number| *number += by),
            Postings::Dense(set, _) => *self = Postings::Many(set.iter().map(|number| number + by).collect()),
        }
    }

    /// Numbers greater than all before.
    pub fn append(&mut self, others: &Postings) {
        let mut all = match &mut *self {
            Postings::Many(numbers) => std::mem::take(numbers),
            other => other.numbers().into_owned(),
        };
        all.reserve_exact(others.len());
        all.extend_from_slice(&others.numbers());
        *self = Postings::Many(all);
    }

    /// Numbers anew, in the same order; `None` when nobody is left.
    pub fn renumbered(&self, new: impl Fn(u32) -> Option<u32>) -> Option<Postings> {
        match self.numbers().iter().filter_map(|number| new(*number)).collect::<Vec<u32>>() {
            numbers if numbers.len() > 1 => {
                let mut postings = Postings::Many(numbers);
                postings.pack();
                Some(postings)
            }
            numbers => numbers.first().copied().map(Postings::One),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever form they have, they say the same.
    #[test]
    fn a_list_and_a_set_are_the_same_postings() {
        let numbers: Vec<u32> = (0..20_000).filter(|number| number % 3 != 0).collect();
        let postings = |pack: bool| {
            let mut postings = Postings::One(numbers[0]);
            for number in &numbers[1..] {
                postings.push(*number);
                if pack {
                    postings.pack();
                }
            }
            postings
        };
        let (list, set) = (postings(false), postings(true));
        assert!(matches!((&list, &set), (Postings::Many(_), Postings::Dense(..))));
        let few: Vec<u32> = (10_000..10_010).collect();
        for within in [None, Some(&few[..])] {
            let added = [&list, &set].map(|postings| {
                let mut added = Set::default();
                postings.add_to(&mut added, within);
                added.iter().collect::<Vec<u32>>()
            });
            assert_eq!(added[0], added[1]);
            assert_eq!(added[0].len(), if within.is_none() { numbers.len() } else { 7 });
        }
        assert_eq!((list.len(), set.len()), (numbers.len(), numbers.len()));
        let halved = |postings: &Postings| {
            let halved = postings.renumbered(|number| (number % 2 == 0).then_some(number / 2)).unwrap();
            (halved.numbers().into_owned(), matches!(halved, Postings::Dense(..)))
        };
        assert_eq!(halved(&list), halved(&set));
        assert!(halved(&set).1);
        let changed = |mut postings: Postings| {
            postings.shift(7);
            postings.append(&Postings::One(30_000));
            postings.numbers().into_owned()
        };
        assert_eq!(changed(list), changed(set));
    }
}
