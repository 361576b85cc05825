//! One torrent's swarm from our seat.
//!
//! The shell owns sockets, disk and payload, and drives a [`Swarm`]: it reports what came (`open`, `receive`, `place`,
//! `block_received`, `piece_verified`, ..., `close`), and then, for the session it acted for and for those of
//! [`Swarm::take_wakes`], writes what [`Swarm::drain_sends`] and [`Swarm::next_upload`] give. After each batch of calls
//! it drains [`Swarm::poll_effect`] and arms its timer by [`Swarm::next_timeout`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::choker::{SessionView, TURN_BYTES};
use super::picker::Picker;
use super::session::Session;
use super::{CloseReason, Identity, PeerFault, SessionId, SessionInfo, SessionReport};
use crate::clock::Time;
use crate::wire::bitfield::Bitfield;
use crate::wire::layout::{Layout, PieceIndex};
use crate::wire::message::Message;

/// How often late blocks are looked for: half the least time after which one is late, quartered.
const TICK: Duration = Duration::from_millis(500);
/// A session's told part of the log is dropped when the log has grown to this.
const LOG_TRIM: usize = 256;
/// More allowed-fast pieces than this no client offers (BEP 6 suggests 10).
const MAX_ALLOWED_FAST: usize = 64;

/// What the operator decided about a torrent's transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwarmConfig {
    /// The largest block to ask of a peer that offers as much; a multiple of 16 KiB, at most 128 KiB.
    pub max_block_bytes: u32,
    /// The most to ask of one peer at a time.
    pub window_max_bytes: u32,
    /// In file order instead of rarest first.
    pub sequential: bool,
}

/// What the shell has to do, beside sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Close this session (and call [`Swarm::close`]).
    Close(SessionId, CloseReason),
    /// Interest or membership changed, or a turn's quota was used up: ask the choker now.
    ReviewChoking,
    /// The last missing piece was verified.
    Complete,
}

/// The pieces verified since the start, for sessions to be told of at their own pace.
#[derive(Debug, Default)]
struct VerifiedLog {
    dropped: u64,
    pieces: Vec<PieceIndex>,
}

pub struct Swarm {
    pub(super) config: SwarmConfig,
    pub(super) picker: Picker,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    log: VerifiedLog,
    wakes: Vec<SessionId>,
    pub(super) effects: VecDeque<Effect>,
    review_due: bool,
    pub(super) next_tick: Time,
}

impl Swarm {
    /// `have` are the pieces that are verified and on disk. The same seed gives the same choices.
    pub fn new(config: SwarmConfig, layout: Layout, have: Bitfield, seed: u64) -> Swarm {
        Swarm {
            config,
            picker: Picker::new(layout, have, config.sequential, seed),
            sessions: BTreeMap::new(),
            log: VerifiedLog::default(),
            wakes: Vec::new(),
            effects: VecDeque::new(),
            review_due: false,
            next_tick: Time::ZERO,
        }
    }

    pub fn have(&self) -> &Bitfield {
        self.picker.have()
    }

    pub fn layout(&self) -> Layout {
        self.picker.layout()
    }

    pub fn is_complete(&self) -> bool {
        self.picker.have().is_full()
    }

    /// Bytes of the pieces that are not verified: the `left` of an announce.
    pub fn left_bytes(&self) -> u64 {
        self.picker.left_bytes()
    }

    /// Pieces of which some block was asked for or received.
    pub fn begun_count(&self) -> usize {
        self.picker.begun_count()
    }

    /// How many connected peers have this piece; 0 for all once we are complete and no longer count.
    pub fn availability(&self, piece: PieceIndex) -> u32 {
        self.picker.rarity.availability(piece)
    }

    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    pub fn report(&self, now: Time, id: SessionId) -> Option<SessionReport> {
        self.sessions.get(&id).map(|session| session.report(now))
    }

    pub fn reports(&self, now: Time) -> impl Iterator<Item = SessionReport> + '_ {
        self.sessions.values().map(move |session| session.report(now))
    }

    /// Appends what the choker needs to know of this torrent's sessions. `given` is the ledger: the verified bytes that
    /// an identity ever gave us.
    pub fn choker_views(&self, given: impl Fn(&Identity) -> u64, out: &mut Vec<SessionView>) {
        let (seeding, piece_bytes) = (self.is_complete(), self.layout().piece_bytes());
        out.extend(self.sessions.values().filter(|session| !session.closing).map(|session| SessionView {
            session: session.id,
            seeding,
            interested: session.peer_interested,
            unchoked: !session.we_choke,
            received_bytes: session.down.received_bytes,
            sent_bytes: session.up.sent_bytes,
            given_ever_bytes: given(&session.info.identity),
            piece_bytes,
            since: session.since,
            snubbed: session.down.snubbed,
        }));
    }

    /// A session's handshakes are done. Queues what we have as its first message (BEP 3, BEP 6).
    pub fn open(&mut self, now: Time, id: SessionId, info: SessionInfo) {
        let (layout, have) = (self.layout(), self.picker.have());
        let mut session = Session::new(now, id, info, layout.piece_count(), self.log.end());
        if info.fast && have.is_full() {
            session.send(&Message::HaveAll);
        } else if info.fast && have.is_empty() {
            session.send(&Message::HaveNone);
        } else if !have.is_empty() {
            session.send(&Message::Bitfield(have.as_bytes().to_vec()));
        }
        // Silence says that the peer has nothing, and that is what is counted until it speaks.
        self.sessions.insert(id, session);
        self.request_review();
    }

    /// What the peer's extension handshake said (BEP 10); the shell decodes it.
    pub fn set_peer_extensions(
        &mut self,
        id: SessionId,
        reqq: Option<u32>,
        max_block_bytes: Option<u32>,
        upload_only: bool,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.down.set_limits(reqq, max_block_bytes);
        session.upload_only = upload_only;
        self.part_if_both_seed(id);
    }

    /// The peer has proved who it is: from here on that identity earns.
    pub fn set_identity(&mut self, id: SessionId, identity: Identity) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.info.identity = identity;
            self.request_review();
        }
    }

    /// Queues a message of the shell's own making (extension protocol, keep-alive).
    pub fn queue_message(&mut self, id: SessionId, message: &Message) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.send(message);
        }
        self.wake(id);
    }

    /// A message came. Extended messages are the shell's: here they are ignored, as is what we do not know.
    ///
    /// # Errors
    /// When the peer broke the rules: the shell closes the session.
    pub fn receive(&mut self, now: Time, id: SessionId, message: Message) -> Result<(), PeerFault> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let needs_fast = matches!(
            message,
            Message::HaveAll | Message::HaveNone | Message::Suggest(_) | Message::Reject(_) | Message::AllowedFast(_)
        );
        if needs_fast && !session.info.fast {
            return Err(PeerFault::FastNotAgreed);
        }
        match message {
            Message::Choke => self.peer_chokes(id),
            Message::Unchoke => session.peer_chokes = false,
            Message::Interested => self.peer_interest(id, true),
            Message::NotInterested => self.peer_interest(id, false),
            Message::Have(index) => self.peer_has(id, index)?,
            Message::Bitfield(bytes) => {
                let pieces = Bitfield::from_wire(&bytes, session.pieces.piece_count())?;
                self.peer_has_these(id, pieces)?;
            }
            Message::HaveAll => {
                let pieces = Bitfield::full(session.pieces.piece_count());
                self.peer_has_these(id, pieces)?;
            }
            Message::HaveNone => self.peer_has_these(id, Bitfield::empty(self.layout().piece_count()))?,
            Message::Request(raw) => self.peer_requests(id, raw)?,
            Message::Cancel(raw) => self.peer_cancels(id, raw)?,
            Message::Reject(raw) => self.peer_rejects(now, id, raw)?,
            Message::AllowedFast(index) => self.peer_allows_fast(id, index)?,
            Message::KeepAlive
            | Message::Port(_)
            | Message::Suggest(_)
            | Message::Extended { .. }
            | Message::Unknown(_) => {}
        }
        Ok(())
    }

    /// The session is over: what was asked of it is asked of others.
    pub fn close(&mut self, id: SessionId) {
        if let Some(incoming) = self.sessions.get(&id).and_then(|session| session.down.incoming) {
            self.block_lost(id, incoming.block);
        }
        let Some(session) = self.sessions.remove(&id) else { return };
        let mut opened = false;
        for request in session.down.outstanding.iter().filter(|request| !request.late) {
            opened |= self.picker.unask(request.block, false);
        }
        self.picker.release(id);
        self.picker.peer_leaves(&session.pieces);
        if opened {
            self.wake_starved();
        }
        self.request_review();
    }

    /// Encodes what is to be sent to this peer now: queued messages, news of our pieces, requests. `max_bytes` is where
    /// it stops making more; queued messages go out whole. Returns whether there is more.
    pub fn drain_sends(&mut self, now: Time, id: SessionId, out: &mut Vec<u8>, max_bytes: usize) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        out.append(&mut session.outbox);
        let end = self.log.end();
        if session.pieces.is_full() {
            session.told = end;
        }
        while session.told < end && out.len() < max_bytes {
            let piece = self.log.get(session.told);
            session.told += 1;
            if let Some(piece) = piece.filter(|&piece| !session.pieces.get(piece)) {
                Message::Have(piece.get()).encode(out);
            }
        }
        let more = session.told < end;
        self.trim_log();
        let more_requests = self.fill_requests(now, id, out, max_bytes);
        more || more_requests
    }

    /// Sessions that have something to send or to serve since the last call, beside the one each call was made for.
    pub fn take_wakes(&mut self, out: &mut Vec<SessionId>) {
        for &id in &self.wakes {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.woken = false;
                out.push(id);
            }
        }
        self.wakes.clear();
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front().or_else(|| std::mem::take(&mut self.review_due).then_some(Effect::ReviewChoking))
    }

    /// When [`Swarm::handle_timeout`] wants to be called: while requests are under way.
    pub fn next_timeout(&self) -> Option<Time> {
        let waits = |session: &Session| {
            !session.down.outstanding.is_empty()
                || session.down.incoming.is_some()
                || session.down.paused_until.is_some()
                || !session.down.refused.is_empty()
                || (session.down.starved && !session.peer_chokes)
        };
        self.sessions.values().any(waits).then_some(self.next_tick)
    }

    pub fn handle_timeout(&mut self, now: Time) {
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.look_for_late_blocks(now);
        }
    }

    fn peer_interest(&mut self, id: SessionId, interested: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if std::mem::replace(&mut session.peer_interested, interested) != interested {
            self.request_review();
        }
    }

    pub(super) fn peer_has(&mut self, id: SessionId, index: u32) -> Result<(), PeerFault> {
        let piece = self.layout().piece(index).ok_or(PeerFault::NoSuchPiece(index))?;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        session.pieces_known = true;
        if session.pieces.set(piece) {
            self.picker.peer_has(&session.pieces, piece);
            if !self.picker.have().get(piece) {
                session.useful += 1;
                session.down.fresh_exhausted = false;
                session.update_interest();
            }
            if session.pieces.is_full() {
                self.part_if_both_seed(id);
            }
        }
        Ok(())
    }

    fn peer_has_these(&mut self, id: SessionId, pieces: Bitfield) -> Result<(), PeerFault> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        if std::mem::replace(&mut session.pieces_known, true) {
            return Err(PeerFault::LateBitfield);
        }
        self.picker.peer_joins(&pieces);
        let ours = self.picker.have().as_bytes();
        session.useful = pieces.as_bytes().iter().zip(ours).map(|(theirs, ours)| (theirs & !ours).count_ones()).sum();
        session.pieces = pieces;
        session.down.fresh_exhausted = false;
        session.update_interest();
        self.part_if_both_seed(id);
        Ok(())
    }

    fn peer_allows_fast(&mut self, id: SessionId, index: u32) -> Result<(), PeerFault> {
        let piece = self.layout().piece(index).ok_or(PeerFault::NoSuchPiece(index))?;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let allowed = &mut session.down.allowed_fast;
        if allowed.len() < MAX_ALLOWED_FAST && !allowed.contains(&piece) {
            allowed.push(piece);
        }
        Ok(())
    }

    /// Our set of pieces grew by one: neighbours are told, and interest that is satisfied ends.
    pub(super) fn announce_piece(&mut self, piece: PieceIndex) {
        self.log.pieces.push(piece);
        let mut wakes = Vec::new();
        for session in self.sessions.values_mut() {
            let has_it = session.pieces.get(piece);
            session.useful -= u32::from(has_it);
            if (has_it && session.update_interest()) || !has_it {
                wakes.push(session.id);
            }
        }
        wakes.into_iter().for_each(|id| self.wake(id));
        if self.is_complete() {
            self.effects.push_back(Effect::Complete);
            self.request_review();
            let all: Vec<SessionId> = self.sessions.keys().copied().collect();
            all.into_iter().for_each(|id| self.part_if_both_seed(id));
        }
    }

    /// A piece that we had is not there any more (its file changed): it is no longer served, and wanted again. Peers
    /// cannot be told; their requests for it are rejected.
    pub fn forget_piece(&mut self, piece: PieceIndex) {
        let Swarm { picker, sessions, .. } = self;
        if !picker.forget(piece, sessions.values().map(|session| &session.pieces)) {
            return;
        }
        let mut wakes = Vec::new();
        for session in self.sessions.values_mut() {
            session.withdraw(|block| block.piece() == piece);
            session.down.fresh_exhausted = false;
            session.useful += u32::from(session.pieces.get(piece));
            session.update_interest();
            wakes.push(session.id);
        }
        wakes.into_iter().for_each(|id| self.wake(id));
        self.request_review();
    }

    /// Two ends that need nothing of each other part.
    fn part_if_both_seed(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        if self.is_complete() && (session.has_all() || session.upload_only) {
            self.tell_to_close(id, CloseReason::BothSeeds);
        }
    }

    pub(super) fn tell_to_close(&mut self, id: SessionId, reason: CloseReason) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !std::mem::replace(&mut session.closing, true) {
            self.effects.push_back(Effect::Close(id, reason));
        }
    }

    pub(super) fn request_review(&mut self) {
        self.review_due = true;
    }

    /// A session used up a turn's worth of upload: it may be another's turn.
    pub(super) fn review_after_upload(&mut self, before_bytes: u64, after_bytes: u64) {
        self.review_due |= before_bytes / TURN_BYTES != after_bytes / TURN_BYTES;
    }

    pub(super) fn wake(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id)
            && !std::mem::replace(&mut session.woken, true)
        {
            self.wakes.push(id);
        }
    }

    /// Something became pickable: those that found nothing look again.
    pub(super) fn wake_starved(&mut self) {
        let starved = |session: &&Session| session.down.starved;
        let ids: Vec<SessionId> = self.sessions.values().filter(starved).map(|session| session.id).collect();
        ids.into_iter().for_each(|id| self.wake(id));
    }

    fn trim_log(&mut self) {
        if self.log.pieces.len() < LOG_TRIM {
            return;
        }
        let least = self.sessions.values().map(|session| session.told).min().unwrap_or(self.log.end());
        if least - self.log.dropped >= LOG_TRIM as u64 / 2 {
            self.log.pieces.drain(..(least - self.log.dropped) as usize);
            self.log.dropped = least;
        }
    }
}

#[cfg(test)]
impl Swarm {
    /// What must hold between any two calls.
    pub fn check(&self) {
        self.picker.check();
        let mut asked = 0;
        for session in self.sessions.values() {
            let down = &session.down;
            let counted = down.outstanding.iter().filter(|request| !request.late).map(|request| request.block);
            let incoming = down.incoming.iter().filter(|incoming| !incoming.late).map(|incoming| incoming.block);
            asked += counted.chain(incoming).map(|block| super::picker::span(block).len()).sum::<usize>();
            let bytes: u32 = down.outstanding.iter().map(|request| request.block.len()).sum();
            assert_eq!(down.outstanding_bytes, bytes);
            assert_eq!(down.late, down.outstanding.iter().filter(|request| request.late).count());
            let useful = session.pieces.iter_set(self.layout()).filter(|&piece| !self.have().get(piece)).count();
            assert_eq!(session.useful as usize, useful);
            assert_eq!(session.we_interested, useful > 0);
        }
        assert_eq!(self.picker.asked_units(), asked, "requests counted in the picker and under way");
        if !self.is_complete() {
            for piece in self.layout().pieces() {
                let peers = self.sessions.values().filter(|session| session.pieces.get(piece)).count();
                assert_eq!(self.availability(piece) as usize, peers, "{piece:?}");
            }
        }
    }
}

impl VerifiedLog {
    fn end(&self) -> u64 {
        self.dropped + self.pieces.len() as u64
    }

    fn get(&self, at: u64) -> Option<PieceIndex> {
        self.pieces.get(at.checked_sub(self.dropped)? as usize).copied()
    }
}
