//! Who is in which swarm. Sharded by info-hash, so that the UDP threads and HTTP share it; IPv4 and IPv6 peers apart.
//!
//! A peer is known by the address and port that it listens on, never by its peer id: an id can be copied, an address
//! that answers cannot (BEP 15's connection id proves it, and so does TCP).

pub mod law;
mod peers;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rand::Rng;

use crate::clock::Time;
use crate::wire::announce::{AnnounceRequest, Event, ScrapeEntry};
use crate::wire::id::{InfoHash, PeerId};
pub use peers::MAX_SAMPLE;
use peers::{Endpoint, Peer, Peers};

/// Swarms at most, whoever asks: about 0.5 GiB when each has a peer or two. Beyond, the emptiest go first.
pub const MAX_SWARMS: usize = 2_000_000;
/// Locks: enough that a few threads seldom meet, few enough that idle ones cost nothing.
const SHARDS: usize = 16;
/// Swarms looked at to find the emptiest: with half of them empty, one is found but for one time in 2^32.
const EVICTION_SAMPLE: usize = 32;
/// Peers looked at under one lock while expiring: some ten microseconds, so that no announce waits for the sweep.
const SWEEP_PEERS: usize = 2_000;
/// A swarm is not swept again sooner: a large one whose peers fall due one by one is walked once for many.
const SWEEP_PAUSE_S: u32 = 5;
/// Peers compared to tell clients that joined over both families: in a larger swarm the difference is noise.
const DUAL_STACK_PEERS: usize = 512;

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

pub struct Swarms {
    shards: Vec<Mutex<Shard>>,
    max_per_shard: usize,
    /// Peers in all swarms: the interval follows it.
    entries: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    places: HashMap<InfoHash, u32>,
    swarms: Vec<Swarm>,
    /// When to sweep which swarm. An entry counts only if it is the swarm's own `due_s`.
    due: BinaryHeap<Reverse<(u32, InfoHash)>>,
    /// Swarms whose counts changed since the last [`Swarms::drain_changed`].
    changed: Vec<InfoHash>,
}

struct Swarm {
    key: InfoHash,
    v4: Peers<Ipv4Addr>,
    v6: Peers<Ipv6Addr>,
    completed: u32,
    due_s: u32,
    in_changed: bool,
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
        self.shards.iter().map(|shard| lock(shard).swarms.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One announce of the peer that listens at `ip` and the request's port. `peers` is cleared and gets at most
    /// `wanted` others of the same family. `admit` is asked once if the peer is not in the swarm yet.
    ///
    /// # Errors
    /// [`NotAdmitted`] when `admit` says no; nothing has changed then.
    #[expect(clippy::too_many_arguments, reason = "now, generator and the reused list are arguments by design")]
    pub fn announce(
        &self,
        now: Time,
        request: &AnnounceRequest,
        ip: IpAddr,
        wanted: usize,
        rng: &mut impl Rng,
        admit: impl FnOnce() -> bool,
        peers: &mut Vec<SocketAddr>,
    ) -> Result<Announced, NotAdmitted> {
        peers.clear();
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.announce_in(now, request, ip, wanted, rng, admit, peers),
            IpAddr::V6(ip) => self.announce_in(now, request, ip, wanted, rng, admit, peers),
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
        peers: &mut Vec<SocketAddr>,
    ) -> Result<Announced, NotAdmitted> {
        let at = Endpoint { ip, port: request.port };
        let given_s = law::spread(law::interval_s(self.entries()), rng);
        let mut announced =
            Announced { interval_s: given_s, min_interval_s: law::min_interval_s(given_s), seeders: 0, leechers: 0 };
        let mut shard = self.shard(&request.info_hash);
        if request.event == Event::Stopped {
            self.stop::<A>(&mut shard, &request.info_hash, at, &mut announced);
            return Ok(announced);
        }
        let known = shard.find(&request.info_hash).and_then(|swarm| A::peers(swarm).get(at).copied());
        if known.is_none() && !admit() {
            return Err(NotAdmitted);
        }
        let peer = next_state(known, at, seconds(now), given_s, request);
        self.make_room(&mut shard, &request.info_hash, rng);
        let swarm = shard.find_or_create(request.info_hash, peer.due_s());
        let family = A::peers(swarm);
        let before = (family.len(), family.leechers());
        family.put(peer);
        family.draw(at, peer.seeder, wanted, rng, |peer| peers.push(A::address(peer.at)));
        let after = (family.len(), family.leechers());
        announced.seeders = count(family.seeders());
        announced.leechers = count(family.leechers());
        let completed_now = request.event == Event::Completed && !known.is_some_and(|peer| peer.seeder);
        swarm.completed = swarm.completed.saturating_add(u32::from(completed_now));
        self.entries.fetch_add(after.0 - before.0, Ordering::Relaxed);
        if before != after || completed_now {
            shard.mark_changed(&request.info_hash);
        }
        Ok(announced)
    }

    fn stop<A: Family>(&self, shard: &mut Shard, key: &InfoHash, at: Endpoint<A>, announced: &mut Announced) {
        let Some(swarm) = shard.find(key) else { return };
        let family = A::peers(swarm);
        let left = family.remove(at);
        announced.seeders = count(family.seeders());
        announced.leechers = count(family.leechers());
        if left {
            // An emptied swarm keeps its completed count until the sweep comes by.
            self.entries.fetch_sub(1, Ordering::Relaxed);
            shard.mark_changed(key);
        }
    }

    /// The counts of one swarm, both families; a client that is in it by both counts once.
    pub fn scrape(&self, key: &InfoHash) -> ScrapeEntry {
        self.shard(key).find(key).map_or(ScrapeEntry::default(), |swarm| swarm.counts())
    }

    /// Peers in the swarm, and a fair draw of at most `wanted`: where each listens, and whether it has all.
    pub fn sample(&self, key: &InfoHash, wanted: usize, rng: &mut impl Rng) -> (usize, Vec<(SocketAddr, bool)>) {
        let mut shard = self.shard(key);
        let Some(swarm) = shard.find(key) else { return (0, Vec::new()) };
        let total = swarm.v4.len() + swarm.v6.len();
        let mut peers = Vec::new();
        // Each family has its share of the draw; nobody listens on port 0, so that nobody is left out as the asker.
        let of_v4 = if total == 0 { 0 } else { (wanted.min(total) * swarm.v4.len()).div_ceil(total) };
        let nobody = Endpoint { ip: Ipv4Addr::UNSPECIFIED, port: 0 };
        swarm.v4.draw(nobody, false, of_v4, rng, |peer| peers.push((Family::address(peer.at), peer.seeder)));
        let nobody = Endpoint { ip: Ipv6Addr::UNSPECIFIED, port: 0 };
        let rest = wanted.saturating_sub(peers.len());
        swarm.v6.draw(nobody, false, rest, rng, |peer| peers.push((Family::address(peer.at), peer.seeder)));
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
            let changed = std::mem::take(&mut lock(shard).changed);
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

    fn make_room(&self, shard: &mut Shard, key: &InfoHash, rng: &mut impl Rng) {
        if shard.swarms.len() >= self.max_per_shard && !shard.places.contains_key(key) {
            let peers = shard.evict(rng);
            self.entries.fetch_sub(peers, Ordering::Relaxed);
        }
    }

    fn shard(&self, key: &InfoHash) -> MutexGuard<'_, Shard> {
        let byte = key.as_bytes().last().copied().unwrap_or(0);
        lock(&self.shards[usize::from(byte) % SHARDS])
    }
}

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

impl Shard {
    fn find(&mut self, key: &InfoHash) -> Option<&mut Swarm> {
        let place = *self.places.get(key)?;
        self.swarms.get_mut(place as usize)
    }

    fn find_or_create(&mut self, key: InfoHash, due_s: u32) -> &mut Swarm {
        let next = self.swarms.len();
        let place = *self.places.entry(key).or_insert(next as u32) as usize;
        if place == next {
            let (v4, v6) = (Peers::default(), Peers::default());
            self.swarms.push(Swarm { key, v4, v6, completed: 0, due_s, in_changed: false });
            self.plan(key, due_s);
        }
        &mut self.swarms[place]
    }

    fn plan(&mut self, key: InfoHash, due_s: u32) {
        // Entries of evicted swarms lie here until they fall due: not more of them than of live ones.
        if self.due.len() > 2 * self.swarms.len() + 1_024 {
            self.due = self.swarms.iter().map(|swarm| Reverse((swarm.due_s, swarm.key))).collect();
        } else {
            self.due.push(Reverse((due_s, key)));
        }
    }

    fn mark_changed(&mut self, key: &InfoHash) {
        if let Some(swarm) = self.find(key).filter(|swarm| !swarm.in_changed) {
            swarm.in_changed = true;
            self.changed.push(*key);
        }
    }

    /// Looks at the swarms that are due, [`SWEEP_PEERS`] peers at most. Peers dropped, and whether there is more to do.
    fn sweep(&mut self, now_s: u32) -> (usize, bool) {
        let (mut looked_at, mut dropped) = (0, 0);
        while let Some(&Reverse((due_s, key))) = self.due.peek() {
            if due_s > now_s {
                return (dropped, false);
            }
            if looked_at > SWEEP_PEERS {
                return (dropped, true);
            }
            self.due.pop();
            let Some(swarm) = self.find(&key).filter(|swarm| swarm.due_s == due_s) else { continue };
            looked_at += 1 + swarm.v4.len() + swarm.v6.len();
            let (v4, next_v4) = swarm.v4.expire(now_s);
            let (v6, next_v6) = swarm.v6.expire(now_s);
            dropped += v4 + v6;
            match next_v4.into_iter().chain(next_v6).min() {
                Some(next_s) => {
                    let next_s = next_s.max(now_s + SWEEP_PAUSE_S);
                    swarm.due_s = next_s;
                    self.plan(key, next_s);
                    if v4 + v6 > 0 {
                        self.mark_changed(&key);
                    }
                }
                None => {
                    self.mark_changed(&key);
                    self.remove(&key);
                }
            }
        }
        (dropped, false)
    }

    /// Drops the emptiest of a few drawn swarms; the number of peers it had.
    fn evict(&mut self, rng: &mut impl Rng) -> usize {
        let size = |swarm: &Swarm| swarm.v4.len() + swarm.v6.len();
        let drawn = (0..EVICTION_SAMPLE).map(|_| rng.random_range(0..self.swarms.len()));
        let Some((key, peers)) = drawn
            .map(|place| &self.swarms[place])
            .map(|swarm| (swarm.key, size(swarm)))
            .min_by_key(|(_, peers)| *peers)
        else {
            return 0;
        };
        self.mark_changed(&key);
        self.remove(&key);
        peers
    }

    fn remove(&mut self, key: &InfoHash) {
        let Some(place) = self.places.remove(key) else { return };
        self.swarms.swap_remove(place as usize);
        if let Some(moved) = self.swarms.get(place as usize) {
            self.places.insert(moved.key, place);
        }
    }
}

impl Swarm {
    fn counts(&self) -> ScrapeEntry {
        let mut seeders = self.v4.seeders() + self.v6.seeders();
        let mut leechers = self.v4.leechers() + self.v6.leechers();
        let (few, many) = (self.v4.len().min(self.v6.len()), self.v4.len().max(self.v6.len()));
        if few > 0 && many <= DUAL_STACK_PEERS {
            let mut tags: Vec<u32> = self.v4.iter().map(|peer| peer.id_tag).collect();
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

/// The random end of a peer id: two clients share it by chance once in four thousand million.
fn id_tag(id: &PeerId) -> u32 {
    let [.., a, b, c, d] = id.0;
    u32::from_be_bytes([a, b, c, d])
}

fn seconds(now: Time) -> u32 {
    u32::try_from(now.as_nanos() / 1_000_000_000).unwrap_or(u32::MAX)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A panic elsewhere must not silence the tracker: the tables are right between any two statements that can panic.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
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
        AnnounceRequest {
            info_hash: key,
            peer_id: PeerId(peer_id),
            port: from.port(),
            uploaded: 0,
            downloaded: 0,
            left,
            event,
            numwant: None,
            key: None,
            compact: true,
            no_peer_id: false,
            ip: None,
        }
    }

    impl Table {
        fn new(max_swarms: usize) -> Table {
            Table { swarms: Swarms::new(max_swarms), rng: SmallRng::seed_from_u64(5) }
        }

        fn send(&mut self, now_s: u64, request: &AnnounceRequest, from: SocketAddr) -> (Announced, Vec<String>) {
            let mut peers = Vec::new();
            let announced = self
                .swarms
                .announce(Time::from_secs(now_s), request, from.ip(), 50, &mut self.rng, || true, &mut peers)
                .unwrap();
            let mut peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
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
            table.swarms.announce(Time::ZERO, &hello, ip, 50, &mut table.rng, admit, &mut Vec::new())
        };
        assert_eq!(announce(&|| false), Err(NotAdmitted));
        announce(&|| true).unwrap();
        announce(&|| panic!("a repeated announce costs nothing")).unwrap();
        assert_eq!(table.swarms.len(), 1);
    }

    #[test]
    fn at_the_cap_the_emptiest_swarms_go_first() {
        let mut table = Table::new(16 * 64);
        let mut join = |n: u16, port: u16| {
            let mut bytes = [0; 20];
            bytes[..2].copy_from_slice(&n.to_be_bytes());
            bytes[19] = (n % 16) as u8;
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
            assert!(swarms <= 16 * 64 && entries <= 300 + 16 * 64);
        }
        assert!(honest.iter().all(|key| table.swarms.scrape(key).leechers == 3));
        // What was planned for the evicted does not pile up either.
        assert!(table.swarms.shards.iter().all(|shard| lock(shard).due.len() < 4_096));
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
}
