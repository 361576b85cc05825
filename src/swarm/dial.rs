//! Whom to connect to: the addresses known of one torrent, and when each may be tried (again).
//!
//! An address is *waiting* (until its time comes) → *dialling* → *connected* → waiting again. Incoming sessions enter
//! as connected once their listening address is known, so that there is one session per peer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clock::Time;

/// Addresses remembered of a torrent: forty times what is ever connected, 200 KiB at most.
pub const MAX_KNOWN: usize = 2_000;
/// After a first failure; doubled by each further one.
const FIRST_BACK_OFF: Duration = Duration::from_secs(10);
const MAX_BACK_OFF: Duration = Duration::from_secs(30 * 60);
/// A peer that cannot be of use for now: both are seeds.
const NO_USE_BACK_OFF: Duration = Duration::from_secs(10 * 60);
/// After a session that ended well: it may be back after a restart. Doubled by each further one that was short.
const REDIAL: Duration = Duration::from_secs(5);
/// Who hangs up sooner than this has no place for us, or no use.
const SHORT_SESSION: Duration = Duration::from_secs(30);
/// A peer that misbehaved; bans proper are the swarm's.
const FAULT_BACK_OFF: Duration = Duration::from_secs(10 * 60);
/// Addresses remembered over a restart: as many as are ever connected, and 1 KB in the store.
pub const MAX_REMEMBERED: usize = 50;
/// Who failed so often in a row is not worth remembering, whatever was before.
const FORGOTTEN_FAILURES: u32 = 4;
/// Addresses of our own: those of a machine's interfaces, and what the outside takes us for.
const MAX_OWN: usize = 64;
/// Peers whose word on our own address is kept: enough for a majority, and each costs 34 bytes.
const MAX_WITNESSES: usize = 64;
/// One peer's word on our address is nothing: it could name another peer's.
const LEAST_WITNESSES: usize = 2;

/// Where an address came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    Tracker,
    /// It connected to us and said where it listens.
    Incoming,
    /// From the last run.
    Remembered,
}

/// How a session, or the attempt at one, ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// No connection, or no handshake.
    Failed,
    /// It was up and ended, by either side.
    Closed,
    /// Neither needs the other.
    NoUse,
    /// The peer broke the rules.
    Fault,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The key under which it stands in the queue.
    Waiting {
        due: Time,
        lot: u32,
    },
    Dialling,
    Connected,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    state: State,
    /// In a row; short sessions count.
    failures: u32,
    /// When the last session with it came up.
    met: Option<Time>,
    source: Source,
}

/// The address book of one torrent.
pub struct KnownPeers {
    own: BTreeSet<SocketAddr>,
    /// Which address each of our peers says that we have.
    witnesses: BTreeMap<IpAddr, SocketAddr>,
    /// While so many are active, those that are of no use not counted, nobody is dialled.
    max_dialled: usize,
    useless: usize,
    peers: BTreeMap<SocketAddr, Known>,
    /// Waiting addresses by the time they are due; the lot makes their order random where times are equal.
    queue: BTreeSet<(Time, u32, SocketAddr)>,
    /// Dialling or connected.
    active: usize,
    dialling: usize,
    rng: SmallRng,
}

impl KnownPeers {
    /// `max_sessions` counts dialled and connected ones together. We dial until half of the places are taken; the rest
    /// is left to those who dial us. Else the first of a crowd take up each other's places, and who comes a moment later
    /// finds every door shut.
    pub fn new(max_sessions: usize, seed: u64) -> KnownPeers {
        KnownPeers {
            own: BTreeSet::new(),
            witnesses: BTreeMap::new(),
            max_dialled: max_sessions.div_ceil(2),
            useless: 0,
            peers: BTreeMap::new(),
            queue: BTreeSet::new(),
            active: 0,
            dialling: 0,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// An address at which we listen ourselves (as the tracker sees us, or found out by a handshake with ourselves):
    /// never dialled. An address with whom a session is up is somebody else's, whoever says otherwise.
    pub fn add_own(&mut self, addr: SocketAddr) {
        let addr = canonical(addr);
        let known = self.peers.get(&addr).copied();
        if self.own.len() >= MAX_OWN || known.is_some_and(|known| known.state == State::Connected) {
            return;
        }
        self.own.insert(addr);
        if let Some(known) = known {
            self.peers.remove(&addr);
            self.leave_state(addr, known.state);
        }
    }

    /// A peer at `witness` says that we are `addr` (`yourip` of BEP 10, with our port). It is believed once most of those
    /// who said anything, and two at least, agree.
    pub fn hear_own(&mut self, addr: SocketAddr, witness: IpAddr) {
        let (addr, witness) = (canonical(addr), witness.to_canonical());
        if self.witnesses.len() >= MAX_WITNESSES && !self.witnesses.contains_key(&witness) {
            return;
        }
        self.witnesses.insert(witness, addr);
        let same_family = self.witnesses.values().filter(|said| said.is_ipv4() == addr.is_ipv4()).count();
        let agree = self.witnesses.values().filter(|said| **said == addr).count();
        if agree >= LEAST_WITNESSES && agree * 2 > same_family {
            self.add_own(addr);
        }
    }

    /// Adds addresses, to be dialled at once. Those that cannot be peers are left out, those known already keep their
    /// place. When the book is full, one that failed makes room, the longest back-off first; else the newcomer is left out.
    pub fn add(&mut self, addrs: impl IntoIterator<Item = SocketAddr>, source: Source, now: Time) {
        for addr in addrs.into_iter().map(canonical) {
            if is_dialable(addr) && !self.own.contains(&addr) && !self.peers.contains_key(&addr) && self.make_room() {
                self.wait_until(addr, source, 0, None, now);
            }
        }
    }

    /// The next address to dial, now counted as being dialled; `None` while nothing is due or enough are connected.
    pub fn next_dial(&mut self, now: Time) -> Option<SocketAddr> {
        let &(due, _, addr) = self.queue.first()?;
        if due > now || self.is_satisfied() {
            return None;
        }
        self.enter(addr, State::Dialling);
        Some(addr)
    }

    /// When [`KnownPeers::next_dial`] may next have something to say.
    pub fn next_timeout(&self) -> Option<Time> {
        let (due, _, _) = self.queue.first()?;
        (!self.is_satisfied()).then_some(*due)
    }

    /// A session with the peer that listens at `addr` is up, whoever dialled. Returns false if there is one already:
    /// then the new one is to be closed, without a call of [`KnownPeers::ended`].
    pub fn connected(&mut self, addr: SocketAddr, source: Source, now: Time) -> bool {
        let addr = canonical(addr);
        match self.peers.get(&addr).map(|known| known.state) {
            Some(State::Connected) => return false,
            Some(_) => {}
            None if self.own.contains(&addr) || !is_dialable(addr) => return true,
            None if !self.make_room() => return true,
            None => self.wait_until(addr, source, 0, None, now),
        }
        self.enter(addr, State::Connected);
        if let Some(known) = self.peers.get_mut(&addr) {
            known.met = Some(now);
        }
        true
    }

    /// The session with `addr`, or the attempt at one, is over.
    pub fn ended(&mut self, addr: SocketAddr, how: Ended, now: Time) {
        let addr = canonical(addr);
        let Some(known) = self.peers.get(&addr).copied() else { return };
        let Known { failures, met, .. } = known;
        if how == Ended::Failed && known.state == State::Connected {
            // It dialled us meanwhile.
            return;
        }
        let short = met.is_some_and(|met| now.since(met) < SHORT_SESSION);
        let backed_off = |first: Duration| (first * (1 << failures.min(10))).min(MAX_BACK_OFF);
        let (pause, failures, met) = match how {
            Ended::Closed if short => (backed_off(REDIAL), failures + 1, met),
            Ended::Closed => (REDIAL, 0, met),
            Ended::NoUse => (NO_USE_BACK_OFF, failures, met),
            Ended::Fault => (FAULT_BACK_OFF, failures + 1, None),
            Ended::Failed => (backed_off(FIRST_BACK_OFF), failures + 1, met),
        };
        // A quarter either way, so that a swarm does not dial in step.
        let pause = pause.mul_f64(self.rng.random_range(0.75..1.25));
        self.leave_state(addr, known.state);
        self.wait_until(addr, known.source, failures, met, now + pause);
    }

    /// So many of those connected are of no use: others are dialled in their stead.
    pub fn set_useless(&mut self, count: usize) {
        self.useless = count;
    }

    fn is_satisfied(&self) -> bool {
        self.active >= self.max_dialled + self.useless
    }

    /// Whether somebody could be dialled now, were there a place.
    pub fn has_due(&self, now: Time) -> bool {
        self.queue.first().is_some_and(|(due, ..)| *due <= now)
    }

    pub fn dialling_count(&self) -> usize {
        self.dialling
    }

    /// Addresses worth remembering over a restart, at most [`MAX_REMEMBERED`], in their own order: first those that are
    /// connected, then those met last, then, of those that did not fail, the ones remembered from before.
    pub fn worth_remembering(&self) -> Vec<SocketAddr> {
        let worth = |known: &Known| match known.met {
            Some(_) => known.failures < FORGOTTEN_FAILURES,
            None => known.failures == 0,
        };
        let rank = |known: &Known| Reverse((known.state == State::Connected, known.met, known.source));
        let mut all: Vec<_> = self.peers.iter().filter(|(_, known)| worth(known)).map(|(a, k)| (rank(k), *a)).collect();
        all.sort_unstable();
        all.truncate(MAX_REMEMBERED);
        let mut addrs: Vec<SocketAddr> = all.into_iter().map(|(_, addr)| addr).collect();
        addrs.sort_unstable();
        addrs
    }

    #[cfg(test)]
    fn known_count(&self) -> usize {
        self.peers.len()
    }

    #[cfg(test)]
    fn active_count(&self) -> usize {
        self.active
    }

    fn make_room(&mut self) -> bool {
        if self.peers.len() < MAX_KNOWN {
            return true;
        }
        let Some(&(due, lot, addr)) = self.queue.last() else { return false };
        if self.peers.get(&addr).is_none_or(|known| known.failures == 0) {
            return false;
        }
        self.queue.remove(&(due, lot, addr));
        self.peers.remove(&addr);
        true
    }

    fn wait_until(&mut self, addr: SocketAddr, source: Source, failures: u32, met: Option<Time>, due: Time) {
        let lot = self.rng.random();
        self.queue.insert((due, lot, addr));
        self.peers.insert(addr, Known { state: State::Waiting { due, lot }, failures, met, source });
    }

    fn enter(&mut self, addr: SocketAddr, state: State) {
        let Some(known) = self.peers.get_mut(&addr) else { return };
        let before = std::mem::replace(&mut known.state, state);
        self.leave_state(addr, before);
        self.active += 1;
        self.dialling += usize::from(state == State::Dialling);
    }

    fn leave_state(&mut self, addr: SocketAddr, state: State) {
        match state {
            State::Waiting { due, lot } => {
                self.queue.remove(&(due, lot, addr));
            }
            State::Dialling => {
                self.active -= 1;
                self.dialling -= 1;
            }
            State::Connected => self.active -= 1,
        }
    }
}

/// One address is one peer: IPv4 inside IPv6 is IPv4.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Whether a connection to it can mean a peer: not to port 0, not to everybody, and not where no route can lead (RFC 6890:
/// 0.0.0.0/8 and 240.0.0.0/4; a link-local IPv6 address says nothing without its link).
fn is_dialable(addr: SocketAddr) -> bool {
    let routable = match addr.ip() {
        IpAddr::V4(ip) => !matches!(ip.octets()[0], 0 | 224..),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    };
    addr.port() != 0 && routable
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn addr(n: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 1, (n >> 8) as u8, n as u8), 6_881))
    }

    fn s(secs: u64) -> Time {
        Time::from_secs(secs)
    }

    #[test]
    fn what_cannot_be_a_peer_is_never_dialled() {
        let mut known = KnownPeers::new(50, 1);
        known.add_own(addr(1));
        let bad = [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "10.0.0.1:0",
            "224.0.0.1:1",
            "239.255.255.255:1",
            "240.0.0.1:1",
            "255.255.255.255:1",
            "[::]:1",
            "[2001:db8::1]:0",
            "[ff02::1]:1",
            "[ff0e::1]:1",
            "[fe80::1]:1",
            "[fe80::1%3]:1",
            "[::ffff:0.0.0.0]:1",
            "[::ffff:224.0.0.1]:1",
            "[::ffff:255.255.255.255]:1",
            "[::ffff:10.0.0.1]:0",
        ];
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        known.add(all(&bad), Source::Tracker, s(0));
        known.add(["[::ffff:10.1.0.1]:6881".parse().unwrap(), addr(1)], Source::Remembered, s(0));
        assert_eq!((known.known_count(), known.next_dial(s(9))), (0, None));
        // A session that came by itself is not put down under such an address.
        assert!(known.connected(all(&bad)[2], Source::Incoming, s(0)));
        assert_eq!((known.known_count(), known.active_count()), (0, 0));
        let good = ["10.0.0.255:1", "127.0.0.1:6881", "[::1]:1", "[2001:db8::1]:65535", "[fc00::1]:1"];
        known.add(all(&good), Source::Tracker, s(0));
        assert_eq!(known.known_count(), good.len());
        let mut known = KnownPeers::new(50, 1);
        // What turns out to be ourselves is forgotten and its place is free again.
        known.add([addr(2)], Source::Tracker, s(0));
        assert_eq!(known.next_dial(s(0)), Some(addr(2)));
        known.add_own(addr(2));
        known.ended(addr(2), Ended::Failed, s(1));
        assert_eq!((known.active_count(), known.known_count()), (0, 0));
    }

    #[test]
    fn failures_back_off_with_jitter_and_success_forgives() {
        let mut known = KnownPeers::new(50, 1);
        known.add([addr(1)], Source::Tracker, s(0));
        let mut now = s(0);
        for failures in 0..12 {
            assert_eq!(known.next_dial(now), Some(addr(1)));
            known.ended(addr(1), Ended::Failed, now);
            let due = known.next_timeout().unwrap();
            let expected = (10.0 * 2f64.powi(failures)).min(1_800.0);
            let got = due.since(now).as_secs_f64();
            assert!((0.75..1.25).contains(&(got / expected)), "{got} s after {failures}");
            known.add([addr(1)], Source::Tracker, now);
            assert_eq!(known.next_dial(now), None, "an announce does not undo the back-off");
            now = due;
        }
        assert_eq!(known.next_dial(now), Some(addr(1)));
        assert!(known.connected(addr(1), Source::Tracker, now));
        now = now + SHORT_SESSION;
        known.ended(addr(1), Ended::Closed, now);
        assert!(known.next_timeout().unwrap().since(now) < Duration::from_secs(7));
    }

    #[test]
    fn who_hangs_up_at_once_is_dialled_ever_more_rarely() {
        let mut known = KnownPeers::new(50, 1);
        known.add([addr(1)], Source::Tracker, s(0));
        let mut now = s(0);
        for sessions in 0..4 {
            assert_eq!(known.next_dial(now), Some(addr(1)));
            assert!(known.connected(addr(1), Source::Tracker, now));
            now = now + Duration::from_secs(1);
            known.ended(addr(1), Ended::Closed, now);
            let due = known.next_timeout().unwrap();
            let times = due.since(now).as_secs_f64() / (5.0 * 2f64.powi(sessions));
            assert!((0.75..1.25).contains(&times), "{times} x after {sessions} short sessions");
            now = due;
        }
        assert_eq!(known.next_dial(now), Some(addr(1)));
        assert!(known.connected(addr(1), Source::Tracker, now));
        now = now + SHORT_SESSION;
        known.ended(addr(1), Ended::Closed, now);
        assert!(known.next_timeout().unwrap().since(now) < Duration::from_secs(7), "a long session forgives");
    }

    #[test]
    fn our_own_address_is_what_most_peers_say_and_never_a_neighbours() {
        let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
        let (victim, ours) = (addr(1), addr(2));
        let mut known = KnownPeers::new(50, 1);
        known.add([victim, ours], Source::Tracker, s(0));
        for _ in 0..3 {
            known.hear_own(victim, ip(1));
        }
        assert_eq!(known.known_count(), 2, "one peer's word");
        known.hear_own(ours, ip(2));
        known.hear_own(ours, ip(3));
        assert_eq!(known.known_count(), 1, "two of three");
        known.add([ours], Source::Tracker, s(0));
        assert_eq!(known.next_dial(s(0)), Some(victim));
        assert!(known.connected(victim, Source::Tracker, s(0)));
        (1..9).for_each(|n| known.hear_own(victim, ip(n)));
        assert!(!known.connected(victim, Source::Incoming, s(0)), "who is connected is not ourselves");
        // No crowd of liars makes the lists grow without end.
        (0..=255).for_each(|n| known.hear_own(addr(u16::from(n)), ip(n)));
        assert_eq!(known.witnesses.len(), MAX_WITNESSES);
        (1_000..1_200).for_each(|n| known.add_own(addr(n)));
        assert_eq!(known.own.len(), MAX_OWN);
    }

    #[test]
    fn a_dial_that_fails_while_the_peer_dials_us_takes_nothing_from_its_session() {
        let mut known = KnownPeers::new(50, 1);
        known.add([addr(1)], Source::Tracker, s(0));
        assert_eq!(known.next_dial(s(0)), Some(addr(1)));
        assert_eq!((known.dialling_count(), known.active_count()), (1, 1));
        assert!(known.connected(addr(1), Source::Incoming, s(1)));
        known.ended(addr(1), Ended::Failed, s(2));
        assert_eq!((known.dialling_count(), known.active_count(), known.has_due(s(9_999))), (0, 1, false));
        known.ended(addr(1), Ended::Closed, s(3));
        assert!(known.has_due(s(20)) && known.active_count() == 0);
    }

    #[test]
    fn those_that_were_met_are_remembered_first() {
        let mut known = KnownPeers::new(50, 1);
        known.add((0..100).map(addr), Source::Tracker, s(0));
        // 0 to 39 were met, of those 0 to 4 are connected; 40 to 44 failed; 5 misbehaved; 6 has been gone for long.
        for n in (0..40).map(addr) {
            assert!(known.connected(n, Source::Tracker, s(1)));
        }
        (5..40).for_each(|n| known.ended(addr(n), if n == 5 { Ended::Fault } else { Ended::Closed }, s(2)));
        (40..45).for_each(|n| known.ended(addr(n), Ended::Failed, s(2)));
        (0..FORGOTTEN_FAILURES).for_each(|_| known.ended(addr(6), Ended::Failed, s(3)));
        let kept = known.worth_remembering();
        assert_eq!(kept.len(), MAX_REMEMBERED);
        assert!((0..40).filter(|n| *n != 5 && *n != 6).all(|n| kept.contains(&addr(n))));
        assert!((40..45).chain([5, 6]).all(|n| !kept.contains(&addr(n))));
        assert!(kept.is_sorted());
    }

    #[test]
    fn one_session_per_peer_and_half_of_the_places_are_left_to_those_who_dial_us() {
        let mut known = KnownPeers::new(4, 1);
        known.add((1..=5).map(addr), Source::Tracker, s(0));
        let first = known.next_dial(s(0)).unwrap();
        // It dialled us at the same time: the session that is up first stays.
        assert!(known.connected(first, Source::Incoming, s(0)));
        assert!(!known.connected(first, Source::Tracker, s(0)));
        assert!(known.next_dial(s(0)).is_some());
        assert_eq!((known.next_dial(s(0)), known.active_count(), known.next_timeout()), (None, 2, None));
        known.set_useless(1);
        assert_eq!(known.next_timeout(), Some(s(0)), "another in the useless one's stead");
        known.set_useless(0);
        known.ended(first, Ended::NoUse, s(1));
        let third = known.next_dial(s(1)).unwrap();
        assert_ne!(third, first);
        assert!(known.connected(addr(900), Source::Incoming, s(1)), "one that came by itself");
        assert_eq!(known.active_count(), 3);
    }

    #[test]
    fn the_book_is_bounded_and_prefers_those_that_have_not_failed() {
        let mut known = KnownPeers::new(50, 1);
        known.add((0..3_000).map(addr), Source::Tracker, s(0));
        assert_eq!(known.known_count(), MAX_KNOWN);
        let failed = known.next_dial(s(0)).unwrap();
        known.ended(failed, Ended::Failed, s(0));
        known.add([addr(2_900)], Source::Tracker, s(0));
        assert_eq!(known.known_count(), MAX_KNOWN);
        assert!(known.peers.contains_key(&addr(2_900)));
        assert!(!known.peers.contains_key(&failed));
    }
}
