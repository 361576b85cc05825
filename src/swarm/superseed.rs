//! Super-seeding by itself (BEP 16's idea): a lone seed that faces several peers hands out each piece once before any
//! twice, because its uplink is the one thing that such a swarm waits for.
//!
//! It works by masquerade, so that every client plays along: a peer that connects is told that we have nothing, and
//! then of single pieces (HAVE), each shown to it alone; nobody asks for what it was not shown. To each peer enough is
//! shown to keep its pipe full. Who comes alone for what is no news any more is told of everything at once: one peer is
//! no crowd, and if others follow after all, it costs them a few pieces sent twice. A piece is *fresh* (shown to nobody,
//! and nobody has it) → *promised* (shown to, or asked for by, some session) → *copied* (a session says that it has it,
//! or was sent all of it a moment ago). When every piece is copied, and none lies with a peer that does not pass it on,
//! the swarm can live without us: the veils are lifted, everybody is told of all we have.
//!
//! What is asked for is always served, shown or not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;

use super::SessionId;
use super::session::Session;
use super::torrent::Swarm;
use crate::clock::Time;
use crate::wire::bitfield::Bitfield;
use crate::wire::layout::{Block, Layout, PieceIndex};
use crate::wire::message::Message;

/// With fewer pieces there is nothing to divide among a crowd.
const MIN_PIECES: u32 = 8;
/// What a served peer is shown ahead of what it was sent: enough for so long at its rate ...
const AHEAD: Duration = Duration::from_secs(1);
/// ... and at least so many pieces: one that is under way and one to go on with.
const AHEAD_PIECES: u64 = 2;
/// A peer that is alone may turn out to be fast: it is shown so many pieces at once, then as much again as it was sent,
/// which doubles each round trip ...
const ALONE_PIECES: u32 = 16;
/// ... but of a small torrent no more than this part, for those who may come.
const ALONE_PART: u32 = 8;
/// A peer that is alone for so long is shown everything: this is no crowd.
const ALONE: Duration = Duration::from_secs(2);
/// The first message of a peer that agreed to the fast extension says what it has: until then, but no longer than
/// this, it is shown nothing, since it may have that already.
const INTRODUCTION: Duration = Duration::from_secs(1);
/// What was sent counts as a copy after this, if nobody says so before: many do not tell a peer of a piece it has.
const SETTLES: Duration = Duration::from_secs(1);
/// A peer that asks for nothing for so long, of what it was shown, does not want it, or has it.
const STALE: Duration = Duration::from_secs(1);
/// Who has had nothing to do for so long, while the last pieces go to others, is shown what others have been sent.
const DRY: Duration = Duration::from_millis(500);
/// Each time it does not, it is shown twice as much, up to this power of two: some want only a part.
const MAX_DOUBLINGS: u32 = 6;
/// Who does not even become interested in what it is shown needs no veil: probably it is a seed like us.
const UNINTERESTED: Duration = Duration::from_secs(1);
/// Another is shown what was promised to a peer if that one would take so many times longer over all of its promises ...
const RELIEF_GAIN: f64 = 2.0;
/// ... and so much: less is not worth a piece sent twice.
const RELIEF_GAIN_S: f64 = 0.5;
/// Who holds pieces that nobody else was seen with, worth more than this at its rate, and more than
/// [`UNPASSED_PIECES`], does not pass on what it gets: others that do come first.
const UNPASSED: Duration = Duration::from_secs(4);
const UNPASSED_PIECES: u64 = 4;
/// A piece may lie for so long, and for so many times as long as it takes to send, but not for longer than
/// [`MOST_PATIENCE`], with a peer that does not fetch it, or that nobody else gets it from; then it goes to others as
/// well. The peer may be one that only takes, or that sends what is wrong.
const PATIENCE: Duration = Duration::from_secs(8);
const PATIENCE_TIMES: f64 = 4.0;
const MOST_PATIENCE: Duration = Duration::from_secs(120);
/// Who still has something to do is not looked for anything else to show more often than this: it takes a look at all
/// promises, which at a gigabit would be after each block.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How far to look for a fresh piece that a peer was not shown before.
const FRESH_LOOKED_AT: usize = 64;

/// The pieces, over all sessions.
pub(super) struct SuperSeed {
    /// By piece: sessions by which it is copied.
    copies: Vec<u16>,
    /// By piece: sessions to which it is promised.
    promised: Vec<u16>,
    /// Pieces without a copy.
    uncopied: u32,
    /// All fresh pieces, the next one last; some that are fresh no more.
    fresh: Vec<PieceIndex>,
    /// What stands in `fresh`.
    listed: Bitfield,
    /// When last two peers at a time wanted something.
    company: Time,
}

/// What one peer sees of us.
#[derive(Debug)]
pub(super) struct Veil {
    /// Pieces that it was shown, or asked for.
    shown: Bitfield,
    promises: BTreeMap<PieceIndex, Promise>,
    /// Bytes promised and not sent.
    ahead_bytes: u64,
    /// Pieces by whose copies this session counts.
    copied: Bitfield,
    /// Sent to it whole, and seen with nobody else yet.
    unpassed: BTreeMap<PieceIndex, Unpassed>,
    /// Pieces that it alone was sent, and those of them that it did not pass on in time.
    given: u32,
    kept: u32,
    /// Some lie with it still, or it kept one in two.
    pub(super) keeps: bool,
    doublings: u32,
    /// When it was last shown or sent something, or asked.
    moved: Time,
    /// When something that is not fresh was last looked for, to show it.
    looked: Time,
    /// It is told everything; this is the next piece to tell of.
    lifted: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    /// When it was made, or a block of it last sent.
    moved: Time,
    sent_bytes: u32,
    /// When all of it had been sent.
    whole: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Unpassed {
    sent: Time,
    /// From then on it is as good as lost.
    late: Time,
    counted: bool,
}

impl SuperSeed {
    fn new(layout: Layout, rng: &mut impl Rng) -> SuperSeed {
        let pieces = layout.piece_count();
        let mut fresh: Vec<PieceIndex> = layout.pieces().collect();
        fresh.shuffle(rng);
        SuperSeed {
            copies: vec![0; pieces as usize],
            promised: vec![0; pieces as usize],
            uncopied: pieces,
            fresh,
            listed: Bitfield::full(pieces),
            company: Time::ZERO,
        }
    }

    fn is_fresh(&self, piece: PieceIndex) -> bool {
        self.copies[piece.as_usize()] == 0 && self.promised[piece.as_usize()] == 0
    }

    /// The session has the piece.
    fn copied_by(&mut self, veil: &mut Veil, piece: PieceIndex, len: u32) {
        self.withdraw(veil, piece, len);
        if veil.copied.set(piece) {
            self.copies[piece.as_usize()] += 1;
            self.uncopied -= u32::from(self.copies[piece.as_usize()] == 1);
        }
    }

    fn promise(&mut self, now: Time, veil: &mut Veil, piece: PieceIndex, len: u32) {
        veil.shown.set(piece);
        veil.promises.insert(piece, Promise { moved: now, sent_bytes: 0, whole: None });
        veil.ahead_bytes += u64::from(len);
        self.promised[piece.as_usize()] += 1;
    }

    fn withdraw(&mut self, veil: &mut Veil, piece: PieceIndex, len: u32) {
        let Some(promise) = veil.promises.remove(&piece) else { return };
        veil.ahead_bytes -= u64::from(len.saturating_sub(promise.sent_bytes));
        self.promised[piece.as_usize()] -= 1;
        self.relist(piece);
    }

    /// What it was promised and has not been sent whole may go to others.
    fn withdraw_unsent(&mut self, veil: &mut Veil) {
        veil.promises.retain(|&piece, promise| {
            if promise.whole.is_none() {
                self.promised[piece.as_usize()] -= 1;
                self.relist(piece);
            }
            promise.whole.is_some()
        });
        veil.ahead_bytes = 0;
    }

    /// What was sent whole long enough ago is taken to have arrived.
    fn settle(&mut self, now: Time, veil: &mut Veil) {
        let settled = |promise: &Promise| promise.whole.is_some_and(|at| now.since(at) >= SETTLES);
        let sent: Vec<PieceIndex> = veil.promises.iter().filter(|(_, p)| settled(p)).map(|(&piece, _)| piece).collect();
        // What is whole lies ahead no more: its length does not matter.
        sent.into_iter().for_each(|piece| self.copied_by(veil, piece, 0));
    }

    /// The session is over.
    fn leaves(&mut self, layout: Layout, veil: Veil) {
        for &piece in veil.promises.keys() {
            self.promised[piece.as_usize()] -= 1;
            self.relist(piece);
        }
        for piece in veil.copied.iter_set(layout) {
            self.copies[piece.as_usize()] -= 1;
            self.uncopied += u32::from(self.copies[piece.as_usize()] == 0);
            self.relist(piece);
        }
    }

    fn relist(&mut self, piece: PieceIndex) {
        if self.is_fresh(piece) && self.listed.set(piece) {
            self.fresh.push(piece);
        }
    }

    fn next_fresh(&mut self) -> Option<PieceIndex> {
        while let Some(&last) = self.fresh.last().filter(|&&last| !self.is_fresh(last)) {
            self.fresh.pop();
            self.listed.clear(last);
        }
        self.fresh.last().copied()
    }

    /// A fresh piece for a peer that was not shown it before.
    fn take_fresh(&mut self, veil: &Veil) -> Option<PieceIndex> {
        self.next_fresh()?;
        let last = self.fresh.iter().enumerate().rev().take(FRESH_LOOKED_AT);
        let fits = |&(_, &piece): &(usize, &PieceIndex)| self.is_fresh(piece) && !veil.shown.get(piece);
        let (at, &piece) = last.into_iter().find(fits)?;
        self.fresh.remove(at);
        self.listed.clear(piece);
        Some(piece)
    }
}

impl Veil {
    fn new(now: Time, pieces: u32) -> Veil {
        Veil {
            shown: Bitfield::empty(pieces),
            promises: BTreeMap::new(),
            ahead_bytes: 0,
            copied: Bitfield::empty(pieces),
            unpassed: BTreeMap::new(),
            given: 0,
            kept: 0,
            keeps: false,
            doublings: 0,
            moved: now,
            looked: Time::ZERO,
            lifted: None,
        }
    }

    /// Of a peer whose first message from us says that we have everything.
    fn lifted(now: Time, pieces: u32) -> Veil {
        Veil { shown: Bitfield::full(pieces), lifted: Some(pieces), ..Veil::new(now, pieces) }
    }

    /// Whether the peer passes on what it alone is sent.
    fn judge(&mut self, now: Time) {
        let mut lies = false;
        for unpassed in self.unpassed.values_mut().filter(|unpassed| unpassed.late <= now) {
            lies = true;
            self.kept += u32::from(!std::mem::replace(&mut unpassed.counted, true));
        }
        self.keeps = self.lifted.is_none() && (lies || self.kept > 0 && self.kept * 2 >= self.given);
    }

    /// Tells of what was not shown before, from the `from`th piece on. Returns whether `max_bytes` cut it short.
    fn tell(&mut self, from: u32, have: &Bitfield, layout: Layout, out: &mut Vec<u8>, max_bytes: usize) -> bool {
        for piece in (from..layout.piece_count()).filter_map(|index| layout.piece(index)) {
            if out.len() >= max_bytes {
                self.lifted = Some(piece.get());
                return true;
            }
            if have.get(piece) && !self.copied.get(piece) && self.shown.set(piece) {
                Message::Have(piece.get()).encode(out);
            }
        }
        self.lifted = Some(layout.piece_count());
        false
    }
}

impl Session {
    /// Not told of everything that we have.
    pub(super) fn is_veiled(&self) -> bool {
        self.veil.as_ref().is_some_and(|veil| veil.lifted.is_none())
    }

    /// When it will have been sent what it was promised, as far as one can tell: seconds.
    fn seconds_to_promised(&self, veil: &Veil, now: Time) -> f64 {
        let rate = self.up.rate.bytes_per_s(now);
        match rate {
            _ if self.we_choke => f64::INFINITY,
            0 if now.since(veil.moved) < STALE => 0.0,
            _ => veil.ahead_bytes as f64 / rate as f64,
        }
    }

    /// How long it may keep a piece to itself.
    fn patience(&self, now: Time, piece_bytes: u32) -> Duration {
        let piece_s = f64::from(piece_bytes) / self.up.rate.bytes_per_s(now).max(1) as f64;
        Duration::from_secs_f64(piece_s * PATIENCE_TIMES).clamp(PATIENCE, MOST_PATIENCE)
    }

    /// It wants what it was promised, and will be unchoked for it.
    fn waits_for_promised(&self) -> bool {
        self.we_choke && self.peer_interested && self.veil.as_ref().is_some_and(|it| it.ahead_bytes > 0 && !it.keeps)
    }

    /// It does not pass on what it was sent.
    fn is_stuck(&self, now: Time, piece_bytes: u64) -> bool {
        let Some(veil) = &self.veil else { return false };
        let pieces = self.up.rate.bytes_per_s(now) * UNPASSED.as_secs() / piece_bytes;
        veil.unpassed.len() as u64 > pieces.max(UNPASSED_PIECES)
    }
}

impl Swarm {
    /// Whether the peer has been, or is being, told of everything that we have.
    pub fn is_open_to(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| !session.is_veiled())
    }

    /// The veil for a peer that connects, if it is to have one. A seed that nobody is connected to begins anew.
    pub(super) fn veil_newcomer(&mut self, now: Time) -> Option<Veil> {
        let layout = self.layout();
        let is_first = self.sessions.is_empty();
        if is_first {
            let begins = self.is_complete() && layout.piece_count() >= MIN_PIECES;
            self.super_seed = begins.then(|| SuperSeed::new(layout, &mut self.picker.rng));
        }
        let veil = if is_first && !self.config.crowd_expected { Veil::lifted } else { Veil::new };
        self.super_seed.as_ref().map(|_| veil(now, layout.piece_count()))
    }

    /// Everybody is told of everything.
    pub(super) fn lift_veils(&mut self) {
        if self.super_seed.take().is_none() {
            return;
        }
        let mut wakes = Vec::new();
        for session in self.sessions.values_mut() {
            if let Some(veil) = &mut session.veil {
                veil.lifted.get_or_insert(0);
                wakes.push(session.id);
            }
        }
        wakes.into_iter().for_each(|id| self.wake(id));
    }

    /// Tells this peer of everything. Returns whether it had not been told before.
    pub(super) fn lift_veil(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let Some(veil) = &mut session.veil else { return false };
        veil.lifted.get_or_insert(0);
        self.wake(id);
        true
    }

    /// A peer said that it has this piece.
    pub(super) fn superseed_has(&mut self, now: Time, id: SessionId, piece: PieceIndex) {
        let len = self.layout().piece_len(piece);
        let Some(super_seed) = &mut self.super_seed else { return };
        for session in self.sessions.values_mut() {
            match &mut session.veil {
                Some(veil) if session.id == id => super_seed.copied_by(veil, piece, len),
                Some(veil) => {
                    veil.unpassed.remove(&piece);
                }
                None => {}
            }
        }
        self.lift_when_copied(now);
    }

    /// A peer said for the first time what it has: it stands in its session.
    pub(super) fn superseed_has_these(&mut self, now: Time, id: SessionId) {
        let layout = self.layout();
        let Some(super_seed) = &mut self.super_seed else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(veil) = &mut session.veil else { return };
        for piece in session.pieces.iter_set(layout) {
            super_seed.copied_by(veil, piece, layout.piece_len(piece));
        }
        self.lift_when_copied(now);
    }

    pub(super) fn superseed_interest(&mut self, now: Time, id: SessionId, interested: bool) {
        let crowd = self.sessions.values().filter(|session| session.peer_interested).count();
        let Some(super_seed) = &mut self.super_seed else { return };
        if crowd > 1 {
            super_seed.company = now;
        }
        let veil = self.sessions.get_mut(&id).and_then(|session| session.veil.as_mut());
        if let Some(veil) = veil.filter(|_| !interested) {
            super_seed.withdraw_unsent(veil);
        }
    }

    /// A block of this piece is asked of us, and will be sent.
    pub(super) fn superseed_asked(&mut self, now: Time, id: SessionId, piece: PieceIndex) {
        let len = self.layout().piece_len(piece);
        let Some(super_seed) = &mut self.super_seed else { return };
        let Some(veil) = self.sessions.get_mut(&id).and_then(|session| session.veil.as_mut()) else { return };
        veil.moved = now;
        if !veil.promises.contains_key(&piece) && !veil.copied.get(piece) {
            super_seed.promise(now, veil, piece, len);
        }
    }

    /// A block of ours went out.
    pub(super) fn superseed_sent(&mut self, now: Time, id: SessionId, block: Block) {
        let (piece, len) = (block.piece(), self.layout().piece_len(block.piece()));
        let Some(super_seed) = &self.super_seed else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let patience = session.patience(now, len);
        let Some(veil) = &mut session.veil else { return };
        veil.moved = now;
        let Some(promise) = veil.promises.get_mut(&piece) else { return };
        promise.moved = now;
        let more = block.len().min(len - promise.sent_bytes);
        promise.sent_bytes += more;
        veil.ahead_bytes -= u64::from(more);
        if promise.sent_bytes == len && promise.whole.is_none() {
            promise.whole = Some(now);
            if super_seed.copies[piece.as_usize()] == 0 {
                veil.unpassed.insert(piece, Unpassed { sent: now, late: now + patience, counted: false });
                veil.given += 1;
            }
        }
    }

    /// A session is over.
    pub(super) fn superseed_leaves(&mut self, veil: Option<Veil>) {
        let layout = self.layout();
        if let (Some(super_seed), Some(veil)) = (&mut self.super_seed, veil) {
            super_seed.leaves(layout, veil);
        }
    }

    /// Twice a second: who is alone, who does not want what it was shown, who has nothing to do.
    pub(super) fn review_veils(&mut self, now: Time) {
        let crowd = self.sessions.values().filter(|session| session.peer_interested).count();
        let Some(super_seed) = &mut self.super_seed else { return };
        if crowd > 1 {
            super_seed.company = now;
        }
        let no_crowd = now.since(super_seed.company) >= ALONE;
        let mut wakes = Vec::new();
        for session in self.sessions.values_mut() {
            let asks = session.is_served();
            let Some(veil) = &mut session.veil else { continue };
            super_seed.settle(now, veil);
            veil.judge(now);
            let still = now.since(veil.moved);
            let alone = no_crowd && session.peer_interested && now.since(session.since) >= ALONE;
            let bored = !session.peer_interested && veil.ahead_bytes > 0 && still >= UNINTERESTED;
            if alone || bored {
                veil.lifted.get_or_insert(0);
            }
            if bored {
                super_seed.withdraw_unsent(veil);
            }
            if !session.we_choke && !asks && veil.ahead_bytes > 0 && still >= STALE {
                super_seed.withdraw_unsent(veil);
                veil.doublings = (veil.doublings + 1).min(MAX_DOUBLINGS);
            }
            if veil.ahead_bytes == 0 || veil.lifted.is_some_and(|told| told < veil.shown.piece_count()) {
                wakes.push(session.id);
            }
        }
        wakes.into_iter().for_each(|id| self.wake(id));
        self.lift_when_copied(now);
    }

    /// Tells this peer what it may know by now. Returns whether `max_bytes` of output cut it short.
    pub(super) fn show_pieces(&mut self, now: Time, id: SessionId, out: &mut Vec<u8>, max_bytes: usize) -> bool {
        if self.sessions.get(&id).is_none_or(|session| session.veil.is_none()) {
            return false;
        }
        let layout = self.layout();
        let alone = self.is_alone(now, id);
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let Some(veil) = &mut session.veil else { return false };
        if alone && self.super_seed.as_mut().is_some_and(|super_seed| super_seed.next_fresh().is_none()) {
            veil.lifted.get_or_insert(0);
        }
        if let Some(from) = veil.lifted {
            let more = veil.tell(from, self.picker.have(), layout, out, max_bytes);
            if !more && self.super_seed.is_none() {
                session.veil = None;
                self.part_if_both_seed(id);
            }
            return more;
        }
        while out.len() < max_bytes {
            let Some(piece) = self.next_to_show(now, id, alone) else { break };
            let session = self.sessions.get_mut(&id);
            if let (Some(super_seed), Some(veil)) = (&mut self.super_seed, session.and_then(|it| it.veil.as_mut())) {
                super_seed.promise(now, veil, piece, layout.piece_len(piece));
                veil.moved = now;
                Message::Have(piece.get()).encode(out);
            }
        }
        out.len() >= max_bytes
    }

    /// Whether nobody else wants anything, nor came just now and may.
    fn is_alone(&self, now: Time, id: SessionId) -> bool {
        let may_want = |other: &Session| other.peer_interested || now.since(other.since) < INTRODUCTION;
        !self.sessions.values().any(|other| other.id != id && may_want(other))
    }

    fn next_to_show(&mut self, now: Time, id: SessionId, alone: bool) -> Option<PieceIndex> {
        let session = self.sessions.get(&id)?;
        let veil = session.veil.as_ref()?;
        let unknown = session.info.fast && !session.pieces_known && now.since(session.since) < INTRODUCTION;
        if unknown || session.closing || veil.ahead_bytes >= self.ahead_due_bytes(now, session, veil, alone) {
            return None;
        }
        if self.super_seed.as_mut()?.next_fresh().is_none() {
            let veil = self.sessions.get_mut(&id)?.veil.as_mut()?;
            if veil.ahead_bytes > 0 && now.since(veil.looked) < LOOK_AGAIN {
                return None;
            }
            veil.looked = now;
            self.reclaim_from_stuck(now, id);
        }
        let veil = self.sessions.get(&id)?.veil.as_ref()?;
        if let Some(fresh) = self.super_seed.as_mut()?.take_fresh(veil) {
            return Some(fresh);
        }
        // What is missing goes to those who pass it on.
        let passes = |other: &Session| other.veil.as_ref().is_some_and(|veil| !veil.keeps && veil.lifted.is_none());
        if veil.keeps && self.sessions.values().any(|other| passes(other) && !other.pieces.is_full()) {
            return None;
        }
        let left_lying = self.left_lying(now, id);
        // The last ones go to whom they were promised: to show them to others as well would be to send them twice.
        let others_wait = self.sessions.values().any(|other| other.id != id && other.waits_for_promised());
        if left_lying.is_some() || others_wait {
            return left_lying;
        }
        self.promised_elsewhere(now, id).or_else(|| self.fewest_copies(now, id))
    }

    /// What was kept for those that do not pass on what they get, and are choked, goes to others.
    fn reclaim_from_stuck(&mut self, now: Time, id: SessionId) {
        let piece_bytes = u64::from(self.layout().piece_bytes());
        let Some(super_seed) = &mut self.super_seed else { return };
        for other in self.sessions.values_mut().filter(|other| other.id != id && other.we_choke) {
            let stuck = other.is_stuck(now, piece_bytes);
            other.veil.iter_mut().filter(|_| stuck).for_each(|veil| super_seed.withdraw_unsent(veil));
        }
    }

    /// What others were promised and do not fetch, or were sent and do not pass on in time: the longest ago.
    fn left_lying(&self, now: Time, id: SessionId) -> Option<PieceIndex> {
        let (session, super_seed) = (self.sessions.get(&id)?, self.super_seed.as_ref()?);
        let veil = session.veil.as_ref().filter(|veil| !veil.keeps)?;
        let mut lies: BTreeMap<PieceIndex, Time> =
            self.late_unpassed(now).map(|(piece, unpassed)| (piece, unpassed.sent)).collect();
        let mut moves = BTreeSet::new();
        for other in self.sessions.values().filter(|other| other.id != id) {
            let patience = other.patience(now, self.layout().piece_bytes());
            for (&piece, promise) in other.veil.iter().flat_map(|veil| &veil.promises) {
                if promise.moved + patience > now {
                    moves.insert(piece);
                } else if super_seed.copies[piece.as_usize()] == 0 {
                    lies.insert(piece, promise.moved);
                }
            }
        }
        lies.retain(|piece, _| !moves.contains(piece) && !veil.shown.get(*piece) && !veil.copied.get(*piece));
        lies.into_iter().min_by_key(|(_, since)| *since).map(|(piece, _)| piece)
    }

    /// Pieces of which a single copy is out, for longer than it should take to pass it on.
    fn late_unpassed(&self, now: Time) -> impl Iterator<Item = (PieceIndex, Unpassed)> {
        let copies = |piece: PieceIndex| self.super_seed.as_ref().map_or(0, |it| it.copies[piece.as_usize()]);
        let unpassed =
            self.sessions.values().filter_map(|session| session.veil.as_ref()).flat_map(|veil| &veil.unpassed);
        unpassed
            .map(|(&piece, &unpassed)| (piece, unpassed))
            .filter(move |(piece, it)| it.late <= now && copies(*piece) <= 1)
    }

    /// How much a peer is to be shown ahead of what it has been sent.
    fn ahead_due_bytes(&self, now: Time, session: &Session, veil: &Veil, alone: bool) -> u64 {
        // Any piece at all.
        const ONE_PIECE: u64 = 1;
        let piece_bytes = u64::from(self.layout().piece_bytes());
        let in_time = session.up.rate.bytes_per_s(now) * AHEAD.as_secs();
        if alone {
            let pieces = AHEAD_PIECES.max(u64::from(ALONE_PIECES.min(self.layout().piece_count() / ALONE_PART)));
            return in_time.max(session.up.sent_bytes).max(pieces * piece_bytes);
        }
        let moves = |other: &Session| other.peer_interested && !other.we_choke && !other.is_stuck(now, piece_bytes);
        if session.we_choke || session.is_stuck(now, piece_bytes) && self.sessions.values().any(moves) {
            return ONE_PIECE;
        }
        in_time.max(AHEAD_PIECES * piece_bytes) << veil.doublings
    }

    /// Nothing is fresh: what was promised to one that is choked or gives no sign of life; and if this peer has nothing
    /// to do, to one that takes much longer.
    fn promised_elsewhere(&self, now: Time, id: SessionId) -> Option<PieceIndex> {
        let session = self.sessions.get(&id)?;
        let veil = session.veil.as_ref().filter(|_| !session.we_choke)?;
        let age = now.since(session.since).as_secs_f64().max(1.0);
        let rate = (session.up.sent_bytes as f64 / age).max(session.up.rate.bytes_per_s(now) as f64).max(1.0);
        let ours = f64::from(self.layout().piece_bytes()) / rate;
        let mut soonest: BTreeMap<PieceIndex, (f64, u32)> = BTreeMap::new();
        for other in self.sessions.values().filter(|other| other.id != id) {
            let Some(theirs) = &other.veil else { continue };
            let seconds = other.seconds_to_promised(theirs, now);
            for (&piece, promise) in theirs.promises.iter().filter(|(piece, _)| !veil.shown.get(**piece)) {
                let seconds = if promise.whole.is_some() { 0.0 } else { seconds };
                let known = soonest.entry(piece).or_insert((seconds, promise.sent_bytes));
                *known = (known.0.min(seconds), known.1.max(promise.sent_bytes));
            }
        }
        let least = if veil.ahead_bytes == 0 { RELIEF_GAIN * ours + RELIEF_GAIN_S } else { f64::MAX };
        let late = soonest.into_iter().filter(|(_, (seconds, _))| *seconds > least);
        late.max_by(|(_, a), (_, b)| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))).map(|(piece, _)| piece)
    }

    /// Nothing else is left, and this peer has had nothing to do for a while: a second copy is better than none.
    fn fewest_copies(&self, now: Time, id: SessionId) -> Option<PieceIndex> {
        let (session, super_seed) = (self.sessions.get(&id)?, self.super_seed.as_ref()?);
        let idle = |veil: &&Veil| veil.ahead_bytes == 0 && !session.we_choke && now.since(veil.moved) >= DRY;
        let veil = session.veil.as_ref().filter(idle)?;
        let lacks = self.layout().pieces().filter(|&piece| !veil.shown.get(piece) && !veil.copied.get(piece));
        let count = |piece: &PieceIndex| (super_seed.copies[piece.as_usize()], super_seed.promised[piece.as_usize()]);
        lacks.min_by_key(count)
    }

    fn lift_when_copied(&mut self, now: Time) {
        let copied = self.super_seed.as_ref().is_some_and(|super_seed| super_seed.uncopied == 0);
        if copied && self.late_unpassed(now).next().is_none() {
            self.lift_veils();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::{CloseReason, Effect, Identity, SessionInfo, SwarmConfig};
    use crate::wire::framing::{Frame, Framer};
    use crate::wire::layout::RawBlock;

    const START: Time = Time::from_secs(100);
    const PIECES: u32 = 64;
    const PIECE_BYTES: u32 = 65_536;

    fn at(ms: u64) -> Time {
        START + Duration::from_millis(ms)
    }

    struct Seed(Swarm);

    impl Seed {
        fn new() -> Seed {
            Seed::of(true)
        }

        fn of(crowd_expected: bool) -> Seed {
            let layout = Layout::new(u64::from(PIECES * PIECE_BYTES), u64::from(PIECE_BYTES)).unwrap();
            let config = SwarmConfig {
                max_block_bytes: 128 << 10,
                window_max_bytes: 8 << 20,
                windows_total_bytes: 64 << 20,
                sequential: false,
                crowd_expected,
            };
            Seed(Swarm::new(config, layout, Bitfield::full(PIECES), 7))
        }

        fn joins(&mut self, now: Time, id: u32) {
            let identity = Identity::Key([id as u8; 32]);
            self.0.open(now, SessionId(id), SessionInfo { identity, fast: true });
            assert_eq!(self.messages(now, id), [Message::HaveNone]);
            self.hears(now, id, Message::HaveNone);
        }

        fn hears(&mut self, now: Time, id: u32, message: Message) {
            self.0.receive(now, SessionId(id), message).unwrap();
        }

        fn messages(&mut self, now: Time, id: u32) -> Vec<Message> {
            let mut out = Vec::new();
            assert!(!self.0.drain_sends(now, SessionId(id), &mut out, 1 << 20));
            let mut framer = Framer::new(PIECES / 8);
            framer.push(&out);
            let message = |frame| if let Frame::Message(message) = frame { message } else { panic!("{frame:?}") };
            std::iter::from_fn(|| framer.next().unwrap()).map(message).collect()
        }

        /// The pieces that this peer is told of now.
        fn tells(&mut self, now: Time, id: u32) -> Vec<u32> {
            let piece = |message| if let Message::Have(piece) = message { Some(piece) } else { None };
            self.messages(now, id).into_iter().filter_map(piece).collect()
        }

        /// The peer asks for all of the piece and gets it.
        fn fetches(&mut self, now: Time, id: u32, piece: u32) {
            for unit in 0..PIECE_BYTES / 16_384 {
                self.hears(now, id, Message::Request(RawBlock { piece, begin: unit * 16_384, len: 16_384 }));
                let block = self.0.next_upload(SessionId(id)).expect("what is asked for is served");
                self.0.upload_done(now, SessionId(id), block);
            }
        }

        /// Two peers that want something and may have it; returns what each was shown.
        fn crowd(&mut self) -> [Vec<u32>; 2] {
            [1, 2].into_iter().for_each(|id| self.joins(START, id));
            [1, 2].map(|id| {
                let mut shown = self.tells(START, id);
                assert_eq!(shown.len(), 1, "one wakes its interest");
                self.hears(START, id, Message::Interested);
                self.0.set_choke(SessionId(id), false);
                shown.extend(self.tells(START, id));
                shown
            })
        }
    }

    #[test]
    fn each_piece_is_shown_to_one_peer_and_a_pipe_never_runs_dry() {
        let mut seed = Seed::new();
        let mut shown = seed.crowd();
        let mut seen: BTreeSet<u32> = shown.iter().flatten().copied().collect();
        assert_eq!(seen.len(), 4, "two each: {shown:?}");
        let mut turns = 0;
        while seen.len() < PIECES as usize {
            for id in [1, 2] {
                let now = at(turns * 100);
                let ours = &mut shown[id as usize - 1];
                assert!(!ours.is_empty(), "nothing to go on with");
                seed.fetches(now, id, ours.remove(0));
                let more = seed.tells(now, id);
                assert!(more.iter().all(|piece| seen.insert(*piece)), "shown twice: {more:?}");
                ours.extend(more);
            }
            turns += 1;
            assert!(turns < u64::from(PIECES));
        }
    }

    #[test]
    fn when_every_piece_is_copied_all_is_told_to_all() {
        let mut seed = Seed::new();
        let [first, _] = seed.crowd();
        assert!(!seed.0.is_open_to(SessionId(1)));
        for piece in 0..PIECES {
            let id = 1 + piece % 2;
            seed.hears(at(100), id, Message::Have(piece));
        }
        assert!(seed.0.is_open_to(SessionId(1)));
        let told: BTreeSet<u32> = seed.tells(at(100), 1).into_iter().collect();
        let lacks: BTreeSet<u32> = (0..PIECES).filter(|piece| piece % 2 == 1 && !first.contains(piece)).collect();
        assert_eq!(told, lacks, "what it neither has nor was told of");
        seed.0.open(at(200), SessionId(3), SessionInfo { identity: Identity::Key([3; 32]), fast: true });
        assert_eq!(seed.messages(at(200), 3), [Message::HaveAll], "it is over until everybody has left");
    }

    #[test]
    fn what_a_peer_leaves_or_does_not_fetch_goes_to_others() {
        for leaves in [true, false] {
            let mut seed = Seed::new();
            let [first, second] = seed.crowd();
            let mut seen: BTreeSet<u32> = second.iter().copied().collect();
            let mut todo: Vec<u32> = second;
            if leaves {
                seed.0.close(SessionId(1));
                seed.joins(START, 3);
                seed.hears(START, 3, Message::Interested);
            }
            // The second takes what it gets, at some 2 MB/s.
            for step in 1..200 {
                let now = at(step * 33);
                seed.0.handle_timeout(now);
                if let Some(piece) = todo.pop() {
                    seed.fetches(now, 2, piece);
                    seed.hears(now, 2, Message::Have(piece));
                }
                let more = seed.tells(now, 2);
                seen.extend(&more);
                todo.extend(more);
            }
            assert!(first.iter().all(|piece| seen.contains(piece)), "leaves: {leaves}; {first:?} were lost");
        }
    }

    #[test]
    fn what_a_peer_keeps_to_itself_goes_to_others_before_the_veils_are_lifted() {
        let mut seed = Seed::new();
        let [kept, mut todo] = seed.crowd();
        kept.iter().for_each(|&piece| seed.fetches(at(10), 1, piece));
        seed.0.set_choke(SessionId(1), true);
        let mut shown_again = BTreeMap::new();
        // The second takes what it gets, five pieces a second, and says what it has; the first says nothing.
        for ms in (200..20_000).step_by(200) {
            let now = at(ms);
            seed.0.handle_timeout(now);
            if let Some(piece) = todo.pop() {
                seed.fetches(now, 2, piece);
                seed.hears(now, 2, Message::Have(piece));
            }
            let more = seed.tells(now, 2);
            if !seed.0.is_open_to(SessionId(2)) {
                shown_again.extend(more.iter().filter(|piece| kept.contains(piece)).map(|&piece| (piece, ms)));
            }
            todo.extend(more);
        }
        assert_eq!(shown_again.len(), kept.len(), "{kept:?} were shown again: {shown_again:?}");
        let patience = PATIENCE.as_millis() as u64;
        assert!(shown_again.values().all(|&ms| ms >= patience), "{shown_again:?}");
        assert!(seed.0.is_open_to(SessionId(2)), "every piece has been passed on or sent to another");
    }

    #[test]
    fn the_last_pieces_wait_for_whom_they_were_promised() {
        let mut seed = Seed::new();
        let [first, second] = seed.crowd();
        seed.joins(START, 3);
        let waits_for = seed.tells(START, 3);
        assert_eq!(waits_for.len(), 1, "choked, it is shown one");
        seed.hears(START, 3, Message::Interested);
        let mut todo = [first, second];
        let mut elsewhere = Vec::new();
        // A thirtieth of a second for a piece: all that is fresh has gone out after two seconds.
        for ms in (33..4_000).step_by(33) {
            seed.0.handle_timeout(at(ms));
            for (id, todo) in [1, 2].into_iter().zip(&mut todo) {
                if let Some(piece) = todo.pop() {
                    seed.fetches(at(ms), id, piece);
                    seed.hears(at(ms), id, Message::Have(piece));
                }
                let more = seed.tells(at(ms), id);
                elsewhere.extend(more.iter().copied().filter(|piece| waits_for.contains(piece)));
                todo.extend(more);
            }
        }
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
        seed.0.set_choke(SessionId(3), false);
        seed.fetches(at(4_000), 3, waits_for[0]);
        seed.hears(at(4_000), 3, Message::Have(waits_for[0]));
        assert!(seed.0.is_open_to(SessionId(3)), "that was the last");
    }

    #[test]
    fn who_is_alone_is_told_everything_and_who_wants_nothing_too() {
        for interested in [true, false] {
            let mut seed = Seed::new();
            seed.joins(START, 1);
            let shown = seed.tells(START, 1).len();
            assert_eq!(shown, (PIECES / ALONE_PART) as usize);
            if interested {
                seed.hears(START, 1, Message::Interested);
            }
            seed.0.handle_timeout(at(900));
            assert_eq!(seed.tells(at(900), 1).len(), 0);
            seed.0.handle_timeout(at(2_100));
            assert_eq!(seed.tells(at(2_100), 1).len(), PIECES as usize - shown, "interested: {interested}");
        }
    }

    #[test]
    fn of_what_is_no_news_the_first_peer_is_told_at_once_and_who_follows_is_shown_other_pieces() {
        let mut seed = Seed::of(false);
        let first = SessionInfo { identity: Identity::Key([9; 32]), fast: true };
        seed.0.open(START, SessionId(9), first);
        assert_eq!(seed.messages(START, 9), [Message::HaveAll]);
        assert!(seed.0.is_open_to(SessionId(9)));
        seed.hears(START, 9, Message::HaveNone);
        seed.hears(START, 9, Message::Interested);
        seed.0.set_choke(SessionId(9), false);
        let taken: BTreeSet<u32> = (0..PIECES / 2).collect();
        taken.iter().for_each(|&piece| seed.fetches(START, 9, piece));
        let shown = seed.crowd().concat();
        assert!(shown.iter().all(|piece| !taken.contains(piece)), "{shown:?}");
    }

    #[test]
    fn another_seed_is_told_everything_before_they_part() {
        let mut seed = Seed::new();
        seed.0.open(START, SessionId(1), SessionInfo { identity: Identity::Key([1; 32]), fast: true });
        seed.hears(START, 1, Message::HaveAll);
        assert!(!std::iter::from_fn(|| seed.0.poll_effect()).any(|effect| matches!(effect, Effect::Close(..))));
        assert_eq!(seed.messages(START, 1), [Message::HaveNone]);
        assert!(seed.0.both_seed(SessionId(1)));
        let parts = Effect::Close(SessionId(1), CloseReason::BothSeeds);
        assert!(std::iter::from_fn(|| seed.0.poll_effect()).any(|effect| effect == parts));
    }

    #[test]
    fn what_was_not_shown_is_served_all_the_same() {
        let mut seed = Seed::new();
        let [first, second] = seed.crowd();
        let other = (0..PIECES).find(|piece| !first.contains(piece) && !second.contains(piece)).unwrap();
        seed.fetches(START, 1, other);
        assert!(!seed.tells(at(100), 2).contains(&other), "it is promised");
    }
}
