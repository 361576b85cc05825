//! Swarms that talk to each other in encoded bytes, on a virtual clock: links with delay and a rate, connections that
//! break, peers that lie. Every random choice follows from one seed, which each failure names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::bans::{Bans, Endpoint};
use super::choker::{Account, Choker, UploadSlots};
use super::*;
use crate::clock::Time;
use crate::swarm::picker::UNIT_BYTES;
use crate::wire::bitfield::Bitfield;
use crate::wire::framing::{Frame, Framer};
use crate::wire::layout::{Block, Layout, MAX_BLOCK_BYTES, PieceIndex};
use crate::wire::message::encode_piece_header;

/// What a socket holds unsent.
const SOCKET_BYTES: usize = 16 * 1024;

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    /// Sends noise in this share of its blocks.
    Poisons(f64),
    /// Sends noise in one block of so many.
    PoisonsOneIn(u64),
    /// Takes requests and answers none.
    Silent,
    /// Has nothing of what it claims, and says so when it is asked.
    Rejects,
}

#[derive(Clone, Copy)]
struct Setup {
    seed: bool,
    manner: Manner,
    up_bytes_per_s: u64,
    fast: bool,
    max_block_bytes: u32,
    sequential: bool,
}

const LEECHER: Setup = Setup {
    seed: false,
    manner: Manner::Honest,
    up_bytes_per_s: 1_000_000,
    fast: true,
    max_block_bytes: MAX_BLOCK_BYTES,
    sequential: false,
};
const SEED: Setup = Setup { seed: true, ..LEECHER };

struct Node {
    setup: Setup,
    swarm: Swarm,
    choker: Choker,
    /// Pieces in progress; a byte is written at most once between two verdicts.
    slots: BTreeMap<PieceIndex, Vec<Option<u8>>>,
    verified: BTreeSet<PieceIndex>,
    uplink_free: Time,
    tick_at: Option<Time>,
    complete_at: Option<Time>,
    faults: Vec<(SessionId, PeerFault)>,
    bans: Bans,
    /// Nodes that it banned, in that order.
    banned: Vec<usize>,
    failed_pieces: u32,
    sent_blocks: u64,
    /// In sessions that are closed.
    wasted: u64,
    /// Onto the link.
    sent: u64,
}

/// One end of a connection; its session id is the connection's number.
struct End {
    node: usize,
    framer: Framer,
    payload: Option<(Placement, Vec<u8>)>,
    /// In the socket, not yet on the link.
    unsent: usize,
    last_arrival: Time,
}

struct Conn {
    ends: [End; 2],
    open: bool,
}

enum Event {
    Bytes {
        conn: usize,
        to: usize,
        bytes: Vec<u8>,
    },
    /// The link took bytes off the socket of this end.
    Sent {
        conn: usize,
        from: usize,
        bytes: usize,
    },
    Tick(usize),
    Connect(usize, usize),
    Break(usize),
}

struct Net {
    seed: u64,
    rng: SmallRng,
    now: Time,
    layout: Layout,
    delay_ms: std::ops::Range<u64>,
    /// All nodes are behind one IP address.
    one_address: bool,
    /// Mean life of a connection; broken ones are made again after a second.
    breaks_after_s: Option<f64>,
    nodes: Vec<Node>,
    conns: Vec<Conn>,
    events: BTreeMap<(Time, u64), Event>,
    event_count: u64,
}

/// The seed is told when a test fails.
struct Tell(u64);

impl Drop for Tell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the net's seed was {}", self.0);
        }
    }
}

fn byte_at(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

impl Net {
    fn new(seed: u64, layout: Layout, setups: &[Setup]) -> Net {
        let nodes = setups.iter().enumerate().map(|(at, setup)| Node::new(*setup, layout, seed * 100 + at as u64));
        Net {
            seed,
            rng: SmallRng::seed_from_u64(seed),
            now: Time::from_secs(1_000),
            layout,
            delay_ms: 5..30,
            one_address: false,
            breaks_after_s: None,
            nodes: nodes.collect(),
            conns: Vec::new(),
            events: BTreeMap::new(),
            event_count: 0,
        }
    }

    fn full_mesh(mut self) -> Net {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                self.after(Duration::from_millis(a as u64 * 7 + b as u64), Event::Connect(a, b));
            }
        }
        self
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.event_count += 1;
        self.events.insert((self.now + delay, self.event_count), event);
    }

    /// Until every honest node is complete; panics after `limit_s` virtual seconds. Returns the seconds it took.
    fn run(&mut self, limit_s: u64) -> f64 {
        let _tell = Tell(self.seed);
        let start = self.now;
        let mut steps = 0u64;
        while self.nodes.iter().any(|node| node.is_honest() && !node.swarm.is_complete()) {
            let Some(((at, _), event)) = self.events.pop_first() else { panic!("nothing left to happen") };
            self.now = at;
            let ran = self.now.since(start);
            assert!(ran < Duration::from_secs(limit_s), "not complete after {ran:?}: {}", self.state());
            self.step(event);
            steps += 1;
            if steps.is_multiple_of(512) {
                self.nodes.iter().for_each(|node| node.swarm.check());
            }
        }
        for node in &self.nodes {
            node.swarm.check();
            assert!(node.swarm.left_bytes() == 0 || !node.is_honest());
        }
        self.now.since(start).as_secs_f64()
    }

    fn state(&self) -> String {
        let now = self.now;
        let lines = self.nodes.iter().enumerate().map(|(at, node)| {
            let reports: Vec<_> = node.swarm.reports(now).map(|report| format!("  {report:?}\n")).collect();
            format!("{at}: {} of {}\n{}", node.swarm.have().count(), self.layout.piece_count(), reports.concat())
        });
        lines.collect()
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Connect(a, b) => self.connect(a, b),
            Event::Break(conn) => {
                let (a, b) = (self.conns[conn].ends[0].node, self.conns[conn].ends[1].node);
                if self.close(conn) {
                    self.after(Duration::from_secs(1), Event::Connect(a, b));
                }
            }
            Event::Tick(node) => {
                let now = self.now;
                if self.nodes[node].tick_at.is_none_or(|at| at > now) {
                    return;
                }
                self.nodes[node].tick_at = None;
                self.nodes[node].swarm.handle_timeout(now);
                if self.nodes[node].choker.next_timeout().is_some_and(|at| at <= now) {
                    self.nodes[node].review(now);
                }
                self.pump(node);
            }
            Event::Bytes { conn, to, bytes } => {
                if !self.conns[conn].open {
                    return;
                }
                self.arrive(conn, to, &bytes);
                self.serve(conn, to);
                self.pump(self.conns[conn].ends[to].node);
            }
            Event::Sent { conn, from, bytes } => {
                self.conns[conn].ends[from].unsent -= bytes;
                self.serve(conn, from);
                self.pump(self.conns[conn].ends[from].node);
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let at =
            |node: usize| (Ipv4Addr::new(10, 0, 0, if self.one_address { 0 } else { node as u8 }), 7_000 + node as u16);
        let endpoints = [(a, Endpoint::Dialled(at(b).into())), (b, Endpoint::CameFrom(at(a).into()))];
        let banned = |(me, endpoint): (usize, Endpoint)| {
            let identity = Identity::Address(endpoint.addr().ip());
            let peer = Giver { session: SessionId(0), identity, endpoint: Some(endpoint) };
            self.nodes[me].bans.is_banned(&peer, self.now)
        };
        if endpoints.into_iter().any(banned) {
            return;
        }
        let conn = self.conns.len();
        let bitfield_bytes = self.layout.piece_count().div_ceil(8);
        let end =
            |node| End { node, framer: Framer::new(bitfield_bytes), payload: None, unsent: 0, last_arrival: self.now };
        self.conns.push(Conn { ends: [end(a), end(b)], open: true });
        let fast = self.nodes[a].setup.fast && self.nodes[b].setup.fast;
        for ((me, endpoint), peer) in endpoints.into_iter().zip([b, a]) {
            let identity = Identity::Address(endpoint.addr().ip());
            let peer_max = self.nodes[peer].setup.max_block_bytes;
            let node = &mut self.nodes[me];
            node.swarm.open(self.now, SessionId(conn as u32), SessionInfo { identity, fast });
            node.swarm.set_endpoint(SessionId(conn as u32), endpoint);
            node.swarm.set_peer_extensions(SessionId(conn as u32), Some(500), Some(peer_max), false);
        }
        if let Some(mean) = self.breaks_after_s {
            let life = -mean * self.rng.random_range(0.001f64..1.0).ln();
            self.after(Duration::from_secs_f64(life), Event::Break(conn));
        }
        for side in 0..2 {
            self.serve(conn, side);
        }
        self.pump(a);
        self.pump(b);
    }

    fn close(&mut self, conn: usize) -> bool {
        if !std::mem::replace(&mut self.conns[conn].open, false) {
            return false;
        }
        let id = SessionId(conn as u32);
        for side in 0..2 {
            let end = &mut self.conns[conn].ends[side];
            let node = end.node;
            if let Some((Placement::Slot(block), bytes)) = end.payload.take() {
                self.nodes[node].unwrite(block, bytes.len());
            }
            self.nodes[node].wasted += self.nodes[node].swarm.report(self.now, id).map_or(0, |it| it.wasted_bytes);
            self.nodes[node].swarm.close(id);
        }
        for side in 0..2 {
            self.pump(self.conns[conn].ends[side].node);
        }
        true
    }

    /// What the shell does after each batch of calls.
    fn pump(&mut self, at: usize) {
        let now = self.now;
        loop {
            let node = &mut self.nodes[at];
            while let Some(effect) = node.swarm.poll_effect() {
                match effect {
                    Effect::Close(id, reason) => {
                        if let CloseReason::Fault(fault) = reason {
                            node.faults.push((id, fault));
                        }
                        self.close(id.0 as usize);
                        return self.pump(at);
                    }
                    Effect::Ban(culprit, _) => {
                        let who = culprit.endpoint.expect("every node is met somewhere");
                        if node.bans.ban(&culprit, now).is_some() {
                            node.banned.push(usize::from(who.addr().port() - 7_000));
                        }
                    }
                    Effect::ReviewChoking => node.review(now),
                    Effect::Complete => node.complete_at = Some(now),
                }
            }
            let mut wakes = Vec::new();
            node.swarm.take_wakes(&mut wakes);
            if wakes.is_empty() {
                break;
            }
            for id in wakes {
                let conn = id.0 as usize;
                let side = usize::from(self.conns[conn].ends[0].node != at);
                self.serve(conn, side);
            }
        }
        let node = &mut self.nodes[at];
        let timers = [node.swarm.next_timeout(), node.choker.next_timeout()];
        if let Some(next) = timers.into_iter().flatten().min()
            && node.tick_at.is_none_or(|tick| next < tick)
        {
            node.tick_at = Some(next);
            self.after(next.since(now), Event::Tick(at));
        }
    }

    /// Writes what there is into the socket, as far as it has room.
    fn serve(&mut self, conn: usize, side: usize) {
        if !self.conns[conn].open {
            return;
        }
        let id = SessionId(conn as u32);
        let (now, layout) = (self.now, self.layout);
        let end = &mut self.conns[conn].ends[side];
        let node = &mut self.nodes[end.node];
        let mut out = Vec::new();
        loop {
            let limit = out.len() + 16 * 1024;
            if !node.swarm.drain_sends(now, id, &mut out, limit) {
                break;
            }
        }
        self.transmit(conn, side, out);
        loop {
            let end = &self.conns[conn].ends[side];
            let node = &mut self.nodes[end.node];
            if node.setup.manner == Manner::Silent || end.unsent >= SOCKET_BYTES {
                return;
            }
            let Some(block) = node.swarm.next_upload(id) else { return };
            if node.setup.manner == Manner::Rejects {
                node.swarm.upload_failed(id, block);
                continue;
            }
            let mut out = encode_piece_header(block.into()).to_vec();
            node.sent_blocks += 1;
            let noise = match node.setup.manner {
                Manner::Poisons(share) => self.rng.random_bool(share),
                Manner::PoisonsOneIn(blocks) => node.sent_blocks.is_multiple_of(blocks),
                Manner::Honest | Manner::Silent | Manner::Rejects => false,
            };
            let start = layout.piece_start(block.piece()) + u64::from(block.begin());
            out.extend((start..start + u64::from(block.len())).map(|at| byte_at(at) ^ u8::from(noise)));
            node.swarm.upload_done(now, id, block);
            self.transmit(conn, side, out);
        }
    }

    fn transmit(&mut self, conn: usize, side: usize, out: Vec<u8>) {
        if out.is_empty() {
            return;
        }
        let now = self.now;
        let end = &mut self.conns[conn].ends[side];
        let node = &mut self.nodes[end.node];
        let sending = Duration::from_nanos(out.len() as u64 * 1_000_000_000 / node.setup.up_bytes_per_s);
        let sent = node.uplink_free.max(now) + sending;
        node.uplink_free = sent;
        node.sent += out.len() as u64;
        let delay = Duration::from_millis(self.rng.random_range(self.delay_ms.clone()));
        let arrival = (sent + delay).max(end.last_arrival);
        end.last_arrival = arrival;
        end.unsent += out.len();
        let bytes = out.len();
        self.after(sent.since(now), Event::Sent { conn, from: side, bytes });
        self.after(arrival.since(now), Event::Bytes { conn, to: 1 - side, bytes: out });
    }

    /// Bytes come in, cut at random.
    fn arrive(&mut self, conn: usize, side: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.conns[conn].open {
            let cut = self.rng.random_range(1..=bytes.len());
            let (now_part, rest) = bytes.split_at(cut);
            bytes = rest;
            self.conns[conn].ends[side].framer.push(now_part);
            self.read_frames(conn, side);
        }
    }

    fn read_frames(&mut self, conn: usize, side: usize) {
        let id = SessionId(conn as u32);
        while self.conns[conn].open {
            let end = &mut self.conns[conn].ends[side];
            let node = &mut self.nodes[end.node];
            if let Some((placement, bytes)) = &mut end.payload {
                let mut chunk = vec![0; end.framer.payload_left() as usize];
                let got = end.framer.take_payload(&mut chunk);
                node.write(*placement, bytes.len(), &chunk[..got]);
                bytes.extend(&chunk[..got]);
                if end.framer.payload_left() > 0 {
                    return;
                }
                let (placement, bytes) = end.payload.take().unwrap();
                node.block_done(self.now, id, placement, &bytes, self.layout);
                continue;
            }
            let outcome = match end.framer.next().expect("our own frames are well formed") {
                None => return,
                Some(Frame::Message(message)) => node.swarm.receive(self.now, id, message),
                Some(Frame::Piece(raw)) => node.swarm.place(self.now, id, raw).map(|placement| {
                    end.payload = Some((placement, Vec::new()));
                }),
            };
            if let Err(fault) = outcome {
                node.faults.push((id, fault));
                self.close(conn);
            }
        }
    }

    fn wasted(&self) -> u64 {
        let open = self.nodes.iter().flat_map(|node| node.swarm.reports(self.now)).map(|report| report.wasted_bytes);
        open.sum::<u64>() + self.nodes.iter().map(|node| node.wasted).sum::<u64>()
    }
}

impl Node {
    fn new(setup: Setup, layout: Layout, seed: u64) -> Node {
        let config = SwarmConfig {
            max_block_bytes: setup.max_block_bytes,
            window_max_bytes: 8 << 20,
            windows_total_bytes: 64 << 20,
            sequential: setup.sequential,
            crowd_expected: true,
        };
        let pieces = layout.piece_count();
        let have = if setup.seed { Bitfield::full(pieces) } else { Bitfield::empty(pieces) };
        Node {
            setup,
            swarm: Swarm::new(config, layout, have, seed),
            choker: Choker::new(UploadSlots::Default, seed),
            slots: BTreeMap::new(),
            verified: BTreeSet::new(),
            uplink_free: Time::ZERO,
            tick_at: None,
            complete_at: None,
            faults: Vec::new(),
            bans: Bans::default(),
            banned: Vec::new(),
            failed_pieces: 0,
            sent_blocks: 0,
            wasted: 0,
            sent: 0,
        }
    }

    /// Will complete its copy: whoever poisons is shut out by the others.
    fn is_honest(&self) -> bool {
        !matches!(self.setup.manner, Manner::Poisons(_) | Manner::PoisonsOneIn(_))
    }

    fn review(&mut self, now: Time) {
        let (mut views, mut decisions) = (Vec::new(), Vec::new());
        self.swarm.choker_views(|_| Account::default(), &mut views);
        self.choker.review(now, &views, &mut decisions);
        decisions.into_iter().for_each(|decision| self.swarm.set_choke(decision.session, decision.choke));
    }

    fn write(&mut self, placement: Placement, done: usize, bytes: &[u8]) {
        let Placement::Slot(block) = placement else { return };
        let slot = self.slots.entry(block.piece()).or_insert_with(|| vec![None; 1 << 20]);
        for (place, byte) in slot[block.begin() as usize + done..].iter_mut().zip(bytes) {
            assert_eq!(place.replace(*byte), None, "two writers in {block:?}");
        }
    }

    fn unwrite(&mut self, block: Block, done: usize) {
        if let Some(slot) = self.slots.get_mut(&block.piece()) {
            slot[block.begin() as usize..][..done].fill(None);
        }
    }

    fn block_done(&mut self, now: Time, id: SessionId, placement: Placement, bytes: &[u8], layout: Layout) {
        let (Placement::Slot(block) | Placement::Scratch(block)) = placement else { return };
        let complete = match self.swarm.block_received(now, id, block) {
            Receipt::Keep { piece_complete } => {
                assert_eq!(placement, Placement::Slot(block));
                piece_complete
            }
            Receipt::Copy { parts, piece_complete } => {
                for part in parts {
                    let from = (part.begin() - block.begin()) as usize;
                    self.write(Placement::Slot(part), 0, &bytes[from..from + part.len() as usize]);
                }
                piece_complete
            }
            Receipt::Redundant => false,
        };
        if complete {
            let piece = block.piece();
            let slot = self.slots.remove(&piece).unwrap();
            let start = layout.piece_start(piece);
            let len = layout.piece_len(piece) as usize;
            assert!(slot[..len].iter().all(Option::is_some), "{piece:?} is called complete and is not");
            let right = slot[..len].iter().zip(start..).all(|(byte, at)| *byte == Some(byte_at(at)));
            let digests: Vec<UnitDigest> = slot[..len].chunks(UNIT_BYTES as usize).map(digest).collect();
            self.failed_pieces += u32::from(!right);
            let given = if right { self.swarm.piece_verified(piece) } else { self.swarm.piece_failed(piece, &digests) };
            if right {
                self.swarm.judge(piece, &digests);
            }
            assert_eq!(given.iter().map(|given| given.bytes as usize).sum::<usize>(), len);
            assert!(!right || self.verified.insert(piece), "{piece:?} was fetched twice");
        }
    }
}

fn digest(unit: &[Option<u8>]) -> UnitDigest {
    let sum = unit.iter().flatten().fold(0u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    let mut digest = [0; 20];
    digest[..8].copy_from_slice(&sum.to_be_bytes());
    UnitDigest(digest)
}

fn layout(pieces: u64, piece_bytes: u64) -> Layout {
    Layout::new(pieces * piece_bytes - 5_000, piece_bytes).unwrap()
}

#[test]
fn a_pair_moves_a_torrent_at_the_speed_of_the_link_without_waste() {
    for (seed, fast, max_block_bytes, sequential) in [
        (1, true, 128 << 10, false),
        (2, false, 16 << 10, false),
        (3, true, 64 << 10, true),
        (4, false, 16 << 10, true),
    ] {
        let setups = [SEED, LEECHER].map(|setup| Setup { fast, max_block_bytes, sequential, ..setup });
        let mut net = Net::new(seed, layout(40, 256 << 10), &setups).full_mesh();
        let took = net.run(60);
        let bound = net.layout.total_bytes() as f64 / 1e6;
        assert!(took < bound * 1.03 + 0.3, "case {seed}: {took} s where {bound} s would do");
        assert_eq!(net.wasted(), 0);
        assert!(net.nodes.iter().all(|node| node.faults.is_empty()));
    }
}

#[test]
fn when_both_are_seeds_they_part() {
    let mut net = Net::new(5, layout(4, 64 << 10), &[SEED, LEECHER]).full_mesh();
    net.run(10);
    while let Some(((at, _), event)) = net.events.pop_first().filter(|((at, _), _)| *at < Time::from_secs(1_020)) {
        net.now = at;
        net.step(event);
    }
    assert!(!net.conns[0].open);
}

#[test]
fn peers_that_take_different_block_sizes_share_pieces() {
    for seed in 0..4 {
        let small = Setup { max_block_bytes: 16 << 10, ..SEED };
        let slow = Setup { up_bytes_per_s: 200_000, ..SEED };
        let fast = Setup { up_bytes_per_s: 8_000_000, ..SEED };
        let mut net = Net::new(seed, layout(12, 1 << 20), &[small, slow, fast, LEECHER]).full_mesh();
        let took = net.run(60);
        let bound = net.layout.total_bytes() as f64 / 9.2e6;
        assert!(took < bound * 1.4 + 0.5, "seed {seed}: {took} s where {bound} s would do");
    }
}

#[test]
fn a_slow_peer_does_not_hold_up_the_end() {
    for seed in 0..4 {
        let slow = Setup { up_bytes_per_s: 20_000, ..SEED };
        let mut net = Net::new(seed, layout(40, 256 << 10), &[SEED, slow, LEECHER]).full_mesh();
        let took = net.run(60);
        assert!(took < 11.5, "seed {seed}: {took} s where 10.3 s would do");
        let wasted = net.wasted() as f64 / net.layout.total_bytes() as f64;
        assert!(wasted < 0.01, "seed {seed}: {wasted} of the content came twice");
    }
}

#[test]
fn a_swarm_whose_connections_break_completes_every_copy() {
    for seed in 0..6 {
        let mut setups = [LEECHER; 8];
        setups[0] = SEED;
        setups[3].fast = false;
        setups[5].max_block_bytes = 16 << 10;
        setups[6].up_bytes_per_s = 100_000;
        let mut net = Net::new(seed, layout(30, 128 << 10), &setups).full_mesh();
        net.delay_ms = 1..200;
        net.breaks_after_s = Some(3.0);
        net.run(120);
        for node in net.nodes.iter().skip(1) {
            assert_eq!(node.verified.len(), 30);
            assert_eq!(node.faults, [], "seed {seed}");
        }
    }
}

/// Seconds over the fluid bound, and what the seed sent over the content, of a crowd that comes at once to one seed.
fn flash_crowd(seed: u64, leechers: usize, seed_up: u64, pieces: u64, piece_bytes: u64) -> (f64, f64) {
    let mut setups = vec![LEECHER; leechers + 1];
    setups[0] = Setup { up_bytes_per_s: seed_up, ..SEED };
    let mut net = Net::new(seed, layout(pieces, piece_bytes), &setups).full_mesh();
    let took = net.run(120);
    let (total, crowd) = (net.layout.total_bytes() as f64, leechers as f64);
    let bound = (total / seed_up as f64).max(crowd * total / (crowd * 1e6 + seed_up as f64));
    let wasted = net.wasted() as f64 / total / crowd;
    assert!(wasted < 0.01, "seed {seed}: {wasted} of the content came twice");
    (took / bound, net.nodes[0].sent as f64 / total)
}

#[test]
fn a_lone_seed_hands_out_each_piece_once_before_any_twice() {
    for seed in 0..2 {
        let (ratio, copies) = flash_crowd(seed, 8, 1_000_000, 256, 32 << 10);
        assert!(ratio < 1.08 && copies < 1.05, "seed {seed}: {ratio} of the fluid bound, {copies} copies sent");
        let (ratio, copies) = flash_crowd(seed, 8, 500_000, 128, 64 << 10);
        assert!(ratio < 1.06 && copies < 1.05, "a slow seed {seed}: {ratio} of the fluid bound, {copies} copies sent");
        // A seed that could send more than once is not held back.
        let (ratio, _) = flash_crowd(seed, 8, 4_000_000, 128, 64 << 10);
        assert!(ratio < 1.08, "a fast seed {seed}: {ratio} of the fluid bound");
    }
}

#[test]
fn among_several_seeds_rarest_first_uses_the_uplinks_and_file_order_would_not() {
    for seed in 0..3 {
        let ratio = [false, true].map(|sequential| {
            let mut setups = [Setup { sequential, ..LEECHER }; 9];
            setups[0] = Setup { up_bytes_per_s: 500_000, ..SEED };
            setups[1] = setups[0];
            let mut net = Net::new(seed, layout(64, 128 << 10), &setups).full_mesh();
            net.run(120) / (net.layout.total_bytes() as f64 / 1e6)
        });
        let [rarest_first, file_order] = ratio;
        assert!(rarest_first < 1.85, "seed {seed}: {rarest_first} of the fluid bound");
        assert!(file_order > 1.3 * rarest_first, "seed {seed}: {file_order} in file order, else {rarest_first}");
    }
}

#[test]
fn poisoners_are_banned_and_nobody_else_is_even_behind_one_address() {
    for seed in 0..6 {
        let poisoner = Setup { manner: Manner::Poisons(1.0), ..SEED };
        let sometimes = Setup { manner: Manner::Poisons(0.1), ..SEED };
        let silent = Setup { manner: Manner::Silent, ..SEED };
        let setups = [SEED, poisoner, silent, sometimes, LEECHER, LEECHER];
        let mut net = Net::new(seed, layout(30, 128 << 10), &setups).full_mesh();
        net.one_address = seed % 2 == 0;
        net.run(120);
        for leecher in [4, 5] {
            let node = &mut net.nodes[leecher];
            node.banned.sort_unstable();
            assert_eq!(node.banned, [1, 3], "seed {seed}: {:?}", node.faults);
            for (id, fault) in &node.faults {
                let peer = net.conns[id.0 as usize].ends.iter().find(|end| end.node != leecher).unwrap().node;
                assert!([1, 3].contains(&peer), "seed {seed}: {peer} was shut out for {fault}");
            }
        }
    }
}

#[test]
fn seeds_that_have_nothing_hold_nobody_up() {
    for seed in 0..3 {
        let mut times = [Manner::Honest, Manner::Silent, Manner::Rejects].map(|manner| {
            let mut setups = vec![SEED, LEECHER, LEECHER, LEECHER, LEECHER];
            // A second seed, be it as slow as this: what a lone one does is not compared here.
            let one = manner == Manner::Honest;
            let up_bytes_per_s = if one { 20_000 } else { SEED.up_bytes_per_s };
            setups.extend(vec![Setup { manner, up_bytes_per_s, ..SEED }; if one { 1 } else { 5 }]);
            let mut net = Net::new(seed, layout(40, 256 << 10), &setups).full_mesh();
            let took = net.run(120);
            assert!(net.nodes.iter().all(|node| node.banned.is_empty()), "useless, not guilty");
            took
        });
        times.iter_mut().for_each(|took| *took = (*took * 100.0).round() / 100.0);
        let [clean, silent, rejecting] = times;
        assert!(silent.max(rejecting) < 1.35 * clean, "seed {seed}: {times:?}");
    }
}

#[test]
fn one_bad_block_in_a_thousand_is_enough_to_be_found_at_the_next_attempt() {
    let small = Setup { max_block_bytes: 16 << 10, up_bytes_per_s: 4_000_000, ..LEECHER };
    let honest = Setup { seed: true, ..small };
    let rare = Setup { manner: Manner::PoisonsOneIn(1_000), ..honest };
    let mut net = Net::new(1, layout(200, 256 << 10), &[honest, rare, honest, small]).full_mesh();
    net.one_address = true;
    net.run(120);
    assert_eq!((&*net.nodes[3].banned, net.nodes[3].failed_pieces), (&[1][..], 1));
}
