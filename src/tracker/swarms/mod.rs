//! Who is in which swarm. Sharded by info-hash, so that the UDP threads and HTTP share it; IPv4 and IPv6 peers apart.
//!
//! A peer is known by the address and port that it listens on, never by its peer id: an id can be copied, an address
//! that answers cannot (BEP 15's connection id proves it, and so does TCP).
//!
//! - [`law`] says when to come again and when silence means gone, `peers` holds one family of one swarm, `shard` the
//!   swarms under one lock.
//! - [`packed`] is the form in which a swarm is kept; what has changed since it was last taken stands in a queue here.

pub mod law;
pub mod packed;
mod peers;
mod shard;

use std::cmp::Reverse;
use std::hash::{BuildHasher, Hash};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::Rng;

use self::packed::{Page, Pages};
pub use self::peers::MAX_SAMPLE;
use self::peers::{Endpoint, Peer, Peers};
use self::shard::{Shard, Swarm, count};
use super::keyed_hash::BuildKeyedHasher;
use crate::clock::Time;
use crate::wire::announce::{AnnounceRequest, Event, ScrapeEntry};
use crate::wire::id::{InfoHash, PeerId};

/// Swarms at most, whoever asks: about 0.7 GiB when each has a peer or two. Beyond, the emptiest go first.
pub const MAX_SWARMS: usize = 2_000_000;
/// Locks: enough that threads seldom meet and that a table which grows holds up few, few enough that idle ones cost
/// nothing.
const SHARDS: usize = 64;

/// What an announce is answered with, beside the peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Announced {
    pub interval_s: u32,
    pub min_interval_s: u32,
    /// Of the asker's family, the asker included.
    pub seeders: u32,
    pub leechers: u32,
}

/// The peer was not entered: whoever decides about newcomers said no.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("too many torrents that are new to this address")]
pub struct NotAdmitted;

/// A swarm whose form in the store is out of date.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Unwritten {
    /// Since when, in seconds of the tracker's monotonic clock.
    pub since_s: u32,
    pub key: InfoHash,
}

pub struct Swarms {
    shards: Vec<Mutex<Shard>>,
    max_per_shard: usize,
    /// Peers in all swarms: the interval follows it.
    entries: AtomicUsize,
}

/// An address of either family, as the tables hold it.
trait Family: Copy + Eq + Hash {
    fn peers(swarm: &mut Swarm) -> &mut Peers<Self>;
    fn address(at: Endpoint<Self>) -> SocketAddr;
}

impl Family for Ipv4Addr {
    fn peers(swarm: &mut Swarm) -> &mut Peers<Self> {
        &mut swarm.v4
    }
    fn address(at: Endpoint<Self>) -> SocketAddr {
        SocketAddr::from((at.ip, at.port))
    }
}

impl Family for Ipv6Addr {
    fn peers(swarm: &mut Swarm) -> &mut Peers<Self> {
        &mut swarm.v6
    }
    fn address(at: Endpoint<Self>) -> SocketAddr {
        SocketAddr::from((at.ip, at.port))
    }
}

impl Default for Swarms {
    fn default() -> Self {
        Swarms::new(MAX_SWARMS)
    }
}

impl Swarms {
    pub fn new(max_swarms: usize) -> Swarms {
        Swarms {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            max_per_shard: (max_swarms / SHARDS).max(1),
            entries: AtomicUsize::new(0),
        }
    }

    /// Peers in all swarms.
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Swarms held.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One announce of the peer that listens at `ip` and the request's port. `give` gets at most `wanted` others of the
    /// same family. `admit` is asked once if the peer is not in the swarm yet.
    ///
    /// # Errors
    /// [`NotAdmitted`] when `admit` says no; nothing has changed then.
    #[expect(clippy::too_many_arguments, reason = "now, generator and where the peers go are arguments by design")]
    pub fn announce(
        &self,
        now: Time,
        request: &AnnounceRequest,
        ip: IpAddr,
        wanted: usize,
        rng: &mut impl Rng,
        admit: impl FnOnce() -> bool,
        give: impl FnMut(SocketAddr),
    ) -> Result<Announced, NotAdmitted> {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.announce_in(now, request, ip, wanted, rng, admit, give),
            IpAddr::V6(ip) => self.announce_in(now, request, ip, wanted, rng, admit, give),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "as above, for one family")]
    fn announce_in<A: Family>(
        &self,
        now: Time,
        request: &AnnounceRequest,
        ip: A,
        wanted: usize,
        rng: &mut impl Rng,
        admit: impl FnOnce() -> bool,
        mut give: impl FnMut(SocketAddr),
    ) -> Result<Announced, NotAdmitted> {
        let (key, now_s) = (&request.info_hash, seconds(now));
        let at = Endpoint { ip, port: request.port };
        let given_s = law::spread(law::interval_s(self.entries()), rng);
        let mut announced =
            Announced { interval_s: given_s, min_interval_s: law::min_interval_s(given_s), seeders: 0, leechers: 0 };
        let mut guard = self.shard(key);
        let shard = &mut *guard;
        let place = shard.place(key);
        let known = place.and_then(|place| A::peers(shard.swarm(place)).find(at));
        if request.event == Event::Stopped {
            if let Some(place) = place {
                let family = A::peers(shard.swarm(place));
                if let Some((stands, _)) = known {
                    family.remove(stands);
                }
                announced.seeders = count(family.seeders());
                announced.leechers = count(family.leechers());
                if known.is_some() {
                    // An emptied swarm keeps its completed count until the sweep comes by.
                    self.entries.fetch_sub(1, Ordering::Relaxed);
                    shard.mark_changed(place, now_s);
                }
            }
            return Ok(announced);
        }
        if known.is_none() && !admit() {
            return Err(NotAdmitted);
        }
        let peer = next_state(known.map(|(_, peer)| peer), at, now_s, given_s, request);
        let place = place.unwrap_or_else(|| self.create(shard, *key, now_s, rng));
        let swarm = shard.swarm(place);
        let family = A::peers(swarm);
        let before = (family.len(), family.leechers());
        let stands = family.put(known.map(|(stands, _)| stands), peer);
        family.draw(Some(stands), peer.seeder, wanted, rng, |at, _| give(A::address(at)));
        let after = (family.len(), family.leechers());
        announced.seeders = count(family.seeders());
        announced.leechers = count(family.leechers());
        let completed_now = request.event == Event::Completed && !known.is_some_and(|(_, peer)| peer.seeder);
        swarm.completed = swarm.completed.saturating_add(u32::from(completed_now));
        shard.plan_by(place, peer.due_s());
        if before != after || completed_now {
            self.entries.fetch_add(after.0 - before.0, Ordering::Relaxed);
            shard.mark_changed(place, now_s);
        }
        Ok(announced)
    }

    /// The counts of one swarm, both families; a client that is in it by both counts once.
    pub fn scrape(&self, key: &InfoHash) -> ScrapeEntry {
        self.shard(key).find(key).map_or(ScrapeEntry::default(), |swarm| swarm.counts())
    }

    /// Peers in the swarm, and a fair draw of at most `wanted`: where each listens, and whether it has all.
    pub fn sample(&self, key: &InfoHash, wanted: usize, rng: &mut impl Rng) -> (usize, Vec<(SocketAddr, bool)>) {
        let mut shard = self.shard(key);
        let Some(swarm) = shard.find(key) else { return (0, Vec::new()) };
        let total = swarm.len();
        let mut peers = Vec::new();
        // Each family has its share of the draw.
        let of_v4 = if total == 0 { 0 } else { (wanted.min(total) * swarm.v4.len()).div_ceil(total) };
        swarm.v4.draw(None, false, of_v4, rng, |at, seeder| peers.push((Family::address(at), seeder)));
        let rest = wanted.saturating_sub(peers.len());
        swarm.v6.draw(None, false, rest, rng, |at, seeder| peers.push((Family::address(at), seeder)));
        (total, peers)
    }

    /// Drops who was silent for too long. To be called about every second; works in small steps.
    pub fn expire(&self, now: Time) {
        let now_s = seconds(now);
        for shard in &self.shards {
            loop {
                let (dropped, more) = lock(shard).sweep(now_s);
                self.entries.fetch_sub(dropped, Ordering::Relaxed);
                if !more {
                    break;
                }
            }
        }
    }

    /// Calls `tell` with the counts of every swarm that changed since the last call.
    pub fn drain_changed(&self, mut tell: impl FnMut(&InfoHash, ScrapeEntry)) {
        for shard in &self.shards {
            let changed = lock(shard).take_changed();
            for key in changed {
                // One lock each: a publication storm must not hold up announces.
                let counts = lock(shard).find(&key).map_or(ScrapeEntry::default(), |swarm| {
                    swarm.in_changed = false;
                    swarm.counts()
                });
                tell(&key, counts);
            }
        }
    }

    /// Takes swarms that changed at `until` or before, the oldest changes first, `most` of them. Each is to be packed,
    /// or put back.
    pub fn take_unwritten(&self, until: Time, most: usize) -> Vec<Unwritten> {
        let until_s = seconds(until);
        let mut taken = Vec::new();
        while taken.len() < most {
            let oldest_s = self.shards.iter().filter_map(|shard| lock(shard).oldest_unwritten_s()).min();
            let Some(oldest_s) = oldest_s.filter(|oldest_s| *oldest_s <= until_s) else { break };
            for shard in &self.shards {
                lock(shard).take_unwritten(oldest_s, most, &mut taken);
            }
        }
        taken
    }

    /// What was taken and could not be written: it is the oldest again.
    pub fn put_back(&self, unwritten: &[Unwritten]) {
        let mut latest_first = unwritten.to_vec();
        latest_first.sort_unstable_by_key(|unwritten| Reverse(unwritten.since_s));
        for unwritten in latest_first {
            self.shard(&unwritten.key).put_back(unwritten);
        }
    }

    /// How many swarms wait to be written, and since when the first of them has, in seconds of the tracker's monotonic
    /// clock; `u32::MAX` when none does.
    pub fn unwritten(&self) -> (usize, u32) {
        let (mut waiting, mut oldest_s) = (0, u32::MAX);
        for shard in &self.shards {
            let shard = lock(shard);
            waiting += shard.unwritten();
            oldest_s = oldest_s.min(shard.oldest_unwritten_s().unwrap_or(u32::MAX));
        }
        (waiting, oldest_s)
    }

    /// The swarm as it is to be kept; no pages when there is no such swarm. Changes from here on make it unwritten anew.
    pub fn pack(&self, key: &InfoHash, pages: &mut Pages) {
        pages.clear();
        if let Some(swarm) = self.shard(key).find(key) {
            swarm.in_unwritten = false;
            pages.pack(swarm.completed, swarm.v4.iter(), swarm.v6.iter());
        }
    }

    /// Enters what one kept page holds: each peer counts as just seen. `entries` is the number of peers kept in all.
    pub fn restore(&self, now: Time, key: InfoHash, page: &Page<'_>, entries: usize, rng: &mut impl Rng) {
        let now_s = seconds(now);
        let interval_s = law::interval_s(entries);
        let mut guard = self.shard(&key);
        let shard = &mut *guard;
        let place = shard.place(&key).unwrap_or_else(|| self.create(shard, key, now_s, rng));
        let swarm = shard.swarm(place);
        swarm.completed = swarm.completed.max(page.completed());
        let before = swarm.len();
        // One that turns out to have nobody in it is swept away.
        let mut due_s = now_s + law::MAX_LEASE_S;
        page.peers(|at, kept| {
            let gap_s = (kept.gap_s > 0).then_some(u32::from(kept.gap_s));
            let lease_s = u16::try_from(law::lease_s(interval_s, gap_s, false)).unwrap_or(u16::MAX);
            let restored = Restored { now_s, lease_s, kept };
            due_s = due_s.min(now_s.saturating_add(u32::from(lease_s)));
            match at.ip() {
                IpAddr::V4(ip) => restored.enter(&mut swarm.v4, Endpoint { ip, port: at.port() }),
                IpAddr::V6(ip) => restored.enter(&mut swarm.v6, Endpoint { ip, port: at.port() }),
            }
        });
        self.entries.fetch_add(swarm.len() - before, Ordering::Relaxed);
        shard.plan_by(place, due_s);
        shard.mark_told(place);
    }

    /// For a kept swarm that is not as it was written: damaged in part, or empty.
    pub fn rewrite(&self, now: Time, key: &InfoHash) {
        let mut shard = self.shard(key);
        match shard.place(key) {
            Some(place) => shard.mark_changed(place, seconds(now)),
            None => shard.put_back(Unwritten { since_s: seconds(now), key: *key }),
        }
    }

    fn create(&self, shard: &mut Shard, key: InfoHash, now_s: u32, rng: &mut impl Rng) -> usize {
        if shard.len() >= self.max_per_shard {
            let peers = shard.evict(now_s, rng);
            self.entries.fetch_sub(peers, Ordering::Relaxed);
        }
        shard.create(key)
    }

    fn shard(&self, key: &InfoHash) -> MutexGuard<'_, Shard> {
        // Keyed: who chooses keys does not choose the shard. By bits that the tables look at last.
        let hash = BuildKeyedHasher.hash_one(key);
        lock(&self.shards[(hash >> 40) as usize % SHARDS])
    }
}

/// A peer as it was kept, about to be entered.
struct Restored {
    now_s: u32,
    lease_s: u16,
    kept: packed::Kept,
}

impl Restored {
    fn enter<A: Family>(self, peers: &mut Peers<A>, at: Endpoint<A>) {
        let Restored { now_s, lease_s, kept: packed::Kept { seeder, gap_s, id_tag } } = self;
        let known = peers.find(at).map(|(stands, _)| stands);
        peers.put(known, Peer { at, last_s: now_s, gap_from_s: GAP_FROM_UNKNOWN, gap_s, lease_s, id_tag, seeder });
    }
}

/// Nobody knows when the gap of a restored peer began: its next announce ends none.
const GAP_FROM_UNKNOWN: u32 = 0;

/// What is known of a peer after this announce.
fn next_state<A: Copy>(
    known: Option<Peer<A>>,
    at: Endpoint<A>,
    now_s: u32,
    given_s: u32,
    request: &AnnounceRequest,
) -> Peer<A> {
    let seeder = request.left == 0;
    let id_tag = id_tag(&request.peer_id);
    let is_peerd = request.peer_id.is_peerd();
    let (gap_from_s, gap_s) = match known {
        // `completed` comes when it comes: it says nothing of the client's rhythm.
        Some(peer) if request.event == Event::Completed => (peer.gap_from_s, peer.gap_s),
        Some(peer) if peer.gap_from_s == GAP_FROM_UNKNOWN => (now_s, peer.gap_s),
        Some(peer) => {
            let gap_s = now_s.saturating_sub(peer.gap_from_s).clamp(1, law::MAX_LEASE_S);
            (now_s, u16::try_from(gap_s).unwrap_or(u16::MAX))
        }
        None => (now_s, 0),
    };
    let lease_s = law::lease_s(given_s, (gap_s > 0).then_some(u32::from(gap_s)), is_peerd);
    let lease_s = u16::try_from(lease_s).unwrap_or(u16::MAX);
    Peer { at, last_s: now_s, gap_from_s, gap_s, lease_s, id_tag, seeder }
}

/// The random end of a peer id: two clients share it by chance once in four thousand million.
fn id_tag(id: &PeerId) -> u32 {
    let [.., a, b, c, d] = id.0;
    u32::from_be_bytes([a, b, c, d])
}

fn seconds(now: Time) -> u32 {
    u32::try_from(now.as_nanos() / 1_000_000_000).unwrap_or(u32::MAX)
}

/// A panic elsewhere must not silence the tracker: the tables are right between any two statements that can panic.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::shard::SWEEP_PAUSE_S;
    use super::*;
    use crate::tracker::announcer::fixture;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    struct Table {
        swarms: Swarms,
        rng: SmallRng,
    }

    /// `host:port` of a peer that announces, e.g. `10.0.0.1:7`.
    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn key(n: u8) -> InfoHash {
        InfoHash::new([n; 20])
    }

    fn request(key: InfoHash, from: SocketAddr, left: u64, event: Event) -> AnnounceRequest {
        let mut peer_id = *b"-LT2110-............";
        peer_id[18..].copy_from_slice(&from.port().to_be_bytes());
        AnnounceRequest { info_hash: key, peer_id: PeerId(peer_id), ..fixture::request(from.port(), left, event) }
    }

    impl Table {
        fn new(max_swarms: usize) -> Table {
            Table { swarms: Swarms::new(max_swarms), rng: SmallRng::seed_from_u64(5) }
        }

        fn send(&mut self, now_s: u64, request: &AnnounceRequest, from: SocketAddr) -> (Announced, Vec<String>) {
            let mut peers = Vec::new();
            let announced = self
                .swarms
                .announce(
                    Time::from_secs(now_s),
                    request,
                    from.ip(),
                    50,
                    &mut self.rng,
                    || true,
                    |peer| {
                        peers.push(peer.to_string());
                    },
                )
                .unwrap();
            peers.sort();
            (announced, peers)
        }

        fn announce(&mut self, now_s: u64, from: &str, left: u64, event: Event) -> (Announced, Vec<String>) {
            self.send(now_s, &request(key(1), at(from), left, event), at(from))
        }

        fn present(&mut self, now_s: u64) -> u32 {
            self.swarms.expire(Time::from_secs(now_s));
            let counts = self.swarms.scrape(&key(1));
            assert_eq!(self.swarms.entries() as u32, counts.seeders + counts.leechers);
            counts.seeders + counts.leechers
        }
    }

    #[test]
    fn peers_find_each_other_within_their_family() {
        let mut table = Table::new(100);
        assert!(table.announce(0, "10.0.0.1:1", 0, Event::Started).1.is_empty());
        let (counts, peers) = table.announce(1, "10.0.0.2:2", 9, Event::Started);
        assert_eq!((counts.seeders, counts.leechers, peers), (1, 1, vec!["10.0.0.1:1".to_owned()]));
        assert!(table.announce(1, "[2001:db8::3]:3", 0, Event::Started).1.is_empty());
        assert_eq!(table.announce(1, "[2001:db8::4]:4", 1, Event::Started).1, ["[2001:db8::3]:3"]);
        // Mapped into IPv6, an IPv4 address is what it is.
        assert_eq!(table.announce(1, "[::ffff:10.0.0.5]:5", 0, Event::Started).1, ["10.0.0.2:2"]);
        assert_eq!(table.swarms.scrape(&key(1)), ScrapeEntry { seeders: 3, completed: 0, leechers: 2 });
    }

    #[test]
    fn stopped_drops_at_once_and_only_the_one_who_says_it() {
        let mut table = Table::new(100);
        table.announce(0, "10.0.0.1:1", 0, Event::Started);
        table.announce(0, "10.0.0.2:2", 9, Event::Started);
        // The first one's peer id from another address: nobody leaves.
        table.send(0, &request(key(1), at("10.0.0.1:1"), 0, Event::Stopped), at("10.6.6.6:1"));
        assert_eq!(table.present(0), 2);
        let (counts, peers) = table.announce(1, "10.0.0.1:1", 0, Event::Stopped);
        assert_eq!((counts.seeders, counts.leechers, peers.len()), (0, 1, 0));
        assert_eq!(table.present(1), 1);
        assert!(table.announce(2, "10.0.0.2:2", 9, Event::None).1.is_empty());
        // Stopping in a swarm that nobody knows makes none.
        table.send(3, &request(key(9), at("10.0.0.1:1"), 0, Event::Stopped), at("10.0.0.1:1"));
        assert_eq!(table.swarms.len(), 1);
    }

    #[test]
    fn a_client_that_announced_once_is_kept_for_660_s() {
        let mut table = Table::new(100);
        table.announce(0, "10.0.0.1:1", 5, Event::Started);
        assert_eq!(table.present(659), 1);
        assert_eq!(table.present(670), 0);
        assert_eq!(table.swarms.len(), 0);
    }

    #[test]
    fn peerd_is_dropped_after_two_and_a_half_intervals() {
        let mut table = Table::new(100);
        let mut hello = request(key(1), at("10.0.0.1:1"), 5, Event::Started);
        hello.peer_id = PeerId::ours([1; 12]);
        let (announced, _) = table.send(0, &hello, at("10.0.0.1:1"));
        let lease_s = u64::from(announced.interval_s) * 5 / 2;
        assert_eq!(table.present(lease_s - 1), 1);
        assert_eq!(table.present(lease_s + u64::from(SWEEP_PAUSE_S)), 0);
    }

    /// libtorrent never announces more often than every 300 s, rTorrent 600 s, whatever it is told; each also announces
    /// its completion when it comes.
    #[test]
    fn clients_with_a_long_minimum_interval_of_their_own_are_never_dropped() {
        for gap_s in [300, 600] {
            for completed_at in [2, gap_s / 2, gap_s - 1, gap_s + 1, 2 * gap_s + 7] {
                let mut table = Table::new(100);
                let mut announces: Vec<(u64, Event)> = (1..6).map(|n| (n * gap_s, Event::None)).collect();
                announces.push((completed_at, Event::Completed));
                announces.sort_by_key(|(when, _)| *when);
                table.announce(0, "10.0.0.1:1", 5, Event::Started);
                for (when, event) in announces {
                    for now in when.saturating_sub(400)..when {
                        assert_eq!(table.present(now), 1, "gap {gap_s}, completed {completed_at}, at {now}");
                    }
                    let left = if when < completed_at { 5 } else { 0 };
                    table.announce(when, "10.0.0.1:1", left, event);
                }
            }
        }
    }

    #[test]
    fn completions_are_counted_once() {
        let mut table = Table::new(100);
        table.announce(0, "10.0.0.1:1", 5, Event::Started);
        table.announce(5, "10.0.0.1:1", 0, Event::Completed);
        table.announce(6, "10.0.0.1:1", 0, Event::Completed);
        assert_eq!(table.swarms.scrape(&key(1)), ScrapeEntry { seeders: 1, completed: 1, leechers: 0 });
    }

    #[test]
    fn a_client_in_both_families_counts_once() {
        let mut table = Table::new(100);
        table.announce(0, "10.0.0.1:6881", 0, Event::Started);
        table.announce(0, "[2001:db8::1]:6881", 0, Event::Started);
        table.announce(0, "[2001:db8::2]:6882", 0, Event::Started);
        assert_eq!(table.swarms.scrape(&key(1)).seeders, 2);
        let (total, peers) = table.swarms.sample(&key(1), 10, &mut table.rng);
        assert_eq!((total, peers.len()), (3, 3));
        assert_eq!(table.swarms.sample(&key(1), 2, &mut table.rng).1.len(), 2);
    }

    #[test]
    fn who_is_not_admitted_changes_nothing_and_who_is_known_is_not_asked() {
        let mut table = Table::new(100);
        let hello = request(key(1), at("10.0.0.1:1"), 5, Event::Started);
        let mut announce = |admit: &dyn Fn() -> bool| {
            let ip = at("10.0.0.1:1").ip();
            table.swarms.announce(Time::ZERO, &hello, ip, 50, &mut table.rng, admit, |_| {})
        };
        assert_eq!(announce(&|| false), Err(NotAdmitted));
        announce(&|| true).unwrap();
        announce(&|| panic!("a repeated announce costs nothing")).unwrap();
        assert_eq!(table.swarms.len(), 1);
    }

    #[test]
    fn at_the_cap_the_emptiest_swarms_go_first() {
        let mut table = Table::new(SHARDS * 64);
        let mut join = |n: u16, port: u16| {
            let mut bytes = [0; 20];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            let from = SocketAddr::from(([10, 0, 0, 1], port));
            table.send(0, &request(InfoHash::new(bytes), from, 1, Event::Started), from);
            (table.swarms.len(), table.swarms.entries(), InfoHash::new(bytes))
        };
        let mut honest = Vec::new();
        for n in 0..100 {
            (1..=3).for_each(|port| honest.push(join(n, port).2));
        }
        for n in 100..20_000 {
            let (swarms, entries, _) = join(n, 1);
            assert!(swarms <= SHARDS * 64 && entries <= 300 + SHARDS * 64);
        }
        assert!(honest.iter().all(|key| table.swarms.scrape(key).leechers == 3));
        // What was planned for the evicted does not pile up either.
        assert!(table.swarms.shards.iter().all(|shard| lock(shard).planned() < 4_096));
    }

    #[test]
    fn changes_are_told_once() {
        let mut table = Table::new(100);
        let told = |table: &Table| {
            let mut told = Vec::new();
            table.swarms.drain_changed(|key, counts| told.push((*key, counts.seeders, counts.leechers)));
            told
        };
        table.announce(0, "10.0.0.1:1", 5, Event::Started);
        table.announce(0, "10.0.0.2:1", 0, Event::Started);
        assert_eq!(told(&table), [(key(1), 1, 1)]);
        table.announce(9, "10.0.0.1:1", 5, Event::None);
        assert_eq!(told(&table), []);
        table.announce(10, "10.0.0.1:1", 0, Event::Completed);
        assert_eq!(told(&table), [(key(1), 2, 0)]);
        table.swarms.expire(Time::from_secs(100_000));
        assert_eq!(told(&table), [(key(1), 0, 0)]);
    }

    #[test]
    fn who_joins_with_a_shorter_lease_is_dropped_in_time() {
        let mut table = Table::new(100);
        table.announce(0, "10.0.0.1:1", 0, Event::Started);
        for now in [1_800, 3_600, 5_400] {
            table.announce(now, "10.0.0.1:1", 0, Event::None);
        }
        // Looked at, the swarm is next due when the first one's lease of 4,500 s ends.
        assert_eq!(table.present(5_401), 1);
        let mut hello = request(key(1), at("10.0.0.2:2"), 5, Event::Started);
        hello.peer_id = PeerId::ours([1; 12]);
        table.send(5_402, &hello, at("10.0.0.2:2"));
        assert_eq!(table.present(5_402 + 200), 1);
    }

    #[test]
    fn a_swarm_too_large_for_one_step_is_swept_whole() {
        let mut table = Table::new(100);
        for n in 0..9_000_u32 {
            let from = SocketAddr::from((Ipv4Addr::from_bits(0x0A00_0000 + n), 1));
            table.send(u64::from(n % 2) * 300, &request(key(1), from, 5, Event::Started), from);
        }
        for n in 0..3_000_u32 {
            let from = SocketAddr::from((Ipv6Addr::from_bits(0xFC << 120 | u128::from(n)), 1));
            table.send(0, &request(key(1), from, 5, Event::Started), from);
        }
        table.swarms.expire(Time::from_secs(670));
        assert_eq!(table.swarms.entries(), 4_500);
        table.swarms.expire(Time::from_secs(2_000));
        assert_eq!((table.swarms.entries(), table.swarms.len()), (0, 0));
    }
}
