//! What we ask of peers, and what comes of it.

use std::time::Duration;

use super::picker::{Picker, Put, Taken, Want};
use super::session::{Incoming, Request, Session};
use super::torrent::Swarm;
use super::{CloseReason, Given, PeerFault, SessionId, UnitDigest};
use crate::clock::Time;
use crate::wire::layout::{BLOCK_BYTES, Block, PieceIndex, RawBlock};
use crate::wire::message::Message;
use crate::wire::rate::Rate;

/// Blocks asked twice that one peer may have under way in the end game: duplicates must stay a rounding error.
const END_GAME_REQUESTS: usize = 8;
/// A peer is relieved of a block in the end game when it would take so many times longer than another.
const END_GAME_GAIN: f64 = 2.0;
/// ... and so much: less is not worth a block sent twice.
const END_GAME_GAIN_S: f64 = 0.1;
/// The pause after a first reject, doubled by each further one.
const REJECT_PAUSE: Duration = Duration::from_millis(100);
/// ... up to this power of two: 12.8 s.
const MAX_REJECT_DOUBLINGS: u32 = 7;
/// A piece of which a peer rejected a block is not asked of it for so long: it may have lost it, or be overloaded.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// A payload that takes longer than this (and than its peer's patience) holds its slot for nothing: 16 KiB at 1.6 KB/s.
const MAX_STALL: Duration = Duration::from_secs(10);

/// Where the payload of a block shall go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// Straight into its place in the piece: this session is the place's only writer until
    /// [`Swarm::block_received`] or [`Swarm::block_lost`].
    Slot(Block),
    /// Somebody else writes there: elsewhere. The same two calls follow.
    Scratch(Block),
    /// So many bytes are of no use; no call follows.
    Discard(u32),
}

/// What became of a payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Receipt {
    /// It was in its slot and counts. `piece_complete`: all of the piece is there, to be hashed and written.
    Keep { piece_complete: bool },
    /// It was in scratch; these parts of it were still missing and are to be copied to their slots.
    Copy { parts: Vec<Block>, piece_complete: bool },
    /// It was in scratch and came too late.
    Redundant,
}

impl Swarm {
    /// A block's header came.
    ///
    /// # Errors
    /// When the block lies outside the torrent, or too many came that nobody had asked for.
    pub fn place(&mut self, now: Time, id: SessionId, raw: RawBlock) -> Result<Placement, PeerFault> {
        let block = self.picker.layout().block(raw).ok_or(PeerFault::NoSuchBlock(raw))?;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(Placement::Discard(raw.len)) };
        let request = session.down.take(block);
        if request.is_none() && !session.down.take_given_up(block) {
            session.down.wasted_bytes += u64::from(raw.len);
            return session.offend(PeerFault::Unrequested).map(|()| Placement::Discard(raw.len));
        }
        let late = request.is_none_or(|request| request.late);
        let put = self.picker.place(block);
        if put == Put::Discard {
            if !late {
                self.picker.answered(block);
            }
            session.down.wasted_bytes += u64::from(raw.len);
            return Ok(Placement::Discard(raw.len));
        }
        let (slot, sent) = (put == Put::Slot, request.map(|request| request.sent));
        session.down.incoming = Some(Incoming { block, since: now, sent, slot, late, held: false });
        Ok(if slot { Placement::Slot(block) } else { Placement::Scratch(block) })
    }

    /// The shell cannot take the payload of the placed block just now (no memory), or can again. The time in between is
    /// ours: nothing of this peer is late for it.
    pub fn hold_block(&mut self, now: Time, id: SessionId, held: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(incoming) = &mut session.down.incoming else { return };
        incoming.held = held;
        incoming.since = now;
        session.down.last_block = now;
    }

    /// What we read of all peers together is held back to this rate, of this one too.
    pub fn set_limit(&mut self, id: SessionId, limit: Rate) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.down.set_limit(limit);
        }
    }

    /// The whole payload of a placed block is in.
    pub fn block_received(&mut self, now: Time, id: SessionId, block: Block) -> Receipt {
        let Some(session) = self.sessions.get_mut(&id) else { return Receipt::Redundant };
        let Some(incoming) = session.down.incoming.take_if(|incoming| incoming.block == block) else {
            return Receipt::Redundant;
        };
        session.down.learn(now, incoming, self.config.window_max_bytes);
        self.widest_window_bytes = self.widest_window_bytes.max(session.down.window_bytes());
        let taken = self.picker.received(block, incoming.slot, session.giver());
        if !incoming.late {
            self.picker.answered(block);
        }
        let useful: u32 = match &taken {
            Taken::Whole => block.len(),
            Taken::Parts(parts) => parts.iter().map(Block::len).sum(),
            Taken::Nothing => 0,
        };
        session.down.received_bytes += u64::from(useful);
        session.down.wasted_bytes += u64::from(block.len() - useful);
        if useful > 0 && self.picker.is_contested(block.piece()) {
            self.cancel_received(block.piece());
        }
        let piece_complete = self.picker.is_complete(block.piece());
        match taken {
            Taken::Whole => Receipt::Keep { piece_complete },
            Taken::Parts(parts) => Receipt::Copy { parts, piece_complete },
            Taken::Nothing => Receipt::Redundant,
        }
    }

    /// The payload of a placed block broke off: it is asked elsewhere.
    pub fn block_lost(&mut self, id: SessionId, block: Block) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(incoming) = session.down.incoming.take_if(|incoming| incoming.block == block) else { return };
        let mut opened = incoming.slot && self.picker.lost(block);
        if !incoming.late {
            opened |= self.picker.unask(block, false);
        }
        if opened {
            self.wake_starved();
        }
    }

    /// The piece's hash is right and it is written. Its givers are returned, for the ledger; neighbours will be told.
    pub fn piece_verified(&mut self, piece: PieceIndex) -> Vec<Given> {
        let (given, news) = self.picker.verified(piece);
        for giver in &given {
            if let Some(session) = self.sessions.get_mut(&giver.session) {
                session.down.on_parole &= given.len() > 1;
                session.down.verified_bytes += u64::from(giver.bytes);
            }
        }
        if news {
            self.announce_piece(piece);
        }
        given
    }

    /// The piece's hash is wrong: all of it is missing again, and will be asked of one peer alone. `digests` are those of
    /// its units, in order; none if it may have gone bad on our own side, which is nobody's fault.
    pub fn piece_failed(&mut self, piece: PieceIndex, digests: &[UnitDigest]) -> Vec<Given> {
        let origins = self.picker.origins(piece);
        let given = self.picker.restart(piece, true);
        self.blame_givers(piece, origins, digests);
        self.wake_starved();
        given
    }

    /// The piece could not be kept on our side (disk): missing again, nobody's fault.
    pub fn piece_dropped(&mut self, piece: PieceIndex) {
        self.picker.restart(piece, false);
        self.wake_starved();
    }

    /// Asks for as much as the window allows. Returns whether `max_bytes` of output cut it short.
    pub(super) fn fill_requests(&mut self, now: Time, id: SessionId, out: &mut Vec<u8>, max_bytes: usize) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let window = session.down.window_bytes().min(self.config.window_max_bytes);
        let choked = session.peer_chokes && session.down.allowed_fast.is_empty();
        let paused = session.down.paused_until.is_some_and(|until| now < until);
        // Requests are made in batches of an eighth of the window: fewer, larger writes.
        let enough = session.down.outstanding_bytes > window - window / 8;
        if choked || paused || enough || session.closing || !session.we_interested {
            return false;
        }
        session.down.paused_until = None;
        session.down.starved = false;
        let window = self.share_of_windows(window);
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let block_bytes = session.down.block_bytes(self.config.max_block_bytes, now);
        loop {
            let Some(session) = self.sessions.get_mut(&id) else { return false };
            if session.down.outstanding_bytes >= window || session.down.outstanding.len() >= session.down.reqq as usize
            {
                return false;
            }
            if out.len() >= max_bytes {
                return true;
            }
            let fresh = pick(&mut self.picker, session, block_bytes);
            let Some((block, duplicate)) =
                fresh.map(|block| (block, false)).or_else(|| Some((self.relieve(now, id, block_bytes)?, true)))
            else {
                return false;
            };
            Message::Request(block.into()).encode(out);
            if let Some(session) = self.sessions.get_mut(&id) {
                session.down.push(Request { block, sent: now, late: false, duplicate });
            }
        }
    }

    /// What is left of a window when the windows of all peers are cut to what may be under way altogether: in
    /// proportion, but always a block.
    fn share_of_windows(&self, window: u32) -> u32 {
        let (most, total) = (self.config.window_max_bytes, self.config.windows_total_bytes);
        if self.sessions.len() as u64 * u64::from(most.min(self.widest_window_bytes)) <= total {
            return window;
        }
        let asks = |session: &&Session| session.we_interested && !session.peer_chokes;
        let windows =
            self.sessions.values().filter(asks).map(|session| u64::from(session.down.window_bytes().min(most)));
        let wanted: u64 = windows.sum();
        if wanted <= total {
            window
        } else {
            ((u64::from(window) * total / wanted) as u32).max(BLOCK_BYTES).min(window)
        }
    }

    /// End game: everything missing is under way, and this peer has room. It is asked for what another would deliver
    /// much later: the tail of the slowest queue first.
    fn relieve(&mut self, now: Time, id: SessionId, block_bytes: u32) -> Option<Block> {
        let session = self.sessions.get_mut(&id)?;
        session.down.starved = true;
        if !self.picker.all_begun() || session.peer_chokes || session.down.duplicates >= END_GAME_REQUESTS {
            return None;
        }
        let session = self.sessions.get(&id)?;
        let ours = session.down.seconds_to_finish(now, block_bytes);
        let mut slower: Vec<(f64, SessionId)> = self
            .sessions
            .values()
            .filter(|other| other.id != id && !other.down.outstanding.is_empty())
            .map(|other| (other.down.seconds_to_finish(now, 0), other.id))
            .filter(|(theirs, _)| *theirs > END_GAME_GAIN * ours + END_GAME_GAIN_S)
            .collect();
        slower.sort_by(|a, b| b.0.total_cmp(&a.0));
        let layout = self.picker.layout();
        for (_, other) in slower {
            let requests = self.sessions.get(&other)?.down.outstanding.iter().rev();
            let theirs = requests.filter(|request| !request.late && session.pieces.get(request.block.piece()));
            for request in theirs {
                for part in parts(request.block, block_bytes).filter_map(|raw| layout.block(raw)) {
                    let own = session.down.outstanding.iter().any(|own| overlap(own.block, part));
                    if !own && self.picker.ask_again(part) {
                        return Some(part);
                    }
                }
            }
        }
        None
    }

    /// Withdraws what was asked for of this piece and has come in otherwise: from another peer, or from the same one in
    /// answer to a request that its choke had dropped.
    fn cancel_received(&mut self, piece: PieceIndex) {
        let mut wakes = Vec::new();
        for session in self.sessions.values_mut() {
            let mut at = 0;
            while let Some(request) = session.down.outstanding.get(at).copied() {
                if request.block.piece() != piece || !self.picker.is_received(request.block) {
                    at += 1;
                    continue;
                }
                session.down.take_at(at);
                if !request.late {
                    self.picker.answered(request.block);
                }
                session.down.give_up(request.block);
                session.send(&Message::Cancel(request.block.into()));
                wakes.push(session.id);
            }
        }
        wakes.into_iter().for_each(|id| self.wake(id));
    }

    /// Without the fast extension a choke drops every request; with it each is answered by its own reject (BEP 6).
    pub(super) fn peer_chokes(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.peer_chokes = true;
        self.picker.release(id);
        if session.info.fast {
            return;
        }
        let mut opened = false;
        while let Some(request) = session.down.take_at(0) {
            if !request.late {
                // What was sent before the choke may still come.
                opened |= self.picker.unask(request.block, true);
            }
            session.down.give_up(request.block);
        }
        session.down.snubbed = false;
        if opened {
            self.wake_starved();
        }
    }

    pub(super) fn peer_rejects(&mut self, now: Time, id: SessionId, raw: RawBlock) -> Result<(), PeerFault> {
        let block = self.picker.layout().block(raw);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let Some(block) = block else { return session.offend(PeerFault::BadRejects) };
        let Some(request) = session.down.take(block) else {
            return if session.down.take_given_up(block) { Ok(()) } else { session.offend(PeerFault::BadRejects) };
        };
        if !session.peer_chokes {
            // It has too much to do, or lost the piece: asking again at once would go round in circles.
            let doublings = session.down.rejects_in_a_row.min(MAX_REJECT_DOUBLINGS);
            session.down.paused_until = Some(now + REJECT_PAUSE * (1 << doublings));
            session.down.rejects_in_a_row += 1;
            let piece = block.piece();
            if session.pieces.clear(piece) {
                session.down.refused.push((piece, now + REFUSED_FOR));
                session.useful -= u32::from(!self.picker.have().get(piece));
                session.update_interest();
                self.picker.peer_lacks(&session.pieces, piece);
                self.picker.release(id);
            }
        } else {
            session.down.allowed_fast.retain(|&piece| piece != block.piece());
        }
        if !request.late && self.picker.unask(block, false) {
            self.wake_starved();
        }
        Ok(())
    }

    /// Frees what is late for others to be asked, and sheds who stands still in the middle of a block.
    pub(super) fn look_for_late_blocks(&mut self, now: Time) {
        let mut stalled = Vec::new();
        let mut wakes = Vec::new();
        let mut forgiven = Vec::new();
        for session in self.sessions.values_mut() {
            let patience = session.down.patience();
            let held = session.down.incoming.is_some_and(|incoming| incoming.held);
            let stalls = |incoming: Incoming| now.since(incoming.since) > patience.max(MAX_STALL);
            if !held && session.down.incoming.is_some_and(stalls) {
                stalled.push(session.id);
            }
            if session.down.paused_until.is_some_and(|until| now >= until) || session.down.starved {
                wakes.push(session.id);
            }
            let over = session.down.refused.extract_if(.., |(_, until)| now >= *until);
            forgiven.extend(over.map(|(piece, _)| (session.id, piece)));
            if !held {
                free_late_requests(&mut self.picker, session, now, patience);
            }
        }
        stalled.into_iter().for_each(|id| self.tell_to_close(id, CloseReason::Fault(PeerFault::Stalled)));
        for (id, piece) in forgiven {
            // The piece's number was checked when it was refused.
            let _ = self.peer_has(now, id, piece.get());
            wakes.push(id);
        }
        wakes.into_iter().for_each(|id| self.wake(id));
    }
}

/// What was asked longer than `patience` ago, of a peer that has sent nothing for as long.
fn free_late_requests(picker: &mut Picker, session: &mut Session, now: Time, patience: Duration) {
    if now.since(session.down.last_block) <= patience {
        return;
    }
    for request in &mut session.down.outstanding {
        if !request.late && now.since(request.sent) > patience {
            request.late = true;
            session.down.late += 1;
            session.down.snubbed = true;
            picker.unask(request.block, true);
        }
    }
    picker.release(session.id);
}

fn pick(picker: &mut Picker, session: &mut Session, block_bytes: u32) -> Option<Block> {
    let Session { id, pieces, down, .. } = session;
    let own = |piece: PieceIndex, unit: u32| down.covers(piece, unit);
    let want = Want { session: *id, pieces, block_bytes, alone: down.on_parole, own: &own };
    if session.peer_chokes {
        let allowed = down.allowed_fast.iter().copied().filter(|&piece| pieces.get(piece));
        return allowed.into_iter().find_map(|piece| picker.pick_in(piece, &want));
    }
    let block = picker.pick(&want, !down.fresh_exhausted);
    down.fresh_exhausted |= block.is_none();
    block
}

/// The block cut into pieces that a peer takes, the last first: its holder will reach that one last.
fn parts(block: Block, block_bytes: u32) -> impl Iterator<Item = RawBlock> {
    let steps = (block.begin()..block.end()).step_by(block_bytes as usize).rev();
    steps.map(move |begin| RawBlock { piece: block.piece().get(), begin, len: block_bytes.min(block.end() - begin) })
}

fn overlap(a: Block, b: Block) -> bool {
    a.piece() == b.piece() && a.begin() < b.end() && b.begin() < a.end()
}
