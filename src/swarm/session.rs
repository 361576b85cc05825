//! One connection to one peer: what each side said, what is under way, how fast it goes.

use std::collections::VecDeque;
use std::time::Duration;

use super::bans::Endpoint;
use super::flood::Chatter;
use super::rate::ByteRate;
use super::superseed::Veil;
use super::upload::RequestQueue;
use super::{Giver, Identity, PeerFault, SessionId};
use crate::clock::Time;
use crate::wire::bitfield::Bitfield;
use crate::wire::layout::{BLOCK_BYTES, Block, MAX_BLOCK_BYTES, PieceIndex};
use crate::wire::message::Message;
use crate::wire::rate::Rate;

/// Asked of a peer before anything is known of it. Small: in a flash crowd everybody asks the one seed for different
/// pieces, and what is asked too early is had late. Slow start makes up for it within a few round trips.
pub(super) const FIRST_WINDOW_BYTES: u32 = 4 * BLOCK_BYTES;
/// Beside what the rate calls for, so that a slow peer always has a block in hand and one on the way.
const SPARE_WINDOW_BYTES: u32 = 2 * BLOCK_BYTES;
/// The window holds what the peer sends in this time, or in two round trips if they take longer.
const WINDOW_TIME: Duration = Duration::from_millis(500);
/// While a limit of ours holds reading back, no more is under way than it lets through in this time, or in two round trips:
/// the rest would fill the socket, and a full one takes bursts of half its buffer. The limiter's pauses are a third of it.
pub const LIMITED_WINDOW_TIME: Duration = Duration::from_millis(60);
/// A peer with more delay than this is asked for less than would fill its pipe.
const MAX_WINDOW_TIME: Duration = Duration::from_secs(4);
/// How often slow start looks whether the rate still grows.
const SLOW_START_ROUND: Duration = Duration::from_millis(500);
/// What clients that do not say `reqq` are known to hold.
const DEFAULT_REQQ: u32 = 250;
/// Against a `reqq` of 2^32; the window is bounded in bytes anyway.
const MAX_REQQ: u32 = 4_096;
/// A larger block shall not take longer than this at the peer's rate: a cancel or a choke must bite soon.
const LARGE_BLOCK_TIME_MS: u64 = 100;
/// The same under a limit, which is to hold evenly.
const LIMITED_BLOCK_TIME_MS: u64 = 25;
/// Requests withdrawn or choked away whose block may still come: as many as a full window holds.
const MAX_GIVEN_UP: usize = 1_024;
/// No block is late before this.
const MIN_LATE: Duration = Duration::from_secs(2);
/// And none is waited for longer than so many times its peer's usual time.
const LATE_FACTOR: u32 = 4;
/// Small wrongs are forgiven (races, old clients), a stream of them is not.
const MAX_OFFENCES: u32 = 64;
/// What may wait to be sent beside blocks: a bitfield of the largest torrent and thousands of rejects. An honest peer
/// reads.
pub(super) const MAX_OUTBOX_BYTES: usize = 512 * 1024;

/// What the handshakes said of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionInfo {
    pub identity: Identity,
    /// Both sides speak the fast extension (BEP 6).
    pub fast: bool,
}

/// One session as the choker, `peerctl peers` and tests see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionReport {
    pub session: SessionId,
    pub identity: Identity,
    pub since: Time,
    pub we_choke: bool,
    pub peer_chokes: bool,
    pub we_interested: bool,
    pub peer_interested: bool,
    /// It keeps us waiting for blocks that are late.
    pub snubbed: bool,
    pub upload_only: bool,
    /// Pieces that the peer has.
    pub pieces: u32,
    /// Payload that was of use.
    pub received_bytes: u64,
    /// Of that, what lay in pieces whose hash was right.
    pub verified_bytes: u64,
    /// Payload that came twice or unasked.
    pub wasted_bytes: u64,
    pub sent_bytes: u64,
    pub receive_bytes_per_s: u64,
    pub send_bytes_per_s: u64,
    /// Requests of ours under way.
    pub outstanding: usize,
    pub window_bytes: u32,
    /// Requests of the peer that wait.
    pub queued: usize,
}

/// A request of ours under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub block: Block,
    pub sent: Time,
    /// Overdue: others may be asked, the answer is still welcome.
    pub late: bool,
    /// Asked of another peer as well (end game).
    pub duplicate: bool,
}

/// A block whose payload is coming in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub block: Block,
    pub since: Time,
    pub sent: Option<Time>,
    pub slot: bool,
    /// Its request no longer counts in the picker.
    pub late: bool,
    /// We do not read it just now: what time passes is ours.
    pub held: bool,
}

/// How much may be asked of a peer at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    bytes: u32,
    slow_start: bool,
    round_rate: u64,
    round_ends: Option<Time>,
    /// The least time from request to answer: round trip and service of one block.
    least_delay: Option<Duration>,
    limit: Rate,
}

/// What we take from the peer.
#[derive(Debug)]
pub(super) struct Download {
    pub outstanding: VecDeque<Request>,
    pub outstanding_bytes: u32,
    pub late: usize,
    pub duplicates: usize,
    pub given_up: VecDeque<Block>,
    pub incoming: Option<Incoming>,
    pub window: Window,
    pub reqq: u32,
    pub max_block_bytes: u32,
    pub allowed_fast: Vec<PieceIndex>,
    /// From asking, or from the block before, to a block's end; smoothed.
    pub usual: Option<Duration>,
    pub last_block: Time,
    pub snubbed: bool,
    /// It gave some of a piece that came wrong, and has not given a whole one alone since.
    pub on_parole: bool,
    /// Nothing fresh was found for it; stays so until it has a new piece.
    pub fresh_exhausted: bool,
    /// It had room for requests and nothing to ask.
    pub starved: bool,
    /// After rejects: nothing is asked before this.
    pub paused_until: Option<Time>,
    pub rejects_in_a_row: u32,
    /// Pieces of which it rejected a block: until then it is taken not to have them.
    pub refused: Vec<(PieceIndex, Time)>,
    pub rate: ByteRate,
    pub received_bytes: u64,
    pub verified_bytes: u64,
    pub wasted_bytes: u64,
}

/// What we give to the peer.
#[derive(Debug, Default)]
pub(super) struct Upload {
    pub queue: RequestQueue,
    pub serving: u32,
    pub rate: ByteRate,
    pub sent_bytes: u64,
    /// Sent when the choker was last asked because of it.
    pub reviewed_bytes: u64,
    /// The last block sent.
    pub last: Option<Block>,
}

#[derive(Debug)]
pub(super) struct Session {
    pub id: SessionId,
    pub info: SessionInfo,
    /// Where the peer was met, for bans.
    pub endpoint: Option<Endpoint>,
    /// It has said on which port it listens.
    pub port_told: bool,
    pub since: Time,
    pub pieces: Bitfield,
    /// The peer has said what it has.
    pub pieces_known: bool,
    /// Pieces that it has and we lack.
    pub useful: u32,
    pub upload_only: bool,
    pub we_choke: bool,
    pub peer_chokes: bool,
    pub we_interested: bool,
    pub peer_interested: bool,
    pub down: Download,
    pub up: Upload,
    /// It is not told of all that we have.
    pub veil: Option<Veil>,
    pub outbox: Vec<u8>,
    /// How far in the log of verified pieces it has been told.
    pub told: u64,
    /// It is to be told now, though nothing else goes out.
    pub tell_now: bool,
    pub woken: bool,
    pub closing: bool,
    pub chatter: Chatter,
    offences: u32,
}

impl Session {
    pub fn new(now: Time, id: SessionId, info: SessionInfo, pieces: u32, told: u64) -> Session {
        Session {
            id,
            info,
            endpoint: None,
            port_told: false,
            since: now,
            pieces: Bitfield::empty(pieces),
            pieces_known: false,
            useful: 0,
            upload_only: false,
            we_choke: true,
            peer_chokes: true,
            we_interested: false,
            peer_interested: false,
            down: Download::new(now),
            up: Upload::default(),
            veil: None,
            outbox: Vec::new(),
            told,
            tell_now: false,
            woken: false,
            closing: false,
            chatter: Chatter::default(),
            offences: 0,
        }
    }

    pub fn send(&mut self, message: &Message) {
        message.encode(&mut self.outbox);
    }

    /// # Errors
    /// With `fault` once the peer has used up its credit of small wrongs.
    pub fn offend(&mut self, fault: PeerFault) -> Result<(), PeerFault> {
        self.offences += 1;
        if self.offences > MAX_OFFENCES { Err(fault) } else { Ok(()) }
    }

    /// Says what changed about our interest. Returns whether anything did.
    pub fn update_interest(&mut self) -> bool {
        let interested = self.useful > 0;
        if interested == self.we_interested {
            return false;
        }
        self.we_interested = interested;
        self.send(if interested { &Message::Interested } else { &Message::NotInterested });
        true
    }

    /// Who gives what comes over this session now.
    pub fn giver(&self) -> Giver {
        Giver { session: self.id, identity: self.info.identity, endpoint: self.endpoint }
    }

    /// Whether it is to hear of a piece that we got. A peer that has the piece knows enough, unless it wants nothing and
    /// has not shown all: it may be super-seeding (BEP 16), and waits for the piece to be passed on.
    pub fn is_news(&self, piece: PieceIndex) -> bool {
        !self.pieces.get(piece) || !self.peer_interested && !self.pieces.is_full()
    }

    /// It would ask us for the next piece at once: it knows of none, or has nothing under way.
    pub fn is_hungry(&self) -> bool {
        !self.peer_interested || !self.we_choke && !self.is_served()
    }

    /// Blocks of ours are on their way to it.
    pub fn is_served(&self) -> bool {
        self.up.serving > 0 || !self.up.queue.is_empty()
    }

    pub fn has_all(&self) -> bool {
        self.pieces_known && self.pieces.is_full()
    }

    pub fn report(&self, now: Time) -> SessionReport {
        SessionReport {
            session: self.id,
            identity: self.info.identity,
            since: self.since,
            // Who is told to go is served no more.
            we_choke: self.we_choke || self.closing,
            peer_chokes: self.peer_chokes,
            we_interested: self.we_interested,
            peer_interested: self.peer_interested,
            snubbed: self.down.snubbed,
            upload_only: self.upload_only,
            pieces: self.pieces.count(),
            received_bytes: self.down.received_bytes,
            verified_bytes: self.down.verified_bytes,
            wasted_bytes: self.down.wasted_bytes,
            sent_bytes: self.up.sent_bytes,
            receive_bytes_per_s: self.down.rate.bytes_per_s(now),
            send_bytes_per_s: self.up.rate.bytes_per_s(now),
            outstanding: self.down.outstanding.len(),
            window_bytes: self.down.window.bytes,
            queued: self.up.queue.len(),
        }
    }
}

impl Download {
    fn new(now: Time) -> Download {
        Download {
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            late: 0,
            duplicates: 0,
            given_up: VecDeque::new(),
            incoming: None,
            window: Window::new(),
            reqq: DEFAULT_REQQ,
            max_block_bytes: BLOCK_BYTES,
            allowed_fast: Vec::new(),
            usual: None,
            last_block: now,
            snubbed: false,
            on_parole: false,
            fresh_exhausted: false,
            starved: false,
            paused_until: None,
            rejects_in_a_row: 0,
            refused: Vec::new(),
            rate: ByteRate::new(),
            received_bytes: 0,
            verified_bytes: 0,
            wasted_bytes: 0,
        }
    }

    /// What the peer's extension handshake said (BEP 10). Nonsense is clamped, silence leaves the defaults.
    pub fn set_limits(&mut self, reqq: Option<u32>, max_block_bytes: Option<u32>) {
        if let Some(reqq) = reqq {
            self.reqq = reqq.clamp(1, MAX_REQQ);
        }
        if let Some(bytes) = max_block_bytes {
            self.max_block_bytes = bytes.clamp(BLOCK_BYTES, MAX_BLOCK_BYTES) / BLOCK_BYTES * BLOCK_BYTES;
        }
    }

    /// The block size to ask for: the largest that both sides take and that passes quickly at the present rate.
    pub fn block_bytes(&self, ours: u32, now: Time) -> u32 {
        let most = self.max_block_bytes.min(ours);
        if most <= BLOCK_BYTES {
            return BLOCK_BYTES;
        }
        let time_ms = if self.window.limit.is_unlimited() { LARGE_BLOCK_TIME_MS } else { LIMITED_BLOCK_TIME_MS };
        let quick = self.rate.bytes_per_s(now) * time_ms / 1_000;
        let mut bytes = BLOCK_BYTES;
        while bytes * 2 <= most && u64::from(bytes) * 2 <= quick {
            bytes *= 2;
        }
        bytes
    }

    pub fn push(&mut self, request: Request) {
        self.outstanding_bytes += request.block.len();
        self.duplicates += usize::from(request.duplicate);
        self.outstanding.push_back(request);
    }

    /// Takes a request off the list; answers come in the order of asking from nearly every client, so that the search
    /// ends at once.
    pub fn take(&mut self, block: Block) -> Option<Request> {
        let at = self.outstanding.iter().position(|request| request.block == block)?;
        self.take_at(at)
    }

    pub fn take_at(&mut self, at: usize) -> Option<Request> {
        let request = self.outstanding.remove(at)?;
        self.outstanding_bytes -= request.block.len();
        self.duplicates -= usize::from(request.duplicate);
        self.late -= usize::from(request.late);
        Some(request)
    }

    pub fn give_up(&mut self, block: Block) {
        if self.given_up.len() == MAX_GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back(block);
    }

    pub fn take_given_up(&mut self, block: Block) -> bool {
        let at = self.given_up.iter().position(|&given_up| given_up == block);
        at.is_some_and(|at| self.given_up.remove(at).is_some())
    }

    /// Whether a late request of this session covers the unit.
    pub fn covers(&self, piece: PieceIndex, unit: u32) -> bool {
        let mut late = self.outstanding.iter().filter(|request| request.late && request.block.piece() == piece);
        self.late > 0 && late.any(|request| super::picker::span(request.block).contains(&(unit as usize)))
    }

    /// How long a block may take before others are asked for it.
    pub fn patience(&self) -> Duration {
        self.usual.map_or(MIN_LATE, |usual| (usual * LATE_FACTOR).max(MIN_LATE))
    }

    /// Whole payload came in: the clocks and the window learn from it.
    pub fn learn(&mut self, now: Time, incoming: Incoming, window_max_bytes: u32) {
        if let Some(sent) = incoming.sent {
            let took = now.since(sent.max(self.last_block));
            self.usual = Some(self.usual.map_or(took, |usual| (usual * 7 + took) / 8));
            self.window.least_delay =
                Some(self.window.least_delay.map_or(now.since(sent), |least| least.min(now.since(sent))));
        }
        self.last_block = now;
        self.snubbed = false;
        self.rejects_in_a_row = 0;
        self.rate.add(now, u64::from(incoming.block.len()));
        self.window.learn(now, incoming.block.len(), self.rate.bytes_per_s(now), window_max_bytes);
    }

    /// What all that we read is held back to, if this peer's part counts.
    pub fn set_limit(&mut self, limit: Rate) {
        self.window.limit = limit;
    }

    pub fn window_bytes(&self) -> u32 {
        if self.snubbed { 1 } else { self.window.bytes }
    }

    /// When what is under way will be in, as far as one can tell: seconds. Before anything came, a middling rate is
    /// assumed, unless it has kept us waiting.
    pub fn seconds_to_finish(&self, now: Time, extra_bytes: u32) -> f64 {
        const ASSUMED_BYTES_PER_S: f64 = 1024.0 * 1024.0;
        let measured = self.rate.bytes_per_s(now) as f64;
        let rate = match self.usual {
            None if !self.snubbed => ASSUMED_BYTES_PER_S,
            _ => measured.max(1.0),
        };
        f64::from(self.outstanding_bytes + extra_bytes) / rate
    }
}

impl Window {
    fn new() -> Window {
        Window {
            bytes: FIRST_WINDOW_BYTES,
            slow_start: true,
            round_rate: 0,
            round_ends: None,
            least_delay: None,
            limit: Rate::UNLIMITED,
        }
    }

    /// Slow start adds what comes in, so that the window doubles each round trip while the rate grows; then the window
    /// is what the rate fills.
    fn learn(&mut self, now: Time, len: u32, rate: u64, max_bytes: u32) {
        let round_ends = *self.round_ends.get_or_insert(now + SLOW_START_ROUND);
        if now >= round_ends {
            self.slow_start &= rate > self.round_rate + self.round_rate / 10;
            self.round_rate = rate;
            self.round_ends = Some(now + SLOW_START_ROUND);
        }
        let bytes = if self.slow_start {
            u64::from(self.bytes) + u64::from(len)
        } else {
            let time = self.least_delay.map_or(WINDOW_TIME, |delay| delay * 2).clamp(WINDOW_TIME, MAX_WINDOW_TIME);
            u64::from(SPARE_WINDOW_BYTES) + rate.saturating_mul(time.as_millis() as u64) / 1_000
        };
        self.bytes = bytes.min(u64::from(max_bytes)).min(self.limited_bytes(len)) as u32;
    }

    /// What the limit leaves of the window; `len` is that of a block that came.
    fn limited_bytes(&self, len: u32) -> u64 {
        if self.limit.is_unlimited() {
            return u64::MAX;
        }
        let limit = self.limit.bytes_per_s();
        // The least delay is a round trip, and the time in which we read a block.
        let reading = Duration::from_millis(u64::from(len) * 1_000 / limit);
        let round_trip = self.least_delay.map_or(Duration::ZERO, |delay| delay.saturating_sub(reading));
        let time = (round_trip * 2).clamp(LIMITED_WINDOW_TIME, MAX_WINDOW_TIME);
        // One block is on its way while another is read.
        (limit.saturating_mul(time.as_millis() as u64) / 1_000).max(u64::from(BLOCK_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(window: &mut Window, bytes_per_s: u64, from_ms: u64, to_ms: u64) {
        for ms in (from_ms..to_ms).step_by(10) {
            let now = Time::from_nanos(ms * 1_000_000);
            window.learn(now, (bytes_per_s / 100) as u32, bytes_per_s, 8 << 20);
        }
    }

    #[test]
    fn the_window_grows_while_the_rate_does_and_then_follows_it() {
        let mut window = Window::new();
        feed(&mut window, 4_000_000, 0, 2_000);
        assert_eq!(window.bytes, 2_000_000 + SPARE_WINDOW_BYTES);
        feed(&mut window, 500_000_000, 2_000, 2_100);
        assert_eq!(window.bytes, 8 << 20);
        feed(&mut window, 16_000, 2_100, 2_200);
        assert_eq!(window.bytes, 8_000 + SPARE_WINDOW_BYTES);
    }

    #[test]
    fn under_a_limit_little_more_is_asked_than_is_read_soon() {
        let mut window = Window { limit: Rate::from_bytes_per_s(128_000), ..Window::new() };
        feed(&mut window, 128_000, 0, 100);
        assert_eq!(window.bytes, BLOCK_BYTES, "from the beginning");
        window.limit = Rate::from_bytes_per_s(10_000_000);
        feed(&mut window, 10_000_000, 100, 3_000);
        assert_eq!(window.bytes, 600_000);
        window.least_delay = Some(Duration::from_millis(310));
        feed(&mut window, 10_000_000, 3_000, 3_100);
        assert_eq!(window.bytes, 6_000_000, "two round trips");
    }

    #[test]
    fn a_long_round_trip_does_not_starve_the_window() {
        let mut window = Window { least_delay: Some(Duration::from_secs(1)), ..Window::new() };
        feed(&mut window, 1_000_000, 0, 2_000);
        assert_eq!(window.bytes, 2_000_000 + SPARE_WINDOW_BYTES);
    }

    #[test]
    fn large_blocks_are_asked_of_fast_peers_that_take_them() {
        let mut down = Download::new(Time::ZERO);
        let now = Time::from_secs(1);
        down.rate.add(now, 1_000_000);
        assert_eq!(down.block_bytes(MAX_BLOCK_BYTES, now), BLOCK_BYTES);
        down.set_limits(Some(0), Some(u32::MAX));
        assert_eq!((down.reqq, down.block_bytes(MAX_BLOCK_BYTES, now)), (1, MAX_BLOCK_BYTES));
        assert_eq!(down.block_bytes(40_000, now), 32 * 1024);
        assert_eq!(down.block_bytes(MAX_BLOCK_BYTES, now + Duration::from_secs(9)), BLOCK_BYTES);
    }
}
