//! The swarms under one lock: found by info-hash, swept when due, the emptiest evicted.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use rand::Rng;

use super::Unwritten;
use super::peers::{Peers, Swept};
use crate::tracker::keyed_hash::BuildKeyedHasher;
use crate::wire::announce::ScrapeEntry;
use crate::wire::id::InfoHash;

/// Swarms looked at to find the emptiest: with half of them empty, one is found but for one time in 2^32.
const EVICTION_SAMPLE: usize = 32;
/// Peers looked at under one lock while expiring: some ten microseconds, so that no announce waits for the sweep.
const SWEEP_PEERS: usize = 2_000;
/// A swarm is not swept again sooner: a large one whose peers fall due one by one is walked once for many.
pub(super) const SWEEP_PAUSE_S: u32 = 5;
/// A swarm that is walked in several steps changes meanwhile, and someone may be passed over: it is walked again by then.
const LARGE_SWEEP_PAUSE_S: u32 = 30;
/// Peers compared to tell clients that joined over both families: in a larger swarm the difference is noise.
const DUAL_STACK_PEERS: usize = 512;

#[derive(Default)]
pub(super) struct Shard {
    places: HashMap<InfoHash, u32, BuildKeyedHasher>,
    swarms: Vec<Swarm>,
    /// When to sweep which swarm. An entry counts only if it is the swarm's own `due_s`.
    due: BinaryHeap<Reverse<(u32, InfoHash)>>,
    /// The walk through a swarm that is too large for one step.
    walk: Option<Walk>,
    /// Swarms whose counts changed since they were last taken.
    changed: Vec<InfoHash>,
    /// Swarms that changed since they were last packed, the oldest change first; evicted and emptied ones too.
    unwritten: VecDeque<Unwritten>,
}

pub(super) struct Swarm {
    pub key: InfoHash,
    pub v4: Peers<Ipv4Addr>,
    pub v6: Peers<Ipv6Addr>,
    pub completed: u32,
    due_s: u32,
    pub in_changed: bool,
    pub in_unwritten: bool,
}

/// How far a sweep of one swarm has come.
struct Walk {
    key: InfoHash,
    in_v6: bool,
    from: usize,
    next_due_s: Option<u32>,
    steps: u32,
    dropped: usize,
}

impl Walk {
    fn new(key: InfoHash) -> Walk {
        Walk { key, in_v6: false, from: 0, next_due_s: None, steps: 0, dropped: 0 }
    }

    /// One step through `swarm`; the peers looked at and dropped, and whether the end is reached.
    fn step(&mut self, swarm: &mut Swarm, budget: usize, now_s: u32) -> (Swept, bool) {
        let swept = match self.in_v6 {
            false => swarm.v4.sweep(self.from, budget, now_s),
            true => swarm.v6.sweep(self.from, budget, now_s),
        };
        self.next_due_s = self.next_due_s.into_iter().chain(swept.next_due_s).min();
        self.dropped += swept.dropped;
        self.steps += 1;
        let ended = swept.resume.is_none() && self.in_v6;
        self.from = swept.resume.unwrap_or(0);
        self.in_v6 |= swept.resume.is_none();
        (swept, ended)
    }
}

impl Shard {
    pub fn len(&self) -> usize {
        self.swarms.len()
    }

    /// Where the swarm stands, until one is removed.
    pub fn place(&self, key: &InfoHash) -> Option<usize> {
        self.places.get(key).map(|place| *place as usize)
    }

    /// The swarm at a place that [`Shard::place`] or [`Shard::create`] has just given.
    pub fn swarm(&mut self, place: usize) -> &mut Swarm {
        &mut self.swarms[place]
    }

    pub fn find(&mut self, key: &InfoHash) -> Option<&mut Swarm> {
        let place = self.place(key)?;
        self.swarms.get_mut(place)
    }

    /// A new swarm; nothing is due in it yet.
    pub fn create(&mut self, key: InfoHash) -> usize {
        let place = self.swarms.len();
        self.places.insert(key, place as u32);
        let (v4, v6) = (Peers::default(), Peers::default());
        self.swarms.push(Swarm { key, v4, v6, completed: 0, due_s: u32::MAX, in_changed: false, in_unwritten: false });
        place
    }

    /// Has the swarm swept by then.
    pub fn plan_by(&mut self, place: usize, due_s: u32) {
        let swarm = &mut self.swarms[place];
        if due_s < swarm.due_s {
            swarm.due_s = due_s;
            let key = swarm.key;
            self.plan(key, due_s);
        }
    }

    fn plan(&mut self, key: InfoHash, due_s: u32) {
        // What was planned for evicted swarms lies here until it falls due: not more of it than of what counts.
        if self.due.len() > 2 * self.swarms.len() + 1_024 {
            self.due = self.swarms.iter().map(|swarm| Reverse((swarm.due_s, swarm.key))).collect();
        } else {
            self.due.push(Reverse((due_s, key)));
        }
    }

    /// The swarm's counts are to be told, and the swarm is to be written.
    pub fn mark_changed(&mut self, place: usize, now_s: u32) {
        self.mark_told(place);
        let swarm = &mut self.swarms[place];
        if !swarm.in_unwritten {
            swarm.in_unwritten = true;
            let key = swarm.key;
            self.push_unwritten(Unwritten { since_s: now_s, key });
        }
    }

    /// The swarm's counts are to be told.
    pub fn mark_told(&mut self, place: usize) {
        let swarm = &mut self.swarms[place];
        if !swarm.in_changed {
            swarm.in_changed = true;
            self.changed.push(swarm.key);
        }
    }

    pub fn take_changed(&mut self) -> Vec<InfoHash> {
        std::mem::take(&mut self.changed)
    }

    fn push_unwritten(&mut self, unwritten: Unwritten) {
        // Swarms that came and went while the disk did not keep up: what is kept of them is silent after a restart, and
        // then expires.
        if self.unwritten.len() > 2 * self.swarms.len() + 1_024 {
            let (places, mut seen) = (&self.places, HashSet::with_hasher(BuildKeyedHasher));
            self.unwritten.retain(|unwritten| places.contains_key(&unwritten.key) && seen.insert(unwritten.key));
        }
        self.unwritten.push_back(unwritten);
    }

    pub fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    pub fn oldest_unwritten_s(&self) -> Option<u32> {
        self.unwritten.front().map(|unwritten| unwritten.since_s)
    }

    /// Moves those that changed at `until_s` or before into `taken`, until it has `most`.
    pub fn take_unwritten(&mut self, until_s: u32, most: usize, taken: &mut Vec<Unwritten>) {
        while taken.len() < most
            && let Some(oldest) = self.unwritten.pop_front_if(|unwritten| unwritten.since_s <= until_s)
        {
            taken.push(oldest);
        }
    }

    pub fn put_back(&mut self, unwritten: Unwritten) {
        if let Some(swarm) = self.find(&unwritten.key) {
            swarm.in_unwritten = true;
        }
        self.unwritten.push_front(unwritten);
    }

    /// Looks at the swarms that are due, [`SWEEP_PEERS`] peers at most. Peers dropped, and whether there is more to do.
    pub fn sweep(&mut self, now_s: u32) -> (usize, bool) {
        let (mut looked_at, mut dropped) = (0, 0);
        while looked_at < SWEEP_PEERS {
            let Some(mut walk) = self.walk.take().or_else(|| self.next_due(now_s)) else { return (dropped, false) };
            // Evicted while it was walked through.
            let Some(place) = self.place(&walk.key) else { continue };
            let (swept, ended) = walk.step(&mut self.swarms[place], SWEEP_PEERS - looked_at, now_s);
            looked_at += 1 + swept.looked_at;
            dropped += swept.dropped;
            if ended {
                self.end_walk(place, &walk, now_s);
            } else {
                self.walk = Some(walk);
            }
        }
        (dropped, true)
    }

    fn next_due(&mut self, now_s: u32) -> Option<Walk> {
        loop {
            let &Reverse((due_s, key)) = self.due.peek().filter(|Reverse((due_s, _))| *due_s <= now_s)?;
            self.due.pop();
            // While it is walked through nothing is planned for it.
            if self.find(&key).is_some_and(|swarm| swarm.due_s == due_s) {
                return Some(Walk::new(key));
            }
        }
    }

    fn end_walk(&mut self, place: usize, walk: &Walk, now_s: u32) {
        if walk.dropped > 0 {
            self.mark_changed(place, now_s);
        }
        let swarm = &mut self.swarms[place];
        // Two steps, one for each family, are those of a small swarm.
        let latest_s = if walk.steps > 2 { now_s + LARGE_SWEEP_PAUSE_S } else { u32::MAX };
        match walk.next_due_s {
            Some(next_s) => {
                swarm.due_s = next_s.min(latest_s).max(now_s + SWEEP_PAUSE_S);
                let (key, due_s) = (swarm.key, swarm.due_s);
                self.plan(key, due_s);
            }
            None if swarm.len() > 0 => {
                swarm.due_s = now_s + SWEEP_PAUSE_S;
                let (key, due_s) = (swarm.key, swarm.due_s);
                self.plan(key, due_s);
            }
            None => {
                self.mark_changed(place, now_s);
                self.remove(place);
            }
        }
    }

    /// Drops the emptiest of a few drawn swarms; the number of peers it had.
    pub fn evict(&mut self, now_s: u32, rng: &mut impl Rng) -> usize {
        let drawn = (0..EVICTION_SAMPLE).map(|_| rng.random_range(0..self.swarms.len()));
        let Some((peers, place)) = drawn.map(|place| (self.swarms[place].len(), place)).min() else { return 0 };
        self.mark_changed(place, now_s);
        self.remove(place);
        peers
    }

    fn remove(&mut self, place: usize) {
        let gone = self.swarms.swap_remove(place);
        self.places.remove(&gone.key);
        if let Some(moved) = self.swarms.get(place) {
            self.places.insert(moved.key, place as u32);
        }
    }

    #[cfg(test)]
    pub fn planned(&self) -> usize {
        self.due.len()
    }
}

impl Swarm {
    /// Peers of both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn counts(&self) -> ScrapeEntry {
        let mut seeders = self.v4.seeders() + self.v6.seeders();
        let mut leechers = self.v4.leechers() + self.v6.leechers();
        let (few, many) = (self.v4.len().min(self.v6.len()), self.v4.len().max(self.v6.len()));
        if few > 0 && many <= DUAL_STACK_PEERS {
            let mut tags = [0; DUAL_STACK_PEERS];
            let tags = &mut tags[..self.v4.len()];
            tags.iter_mut().zip(self.v4.iter()).for_each(|(tag, peer)| *tag = peer.id_tag);
            tags.sort_unstable();
            for twin in self.v6.iter().filter(|peer| tags.binary_search(&peer.id_tag).is_ok()) {
                if twin.seeder {
                    seeders = seeders.saturating_sub(1);
                } else {
                    leechers = leechers.saturating_sub(1);
                }
            }
        }
        ScrapeEntry { seeders: count(seeders), completed: self.completed, leechers: count(leechers) }
    }
}

pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
