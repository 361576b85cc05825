//! Which pieces the peers have, and the order in which to begin them: rarest first, ties at random.
//!
//! The pieces that may be begun lie in one array, in buckets of equal availability; each piece remembers its place. A
//! HAVE moves one piece across one boundary: O(1). Peers that have everything are only counted, since they favour no
//! piece.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::wire::bitfield::Bitfield;
use crate::wire::layout::{Layout, PieceIndex};

const ABSENT: u32 = u32::MAX;
/// Of the order, so many pieces at most are looked at for one that a peer has: a torrent may have a million of them, and
/// a peer but a few. Beyond that, its own pieces are looked through, eight at a time ...
const LOOKED_AT: usize = 1_024;
/// ... and the rarest of so many is taken.
const SAMPLED: usize = 32;

#[derive(Clone, Debug, Default)]
pub struct Rarity {
    /// By piece: how many peers have it, those that have all not counted.
    availability: Vec<u16>,
    seeds: u32,
    /// The pieces that may be begun, rarest first.
    order: Vec<PieceIndex>,
    /// By piece: its place in `order`, or `ABSENT`.
    place: Vec<u32>,
    /// By availability: the end of its bucket in `order`.
    bucket_end: Vec<u32>,
    /// The pieces in `order`.
    fresh: Bitfield,
}

impl Rarity {
    /// Nobody has anything yet; every piece outside `have` may be begun.
    pub fn new(layout: Layout, have: &Bitfield, rng: &mut impl Rng) -> Rarity {
        let mut order: Vec<PieceIndex> = have.iter_missing(layout).collect();
        order.shuffle(rng);
        let mut place = vec![ABSENT; layout.piece_count() as usize];
        for (at, piece) in order.iter().enumerate() {
            place[piece.as_usize()] = at as u32;
        }
        let bucket_end = vec![order.len() as u32];
        let mut fresh = Bitfield::empty(layout.piece_count());
        for &piece in &order {
            fresh.set(piece);
        }
        Rarity { availability: vec![0; layout.piece_count() as usize], seeds: 0, order, place, bucket_end, fresh }
    }

    /// How many peers have this piece.
    pub fn availability(&self, piece: PieceIndex) -> u32 {
        self.seeds + self.availability.get(piece.as_usize()).map_or(0, |&count| u32::from(count))
    }

    /// Pieces that may be begun.
    pub fn fresh_count(&self) -> usize {
        self.order.len()
    }

    pub fn is_fresh(&self, piece: PieceIndex) -> bool {
        self.place.get(piece.as_usize()).is_some_and(|&at| at != ABSENT)
    }

    pub fn add_seed(&mut self) {
        self.seeds += 1;
    }

    pub fn remove_seed(&mut self) {
        self.seeds -= 1;
    }

    /// One more peer has this piece.
    pub fn increment(&mut self, piece: PieceIndex, rng: &mut impl Rng) {
        let Some(count) = self.availability.get_mut(piece.as_usize()) else { return };
        let from = usize::from(*count);
        *count += 1;
        if !self.is_fresh(piece) {
            return;
        }
        self.grow_buckets(from + 2);
        let last = self.bucket_end[from] as usize - 1;
        self.swap(self.place[piece.as_usize()] as usize, last);
        self.bucket_end[from] -= 1;
        self.scatter(piece, from + 1, rng);
    }

    /// One peer fewer has this piece.
    pub fn decrement(&mut self, piece: PieceIndex, rng: &mut impl Rng) {
        let Some(count) = self.availability.get_mut(piece.as_usize()) else { return };
        let from = usize::from(*count);
        *count -= 1;
        if !self.is_fresh(piece) {
            return;
        }
        let first = self.bucket_end[from - 1] as usize;
        self.swap(self.place[piece.as_usize()] as usize, first);
        self.bucket_end[from - 1] += 1;
        self.scatter(piece, from - 1, rng);
    }

    /// The piece may be begun (again).
    pub fn insert(&mut self, piece: PieceIndex, rng: &mut impl Rng) {
        if self.is_fresh(piece) {
            return;
        }
        let bucket = usize::from(self.availability[piece.as_usize()]);
        self.grow_buckets(bucket + 1);
        let mut at = self.order.len();
        self.order.push(piece);
        self.place[piece.as_usize()] = at as u32;
        self.fresh.set(piece);
        for higher in (bucket + 1..self.bucket_end.len()).rev() {
            let first = self.bucket_end[higher - 1] as usize;
            self.swap(at, first);
            self.bucket_end[higher] += 1;
            at = first;
        }
        self.bucket_end[bucket] += 1;
        self.scatter(piece, bucket, rng);
    }

    /// The piece was begun, or is had.
    pub fn remove(&mut self, piece: PieceIndex) {
        if !self.is_fresh(piece) {
            return;
        }
        let bucket = usize::from(self.availability[piece.as_usize()]);
        let mut hole = self.place[piece.as_usize()] as usize;
        for end in bucket..self.bucket_end.len() {
            self.bucket_end[end] -= 1;
            let last = self.bucket_end[end] as usize;
            self.swap(hole, last);
            hole = last;
        }
        self.order.pop();
        self.place[piece.as_usize()] = ABSENT;
        self.fresh.clear(piece);
    }

    /// The rarest piece that `peer` has; of a peer that has none of the rarest many, a rare one.
    pub fn rarest(&self, peer: &Bitfield) -> Option<PieceIndex> {
        let candidates = self.candidates(peer);
        let found = candidates.iter().take(LOOKED_AT).copied().find(|&piece| peer.get(piece));
        // The order is random: so is where to begin.
        found.or_else(|| self.sample(peer, candidates.get(LOOKED_AT)?.as_usize()))
    }

    /// Any piece that `peer` has, wherever it stands in the order.
    pub fn random(&self, peer: &Bitfield, rng: &mut impl Rng) -> Option<PieceIndex> {
        let candidates = self.candidates(peer);
        if candidates.is_empty() {
            return None;
        }
        let (before, after) = candidates.split_at(rng.random_range(0..candidates.len()));
        let found = after.iter().chain(before).take(LOOKED_AT).copied().find(|&piece| peer.get(piece));
        found.or_else(|| self.sample(peer, after.first()?.as_usize()))
    }

    /// The rarest of the first few pieces that may be begun and that `peer` has, from the `start`th piece on.
    fn sample(&self, peer: &Bitfield, start: usize) -> Option<PieceIndex> {
        let both = peer.as_bytes().iter().zip(self.fresh.as_bytes()).map(|(theirs, fresh)| theirs & fresh);
        let (before, from) = (both.clone().enumerate().take(start / 8), both.enumerate().skip(start / 8));
        let filled = from.chain(before).filter(|(_, bits)| *bits != 0);
        let bits = filled
            .flat_map(|(at, bits)| (0..8).filter(move |bit| bits & (0x80 >> bit) != 0).map(move |bit| at * 8 + bit));
        let place = |piece: usize| self.place.get(piece).copied().unwrap_or(ABSENT);
        let first = bits.take(SAMPLED).map(place).min()?;
        self.order.get(first as usize).copied()
    }

    /// What such a peer may have: of one that has not all, nothing lies in the bucket of pieces that only seeds have.
    fn candidates(&self, peer: &Bitfield) -> &[PieceIndex] {
        let start = if peer.is_full() { 0 } else { self.bucket_end.first().copied().unwrap_or(0) };
        &self.order[start as usize..]
    }

    fn grow_buckets(&mut self, len: usize) {
        if self.bucket_end.len() < len {
            self.bucket_end.resize(len, self.order.len() as u32);
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.order.swap(a, b);
        self.place[self.order[a].as_usize()] = a as u32;
        self.place[self.order[b].as_usize()] = b as u32;
    }

    /// Moves the piece to a random place of its bucket, so that ties are broken by chance and not by arrival.
    fn scatter(&mut self, piece: PieceIndex, bucket: usize, rng: &mut impl Rng) {
        let start = if bucket == 0 { 0 } else { self.bucket_end[bucket - 1] };
        let to = rng.random_range(start..self.bucket_end[bucket]);
        self.swap(self.place[piece.as_usize()] as usize, to as usize);
    }

    #[cfg(test)]
    pub fn check(&self) {
        let mut start = 0;
        for (bucket, &end) in self.bucket_end.iter().enumerate() {
            for piece in &self.order[start as usize..end as usize] {
                assert_eq!(usize::from(self.availability[piece.as_usize()]), bucket, "{piece:?} in the wrong bucket");
            }
            start = end;
        }
        assert_eq!(start as usize, self.order.len());
        for (at, piece) in self.order.iter().enumerate() {
            assert_eq!(self.place[piece.as_usize()] as usize, at);
        }
        assert_eq!(self.place.iter().filter(|&&at| at != ABSENT).count(), self.order.len());
        assert_eq!(self.fresh.count() as usize, self.order.len());
        assert!(self.order.iter().all(|&piece| self.fresh.get(piece)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn layout(pieces: u32) -> Layout {
        Layout::new(u64::from(pieces) * 16_384, 16_384).unwrap()
    }

    #[test]
    fn the_rarest_that_the_peer_has_comes_first() {
        let layout = layout(4);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut rarity = Rarity::new(layout, &Bitfield::empty(4), &mut rng);
        for (piece, peers) in [(0, 3), (1, 1), (2, 2), (3, 1)] {
            for _ in 0..peers {
                rarity.increment(layout.piece(piece).unwrap(), &mut rng);
            }
        }
        rarity.remove(layout.piece(1).unwrap());
        let pick = |bits: u8| rarity.rarest(&Bitfield::from_wire(&[bits], 4).unwrap()).map(PieceIndex::get);
        assert_eq!(pick(0b1111_0000), Some(3));
        assert_eq!(pick(0b1110_0000), Some(2));
        assert_eq!(pick(0b1100_0000), Some(0));
        assert_eq!(pick(0b0100_0000), None);
    }

    #[test]
    fn ties_fall_evenly() {
        let layout = layout(8);
        let mut first = [0u32; 8];
        for seed in 0..4_000 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut rarity = Rarity::new(layout, &Bitfield::empty(8), &mut rng);
            for piece in layout.pieces() {
                rarity.increment(piece, &mut rng);
            }
            first[rarity.rarest(&Bitfield::full(8)).unwrap().as_usize()] += 1;
        }
        assert!(first.iter().all(|n| (350..650).contains(n)), "{first:?}");
    }

    #[test]
    fn a_peer_with_few_of_very_many_pieces_is_not_searched_for_among_all() {
        let (pieces, layout) = (100_000, layout(100_000));
        let mut rng = SmallRng::seed_from_u64(1);
        let mut rarity = Rarity::new(layout, &Bitfield::empty(pieces), &mut rng);
        let mut peer = Bitfield::empty(pieces);
        // All pieces are about, each once; the peer has two of them, one of which is held twice.
        layout.pieces().for_each(|piece| rarity.increment(piece, &mut rng));
        let [rare, common] = [77_777, 3].map(|index| layout.piece(index).unwrap());
        rarity.increment(common, &mut rng);
        assert_eq!((rarity.rarest(&peer), rarity.random(&peer, &mut rng)), (None, None));
        peer.set(common);
        assert_eq!((rarity.rarest(&peer), rarity.random(&peer, &mut rng)), (Some(common), Some(common)));
        peer.set(rare);
        assert_eq!(rarity.rarest(&peer), Some(rare));
        rarity.remove(rare);
        assert_eq!(rarity.rarest(&peer), Some(common));
        rarity.remove(common);
        assert_eq!(rarity.rarest(&peer), None);
        rarity.check();
    }

    proptest! {
        #[test]
        fn the_order_holds_whatever_happens(seed: u64, steps in prop::collection::vec((0u8..4, 0u32..40), 0..300)) {
            let layout = layout(40);
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut rarity = Rarity::new(layout, &Bitfield::empty(40), &mut rng);
            let mut counts = [0u32; 40];
            for (step, index) in steps {
                let piece = layout.piece(index).unwrap();
                match step {
                    0 => { rarity.increment(piece, &mut rng); counts[index as usize] += 1; }
                    1 if counts[index as usize] > 0 => {
                        rarity.decrement(piece, &mut rng);
                        counts[index as usize] -= 1;
                    }
                    2 => rarity.insert(piece, &mut rng),
                    3 => rarity.remove(piece),
                    _ => {}
                }
                rarity.check();
                prop_assert_eq!(rarity.availability(piece), counts[index as usize]);
            }
        }
    }
}
