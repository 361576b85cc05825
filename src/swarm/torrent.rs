//! One torrent's swarm from our seat.
//!
//! The shell owns sockets, disk and payload, and drives a [`Swarm`]: it reports what came (`open`, `receive`, `place`,
//! `block_received`, `piece_verified`, ..., `close`), and then, for the session it acted for and for those of
//! [`Swarm::take_wakes`], writes what [`Swarm::drain_sends`] and [`Swarm::next_upload`] give. After each batch of calls
//! it drains [`Swarm::poll_effect`] and arms its timer by [`Swarm::next_timeout`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::blame::{Blame, Giver};
use super::choker::{Account, SessionView};
use super::picker::Picker;
use super::session::{FIRST_WINDOW_BYTES, Session};
use super::superseed::SuperSeed;
use super::{CloseReason, Identity, PeerFault, SessionId, SessionInfo, SessionReport};
use crate::clock::Time;
use crate::wire::bitfield::Bitfield;
use crate::wire::layout::{Layout, PieceIndex};
use crate::wire::message::Message;

/// How often late blocks are looked for: a quarter of the least time after which one is late.
const TICK: Duration = Duration::from_millis(500);
/// News of pieces that we got waits so long for something else to be sent along with, unless the peer is hungry: a swarm
/// of small pieces would wake up for nothing else.
const NEWS_WAIT: Duration = Duration::from_millis(75);
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
    /// The most to ask of all peers together, shared in proportion to what each peer's rate calls for.
    pub windows_total_bytes: u64,
    /// In file order instead of rarest first.
    pub sequential: bool,
    /// It is news, and many may come for it: as a lone seed we do not show everything to the first of them either.
    pub crowd_expected: bool,
}

/// What the shell has to do, beside sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Close this session (and call [`Swarm::close`]).
    Close(SessionId, CloseReason),
    /// This peer gave wrong bytes of the piece: shut it out of all torrents. Its session, if it is still open, is told
    /// to close.
    Ban(Giver, PieceIndex),
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
    pub(super) blame: Blame,
    pub(super) super_seed: Option<SuperSeed>,
    log: VerifiedLog,
    wakes: Vec<SessionId>,
    pub(super) effects: VecDeque<Effect>,
    review_due: bool,
    pub(super) next_tick: Time,
    /// No session's request window was ever larger.
    pub(super) widest_window_bytes: u32,
    /// Some session has not been told of all that we got.
    news_waits: bool,
    next_news: Time,
}

impl Swarm {
    /// `have` are the pieces that are verified and on disk. The same seed gives the same choices.
    pub fn new(config: SwarmConfig, layout: Layout, have: Bitfield, seed: u64) -> Swarm {
        Swarm {
            config,
            picker: Picker::new(layout, have, config.sequential, seed),
            sessions: BTreeMap::new(),
            blame: Blame::default(),
            super_seed: None,
            log: VerifiedLog::default(),
            wakes: Vec::new(),
            effects: VecDeque::new(),
            review_due: false,
            next_tick: Time::ZERO,
            widest_window_bytes: FIRST_WINDOW_BYTES,
            news_waits: false,
            next_news: Time::ZERO,
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

    /// From now on pieces are begun in file order instead of rarest first.
    pub fn fetch_in_order(&mut self) {
        self.picker.pick_in_order();
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

    pub fn report(&self, now: Time, id: SessionId) -> Option<SessionReport> {
        self.sessions.get(&id).map(|session| session.report(now))
    }

    pub fn reports(&self, now: Time) -> impl Iterator<Item = SessionReport> + '_ {
        self.sessions.values().map(move |session| session.report(now))
    }

    /// How many pieces we have that this peer has not said to have.
    pub fn lacks(&self, id: SessionId) -> u32 {
        let Some(session) = self.sessions.get(&id) else { return 0 };
        let both = self.have().as_bytes().iter().zip(session.pieces.as_bytes());
        both.map(|(ours, theirs)| (ours & !theirs).count_ones()).sum()
    }

    /// Whether it was sent a part of a piece and not the end of it.
    pub fn is_mid_piece(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.up.mid_piece(self.layout()))
    }

    /// Appends what the choker needs to know of this torrent's sessions. `account` is the ledger.
    pub fn choker_views(&self, account: impl Fn(&Identity) -> Account, out: &mut Vec<SessionView>) {
        let (seeding, piece_bytes) = (self.is_complete(), self.layout().piece_bytes());
        out.extend(self.sessions.values().filter(|session| !session.closing).map(|session| SessionView {
            session: session.id,
            identity: session.info.identity,
            seeding,
            interested: session.peer_interested,
            unchoked: !session.we_choke,
            asks: !session.up.queue.is_empty() || session.up.serving > 0,
            mid_piece: session.up.mid_piece(self.layout()),
            received_bytes: session.down.verified_bytes,
            sent_bytes: session.up.sent_bytes,
            account: account(&session.info.identity),
            piece_bytes,
            since: session.since,
            keeps: session.veil.as_ref().is_some_and(|veil| veil.keeps),
            denies: session.we_interested && (session.peer_chokes || session.down.snubbed),
        }));
    }

    /// A session's handshakes are done. Queues what we have, or show of it, as its first message (BEP 3, BEP 6).
    pub fn open(&mut self, now: Time, id: SessionId, info: SessionInfo) {
        let veil = self.veil_newcomer(now);
        let (layout, have) = (self.layout(), self.picker.have());
        let mut session = Session::new(now, id, info, layout.piece_count(), self.log.end());
        session.veil = veil;
        let shows_none = have.is_empty() || session.is_veiled();
        if info.fast && shows_none {
            session.send(&Message::HaveNone);
        } else if info.fast && have.is_full() {
            session.send(&Message::HaveAll);
        } else if !shows_none {
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

    /// The peer has proved who it is: what it gives from now on is that one's.
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

    /// Does what a message asks for.
    pub(super) fn obey(&mut self, now: Time, id: SessionId, message: Message) -> Result<(), PeerFault> {
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
            Message::Interested => self.peer_interest(now, id, true),
            Message::NotInterested => self.peer_interest(now, id, false),
            Message::Have(index) => self.peer_has(now, id, index)?,
            Message::Bitfield(bytes) => {
                let pieces = Bitfield::from_wire(&bytes, session.pieces.piece_count())?;
                self.peer_has_these(now, id, pieces)?;
            }
            Message::HaveAll => {
                let pieces = Bitfield::full(session.pieces.piece_count());
                self.peer_has_these(now, id, pieces)?;
            }
            Message::HaveNone => self.peer_has_these(now, id, Bitfield::empty(self.layout().piece_count()))?,
            Message::Request(raw) => self.peer_requests(now, id, raw)?,
            Message::Cancel(raw) => self.peer_cancels(id, raw),
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

    /// Whether neither side needs anything of the other.
    pub fn both_seed(&self, id: SessionId) -> bool {
        let seeds = |session: &Session| session.has_all() || session.upload_only;
        self.is_complete() && self.sessions.get(&id).is_some_and(seeds)
    }

    /// The session is over: what was asked of it is asked of others.
    pub fn close(&mut self, id: SessionId) {
        if let Some(incoming) = self.sessions.get(&id).and_then(|session| session.down.incoming) {
            self.block_lost(id, incoming.block);
        }
        let Some(mut session) = self.sessions.remove(&id) else { return };
        self.superseed_leaves(session.veil.take());
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
        let more_to_show = self.show_pieces(now, id, out, max_bytes);
        let more_requests = self.fill_requests(now, id, out, max_bytes);
        let more_news = self.tell_news(id, out, max_bytes);
        more_to_show || more_requests || more_news
    }

    /// News of our pieces, if something else goes out or it has waited long enough.
    fn tell_news(&mut self, id: SessionId, out: &mut Vec<u8>, max_bytes: usize) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let end = self.log.end();
        if session.pieces.is_full() {
            session.told = end;
        }
        if session.told == end || out.is_empty() && !session.tell_now && !session.is_served() {
            return false;
        }
        while session.told < end && out.len() < max_bytes {
            let piece = self.log.get(session.told);
            session.told += 1;
            if let Some(piece) = piece.filter(|&piece| session.is_news(piece)) {
                Message::Have(piece.get()).encode(out);
            }
        }
        let more = session.told < end;
        session.tell_now = more;
        self.trim_log();
        more
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

    /// When [`Swarm::handle_timeout`] wants to be called: while requests are under way, or pieces shown one by one.
    pub fn next_timeout(&self) -> Option<Time> {
        let waits = |session: &Session| {
            !session.down.outstanding.is_empty()
                || session.down.incoming.is_some()
                || session.down.paused_until.is_some()
                || !session.down.refused.is_empty()
                || (session.down.starved && !session.peer_chokes)
        };
        let tick = (self.super_seed.is_some() || self.sessions.values().any(waits)).then_some(self.next_tick);
        let news = self.news_waits.then_some(self.next_news);
        tick.into_iter().chain(news).min()
    }

    pub fn handle_timeout(&mut self, now: Time) {
        if self.news_waits && now >= self.next_news {
            self.news_waits = false;
            self.next_news = now + NEWS_WAIT;
            self.wake_for_news();
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.look_for_late_blocks(now);
            self.review_veils(now);
        }
    }

    fn peer_interest(&mut self, now: Time, id: SessionId, interested: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if std::mem::replace(&mut session.peer_interested, interested) != interested {
            self.request_review();
            self.superseed_interest(now, id, interested);
        }
    }

    pub(super) fn peer_has(&mut self, now: Time, id: SessionId, index: u32) -> Result<(), PeerFault> {
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
            let is_full = session.pieces.is_full();
            self.superseed_has(now, id, piece);
            if is_full {
                self.part_if_both_seed(id);
            }
        }
        Ok(())
    }

    fn peer_has_these(&mut self, now: Time, id: SessionId, pieces: Bitfield) -> Result<(), PeerFault> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        if std::mem::replace(&mut session.pieces_known, true) {
            // BEP 3 wants the bitfield first, but aria2 sends one in place of many HAVEs: what is new in it counts.
            let known = &session.pieces;
            let new: Vec<PieceIndex> =
                pieces.iter_set(self.picker.layout()).filter(|piece| !known.get(*piece)).collect();
            return new.into_iter().try_for_each(|piece| self.peer_has(now, id, piece.get()));
        }
        self.picker.peer_joins(&pieces);
        let ours = self.picker.have().as_bytes();
        session.useful = pieces.as_bytes().iter().zip(ours).map(|(theirs, ours)| (theirs & !ours).count_ones()).sum();
        session.pieces = pieces;
        session.down.fresh_exhausted = false;
        session.update_interest();
        self.superseed_has_these(now, id);
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
            session.useful -= u32::from(session.pieces.get(piece));
            let is_news = session.is_news(piece);
            session.tell_now |= is_news && session.is_hungry();
            self.news_waits |= is_news && !session.tell_now;
            if session.update_interest() || session.tell_now {
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

    fn wake_for_news(&mut self) {
        let end = self.log.end();
        let mut wakes = Vec::new();
        for session in self.sessions.values_mut().filter(|session| session.told < end) {
            session.tell_now = true;
            wakes.push(session.id);
        }
        wakes.into_iter().for_each(|id| self.wake(id));
    }

    /// A piece that we had is not there any more (its file changed): it is no longer served, and wanted again. Peers
    /// cannot be told; their requests for it are rejected.
    pub fn forget_piece(&mut self, piece: PieceIndex) {
        let Swarm { picker, sessions, .. } = self;
        if !picker.forget(piece, sessions.values().map(|session| &session.pieces)) {
            return;
        }
        self.lift_veils();
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

    /// Two ends that need nothing of each other part, once the peer can know it too: else it would be back soon.
    pub(super) fn part_if_both_seed(&mut self, id: SessionId) {
        if self.both_seed(id) && !self.lift_veil(id) {
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
            // What still comes in of a piece that is had counts nowhere.
            let counts = |it: &&super::session::Incoming| !it.late && !self.have().get(it.block.piece());
            let incoming = down.incoming.iter().filter(counts).map(|incoming| incoming.block);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::Placement;
    use crate::wire::framing::{Frame, Framer};
    use crate::wire::layout::RawBlock;
    use std::net::{IpAddr, Ipv4Addr};

    const ID: SessionId = SessionId(1);
    const NOW: Time = Time::from_secs(100);

    /// Eight pieces of 64 KiB, with a session open.
    fn swarm(have: u8, fast: bool) -> Swarm {
        let layout = Layout::new(8 * 65_536, 65_536).unwrap();
        let config = SwarmConfig {
            max_block_bytes: 128 << 10,
            window_max_bytes: 8 << 20,
            windows_total_bytes: 64 << 20,
            sequential: true,
            crowd_expected: true,
        };
        let mut swarm = Swarm::new(config, layout, Bitfield::from_wire(&[have], 8).unwrap(), 1);
        swarm.open(NOW, ID, SessionInfo { identity: Identity::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)), fast });
        swarm
    }

    fn sent(swarm: &mut Swarm) -> Vec<Message> {
        let mut out = Vec::new();
        assert!(!swarm.drain_sends(NOW, ID, &mut out, 1 << 20));
        let mut framer = Framer::new(1);
        framer.push(&out);
        let frames = std::iter::from_fn(|| framer.next().unwrap());
        frames
            .map(|frame| match frame {
                Frame::Message(message) => message,
                Frame::Piece(raw) => panic!("a block among the messages: {raw:?}"),
            })
            .collect()
    }

    fn raw(piece: u32, unit: u32) -> RawBlock {
        RawBlock { piece, begin: unit * 16_384, len: 16_384 }
    }

    fn requests(messages: &[Message]) -> Vec<RawBlock> {
        let request = |message: &Message| if let Message::Request(raw) = message { Some(*raw) } else { None };
        messages.iter().filter_map(request).collect()
    }

    #[test]
    fn the_first_message_says_what_we_have() {
        for (have, fast, expected) in
            [(0, true, vec![Message::HaveNone]), (0x81, true, vec![Message::Bitfield(vec![0x81])]), (0, false, vec![])]
        {
            assert_eq!(sent(&mut swarm(have, fast)), expected);
        }
        // Who completes among others is no lone seed.
        for (fast, expected) in [(true, Message::HaveAll), (false, Message::Bitfield(vec![0xFF]))] {
            let mut swarm = swarm(0xFE, fast);
            swarm.piece_verified(swarm.layout().piece(7).unwrap());
            let info = SessionInfo { identity: Identity::Key([2; 32]), fast };
            swarm.open(NOW, SessionId(2), info);
            let mut out = Vec::new();
            swarm.drain_sends(NOW, SessionId(2), &mut out, 1 << 20);
            let mut framer = Framer::new(1);
            framer.push(&out);
            assert_eq!(framer.next().unwrap(), Some(Frame::Message(expected)));
        }
    }

    #[test]
    fn interest_and_requests_follow_what_the_peer_has_and_allows() {
        let mut swarm = swarm(0b1100_0000, true);
        sent(&mut swarm);
        swarm.receive(NOW, ID, Message::Bitfield(vec![0b1000_0000])).unwrap();
        assert_eq!(sent(&mut swarm), []);
        swarm.receive(NOW, ID, Message::Have(4)).unwrap();
        assert_eq!(sent(&mut swarm), [Message::Interested]);
        swarm.receive(NOW, ID, Message::Unchoke).unwrap();
        assert_eq!(requests(&sent(&mut swarm)), [0, 1, 2, 3].map(|unit| raw(4, unit)));
        swarm.check();
        // It has it, we get it elsewhere: nothing of interest is left.
        let piece = swarm.layout().piece(4).unwrap();
        assert_eq!(swarm.piece_verified(piece), []);
        assert_eq!(sent(&mut swarm), [Message::NotInterested, Message::Have(4)]);
    }

    #[test]
    fn news_goes_to_those_that_lack_the_piece_and_to_those_that_may_count_copies() {
        for (interested, expected) in [(true, vec![0, 2]), (false, vec![0, 1, 2])] {
            let mut swarm = swarm(0, true);
            swarm.receive(NOW, ID, Message::Bitfield(vec![0b0100_0000])).unwrap();
            if interested {
                swarm.receive(NOW, ID, Message::Interested).unwrap();
            }
            sent(&mut swarm);
            for piece in [0, 1, 2] {
                swarm.piece_verified(swarm.layout().piece(piece).unwrap());
            }
            let mut wakes = Vec::new();
            swarm.take_wakes(&mut wakes);
            assert_eq!(wakes, [ID], "woken once");
            let have = |message: &Message| if let Message::Have(piece) = message { Some(*piece) } else { None };
            let haves: Vec<u32> = sent(&mut swarm).iter().filter_map(have).collect();
            assert_eq!(haves, expected);
        }
    }

    #[test]
    fn news_waits_for_something_to_ride_with_but_not_long() {
        let mut swarm = swarm(0b0000_0001, true);
        swarm.receive(NOW, ID, Message::Interested).unwrap();
        sent(&mut swarm);
        let woken = |swarm: &mut Swarm| {
            let mut wakes = Vec::new();
            swarm.take_wakes(&mut wakes);
            wakes == [ID]
        };
        woken(&mut swarm);
        let verify = |swarm: &mut Swarm, piece| {
            let piece = swarm.layout().piece(piece).unwrap();
            swarm.piece_verified(piece);
        };
        verify(&mut swarm, 0);
        assert!(!woken(&mut swarm), "it is choked: nothing is lost");
        assert_eq!(sent(&mut swarm), []);
        swarm.queue_message(ID, &Message::KeepAlive);
        assert_eq!(sent(&mut swarm), [Message::KeepAlive, Message::Have(0)]);
        woken(&mut swarm);
        verify(&mut swarm, 1);
        swarm.handle_timeout(swarm.next_timeout().unwrap().max(NOW));
        assert!(woken(&mut swarm));
        assert_eq!(sent(&mut swarm), [Message::Have(1)]);
        verify(&mut swarm, 2);
        assert_eq!(swarm.next_timeout(), Some(NOW + NEWS_WAIT), "not sooner after the last");
        swarm.set_choke(ID, false);
        sent(&mut swarm);
        verify(&mut swarm, 3);
        assert_eq!(sent(&mut swarm), [Message::Have(3)], "its pipe from us is dry");
    }

    #[test]
    fn wrong_words_end_the_session() {
        let cases: [(bool, Message, PeerFault); 5] = [
            (true, Message::Have(8), PeerFault::NoSuchPiece(8)),
            (false, Message::HaveAll, PeerFault::FastNotAgreed),
            (false, Message::Reject(raw(0, 0)), PeerFault::FastNotAgreed),
            (true, Message::AllowedFast(99), PeerFault::NoSuchPiece(99)),
            (true, Message::Bitfield(vec![0, 0]), PeerFault::Bitfield(Bitfield::from_wire(&[0, 0], 8).unwrap_err())),
        ];
        for (fast, message, fault) in cases {
            let mut swarm = swarm(0, fast);
            swarm.receive(NOW, ID, Message::Bitfield(vec![1])).unwrap();
            assert_eq!(swarm.receive(NOW, ID, message), Err(fault));
            swarm.close(ID);
            swarm.check();
        }
    }

    #[test]
    fn a_second_bitfield_adds_what_is_new_in_it() {
        let mut swarm = swarm(0, true);
        swarm.receive(NOW, ID, Message::Bitfield(vec![0b1000_0000])).unwrap();
        swarm.receive(NOW, ID, Message::Bitfield(vec![0b0100_0001])).unwrap();
        swarm.check();
        let availability: Vec<u32> = swarm.layout().pieces().map(|piece| swarm.availability(piece)).collect();
        assert_eq!(availability, [1, 1, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn blocks_nobody_asked_for_are_dropped_and_then_not_tolerated() {
        let mut swarm = swarm(0, true);
        swarm.receive(NOW, ID, Message::HaveAll).unwrap();
        assert_eq!(swarm.place(NOW, ID, raw(9, 0)), Err(PeerFault::NoSuchBlock(raw(9, 0))));
        for _ in 0..64 {
            assert_eq!(swarm.place(NOW, ID, raw(0, 0)), Ok(Placement::Discard(16_384)));
        }
        assert_eq!(swarm.place(NOW, ID, raw(0, 0)), Err(PeerFault::Unrequested));
    }

    #[test]
    fn requests_are_served_when_we_do_not_choke_and_rejected_when_we_do() {
        for fast in [true, false] {
            let mut swarm = swarm(0b1000_0000, fast);
            sent(&mut swarm);
            let mut expected = Vec::new();
            let mut reject = |raw| expected.extend(fast.then_some(Message::Reject(raw)));
            swarm.receive(NOW, ID, Message::Request(raw(0, 0))).unwrap();
            reject(raw(0, 0));
            assert_eq!(swarm.next_upload(ID), None);
            swarm.set_choke(ID, false);
            for request in [raw(0, 0), raw(0, 1), raw(0, 1), raw(0, 2), raw(0, 3), raw(1, 0)] {
                swarm.receive(NOW, ID, Message::Request(request)).unwrap();
            }
            swarm.receive(NOW, ID, Message::Cancel(raw(0, 2))).unwrap();
            let first = swarm.next_upload(ID).unwrap();
            assert_eq!(RawBlock::from(first), raw(0, 0));
            swarm.upload_done(NOW, ID, first);
            let second = swarm.next_upload(ID).unwrap();
            swarm.upload_failed(ID, second);
            swarm.set_choke(ID, true);
            assert_eq!(swarm.next_upload(ID), None, "a choke empties the queue");
            let messages = sent(&mut swarm);
            assert_eq!(messages.iter().filter(|m| matches!(m, Message::Choke | Message::Unchoke)).count(), 2);
            [raw(1, 0), raw(0, 2), raw(0, 1), raw(0, 3)].into_iter().for_each(reject);
            let rejects: Vec<_> = messages.into_iter().filter(|m| matches!(m, Message::Reject(_))).collect();
            assert_eq!(rejects, expected);
            assert_eq!(swarm.report(NOW, ID).unwrap().sent_bytes, 16_384);
        }
    }

    #[test]
    fn each_piece_sent_calls_for_the_choker() {
        let mut swarm = swarm(0xFF, true);
        swarm.set_choke(ID, false);
        while swarm.poll_effect().is_some() {}
        for piece in 0..8 {
            for unit in 0..4 {
                let block = swarm.layout().block(raw(piece, unit)).unwrap();
                swarm.upload_done(NOW, ID, block);
                let review = swarm.poll_effect() == Some(Effect::ReviewChoking);
                assert_eq!(review, unit == 3, "after block {unit} of {piece}");
                let mut views = Vec::new();
                swarm.choker_views(|_| Account::default(), &mut views);
                assert_eq!(views[0].mid_piece, unit < 3);
            }
        }
    }

    #[test]
    fn floods_are_bounded() {
        let mut swarm = swarm(0xFF, true);
        swarm.set_choke(ID, false);
        let layout = swarm.layout();
        let all = layout.pieces().flat_map(|piece| (0..65_536 / 32).map(move |n| (piece.get(), n * 32)));
        let outcome: Result<(), PeerFault> = all.into_iter().try_for_each(|(piece, begin)| {
            swarm.receive(NOW, ID, Message::Request(RawBlock { piece, begin, len: 32 }))?;
            assert!(swarm.report(NOW, ID).unwrap().queued <= crate::swarm::upload::MAX_QUEUED_REQUESTS);
            Ok(())
        });
        assert_eq!(outcome, Ok(()), "16,384 rejects are no crime yet");
        let mut choked = swarm;
        choked.set_choke(ID, true);
        let flood = (0..100_000).try_for_each(|_| choked.receive(NOW, ID, Message::Request(raw(0, 0))));
        assert_eq!(flood, Err(PeerFault::Floods));
        // Slowly enough to be no flood, but never reading an answer.
        let mut unread = self::swarm(0, true);
        let drip = (0..100_000)
            .try_for_each(|n| unread.receive(NOW + Duration::from_millis(3 * n), ID, Message::Request(raw(0, 0))));
        assert_eq!(drip, Err(PeerFault::DoesNotRead));
    }

    #[test]
    fn a_rejected_piece_is_left_alone_for_a_while_and_then_asked_again() {
        let mut swarm = swarm(0, true);
        swarm.receive(NOW, ID, Message::HaveAll).unwrap();
        swarm.receive(NOW, ID, Message::Unchoke).unwrap();
        assert_eq!(requests(&sent(&mut swarm)).len(), 4, "the first window");
        for unit in 0..4 {
            swarm.receive(NOW, ID, Message::Reject(raw(0, unit))).unwrap();
        }
        swarm.check();
        assert_eq!(requests(&sent(&mut swarm)), [], "a pause");
        let mut drain_at = |seconds| {
            let (later, mut out) = (NOW + Duration::from_secs(seconds), Vec::new());
            swarm.handle_timeout(later);
            swarm.drain_sends(later, ID, &mut out, 1 << 20);
            let mut framer = Framer::new(1);
            framer.push(&out);
            let frames: Vec<Frame> = std::iter::from_fn(|| framer.next().unwrap()).collect();
            let request =
                |frame: &Frame| if let Frame::Message(Message::Request(raw)) = frame { Some(raw.piece) } else { None };
            let pieces: Vec<u32> = frames.iter().filter_map(request).collect();
            swarm.check();
            for unit in 0..4 {
                let _ = swarm.receive(later, ID, Message::Reject(raw(pieces.first().copied().unwrap_or(0), unit)));
            }
            pieces.first().copied()
        };
        assert_eq!(drain_at(1), Some(1), "another piece meanwhile");
        assert_eq!(drain_at(40), Some(0));
    }

    #[test]
    fn late_blocks_are_asked_of_another_and_still_welcome() {
        const OTHER: SessionId = SessionId(2);
        let mut swarm = swarm(0b1111_1110, false);
        for id in [ID, OTHER] {
            if id == OTHER {
                let identity = Identity::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
                swarm.open(NOW, id, SessionInfo { identity, fast: false });
            }
            swarm.receive(NOW, id, Message::Bitfield(vec![1])).unwrap();
        }
        swarm.receive(NOW, ID, Message::Unchoke).unwrap();
        assert_eq!(requests(&sent(&mut swarm)).len(), 4);
        swarm.receive(NOW, OTHER, Message::Unchoke).unwrap();
        let mut out = Vec::new();
        swarm.drain_sends(NOW, OTHER, &mut out, 1 << 20);
        let before = out.len();
        let later = NOW + Duration::from_millis(2_100);
        assert!(swarm.next_timeout().is_some_and(|at| at <= later));
        swarm.handle_timeout(later);
        let mut wakes = Vec::new();
        swarm.take_wakes(&mut wakes);
        assert!(wakes.contains(&OTHER));
        swarm.drain_sends(later, OTHER, &mut out, 1 << 20);
        assert_eq!(out.len() - before, 4 * 17, "four requests");
        assert!(swarm.report(later, ID).unwrap().snubbed);
        swarm.check();
        let Ok(Placement::Slot(block)) = swarm.place(later, ID, raw(7, 0)) else { panic!("it is still welcome") };
        swarm.block_received(later, ID, block);
        swarm.check();
        assert!(!swarm.report(later, ID).unwrap().snubbed);
        assert_eq!(swarm.report(later, OTHER).unwrap().outstanding, 3, "one was cancelled");
    }

    #[test]
    fn the_windows_of_all_peers_share_what_may_be_under_way() {
        let layout = Layout::new(64 * 65_536, 65_536).unwrap();
        let config = SwarmConfig {
            max_block_bytes: 16 << 10,
            window_max_bytes: 8 << 20,
            windows_total_bytes: 8 * 16_384,
            sequential: false,
            crowd_expected: true,
        };
        let mut swarm = Swarm::new(config, layout, Bitfield::empty(64), 1);
        for id in (1..=4).map(SessionId) {
            swarm.open(NOW, id, SessionInfo { identity: Identity::Key([id.0 as u8; 32]), fast: true });
            swarm.receive(NOW, id, Message::HaveAll).unwrap();
            swarm.receive(NOW, id, Message::Unchoke).unwrap();
        }
        for id in (1..=4).map(SessionId) {
            swarm.drain_sends(NOW, id, &mut Vec::new(), 1 << 20);
            assert_eq!(swarm.report(NOW, id).unwrap().outstanding, 2, "of a first window of four blocks");
        }
    }

    #[test]
    fn who_stops_in_the_middle_of_a_block_keeps_nothing_from_others() {
        let mut swarm = swarm(0b1111_1110, false);
        swarm.receive(NOW, ID, Message::Bitfield(vec![1])).unwrap();
        swarm.receive(NOW, ID, Message::Unchoke).unwrap();
        assert_eq!(requests(&sent(&mut swarm)).len(), 4);
        let at = |ms| NOW + Duration::from_millis(ms);
        let Ok(Placement::Slot(_)) = swarm.place(at(100), ID, raw(7, 0)) else { panic!("a slot") };
        swarm.handle_timeout(at(2_200));
        assert!(swarm.report(at(2_200), ID).unwrap().snubbed);
        assert_eq!(swarm.picker.asked_units(), 1, "three may be asked of others");
        swarm.check();
        swarm.handle_timeout(at(10_200));
        let effects: Vec<_> = std::iter::from_fn(|| swarm.poll_effect()).collect();
        assert!(effects.contains(&Effect::Close(ID, CloseReason::Fault(PeerFault::Stalled))), "{effects:?}");
    }

    #[test]
    fn a_peer_whose_block_we_do_not_take_is_not_late() {
        let mut swarm = swarm(0b1111_1110, false);
        swarm.receive(NOW, ID, Message::Bitfield(vec![1])).unwrap();
        swarm.receive(NOW, ID, Message::Unchoke).unwrap();
        assert_eq!(requests(&sent(&mut swarm)).len(), 4);
        let at = |ms| NOW + Duration::from_millis(ms);
        let Ok(Placement::Slot(block)) = swarm.place(at(100), ID, raw(7, 0)) else { panic!("a slot") };
        swarm.hold_block(at(100), ID, true);
        swarm.handle_timeout(at(60_000));
        swarm.hold_block(at(60_000), ID, false);
        swarm.handle_timeout(at(61_000));
        assert!(!swarm.report(at(61_000), ID).unwrap().snubbed);
        while let Some(effect) = swarm.poll_effect() {
            assert_eq!(effect, Effect::ReviewChoking);
        }
        swarm.block_received(at(61_500), ID, block);
        swarm.check();
        assert_eq!(swarm.report(at(61_500), ID).unwrap().outstanding, 3);
    }
}
