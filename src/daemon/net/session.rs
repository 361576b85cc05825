//! One connection to one peer, driven: bytes in, bytes out, payload into its slot. Every decision is asked of
//! [`crate::swarm`]; this file only moves.
//!
//! States of the receiving half, disjoint:
//! *framing* (between payloads) → *waiting* (a block's header came, its buffer is not granted yet: the socket is not
//! read, so the peer feels the pressure of our disk) → *filling* (the payload goes from the socket straight into its
//! own buffer) → framing; or framing → *skipping* (payload nobody wants) → framing.

use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

use super::ahead::Ahead;
use super::introduction;
use super::outbox::Outbox;
use super::stream::PeerStream;
use crate::clock::Time;
use crate::daemon::core::Core;
use crate::daemon::disk::pool::Buffer;
use crate::daemon::limits::Meter;
use crate::daemon::torrent::{Active, SessionHandle, Torrent};
use crate::swarm::proving::{Proving, Refused};
use crate::swarm::{LIMITED_WINDOW_TIME, PeerFault, Placement, Receipt};
use crate::wire::framing::{Frame, FrameError, Framer};
use crate::wire::identity::PROOF_ID;
use crate::wire::layout::{Block, RawBlock};
use crate::wire::message::Message;
use crate::wire::rate::Rate;

/// What one read may bring beyond the payload it was made for: the next headers, or a burst of small messages.
const HEAD_BYTES: usize = 16 * 1024;
/// After a read that brought so much at once the socket is left alone for a moment, to fill: data comes so fast that each
/// packet would wake us, and wake the sender in turn ...
const BURST_BYTES: usize = 32 * 1024;
/// ... as long as a receive buffer surely holds what comes meanwhile.
const REST: Duration = Duration::from_millis(1);
/// Reads in a row before others on the same thread get their turn.
const READS_PER_TURN: usize = 16;
/// A turn that a limit lets begin goes on to the end of what waits in the socket, unless that is more than what may be
/// under way: a window ([`LIMITED_WINDOW_TIME`]) and this, a block that is being read and the next ...
const DRAIN_LEAST_BYTES: u64 = 32 * 1024;
/// ... or than this.
const DRAIN_MOST_BYTES: u64 = 128 * 1024;
/// design.md section 6: a peer that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(120);
/// BEP 3: keep-alives "are generally sent once every two minutes"; a little sooner, so that no peer's timer fires first.
const KEEP_ALIVE: Duration = Duration::from_secs(100);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the peer broke the rules: {0}")]
    Fault(#[from] PeerFault),
    #[error("silent for {} s", SILENCE.as_secs())]
    Silent,
    #[error("closed by us: {0}")]
    ByUs(String),
}

enum Receiving {
    Framing,
    Waiting(Block),
    Filling { block: Block, buffer: Buffer, filled: usize },
    Skipping,
}

pub struct Session<S: PeerStream> {
    core: Arc<Core>,
    torrent: Arc<Torrent>,
    active: Arc<Active>,
    handle: Arc<SessionHandle>,
    /// None where identities are not offered.
    proving: Option<Proving>,
    stream: S,
    framer: Framer,
    receiving: Receiving,
    /// Length of the last block, 0 before the first: the next one's, most likely.
    usual_bytes: u32,
    /// What came where the payload of the header before it was guessed, and how much: until the header has been looked at.
    guessed: Option<(Buffer, usize)>,
    head: Box<[u8; HEAD_BYTES]>,
    outbox: Outbox,
    up: Meter,
    down: Meter,
    /// The limit holds reading back; a wake says when it may go on.
    read_held: bool,
    /// Nothing is read before this.
    rests_until: Option<Time>,
    heard: Time,
    spoke: Time,
}

impl<S: PeerStream> Session<S> {
    pub fn new(
        core: Arc<Core>,
        torrent: Arc<Torrent>,
        active: Arc<Active>,
        handle: Arc<SessionHandle>,
        proving: Option<Proving>,
        stream: S,
    ) -> Self {
        let now = core.clock.now();
        let (up, down) = core.limits.meters(torrent.key(), &handle);
        let bitfield_bytes = active.meta.layout().piece_count().div_ceil(8);
        Session {
            framer: Framer::new(bitfield_bytes),
            receiving: Receiving::Framing,
            usual_bytes: 0,
            guessed: None,
            head: Box::new([0; HEAD_BYTES]),
            outbox: Outbox::default(),
            up,
            down,
            read_held: false,
            rests_until: None,
            heard: now,
            spoke: now,
            core,
            torrent,
            active,
            handle,
            proving,
            stream,
        }
    }

    /// Runs the session to its end.
    pub async fn run(mut self) -> SessionEnd {
        let end = loop {
            if let Err(end) = self.turn().await {
                break end;
            }
        };
        if let Receiving::Waiting(block) | Receiving::Filling { block, .. } = self.receiving {
            self.active.lock().swarm.block_lost(self.handle.id, block);
        }
        end
    }

    /// Does what can be done now, then waits for the next thing that wakes us.
    async fn turn(&mut self) -> Result<(), SessionEnd> {
        self.settle()?;
        let writing = self.write()?;
        let waiting = match self.receiving {
            Receiving::Waiting(block) => Some(block),
            _ => None,
        };
        let now = self.core.clock.now();
        self.rests_until.take_if(|until| *until <= now);
        // A peer that we do not read from cannot be silent.
        let reads = waiting.is_none() && !self.read_held;
        let silent_at = if reads { self.heard + SILENCE } else { self.spoke + KEEP_ALIVE };
        let deadline = (self.spoke + KEEP_ALIVE).min(silent_at);
        let sleep = self.rests_until.map_or(deadline, |until| until.min(deadline)).since(now);
        let reads = reads && self.rests_until.is_none();
        tokio::select! {
            ready = self.stream.ready(reads, writing) => {
                ready?;
                if reads {
                    self.read()?;
                }
            }
            () = self.handle.wake.notified() => {
                self.read_held = false;
                self.check_closing()?;
            }
            batch = self.outbox.read_done() => {
                let failed = self.outbox.put_batch(batch);
                self.torrent.uploads_failed(&self.core, &self.active, self.handle.id, failed);
            }
            buffer = self.core.grant(waiting.map_or(0, |b| b.len())), if waiting.is_some() => {
                if let Some(block) = waiting {
                    self.heard = self.core.clock.now();
                    self.active.lock().swarm.hold_block(self.heard, self.handle.id, false);
                    self.receiving = Receiving::Filling { block, buffer, filled: 0 };
                    self.process()?;
                }
            }
            () = tokio::time::sleep(sleep) => self.timed_out()?,
        }
        Ok(())
    }

    fn check_closing(&self) -> Result<(), SessionEnd> {
        match self.handle.closing() {
            Some(why) => Err(SessionEnd::ByUs(why)),
            None => Ok(()),
        }
    }

    fn timed_out(&mut self) -> Result<(), SessionEnd> {
        let now = self.core.clock.now();
        if now.since(self.heard) >= SILENCE && !self.read_held && !matches!(self.receiving, Receiving::Waiting(_)) {
            return Err(SessionEnd::Silent);
        }
        if now.since(self.spoke) >= KEEP_ALIVE {
            self.outbox.keep_alive();
            self.spoke = now;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), SessionEnd> {
        let mut ahead = Ahead::default();
        let mut brought = 0;
        for _ in 0..READS_PER_TURN {
            // What a limit lets through is little: it is not worth the room.
            let reads_ahead = self.usual_bytes > 0 && self.framer.is_empty() && self.down.limit().is_unlimited();
            if reads_ahead {
                ahead.make_room(self.usual_bytes as usize, || self.core.try_grant(self.usual_bytes));
            }
            let payload: &mut [u8] = match &mut self.receiving {
                Receiving::Filling { buffer, filled, .. } => &mut buffer[*filled..],
                Receiving::Waiting(_) => return Ok(()),
                _ => &mut [],
            };
            let payload_left = payload.len();
            let reads_ahead = reads_ahead && !ahead.is_empty();
            let got = if reads_ahead {
                let mut slices = vec![IoSliceMut::new(payload)];
                slices.extend(ahead.slices());
                self.stream.try_read_vectored(&mut slices)
            } else {
                // What a limit lets in is read to the socket's end, see `limits::Way::allowed`.
                let wanted = payload_left + HEAD_BYTES;
                let drains = brought > 0 && brought < drain_bytes(self.down.limit());
                let allowed = if drains { wanted } else { self.down.allowed(wanted) };
                if allowed == 0 {
                    self.read_held = true;
                    return Ok(());
                }
                let (in_payload, in_head) = (payload_left.min(allowed), allowed.saturating_sub(payload_left));
                self.stream.try_read_vectored(&mut [
                    IoSliceMut::new(&mut payload[..in_payload]),
                    IoSliceMut::new(&mut self.head[..in_head]),
                ])
            };
            let got = match got {
                Ok(0) => return Err(SessionEnd::Closed),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.rests_until = (brought >= BURST_BYTES).then_some(self.heard + REST);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            brought += got;
            self.down.moved(got);
            self.heard = self.core.clock.now();
            let in_payload = got.min(payload_left);
            if let Receiving::Filling { filled, .. } = &mut self.receiving {
                *filled += in_payload;
                self.framer.payload_read(in_payload);
            }
            let mut beyond = got - in_payload;
            if reads_ahead {
                self.process()?;
                self.take_ahead(&mut ahead, &mut beyond)?;
            } else {
                self.framer.push(&self.head[..beyond]);
                self.process()?;
            }
        }
        Ok(())
    }

    /// So many bytes were read ahead.
    fn take_ahead(&mut self, ahead: &mut Ahead, bytes: &mut usize) -> Result<(), SessionEnd> {
        while let Some(mut came) = ahead.take(bytes) {
            self.guessed = came.payload.take();
            self.framer.push(came.header());
            self.process()?;
            if let Some((buffer, came)) = self.guessed.take() {
                // It is not the payload that was expected.
                self.framer.push(&buffer[..came]);
                self.process()?;
            }
        }
        Ok(())
    }

    /// What was guessed to be this block's payload, if it is: it lies right behind the header.
    fn take_guessed(&mut self, block: Block) -> Option<Receiving> {
        let is_next = self.framer.is_empty();
        let fits = |(buffer, _): &mut (Buffer, usize)| is_next && buffer.len() == block.len() as usize;
        let (buffer, filled) = self.guessed.take_if(fits)?;
        self.framer.payload_read(filled);
        Some(Receiving::Filling { block, buffer, filled })
    }

    /// Takes all whole frames, and all payload, out of what has been read.
    fn process(&mut self) -> Result<(), SessionEnd> {
        loop {
            match &mut self.receiving {
                Receiving::Waiting(_) => return Ok(()),
                Receiving::Filling { buffer, filled, .. } => {
                    *filled += self.framer.take_payload(&mut buffer[*filled..]);
                    if *filled < buffer.len() {
                        return Ok(());
                    }
                    self.block_is_in();
                }
                Receiving::Skipping => {
                    self.framer.discard_payload();
                    if self.framer.payload_left() > 0 {
                        return Ok(());
                    }
                    self.receiving = Receiving::Framing;
                }
                Receiving::Framing => match self.framer.next()? {
                    None => return Ok(()),
                    Some(Frame::Message(message)) => self.message(message)?,
                    Some(Frame::Piece(raw)) => self.block_header(raw)?,
                },
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<(), SessionEnd> {
        if let Message::Extended { id, payload } = &message {
            self.extended(*id, payload).map_err(PeerFault::from)?;
        }
        let now = self.core.clock.now();
        self.active.lock().swarm.receive(now, self.handle.id, message)?;
        Ok(())
    }

    fn extended(&mut self, id: u8, payload: &[u8]) -> Result<(), Refused> {
        match (id, &mut self.proving) {
            (0, proving) => introduction::theirs(&self.core, &self.active, &self.handle, proving.as_mut(), payload),
            (PROOF_ID, Some(proving)) => {
                introduction::proof(&self.core, &self.torrent, &self.active, &self.handle, proving, payload)
            }
            _ => Ok(()),
        }
    }

    fn block_header(&mut self, raw: RawBlock) -> Result<(), SessionEnd> {
        let now = self.core.clock.now();
        let placement = self.active.lock().swarm.place(now, self.handle.id, raw)?;
        self.receiving = match placement {
            Placement::Slot(block) | Placement::Scratch(block) => self.room_for(now, block),
            Placement::Discard(_) => Receiving::Skipping,
        };
        Ok(())
    }

    fn room_for(&mut self, now: Time, block: Block) -> Receiving {
        self.usual_bytes = block.len();
        if let Some(receiving) = self.take_guessed(block) {
            return receiving;
        }
        match self.core.try_grant(block.len()) {
            Some(buffer) => Receiving::Filling { block, buffer, filled: 0 },
            None => {
                self.active.lock().swarm.hold_block(now, self.handle.id, true);
                Receiving::Waiting(block)
            }
        }
    }

    fn block_is_in(&mut self) {
        let Receiving::Filling { block, buffer, .. } = std::mem::replace(&mut self.receiving, Receiving::Framing)
        else {
            return;
        };
        let now = self.core.clock.now();
        let work = {
            let mut inner = self.active.lock();
            inner.swarm.set_limit(self.handle.id, self.down.limit());
            match inner.swarm.block_received(now, self.handle.id, block) {
                Receipt::Redundant => return,
                Receipt::Keep { .. } => drop(inner.assembly.insert(block, buffer)),
                Receipt::Copy { parts, .. } => {
                    for part in parts {
                        let span = (part.begin() - block.begin()) as usize..(part.end() - block.begin()) as usize;
                        if let Some(copy) = buffer.get(span).and_then(|bytes| self.core.pool.copy_of(bytes)) {
                            inner.assembly.insert(part, copy);
                        }
                    }
                }
            }
            let short = self.core.pool.is_short();
            let work = inner.assembly.next_work(block.piece(), short);
            let relieves = |held_bytes| short && self.core.pool.is_much(held_bytes);
            work.or_else(|| if relieves(inner.assembly.bytes_in_memory()) { inner.assembly.relieve() } else { None })
        };
        if let Some(work) = work {
            self.torrent.start_disk_work(&self.core, &self.active, work);
        }
    }

    /// After anything that may have moved the rules: passes their effects on.
    fn settle(&mut self) -> Result<(), SessionEnd> {
        self.torrent.pass_effects(&self.core, &self.active);
        self.check_closing()
    }

    /// Sends what there is to send. Returns whether the socket is full with more to come.
    fn write(&mut self) -> Result<bool, SessionEnd> {
        loop {
            if !self.outbox.has_bytes() {
                let done = self.outbox.take_sent_blocks();
                let mut inner = self.active.lock();
                let now = self.core.clock.now();
                let mut sent_bytes = 0;
                for block in done {
                    sent_bytes += u64::from(block.len());
                    inner.swarm.upload_done(now, self.handle.id, block);
                }
                let rate = inner.swarm.report(now, self.handle.id).map_or(0, |report| report.send_bytes_per_s);
                let bound = self.outbox.pace(rate);
                self.outbox.fill(&mut inner.swarm, now, self.handle.id);
                drop(inner);
                if sent_bytes > 0 {
                    self.torrent.count_sent(&self.core, self.handle.identity(), sent_bytes);
                }
                if let Some(bytes) = bound {
                    self.stream.bound_unsent(bytes);
                }
                self.outbox.start_reading(&self.core, &self.torrent, &self.active);
                if !self.outbox.has_bytes() {
                    return Ok(false);
                }
            }
            let allowed = self.up.allowed(self.outbox.left_bytes());
            if allowed == 0 {
                return Ok(false);
            }
            match self.outbox.write(&self.stream, allowed) {
                Ok(0) => return Err(SessionEnd::Closed),
                Ok(sent) => {
                    self.up.moved(sent);
                    self.spoke = self.core.clock.now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What a turn may read under a limit.
fn drain_bytes(limit: Rate) -> usize {
    let under_way = limit.bytes_per_s().saturating_mul(LIMITED_WINDOW_TIME.as_millis() as u64) / 1_000;
    DRAIN_LEAST_BYTES.saturating_add(under_way).min(DRAIN_MOST_BYTES) as usize
}
