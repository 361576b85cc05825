//! One peer: its rules, its links, its connections. What the daemon does around a swarm, without sockets and disks.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::conduct::{Act, Behaviour, Choking};
use super::link::{Chunk, Downlink, Socket, Uplink};
use super::outcome::Record;
use super::scenario::{PeerSpec, START, Scenario};
use crate::clock::Time;
use crate::swarm::bans::Bans;
use crate::swarm::choker::{Account, Decision, SessionView};
use crate::swarm::dial::{Ended, KnownPeers};
use crate::swarm::{CloseReason, Effect, Giver, Identity, PeerFault, Placement, Receipt, SessionId, Swarm, UnitDigest};
use crate::wire::bitfield::Bitfield;
use crate::wire::framing::{Frame, Framer};
use crate::wire::layout::{BLOCK_BYTES, Block, PieceIndex};
use crate::wire::message::encode_piece_header;

/// No timer fires sooner: the grain of the daemon's.
const TIMER_STEP: Duration = Duration::from_millis(1);
/// Messages are made in portions of this size, as the daemon makes them.
const MESSAGES_BYTES: usize = 16 * 1024;

/// What goes from one node to another.
#[derive(Debug)]
pub(super) enum What {
    /// A connection with a handshake: the dialler's session.
    Hello(SessionId),
    /// The handshake's answer: the accepter's session.
    Welcome(SessionId),
    /// No session: there is one already (`true`), or no place.
    Refused(bool),
    Data(Chunk),
    /// Data that waited before the downlink.
    Passed(Chunk),
    /// Too much comes in at the other end: nothing is to be sent for so long.
    Pause(Duration),
    Bye,
}

/// Something that reaches a node; ordered by time, then by where it came from and in which order it was sent.
#[derive(Debug)]
pub(super) struct Arrival {
    pub at: Time,
    pub from: u32,
    pub serial: u64,
    /// The receiver's session; unset for a hello.
    pub session: SessionId,
    pub what: What,
}

impl Arrival {
    fn key(&self) -> (Time, u32, u64) {
        (self.at, self.from, self.serial)
    }
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Arrival) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Arrival {}

impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Arrival) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Arrival {
    fn cmp(&self, other: &Arrival) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// An arrival and whom it reaches.
pub(super) struct Mail {
    pub to: u32,
    pub arrival: Arrival,
}

/// Memory that is used again from event to event, and the mail of the present window. One for each thread.
#[derive(Default)]
pub(super) struct Desk {
    /// By the thread that plays the receiver: peers are dealt out in turn.
    pub mail: Vec<Vec<Mail>>,
    messages: Vec<u8>,
    edited: Vec<u8>,
    wakes: Vec<SessionId>,
    views: Vec<SessionView>,
    decisions: Vec<Decision>,
    acts: Vec<Act>,
    /// Buffers of chunks that have been read.
    spare: Vec<Vec<u8>>,
}

impl Desk {
    pub fn new(threads: usize) -> Desk {
        Desk { mail: (0..threads).map(|_| Vec::new()).collect(), ..Desk::default() }
    }
}

/// Buffers kept for chunks to come; more are given back to the machine.
const MAX_SPARE: usize = 4_096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Dialling,
    Open,
    Closed,
}

/// Our end of a connection.
pub(super) struct Conn {
    pub peer: u32,
    /// The session at the other end; known once the connection is open.
    pub theirs: SessionId,
    pub state: State,
    pub delay: Duration,
    socket: Socket,
    /// A block that the rules have given out and the socket has no room for, as the daemon reads one ahead; whether it
    /// is noise.
    ready: Option<(Block, bool)>,
    /// It stands among the uplink's turns.
    in_turns: bool,
    paused_until: Time,
    /// The other end was asked to pause until then.
    asked_pause_until: Time,
    framer: Framer,
    placed: Option<Placement>,
    spoiled: bool,
}

impl Conn {
    pub fn new(peer: u32, theirs: SessionId, state: State, delay: Duration, bitfield_bytes: u32) -> Conn {
        Conn {
            peer,
            theirs,
            state,
            delay,
            socket: Socket::default(),
            ready: None,
            in_turns: false,
            paused_until: Time::ZERO,
            asked_pause_until: Time::ZERO,
            framer: Framer::new(bitfield_bytes),
            placed: None,
            spoiled: false,
        }
    }
}

pub(super) struct Node {
    pub index: u32,
    pub spec: PeerSpec,
    pub swarm: Swarm,
    choker: Box<dyn Choking>,
    behaviour: Box<dyn Behaviour>,
    pub book: KnownPeers,
    pub bans: Bans,
    /// By session.
    pub conns: Vec<Conn>,
    /// Open sessions and dials, by peer.
    pub by_peer: BTreeMap<u32, SessionId>,
    inbox: BinaryHeap<Reverse<Arrival>>,
    uplink: Uplink,
    downlink: Downlink,
    /// Connections that were asked to pause.
    paused: Vec<SessionId>,
    /// Units of pieces in progress that are noise.
    spoiled: BTreeSet<(PieceIndex, u32)>,
    /// Verified bytes that each ever gave, by peer.
    ledger: BTreeMap<u32, Account>,
    serial: u64,
    pub present: bool,
    timer: Time,
    /// When the choker wants to be asked again; it changes its mind only when it is asked.
    next_review: Option<Time>,
    next_act: Option<Time>,
    pub next_announce: Time,
    pub rng: SmallRng,
    pub record: Record,
}

/// The address of a peer: what its number says.
pub(super) fn address_of(peer: u32) -> SocketAddr {
    SocketAddr::new(ip_of(peer), 6_881)
}

pub(super) fn ip_of(peer: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0A00_0001 + peer))
}

pub(super) fn peer_of(address: SocketAddr) -> Option<u32> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    u32::from(ip).checked_sub(0x0A00_0001)
}

/// Peers are known by their addresses: nobody proves a key here.
fn peer_with(identity: &Identity) -> Option<u32> {
    match identity {
        Identity::Address(IpAddr::V4(ip)) => u32::from(*ip).checked_sub(0x0A00_0001),
        _ => None,
    }
}

/// A seed of its own for each use (SplitMix64).
pub(super) fn mix(seed: u64, salt: u64) -> u64 {
    let mut z = seed.wrapping_add(salt.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Node {
    pub fn new(index: u32, scenario: &Scenario) -> Node {
        let spec = scenario.peers[index as usize].clone();
        let pieces = scenario.layout.piece_count();
        let have = if spec.seed { Bitfield::full(pieces) } else { Bitfield::empty(pieces) };
        let seed = mix(scenario.seed, u64::from(index));
        let (choker, behaviour) = (spec.conduct.make_choker(mix(seed, 1)), spec.conduct.make_behaviour(mix(seed, 2)));
        // The book dials up to half of its places; who wants more neighbours than others wants to dial them all.
        let places = spec.conduct.neighbours.map_or(scenario.neighbours, |most| 2 * most);
        let mut book = KnownPeers::new(places, mix(seed, 3));
        book.add_own(address_of(index));
        let joins = START + spec.joins_at;
        let next_review = choker.next_timeout();
        Node {
            index,
            swarm: Swarm::new(scenario.config, scenario.layout, have, mix(seed, 4)),
            next_act: behaviour.acts_every().map(|_| joins),
            choker,
            behaviour,
            book,
            bans: Bans::default(),
            conns: Vec::new(),
            by_peer: BTreeMap::new(),
            inbox: BinaryHeap::new(),
            uplink: Uplink::new(spec.up_bits_per_s),
            downlink: Downlink::new(spec.down_bits_per_s),
            paused: Vec::new(),
            spoiled: BTreeSet::new(),
            ledger: BTreeMap::new(),
            serial: 0,
            present: false,
            timer: joins,
            next_review,
            next_announce: joins,
            rng: SmallRng::seed_from_u64(mix(seed, 5)),
            record: Record::new(joins),
            spec,
        }
    }

    /// When something happens next.
    pub fn next_event(&self) -> Time {
        let arrival = self.inbox.peek().map_or(Time::from_nanos(u64::MAX), |Reverse(arrival)| arrival.at);
        let turn = if self.uplink.turns.is_empty() { arrival } else { self.uplink.free_at };
        arrival.min(turn).min(self.timer)
    }

    pub fn put(&mut self, arrival: Arrival) {
        self.inbox.push(Reverse(arrival));
    }

    /// Whether the run need not wait for it.
    pub fn is_through(&self) -> bool {
        !self.spec.awaited || self.swarm.is_complete() || (!self.present && self.timer == Time::from_nanos(u64::MAX))
    }

    /// Plays everything before `end`. What it sends arrives at others no sooner than `end`.
    pub fn play(&mut self, end: Time, scenario: &Scenario, desk: &mut Desk) {
        loop {
            let now = self.next_event();
            if now >= end {
                return;
            }
            if self.inbox.peek().is_some_and(|Reverse(arrival)| arrival.at == now) {
                if let Some(Reverse(arrival)) = self.inbox.pop() {
                    self.arrive(now, arrival, scenario, desk);
                }
            } else if !self.uplink.turns.is_empty() && self.uplink.free_at == now {
                self.send_turn(now, scenario, desk);
            } else {
                self.tick(now, scenario, desk);
            }
            self.settle(now, scenario, desk);
        }
    }

    fn arrive(&mut self, now: Time, arrival: Arrival, scenario: &Scenario, desk: &mut Desk) {
        if !self.present {
            let answer = match arrival.what {
                What::Hello(theirs) => (theirs, What::Refused(false)),
                What::Welcome(theirs) => (theirs, What::Bye),
                _ => return,
            };
            let at = now + self.delay_to(arrival.from, scenario);
            return self.mail(at, arrival.from, answer.0, answer.1, desk);
        }
        let id = arrival.session;
        self.record.mix(now, arrival.from, &arrival.what);
        match arrival.what {
            What::Hello(theirs) => self.hello(now, arrival.from, theirs, scenario, desk),
            What::Welcome(theirs) => self.welcome(now, (arrival.from, id), theirs, scenario, desk),
            What::Refused(twice) => self.refused(now, id, twice),
            What::Data(chunk) => {
                let through = self.downlink.pass(now, chunk.stream_bytes());
                self.ask_for_pause(now, id, desk);
                if through > now {
                    self.put(Arrival { at: through, what: What::Passed(chunk), ..arrival });
                } else {
                    self.read(now, id, chunk, scenario, desk);
                }
            }
            What::Passed(chunk) => self.read(now, id, chunk, scenario, desk),
            What::Pause(pause) => self.pause(now, id, pause),
            What::Bye => self.close(now, id, Ended::Closed, false, desk),
        }
    }

    pub fn mail(&mut self, at: Time, to: u32, session: SessionId, what: What, desk: &mut Desk) {
        self.serial += 1;
        let thread = to as usize % desk.mail.len();
        let arrival = Arrival { at, from: self.index, serial: self.serial, session, what };
        desk.mail[thread].push(Mail { to, arrival });
    }

    fn conn(&mut self, id: SessionId) -> Option<&mut Conn> {
        self.conns.get_mut(id.0 as usize).filter(|conn| conn.state == State::Open)
    }

    /// A run of a peer's stream is through the downlink.
    fn read(&mut self, now: Time, id: SessionId, chunk: Chunk, scenario: &Scenario, desk: &mut Desk) {
        let Chunk { bytes, payload_bytes, spoiled } = chunk;
        if let Some(conn) = self.conn(id) {
            conn.framer.push(&bytes);
            if let Err(fault) = self.read_frames(now, id) {
                self.record.faults.push((self.conns[id.0 as usize].peer, fault));
                self.close(now, id, Ended::Fault, true, desk);
            }
        }
        if desk.spare.len() < MAX_SPARE {
            desk.spare.push(bytes);
        }
        let Some(conn) = self.conn(id) else { return };
        if payload_bytes > 0 {
            conn.framer.payload_read(payload_bytes as usize);
            conn.spoiled |= spoiled;
            if conn.framer.payload_left() == 0 {
                self.block_is_in(now, id);
            }
        }
        self.serve(now, id, scenario, desk);
    }

    fn read_frames(&mut self, now: Time, id: SessionId) -> Result<(), PeerFault> {
        let Node { conns, swarm, .. } = self;
        let conn = &mut conns[id.0 as usize];
        // What nodes say is well framed.
        while let Ok(Some(frame)) = conn.framer.next() {
            match frame {
                Frame::Message(message) => swarm.receive(now, id, message)?,
                Frame::Piece(raw) => {
                    conn.placed = Some(swarm.place(now, id, raw)?);
                    conn.spoiled = false;
                }
            }
        }
        Ok(())
    }

    fn block_is_in(&mut self, now: Time, id: SessionId) {
        let conn = &mut self.conns[id.0 as usize];
        let spoiled = conn.spoiled;
        let Some(Placement::Slot(block) | Placement::Scratch(block)) = conn.placed.take() else { return };
        let complete = match self.swarm.block_received(now, id, block) {
            Receipt::Keep { piece_complete } => {
                self.mark(block, spoiled);
                piece_complete
            }
            Receipt::Copy { parts, piece_complete } => {
                parts.into_iter().for_each(|part| self.mark(part, spoiled));
                piece_complete
            }
            Receipt::Redundant => false,
        };
        self.record.progress(now);
        if complete {
            self.piece_is_in(now, block.piece());
        }
    }

    fn mark(&mut self, block: Block, spoiled: bool) {
        if !spoiled && self.spoiled.is_empty() {
            return;
        }
        for begin in (block.begin()..block.end()).step_by(BLOCK_BYTES as usize) {
            if spoiled {
                self.spoiled.insert((block.piece(), begin));
            } else {
                self.spoiled.remove(&(block.piece(), begin));
            }
        }
    }

    fn piece_is_in(&mut self, now: Time, piece: PieceIndex) {
        if self.spoiled.range((piece, 0)..=(piece, u32::MAX)).next().is_some() {
            let digests = self.digests(piece);
            self.spoiled.retain(|(spoiled, _)| *spoiled != piece);
            self.record.failed_pieces += 1;
            self.swarm.piece_failed(piece, &digests);
            return;
        }
        for given in self.swarm.piece_verified(piece) {
            if let Some(peer) = peer_with(&given.identity) {
                self.ledger.entry(peer).or_default().given_bytes += u64::from(given.bytes);
            }
        }
        if self.swarm.is_suspect(piece) {
            let digests = self.digests(piece);
            self.swarm.judge(piece, &digests);
        }
        self.record.piece(now);
    }

    /// Of each unit of a piece: noise has a digest of its own.
    fn digests(&self, piece: PieceIndex) -> Vec<UnitDigest> {
        let begins = (0..self.swarm.layout().piece_len(piece)).step_by(BLOCK_BYTES as usize);
        begins.map(|begin| UnitDigest([u8::from(self.spoiled.contains(&(piece, begin))); 20])).collect()
    }

    /// A peer gave noise: neither side will hear of the other for a while.
    fn ban(&mut self, now: Time, culprit: &Giver) {
        if self.bans.ban(culprit, now).is_some()
            && let Some(peer) = culprit.endpoint.and_then(|endpoint| peer_of(endpoint.addr()))
        {
            self.record.banned.insert(peer);
        }
    }

    /// Fills the connection's socket, as far as it has room: what is said before what is served.
    pub fn serve(&mut self, now: Time, id: SessionId, scenario: &Scenario, desk: &mut Desk) {
        let Node { conns, swarm, choker, behaviour, uplink, record, .. } = self;
        let Some(conn) = conns.get_mut(id.0 as usize).filter(|conn| conn.state == State::Open) else { return };
        let room = scenario.links.socket_bytes;
        while conn.socket.unsent_bytes() < room {
            desk.messages.clear();
            let more = swarm.drain_sends(now, id, &mut desk.messages, MESSAGES_BYTES);
            if behaviour.edits() {
                edit(now, id, behaviour.as_mut(), desk);
            }
            if !desk.messages.is_empty() {
                conn.socket.push(&desk.messages);
            }
            if !more {
                break;
            }
        }
        loop {
            if conn.ready.is_none() && behaviour.serves(now, id) && choker.is_next(swarm, id) {
                conn.ready = swarm.next_upload(id).map(|block| (block, behaviour.spoils(id, block)));
            }
            let Some((block, spoiled)) = conn.ready.take_if(|_| conn.socket.unsent_bytes() < room) else { break };
            conn.socket.push_block(&encode_piece_header(block.into()), block.len(), spoiled);
            swarm.upload_done(now, id, block);
            record.sent(now, u64::from(block.len()));
        }
        if conn.socket.unsent_bytes() > 0 && !conn.in_turns && conn.paused_until <= now {
            conn.in_turns = true;
            uplink.enter(now, id.0);
        }
    }

    /// The uplink takes a run from the connection whose turn it is.
    fn send_turn(&mut self, now: Time, scenario: &Scenario, desk: &mut Desk) {
        let Some(id) = self.uplink.turns.pop_front().map(SessionId) else { return };
        let conn = &mut self.conns[id.0 as usize];
        conn.in_turns = false;
        if conn.state != State::Open || conn.paused_until > now || conn.socket.unsent_bytes() == 0 {
            return;
        }
        let chunk = conn.socket.take(desk.spare.pop().unwrap_or_default());
        let (peer, theirs, delay) = (conn.peer, conn.theirs, conn.delay);
        let left = self.uplink.send(now, chunk.stream_bytes());
        self.mail(left + delay, peer, theirs, What::Data(chunk), desk);
        self.serve(now, id, scenario, desk);
    }

    fn ask_for_pause(&mut self, now: Time, id: SessionId, desk: &mut Desk) {
        let Some(conn) = self.conns.get_mut(id.0 as usize).filter(|conn| conn.state == State::Open) else { return };
        let (peer, theirs, delay) = (conn.peer, conn.theirs, conn.delay);
        let Some(pause) = self.downlink.pause(now, delay).filter(|_| conn.asked_pause_until <= now) else { return };
        conn.asked_pause_until = now + delay * 2 + pause;
        self.mail(now + delay, peer, theirs, What::Pause(pause), desk);
    }

    fn pause(&mut self, now: Time, id: SessionId, pause: Duration) {
        let Some(conn) = self.conn(id) else { return };
        conn.paused_until = now + pause;
        self.paused.push(id);
    }

    /// What the daemon does after each batch of calls: effects are carried out, whoever was woken is served.
    fn settle(&mut self, now: Time, scenario: &Scenario, desk: &mut Desk) {
        loop {
            while let Some(effect) = self.swarm.poll_effect() {
                match effect {
                    Effect::Close(id, why) => {
                        let mut how = Ended::NoUse;
                        if let CloseReason::Fault(fault) = why {
                            self.record.faults.push((self.conns[id.0 as usize].peer, fault));
                            how = Ended::Fault;
                        }
                        self.close(now, id, how, true, desk);
                    }
                    Effect::Ban(culprit, _) => self.ban(now, &culprit),
                    Effect::ReviewChoking => self.review(now, desk),
                    Effect::Complete => self.complete(now),
                }
            }
            let mut wakes = std::mem::take(&mut desk.wakes);
            self.swarm.take_wakes(&mut wakes);
            let quiet = wakes.is_empty();
            wakes.drain(..).for_each(|id| self.serve(now, id, scenario, desk));
            desk.wakes = wakes;
            let next = if self.uplink.turns.is_empty() { self.choker.next(&self.swarm) } else { None };
            next.into_iter().for_each(|id| self.serve(now, id, scenario, desk));
            if quiet && (next.is_none() || self.uplink.turns.is_empty()) {
                break;
            }
        }
        if self.present {
            self.arm_timer(now, scenario);
        }
    }

    fn complete(&mut self, now: Time) {
        self.record.completed_at = Some(now);
        if let Some(stay) = self.spec.leaves_when_done {
            let leaves_at = now.since(START) + stay;
            self.spec.leaves_at = Some(self.spec.leaves_at.map_or(leaves_at, |at| at.min(leaves_at)));
        }
    }

    fn review(&mut self, now: Time, desk: &mut Desk) {
        desk.views.clear();
        desk.decisions.clear();
        let ledger = &self.ledger;
        let account = |identity: &Identity| peer_with(identity).and_then(|peer| ledger.get(&peer)).copied();
        self.swarm.choker_views(|identity| account(identity).unwrap_or_default(), &mut desk.views);
        self.choker.review(now, &self.swarm, &desk.views, &mut desk.decisions);
        self.next_review = self.choker.next_timeout();
        // Slots are given back before they are given out.
        desk.decisions.sort_by_key(|decision| !decision.choke);
        for decision in &desk.decisions {
            self.swarm.set_choke(decision.session, decision.choke);
        }
    }

    fn arm_timer(&mut self, now: Time, scenario: &Scenario) {
        // Without a place for another session a due dial waits for one to close, which arms the timer anew.
        let dials = if self.has_place(scenario) { self.book.next_timeout() } else { None };
        let leaves = self.spec.leaves_at.map(|at| START + at);
        let resumes = self.paused.iter().map(|id| self.conns[id.0 as usize].paused_until).min();
        let timers = [
            self.swarm.next_timeout(),
            self.next_review,
            dials,
            self.next_act,
            leaves,
            resumes,
            Some(self.next_announce),
        ];
        let next = timers.into_iter().flatten().min().unwrap_or(self.next_announce);
        self.timer = next.max(now + TIMER_STEP);
    }

    fn tick(&mut self, now: Time, scenario: &Scenario, desk: &mut Desk) {
        if self.spec.leaves_at.is_some_and(|at| START + at <= now) {
            return self.leave(now, desk);
        }
        self.present = true;
        self.swarm.handle_timeout(now);
        if self.next_review.is_some_and(|at| at <= now) {
            self.review(now, desk);
        }
        let conns = &self.conns;
        let resumed: Vec<SessionId> =
            self.paused.extract_if(.., |id| conns[id.0 as usize].paused_until <= now).collect();
        resumed.into_iter().for_each(|id| self.serve(now, id, scenario, desk));
        self.announce(now, scenario);
        self.dial(now, scenario, desk);
        if self.next_act.is_some_and(|at| at <= now) {
            self.act(now, scenario, desk);
        }
    }

    fn act(&mut self, now: Time, scenario: &Scenario, desk: &mut Desk) {
        self.next_act = self.behaviour.acts_every().map(|every| now + every);
        let mut acts = std::mem::take(&mut desk.acts);
        self.behaviour.act(now, &self.swarm, &mut acts);
        for act in acts.drain(..) {
            match act {
                Act::Say(id, message) => {
                    self.swarm.queue_message(id, &message);
                    self.serve(now, id, scenario, desk);
                }
                Act::Close(id) => self.close(now, id, Ended::Closed, true, desk),
                Act::Dial(peer) => self.dial_peer(now, peer as u32, scenario, desk),
                Act::Serve(id) => self.serve(now, id, scenario, desk),
                Act::Forget(piece) => self.swarm.forget_piece(piece),
            }
        }
        desk.acts = acts;
    }

    /// Writes down what passed in the sessions that are open.
    pub fn note_open_sessions(&mut self) {
        let open: Vec<SessionId> = self.by_peer.values().copied().collect();
        open.into_iter().for_each(|id| self.note_session(Time::from_nanos(u64::MAX), id));
    }

    fn leave(&mut self, now: Time, desk: &mut Desk) {
        let open: Vec<SessionId> = self.by_peer.values().copied().collect();
        open.into_iter().for_each(|id| self.close(now, id, Ended::Closed, true, desk));
        self.present = false;
        self.timer = Time::from_nanos(u64::MAX);
        self.uplink.turns.clear();
    }
}

/// Lets a behaviour see, change and drop what the swarm says.
fn edit(now: Time, id: SessionId, behaviour: &mut dyn Behaviour, desk: &mut Desk) {
    let mut framer = Framer::new(u32::MAX);
    framer.push(&desk.messages);
    desk.edited.clear();
    while let Ok(Some(frame)) = framer.next() {
        if let Frame::Message(message) = frame
            && let Some(message) = behaviour.says(now, id, message)
        {
            message.encode(&mut desk.edited);
        }
    }
    std::mem::swap(&mut desk.messages, &mut desk.edited);
}
