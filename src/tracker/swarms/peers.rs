//! The peers of one swarm and one address family: found by address, counted, drawn fairly.
//!
//! Leechers stand before seeders in one list, so that a draw for a seeder is a draw from a prefix and counting is free.

use std::collections::HashMap;
use std::hash::Hash;

use rand::Rng;

/// Below this many peers a scan of the list is as fast as a hash table, and most swarms are small.
const INDEX_FROM: usize = 24;
/// Peers in one answer at most: more are never dialled, and it keeps a reply within one datagram for IPv4.
pub const MAX_SAMPLE: usize = 200;
/// Slots of the draw's table: twice the largest sample, so that probing stays short.
const DRAW_SLOTS: usize = 512;

/// Where a peer listens: what it is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint<A> {
    pub ip: A,
    pub port: u16,
}

/// What is known of one peer. Times are seconds of the tracker's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Peer<A> {
    pub at: Endpoint<A>,
    pub last_s: u32,
    /// When the gap now running began: `completed` is an extra announce and does not end it.
    pub gap_from_s: u32,
    /// The last whole gap; 0 as long as there was none.
    pub gap_s: u16,
    pub lease_s: u16,
    /// Says whether an IPv4 and an IPv6 peer are one client. Never handed out, never trusted.
    pub id_tag: u32,
    pub seeder: bool,
}

impl<A> Peer<A> {
    pub fn due_s(&self) -> u32 {
        self.last_s.saturating_add(u32::from(self.lease_s))
    }
}

#[derive(Debug)]
pub struct Peers<A> {
    list: Vec<Peer<A>>,
    leechers: usize,
    #[expect(clippy::box_collection, reason = "there are millions of swarms, and most have no index")]
    index: Option<Box<HashMap<Endpoint<A>, u32>>>,
}

impl<A> Default for Peers<A> {
    fn default() -> Self {
        Peers { list: Vec::new(), leechers: 0, index: None }
    }
}

impl<A: Copy + Eq + Hash> Peers<A> {
    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn leechers(&self) -> usize {
        self.leechers
    }

    pub fn seeders(&self) -> usize {
        self.list.len() - self.leechers
    }

    pub fn iter(&self) -> impl Iterator<Item = &Peer<A>> {
        self.list.iter()
    }

    pub fn get(&self, at: Endpoint<A>) -> Option<&Peer<A>> {
        self.position(at).map(|place| &self.list[place])
    }

    /// Enters a peer, or replaces what was known of it.
    pub fn put(&mut self, peer: Peer<A>) {
        let place = match self.position(peer.at) {
            Some(place) => place,
            None => self.append(peer.at, peer),
        };
        self.list[place] = peer;
        // A seeder stands behind the leechers and the other way round: one swap across the border puts it right.
        if peer.seeder && place < self.leechers {
            self.leechers -= 1;
            self.swap(place, self.leechers);
        } else if !peer.seeder && place >= self.leechers {
            self.swap(place, self.leechers);
            self.leechers += 1;
        }
    }

    /// Whether it was there.
    pub fn remove(&mut self, at: Endpoint<A>) -> bool {
        let Some(mut place) = self.position(at) else { return false };
        if place < self.leechers {
            self.leechers -= 1;
            self.swap(place, self.leechers);
            place = self.leechers;
        }
        self.swap(place, self.list.len() - 1);
        self.list.pop();
        if let Some(index) = &mut self.index {
            index.remove(&at);
        }
        self.give_back_memory();
        true
    }

    /// Drops everybody who was silent for too long. The number dropped, and when the next one is due.
    pub fn expire(&mut self, now_s: u32) -> (usize, Option<u32>) {
        let before = self.list.len();
        let mut place = 0;
        while let Some(peer) = self.list.get(place) {
            if peer.due_s() <= now_s {
                let at = peer.at;
                self.remove(at);
            } else {
                place += 1;
            }
        }
        (before - self.list.len(), self.list.iter().map(Peer::due_s).min())
    }

    /// Calls `give` with a fair draw of at most `wanted` peers, without `asker`; leechers alone for a seeder.
    pub fn draw(
        &self,
        asker: Endpoint<A>,
        asker_seeds: bool,
        wanted: usize,
        rng: &mut impl Rng,
        mut give: impl FnMut(&Peer<A>),
    ) {
        let pool = if asker_seeds { self.leechers } else { self.list.len() };
        let own_place = self.position(asker).filter(|place| *place < pool);
        let others = pool - usize::from(own_place.is_some());
        let wanted = wanted.min(MAX_SAMPLE).min(others);
        let mut give_nth = |nth: usize| {
            // The asker's place is stepped over, so that every other one is equally likely.
            let place = nth + usize::from(own_place.is_some_and(|own| nth >= own));
            if let Some(peer) = self.list.get(place) {
                give(peer);
            }
        };
        if wanted == others {
            (0..others).for_each(give_nth);
        } else {
            draw_distinct(others, wanted, rng, &mut give_nth);
        }
    }

    fn position(&self, at: Endpoint<A>) -> Option<usize> {
        match &self.index {
            Some(index) => index.get(&at).map(|place| *place as usize),
            None => self.list.iter().position(|peer| peer.at == at),
        }
    }

    fn append(&mut self, at: Endpoint<A>, peer: Peer<A>) -> usize {
        let place = self.list.len();
        // Appended as what stands last: `put` moves it over the border if it does not belong there.
        self.list.push(Peer { seeder: true, ..peer });
        if let Some(index) = &mut self.index {
            index.insert(at, place as u32);
        } else if self.list.len() >= INDEX_FROM {
            let places = self.list.iter().enumerate().map(|(place, peer)| (peer.at, place as u32));
            self.index = Some(Box::new(places.collect()));
        }
        place
    }

    fn swap(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        self.list.swap(a, b);
        if let Some(index) = &mut self.index {
            index.insert(self.list[a].at, a as u32);
            index.insert(self.list[b].at, b as u32);
        }
    }

    fn give_back_memory(&mut self) {
        if self.list.len() < INDEX_FROM / 2 {
            self.index = None;
        }
        if self.list.capacity() > 32 && self.list.len() < self.list.capacity() / 4 {
            self.list.shrink_to(self.list.len() * 2);
        }
    }
}

/// `wanted` distinct numbers below `below`, every set equally likely (Floyd), without allocating.
/// `wanted` is below `below` and at most [`MAX_SAMPLE`].
fn draw_distinct(below: usize, wanted: usize, rng: &mut impl Rng, give: &mut impl FnMut(usize)) {
    let mut slots = [u32::MAX; DRAW_SLOTS];
    let slots = &mut slots[..(2 * wanted).next_power_of_two().max(4)];
    let mask = slots.len() - 1;
    let mut enter = |number: u32| {
        let mut slot = (number.wrapping_mul(0x9E37_79B1) >> 16) as usize & mask;
        while slots[slot] != u32::MAX {
            if slots[slot] == number {
                return false;
            }
            slot = (slot + 1) & mask;
        }
        slots[slot] = number;
        true
    };
    for last in below - wanted..below {
        let drawn = rng.random_range(0..=last as u32);
        if enter(drawn) {
            give(drawn as usize);
        } else {
            enter(last as u32);
            give(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn peer(n: u16, seeder: bool) -> Peer<u8> {
        let at = Endpoint { ip: 1, port: n };
        Peer { at, last_s: 100, gap_from_s: 100, gap_s: 0, lease_s: 150, id_tag: u32::from(n), seeder }
    }

    fn check(peers: &Peers<u8>) {
        assert!(peers.list[..peers.leechers].iter().all(|peer| !peer.seeder));
        assert!(peers.list[peers.leechers..].iter().all(|peer| peer.seeder));
        for (place, peer) in peers.list.iter().enumerate() {
            assert_eq!(peers.position(peer.at), Some(place));
        }
        if let Some(index) = &peers.index {
            assert_eq!(index.len(), peers.list.len());
        }
    }

    #[test]
    fn joins_leaves_and_changes_of_role_keep_the_list_in_order() {
        let mut peers = Peers::default();
        let mut rng = SmallRng::seed_from_u64(7);
        for step in 0..4_000 {
            let n = rng.random_range(0..90);
            if step % 3 == 0 {
                peers.remove(peer(n, false).at);
            } else {
                peers.put(peer(n, rng.random()));
            }
            check(&peers);
        }
        for n in 0..90 {
            peers.remove(peer(n, false).at);
            check(&peers);
        }
        assert_eq!((peers.len(), peers.index.is_none()), (0, true));
    }

    fn drawn(peers: &Peers<u8>, asker: u16, seeds: bool, wanted: usize, rng: &mut SmallRng) -> Vec<u16> {
        let mut ports = Vec::new();
        peers.draw(Endpoint { ip: 1, port: asker }, seeds, wanted, rng, |peer| ports.push(peer.at.port));
        ports
    }

    #[test]
    fn a_draw_is_fair_distinct_and_without_the_asker() {
        let mut peers = Peers::default();
        (0..60).for_each(|n| peers.put(peer(n, n >= 40)));
        let mut rng = SmallRng::seed_from_u64(3);
        for wanted in [1, 5, 50] {
            let mut seen = [0_u32; 60];
            for _ in 0..6_000 {
                let mut ports = drawn(&peers, 17, false, wanted, &mut rng);
                assert_eq!(ports.len(), wanted);
                ports.sort_unstable();
                ports.dedup();
                assert_eq!(ports.len(), wanted);
                ports.iter().for_each(|port| seen[usize::from(*port)] += 1);
            }
            assert_eq!(seen[17], 0);
            let expected = 6_000.0 * wanted as f64 / 59.0;
            // Five standard deviations of a binomial: wrong once in a million runs, and the seed is fixed.
            let slack = 5.0 * expected.sqrt();
            for (n, count) in seen.iter().enumerate().filter(|(n, _)| *n != 17) {
                assert!((f64::from(*count) - expected).abs() < slack, "peer {n}: {count}, expected {expected}");
            }
        }
    }

    #[test]
    fn seeders_are_not_handed_to_seeders() {
        let mut peers = Peers::default();
        (0..10).for_each(|n| peers.put(peer(n, n >= 4)));
        let mut rng = SmallRng::seed_from_u64(3);
        let mut ports = drawn(&peers, 9, true, 50, &mut rng);
        ports.sort_unstable();
        assert_eq!(ports, [0, 1, 2, 3]);
        assert_eq!(drawn(&peers, 2, false, 50, &mut rng).len(), 9);
        assert!(drawn(&peers, 2, false, 0, &mut rng).is_empty());
    }

    #[test]
    fn the_silent_are_dropped_and_the_next_one_due_is_named() {
        let mut peers = Peers::default();
        (0..30).for_each(|n| peers.put(Peer { lease_s: 100 + n, ..peer(n, n % 2 == 0) }));
        assert_eq!(peers.expire(199), (0, Some(200)));
        assert_eq!(peers.expire(210), (11, Some(211)));
        check(&peers);
        assert_eq!(peers.expire(1_000), (19, None));
    }

    #[test]
    fn a_peer_stays_compact() {
        assert!(size_of::<Peer<std::net::Ipv4Addr>>() <= 32);
    }
}
