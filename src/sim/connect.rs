//! How connections come and go: the tracker's answers, dials, handshakes, goodbyes.

use std::time::Duration;

use rand::Rng;

use super::node::{Conn, Desk, Node, State, What, address_of, ip_of, mix, peer_of};
use super::scenario::{START, Scenario};
use crate::clock::Time;
use crate::swarm::bans::Endpoint;
use crate::swarm::dial::{Ended, Source};
use crate::swarm::{Giver, Identity, SessionId, SessionInfo};

/// How often a peer asks the tracker for others.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(30);
/// Peers in one answer of the tracker.
const PEERS_PER_ANNOUNCE: usize = 50;
/// One-way delays until an accepter has the dialler's handshake (BEP 3): SYN, its answer, the handshake.
const DELAYS_TO_HELLO: u32 = 3;
/// What a peer says that it queues of our requests (BEP 10).
const REQUESTS_SERVED: u32 = 2_000;

impl Node {
    /// One way, the same in both directions, drawn for the pair.
    pub fn delay_to(&self, peer: u32, scenario: &Scenario) -> Duration {
        let (low, high) = (self.index.min(peer), self.index.max(peer));
        let lot = mix(scenario.seed, u64::from(low) << 32 | u64::from(high));
        let range = &scenario.links.delay;
        let width = range.end.saturating_sub(range.start).as_nanos() as u64;
        range.start + Duration::from_nanos(if width == 0 { 0 } else { lot % width })
    }

    /// The tracker answers with a fair sample of who is there.
    pub fn announce(&mut self, now: Time, scenario: &Scenario) {
        if now < self.next_announce {
            return;
        }
        self.next_announce = now + ANNOUNCE_INTERVAL;
        let wanted = self.spec.conduct.neighbours.map_or(PEERS_PER_ANNOUNCE, |most| most.max(PEERS_PER_ANNOUNCE));
        let count = scenario.peers.len();
        let at = now.since(START);
        let there = |peer: &usize| {
            let spec = &scenario.peers[*peer];
            *peer != self.index as usize && spec.joins_at <= at && spec.leaves_at.is_none_or(|leaves| leaves > at)
        };
        // Few enough to look at all, or enough to draw until there are as many as are wanted.
        let mut sample: Vec<usize> = Vec::new();
        if count <= 4 * wanted {
            sample = (0..count).filter(there).collect();
            let keep = wanted.min(sample.len());
            for place in 0..keep {
                let other = self.rng.random_range(place..sample.len());
                sample.swap(place, other);
            }
            sample.truncate(keep);
        } else {
            for _ in 0..8 * wanted {
                let peer = self.rng.random_range(0..count);
                if sample.len() < wanted && there(&peer) && !sample.contains(&peer) {
                    sample.push(peer);
                }
            }
        }
        self.book.add(sample.into_iter().map(|peer| address_of(peer as u32)), Source::Tracker, now);
    }

    /// Whether another session may be begun or taken.
    pub fn has_place(&self, scenario: &Scenario) -> bool {
        self.by_peer.len() < self.spec.conduct.neighbours.unwrap_or(scenario.neighbours)
    }

    pub fn dial(&mut self, now: Time, scenario: &Scenario, desk: &mut Desk) {
        while self.has_place(scenario) {
            let Some(addr) = self.book.next_dial(now) else { return };
            let Some(peer) = peer_of(addr).filter(|_| self.bans.may_dial(addr, now)) else {
                self.book.ended(addr, Ended::Fault, now);
                continue;
            };
            self.dial_peer(now, peer, scenario, desk);
        }
    }

    pub fn dial_peer(&mut self, now: Time, peer: u32, scenario: &Scenario, desk: &mut Desk) {
        if self.by_peer.contains_key(&peer) {
            return;
        }
        let delay = self.delay_to(peer, scenario);
        let id = self.add_conn(peer, SessionId(u32::MAX), State::Dialling, delay, scenario);
        self.mail(now + delay * DELAYS_TO_HELLO, peer, id, What::Hello(id), desk);
    }

    fn add_conn(
        &mut self,
        peer: u32,
        theirs: SessionId,
        state: State,
        delay: Duration,
        scenario: &Scenario,
    ) -> SessionId {
        let id = SessionId(self.conns.len() as u32);
        self.conns.push(Conn::new(peer, theirs, state, delay, scenario.layout.piece_count().div_ceil(8)));
        self.by_peer.insert(peer, id);
        id
    }

    /// Somebody connects. Of two that dial each other at once, the connection that the lower number began stays.
    pub fn hello(&mut self, now: Time, from: u32, theirs: SessionId, scenario: &Scenario, desk: &mut Desk) {
        let delay = self.delay_to(from, scenario);
        let twin = self.by_peer.get(&from).copied();
        let twin_stays = twin.is_some_and(|id| self.conns[id.0 as usize].state == State::Open || self.index < from);
        let full = twin.is_none() && !self.has_place(scenario);
        let peer = Giver {
            session: theirs,
            identity: Identity::Address(ip_of(from)),
            endpoint: Some(Endpoint::CameFrom(address_of(from))),
        };
        if self.bans.is_banned(&peer, now) {
            return self.mail(now + delay, from, theirs, What::Refused(false), desk);
        }
        if twin_stays || full || (twin.is_none() && !self.book.connected(address_of(from), Source::Incoming, now)) {
            return self.mail(now + delay, from, theirs, What::Refused(!full), desk);
        }
        if let Some(twin) = twin {
            self.conns[twin.0 as usize].state = State::Closed;
            self.book.connected(address_of(from), Source::Incoming, now);
        }
        let id = self.add_conn(from, theirs, State::Open, delay, scenario);
        self.mail(now + delay, from, theirs, What::Welcome(id), desk);
        self.open(now, id, Endpoint::CameFrom(address_of(from)), scenario, desk);
    }

    /// A dial was answered; one that we have given up meanwhile is closed.
    pub fn welcome(
        &mut self,
        now: Time,
        at: (u32, SessionId),
        theirs: SessionId,
        scenario: &Scenario,
        desk: &mut Desk,
    ) {
        let (from, id) = at;
        let delay = self.delay_to(from, scenario);
        let Some(conn) = self.conns.get_mut(id.0 as usize).filter(|conn| conn.state == State::Dialling) else {
            return self.mail(now + delay, from, theirs, What::Bye, desk);
        };
        (conn.theirs, conn.state) = (theirs, State::Open);
        let peer = conn.peer;
        self.book.connected(address_of(peer), Source::Tracker, now);
        self.open(now, id, Endpoint::Dialled(address_of(peer)), scenario, desk);
    }

    fn open(&mut self, now: Time, id: SessionId, endpoint: Endpoint, scenario: &Scenario, desk: &mut Desk) {
        let peer = self.conns[id.0 as usize].peer;
        self.record.neighbours.insert(peer);
        let identity = Identity::Address(ip_of(peer));
        self.swarm.open(now, id, SessionInfo { identity, fast: true });
        self.swarm.set_endpoint(id, endpoint);
        let max_block = Some(scenario.config.max_block_bytes);
        self.swarm.set_peer_extensions(id, Some(REQUESTS_SERVED), max_block, false);
        self.serve(now, id, scenario, desk);
    }

    pub fn refused(&mut self, now: Time, id: SessionId, twice: bool) {
        let Some(conn) = self.conns.get_mut(id.0 as usize).filter(|conn| conn.state == State::Dialling) else { return };
        conn.state = State::Closed;
        let peer = conn.peer;
        self.by_peer.remove(&peer);
        self.book.ended(address_of(peer), if twice { Ended::NoUse } else { Ended::Failed }, now);
    }

    /// Ends a session. The peer is told of it where it is we who end it.
    pub fn close(&mut self, now: Time, id: SessionId, how: Ended, by_us: bool, desk: &mut Desk) {
        let Some(conn) = self.conns.get_mut(id.0 as usize).filter(|conn| conn.state != State::Closed) else { return };
        let was_open = std::mem::replace(&mut conn.state, State::Closed) == State::Open;
        let (peer, theirs, delay) = (conn.peer, conn.theirs, conn.delay);
        self.by_peer.remove(&peer);
        if was_open {
            let how = if how == Ended::Closed && self.swarm.both_seed(id) { Ended::NoUse } else { how };
            self.note_session(now, id);
            self.swarm.close(id);
            self.book.ended(address_of(peer), how, now);
            if by_us {
                self.mail(now + delay, peer, theirs, What::Bye, desk);
            }
        }
    }

    /// Writes down what passed in a session.
    pub fn note_session(&mut self, now: Time, id: SessionId) {
        let peer = self.conns[id.0 as usize].peer;
        if let Some(report) = self.swarm.report(now, id) {
            self.record.session(peer, &report);
        }
    }
}
