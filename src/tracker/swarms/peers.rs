//! The peers of one swarm and one address family: found by address, counted, drawn fairly.
//!
//! Leechers stand before seeders in one list, so that a draw for a seeder is a draw from a prefix and counting is free.

use std::collections::HashMap;
use std::hash::Hash;

use rand::Rng;

use crate::tracker::keyed_hash::BuildKeyedHasher;

/// Below this many peers a scan of the list is as fast as a hash table, and most swarms are small.
const INDEX_FROM: usize = 24;
/// Peers in one answer at most: more are never dialled, and it keeps a reply within one datagram for IPv4.
pub const MAX_SAMPLE: usize = 200;

/// Where a peer listens: what it is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint<A> {
    pub ip: A,
    pub port: u16,
}

/// What is known of one peer. Times are seconds of the tracker's monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

    fn state(&self) -> State {
        let Peer { last_s, gap_from_s, gap_s, lease_s, id_tag, .. } = *self;
        State { last_s, gap_from_s, id_tag, gap_s, lease_s }
    }
}

/// Where in the list a peer stands, until the list changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(usize);

/// What one step of [`Peers::sweep`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    pub dropped: usize,
    pub looked_at: usize,
    /// When the next of those looked at is due.
    pub next_due_s: Option<u32>,
    /// Where to go on; `None` at the end of the list.
    pub resume: Option<usize>,
}

/// The peers, leechers first. Where they listen lies apart from the rest: it is all that a search or a draw looks at.
#[derive(Debug)]
pub struct Peers<A> {
    at: Vec<Endpoint<A>>,
    state: Vec<State>,
    leechers: usize,
    /// Boxed: there are millions of swarms, and most have no index.
    index: Option<Box<Index<A>>>,
}

type Index<A> = HashMap<Endpoint<A>, u32, BuildKeyedHasher>;

/// A [`Peer`] without its endpoint; its place says whether it is a seeder.
#[derive(Clone, Copy, Debug)]
struct State {
    last_s: u32,
    gap_from_s: u32,
    id_tag: u32,
    gap_s: u16,
    lease_s: u16,
}

impl State {
    fn due_s(&self) -> u32 {
        self.last_s.saturating_add(u32::from(self.lease_s))
    }
}

impl<A> Default for Peers<A> {
    fn default() -> Self {
        Peers { at: Vec::new(), state: Vec::new(), leechers: 0, index: None }
    }
}

impl<A: Copy + Eq + Hash> Peers<A> {
    pub fn len(&self) -> usize {
        self.at.len()
    }

    pub fn leechers(&self) -> usize {
        self.leechers
    }

    pub fn seeders(&self) -> usize {
        self.at.len() - self.leechers
    }

    /// Leechers, then seeders. A join, a leave or a change of role moves three of them at most.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Peer<A>> {
        let both = self.at.iter().zip(&self.state).enumerate();
        both.map(|(place, (at, state))| self.peer(place, *at, state))
    }

    fn peer(&self, place: usize, at: Endpoint<A>, state: &State) -> Peer<A> {
        let State { last_s, gap_from_s, id_tag, gap_s, lease_s } = *state;
        Peer { at, last_s, gap_from_s, gap_s, lease_s, id_tag, seeder: place >= self.leechers }
    }

    pub fn find(&self, at: Endpoint<A>) -> Option<(Place, Peer<A>)> {
        let place = match &self.index {
            Some(index) => index.get(&at).map(|place| *place as usize),
            None => self.at.iter().position(|other| *other == at),
        }?;
        self.state.get(place).map(|state| (Place(place), self.peer(place, at, state)))
    }

    /// Replaces what was known of the peer that `known` found; enters it if none was found. Where it stands now.
    pub fn put(&mut self, known: Option<Place>, peer: Peer<A>) -> Place {
        let mut place = match known {
            Some(Place(place)) => place,
            None => self.append(peer.at, peer.state()),
        };
        self.state[place] = peer.state();
        // A seeder stands behind the leechers and the other way round: one swap across the border puts it right.
        if peer.seeder && place < self.leechers {
            self.leechers -= 1;
            self.swap(place, self.leechers);
            place = self.leechers;
        } else if !peer.seeder && place >= self.leechers {
            self.swap(place, self.leechers);
            place = self.leechers;
            self.leechers += 1;
        }
        Place(place)
    }

    /// Drops the peer that [`Peers::find`] found.
    pub fn remove(&mut self, Place(mut place): Place) {
        if place < self.leechers {
            self.leechers -= 1;
            self.swap(place, self.leechers);
            place = self.leechers;
        }
        self.swap(place, self.at.len() - 1);
        self.state.pop();
        let gone = self.at.pop();
        if let (Some(index), Some(gone)) = (&mut self.index, gone) {
            index.remove(&gone);
        }
        self.give_back_memory();
    }

    /// Drops those who were silent for too long among at most `budget` peers from place `from` on.
    pub fn sweep(&mut self, from: usize, budget: usize, now_s: u32) -> Swept {
        let mut swept = Swept::default();
        let mut place = from;
        while let Some(due_s) = self.state.get(place).map(State::due_s) {
            if swept.looked_at == budget {
                swept.resume = Some(place);
                break;
            }
            swept.looked_at += 1;
            if due_s <= now_s {
                // Whoever takes its place comes from further on: nobody is passed over.
                self.remove(Place(place));
                swept.dropped += 1;
            } else {
                swept.next_due_s = Some(swept.next_due_s.map_or(due_s, |next_s| next_s.min(due_s)));
                place += 1;
            }
        }
        swept
    }

    /// Calls `give` with where a fair draw of at most `wanted` peers listen and whether they are seeders, without the
    /// asker; leechers alone for a seeder.
    pub fn draw(
        &self,
        asker: Option<Place>,
        asker_seeds: bool,
        wanted: usize,
        rng: &mut impl Rng,
        mut give: impl FnMut(Endpoint<A>, bool),
    ) {
        let pool = if asker_seeds { self.leechers } else { self.at.len() };
        let own_place = asker.map(|Place(place)| place).filter(|place| *place < pool);
        let others = pool - usize::from(own_place.is_some());
        let wanted = wanted.min(MAX_SAMPLE).min(others);
        let own_place = own_place.unwrap_or(usize::MAX);
        let mut give_nth = |nth: usize| {
            // The asker's place is stepped over, so that every other one is equally likely.
            let place = nth + usize::from(nth >= own_place);
            if let Some(at) = self.at.get(place) {
                give(*at, place >= self.leechers);
            }
        };
        if wanted == others {
            (0..others).for_each(give_nth);
        } else {
            draw_distinct(others, wanted, rng, &mut give_nth);
        }
    }

    fn append(&mut self, at: Endpoint<A>, state: State) -> usize {
        // Appended as what stands last, a seeder: `put` moves it over the border if it is none.
        let place = self.at.len();
        if place == self.at.capacity() {
            // By a quarter: doubled, the lists alone could take 44 bytes a peer.
            self.at.reserve_exact((place / 4).max(1));
            self.state.reserve_exact((place / 4).max(1));
        }
        self.at.push(at);
        self.state.push(state);
        if let Some(index) = &mut self.index {
            index.insert(at, place as u32);
        } else if self.at.len() >= INDEX_FROM {
            let places = self.at.iter().enumerate().map(|(place, at)| (*at, place as u32));
            self.index = Some(Box::new(places.collect()));
        }
        place
    }

    fn swap(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        self.at.swap(a, b);
        self.state.swap(a, b);
        if let Some(index) = &mut self.index {
            index.insert(self.at[a], a as u32);
            index.insert(self.at[b], b as u32);
        }
    }

    fn give_back_memory(&mut self) {
        if self.at.len() < INDEX_FROM / 2 {
            self.index = None;
        }
        if self.at.len() < self.at.capacity() / 2 {
            let room = self.at.len() + self.at.len() / 4;
            self.at.shrink_to(room);
            self.state.shrink_to(room);
            if let Some(index) = &mut self.index {
                index.shrink_to(room);
            }
        }
    }
}

/// `wanted` distinct numbers below `below`, each number equally likely: the circle of all is cut into as many arcs as are
/// wanted, at a place drawn by chance, and each arc gives one of its own. Without a table of who was drawn, and in order
/// of memory. `wanted` is below `below`.
fn draw_distinct(below: usize, wanted: usize, rng: &mut impl Rng, give: &mut impl FnMut(usize)) {
    if wanted == 0 {
        return;
    }
    let (short, longer) = (below / wanted, below % wanted);
    let mut begin = below_by_chance(rng.next_u32(), below);
    for arc in 0..wanted {
        let length = short + usize::from(arc < longer);
        let drawn = begin + below_by_chance(rng.next_u32(), length);
        give(if drawn < below { drawn } else { drawn - below });
        begin += length;
        begin -= if begin < below { 0 } else { below };
    }
}

/// A number below `below` out of 32 random bits: no swarm is so large that the remainder shows.
fn below_by_chance(random: u32, below: usize) -> usize {
    ((u64::from(random) * below as u64) >> 32) as usize
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

    fn put(peers: &mut Peers<u8>, peer: Peer<u8>) {
        let known = peers.find(peer.at).map(|(place, _)| place);
        let place = peers.put(known, peer);
        assert_eq!(peers.find(peer.at).unwrap(), (place, peer));
    }

    fn remove(peers: &mut Peers<u8>, n: u16) {
        if let Some((place, _)) = peers.find(peer(n, false).at) {
            peers.remove(place);
        }
    }

    fn check(peers: &Peers<u8>) {
        assert_eq!(peers.at.len(), peers.state.len());
        assert_eq!(peers.iter().filter(|peer| !peer.seeder).count(), peers.leechers());
        for (place, at) in peers.at.iter().enumerate() {
            assert_eq!(peers.find(*at).unwrap().0, Place(place));
        }
        if let Some(index) = &peers.index {
            assert_eq!(index.len(), peers.len());
        }
    }

    #[test]
    fn joins_leaves_and_changes_of_role_keep_the_list_in_order() {
        let mut peers = Peers::default();
        let mut rng = SmallRng::seed_from_u64(7);
        for step in 0..4_000 {
            let n = rng.random_range(0..90);
            if step % 3 == 0 {
                remove(&mut peers, n);
            } else {
                put(&mut peers, peer(n, rng.random()));
            }
            check(&peers);
        }
        for n in 0..90 {
            remove(&mut peers, n);
            check(&peers);
        }
        assert_eq!((peers.len(), peers.index.is_none()), (0, true));
    }

    fn drawn(peers: &Peers<u8>, asker: u16, seeds: bool, wanted: usize, rng: &mut SmallRng) -> Vec<u16> {
        let mut ports = Vec::new();
        let asker = peers.find(Endpoint { ip: 1, port: asker }).map(|(place, _)| place);
        peers.draw(asker, seeds, wanted, rng, |at, _| ports.push(at.port));
        ports
    }

    #[test]
    fn a_draw_is_fair_distinct_and_without_the_asker() {
        let mut peers = Peers::default();
        (0..60).for_each(|n| put(&mut peers, peer(n, n >= 40)));
        let mut rng = SmallRng::seed_from_u64(3);
        for wanted in [1, 5, 50] {
            let (mut seen, mut together) = ([0_u32; 60], 0);
            for _ in 0..6_000 {
                let mut ports = drawn(&peers, 17, false, wanted, &mut rng);
                assert_eq!(ports.len(), wanted);
                ports.sort_unstable();
                ports.dedup();
                assert_eq!(ports.len(), wanted);
                ports.iter().for_each(|port| seen[usize::from(*port)] += 1);
                together += usize::from(ports.contains(&30) && ports.contains(&31));
            }
            assert_eq!(seen[17], 0);
            let expected = 6_000.0 * wanted as f64 / 59.0;
            // Five standard deviations of a binomial: wrong once in a million runs, and the seed is fixed.
            let slack = 5.0 * expected.sqrt();
            // Which arc a peer is in changes from draw to draw: whoever stands next to another is drawn with it at times.
            assert!(wanted == 1 || together > 0);
            for (n, count) in seen.iter().enumerate().filter(|(n, _)| *n != 17) {
                assert!((f64::from(*count) - expected).abs() < slack, "peer {n}: {count}, expected {expected}");
            }
        }
    }

    #[test]
    fn seeders_are_not_handed_to_seeders() {
        let mut peers = Peers::default();
        (0..10).for_each(|n| put(&mut peers, peer(n, n >= 4)));
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
        (0..30).for_each(|n| put(&mut peers, Peer { lease_s: 100 + n, ..peer(n, n % 2 == 0) }));
        let whole = |dropped, next_due_s| Swept { dropped, looked_at: 30, next_due_s, resume: None };
        assert_eq!(peers.sweep(0, 30, 199), whole(0, Some(200)));
        assert_eq!(peers.sweep(0, 30, 210), whole(11, Some(211)));
        check(&peers);
        let first = peers.sweep(0, 7, 220);
        assert_eq!(first.looked_at, 7);
        let mut dropped = first.dropped;
        let mut resume = first.resume;
        while let Some(from) = resume {
            let next = peers.sweep(from, 7, 220);
            check(&peers);
            dropped += next.dropped;
            resume = next.resume;
        }
        assert_eq!(dropped, 10, "in steps nobody is passed over");
        assert_eq!(peers.sweep(0, 30, 1_000).dropped, 9);
    }

    #[test]
    fn an_ipv4_peer_takes_at_most_64_bytes() {
        let mut peers = Peers::<std::net::Ipv4Addr>::default();
        let mut most = 0.0_f64;
        let bytes = |peers: &Peers<std::net::Ipv4Addr>| {
            // A table of std has eight buckets for seven entries, and a byte beside each bucket.
            let index = peers.index.as_ref().map_or(0, |index| {
                let bucket = size_of::<(Endpoint<std::net::Ipv4Addr>, u32)>() + 1;
                (index.capacity() * 8).div_ceil(7) * bucket + size_of::<Index<std::net::Ipv4Addr>>()
            });
            let lists = peers.at.capacity() * size_of::<Endpoint<std::net::Ipv4Addr>>()
                + peers.state.capacity() * size_of::<State>();
            lists + index + size_of_val(peers)
        };
        for n in 0..100_000_u32 {
            let Peer { last_s, gap_from_s, gap_s, lease_s, id_tag, .. } = peer(1, false);
            let at = Endpoint { ip: std::net::Ipv4Addr::from_bits(n), port: 6881 };
            peers.put(None, Peer { at, last_s, gap_from_s, gap_s, lease_s, id_tag, seeder: n % 3 == 0 });
            // What a swarm takes by itself counts too, but not for the first few.
            if n >= 8 {
                most = most.max(bytes(&peers) as f64 / f64::from(n + 1));
            }
        }
        while peers.len() > 100 {
            peers.remove(Place(peers.len() / 2));
        }
        assert!(bytes(&peers) < 100 * 2 * 64, "what leaves gives its memory back");
        assert!(most <= 64.0, "{most}");
    }
}
