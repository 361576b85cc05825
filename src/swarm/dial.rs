//! Whom to connect to: the addresses known of one torrent, and when each may be tried (again).
//!
//! An address is *waiting* (until its time comes) → *dialling* → *connected* → waiting again. Incoming sessions enter
//! as connected once their listening address is known, so that there is one session per peer.

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
/// After a session that ended well: it may be back after a restart.
const REDIAL: Duration = Duration::from_secs(5);
/// A peer that misbehaved; bans proper are the swarm's.
const FAULT_BACK_OFF: Duration = Duration::from_secs(10 * 60);

/// Where an address came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    Tracker,
    /// It connected to us and said where it listens.
    Incoming,
    /// From the last run, or named by the operator.
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
    failures: u32,
    source: Source,
}

/// The address book of one torrent.
pub struct KnownPeers {
    own: BTreeSet<SocketAddr>,
    /// While so many are active nobody is dialled.
    max_dialled: usize,
    peers: BTreeMap<SocketAddr, Known>,
    /// Waiting addresses by the time they are due; the lot makes their order random where times are equal.
    queue: BTreeSet<(Time, u32, SocketAddr)>,
    /// Dialling or connected.
    active: usize,
    rng: SmallRng,
}

impl KnownPeers {
    /// `max_sessions` counts dialled and connected ones together. We dial until half of the places are taken; the rest
    /// is left to those who dial us. Else the first of a crowd take up each other's places, and who comes a moment later
    /// finds every door shut.
    pub fn new(max_sessions: usize, seed: u64) -> KnownPeers {
        KnownPeers {
            own: BTreeSet::new(),
            max_dialled: max_sessions.div_ceil(2),
            peers: BTreeMap::new(),
            queue: BTreeSet::new(),
            active: 0,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// An address at which we listen ourselves (as the tracker sees us, or found out by a handshake with ourselves):
    /// never dialled.
    pub fn add_own(&mut self, addr: SocketAddr) {
        let addr = canonical(addr);
        self.own.insert(addr);
        if let Some(known) = self.peers.remove(&addr) {
            self.leave_state(addr, known.state);
        }
    }

    /// Adds addresses, to be dialled at once. Those that cannot be peers are left out, those known already keep their
    /// place. When the book is full, one that failed makes room, the longest back-off first; else the newcomer is left out.
    pub fn add(&mut self, addrs: impl IntoIterator<Item = SocketAddr>, source: Source, now: Time) {
        for addr in addrs.into_iter().map(canonical) {
            if is_dialable(addr) && !self.own.contains(&addr) && !self.peers.contains_key(&addr) && self.make_room() {
                self.wait_until(addr, source, 0, now);
            }
        }
    }

    /// The next address to dial, now counted as being dialled; `None` while nothing is due or enough are connected.
    pub fn next_dial(&mut self, now: Time) -> Option<SocketAddr> {
        let &(due, _, addr) = self.queue.first()?;
        if due > now || self.active >= self.max_dialled {
            return None;
        }
        self.enter(addr, State::Dialling);
        Some(addr)
    }

    /// When [`KnownPeers::next_dial`] may next have something to say.
    pub fn next_timeout(&self) -> Option<Time> {
        let (due, _, _) = self.queue.first()?;
        (self.active < self.max_dialled).then_some(*due)
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
            None => self.wait_until(addr, source, 0, now),
        }
        self.enter(addr, State::Connected);
        if let Some(known) = self.peers.get_mut(&addr) {
            known.failures = 0;
        }
        true
    }

    /// The session with `addr`, or the attempt at one, is over.
    pub fn ended(&mut self, addr: SocketAddr, how: Ended, now: Time) {
        let addr = canonical(addr);
        let Some(known) = self.peers.get(&addr).copied() else { return };
        let pause = match how {
            Ended::Closed => REDIAL,
            Ended::NoUse => NO_USE_BACK_OFF,
            Ended::Fault => FAULT_BACK_OFF,
            Ended::Failed => {
                let pause = FIRST_BACK_OFF * (1 << known.failures.min(10));
                pause.min(MAX_BACK_OFF)
            }
        };
        let failures = known.failures + u32::from(matches!(how, Ended::Failed | Ended::Fault));
        // A quarter either way, so that a swarm does not dial in step.
        let pause = pause.mul_f64(self.rng.random_range(0.75..1.25));
        self.leave_state(addr, known.state);
        self.wait_until(addr, known.source, failures, now + pause);
    }

    pub fn known_count(&self) -> usize {
        self.peers.len()
    }

    /// Being dialled or connected.
    pub fn active_count(&self) -> usize {
        self.active
    }

    /// Addresses worth remembering over a restart: those that did not fail last time.
    pub fn worth_remembering(&self) -> impl Iterator<Item = (SocketAddr, Source)> + '_ {
        self.peers.iter().filter(|(_, known)| known.failures == 0).map(|(addr, known)| (*addr, known.source))
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

    fn wait_until(&mut self, addr: SocketAddr, source: Source, failures: u32, due: Time) {
        let lot = self.rng.random();
        self.queue.insert((due, lot, addr));
        self.peers.insert(addr, Known { state: State::Waiting { due, lot }, failures, source });
    }

    fn enter(&mut self, addr: SocketAddr, state: State) {
        let Some(known) = self.peers.get_mut(&addr) else { return };
        let before = std::mem::replace(&mut known.state, state);
        self.leave_state(addr, before);
        self.active += 1;
    }

    fn leave_state(&mut self, addr: SocketAddr, state: State) {
        match state {
            State::Waiting { due, lot } => {
                self.queue.remove(&(due, lot, addr));
            }
            State::Dialling | State::Connected => self.active -= 1,
        }
    }
}

/// One address is one peer: IPv4 inside IPv6 is IPv4.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn is_dialable(addr: SocketAddr) -> bool {
    let ip = addr.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
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
        let bad = ["0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "10.0.0.1:0", "[::]:1", "[ff02::1]:1"];
        known.add(bad.map(|text| text.parse().unwrap()), Source::Tracker, s(0));
        known.add(["[::ffff:10.1.0.1]:6881".parse().unwrap(), addr(1)], Source::Tracker, s(0));
        assert_eq!((known.known_count(), known.next_dial(s(9))), (0, None));
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
        known.ended(addr(1), Ended::Closed, now);
        assert!(known.next_timeout().unwrap().since(now) < Duration::from_secs(7));
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
        assert!(known.worth_remembering().any(|(known, _)| known == addr(2_900)));
        assert!(!known.peers.contains_key(&failed));
    }
}
