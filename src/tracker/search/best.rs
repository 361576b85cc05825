//! The page that was asked for out of everything that matches, without sorting all of it.

use super::Rank;

/// Better first: more seeders, and then the newer; both inverted.
type Candidate = (Rank, u32, u32);

/// Candidates are thinned out when there are so many beyond those wanted.
const ROOM: usize = 1_024;

pub struct Best {
    offset: usize,
    wanted: usize,
    total: u64,
    candidates: Vec<Candidate>,
    /// Of those that may still come nothing worse is needed.
    bar: Option<Candidate>,
}

impl Best {
    pub fn new(offset: u32, limit: u32) -> Best {
        let wanted = (offset as usize).saturating_add(limit as usize);
        Best { offset: offset as usize, wanted, total: 0, candidates: Vec::new(), bar: None }
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    pub fn offer(&mut self, rank: Rank, seeders: u32, number: u32) {
        self.total += 1;
        let candidate = (rank, !seeders, !number);
        if self.bar.is_some_and(|bar| candidate > bar) {
            return;
        }
        self.candidates.push(candidate);
        if self.candidates.len() >= self.wanted.saturating_add(ROOM) {
            let (_, bar, _) = self.candidates.select_nth_unstable(self.wanted);
            self.bar = Some(*bar);
            self.candidates.truncate(self.wanted);
        }
    }

    /// How many were offered; rank and number of those on the page.
    pub fn page(mut self) -> (u64, impl Iterator<Item = (Rank, u32)>) {
        self.candidates.sort_unstable();
        let page = self.candidates.into_iter().take(self.wanted).skip(self.offset);
        (self.total, page.map(|(rank, _, number)| (rank, !number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn a_page_is_what_sorting_everything_would_give() {
        let mut rng = SmallRng::seed_from_u64(3);
        for (offset, limit) in [(0, 50), (700, 50), (0, 0), (49_990, 50), (u32::MAX, 7)] {
            let mut best = Best::new(offset, limit);
            let mut all = Vec::new();
            for number in 0..50_000 {
                let rank = if rng.random_ratio(1, 100) { Rank::Stem } else { Rank::Words };
                let seeders = rng.random_range(0..200);
                best.offer(rank, seeders, number);
                all.push((rank, !seeders, !number));
            }
            all.sort_unstable();
            let page: Vec<(Rank, u32)> = all.iter().map(|(rank, _, number)| (*rank, !number)).collect();
            let page: Vec<_> = page.into_iter().skip(offset as usize).take(limit as usize).collect();
            let (total, found) = best.page();
            assert_eq!((total, found.collect::<Vec<_>>() == page), (50_000, true), "{offset} {limit}");
        }
    }
}
