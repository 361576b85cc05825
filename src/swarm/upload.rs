//! What peers ask of us.

use std::collections::{BTreeSet, VecDeque};

use super::session::{Session, Upload};
use super::torrent::Swarm;
use super::{PeerFault, SessionId};
use crate::clock::Time;
use crate::wire::layout::{Block, Layout, RawBlock};
use crate::wire::message::Message;

/// Requests that wait for one peer: 32 MiB of ordinary blocks, what a 10 Gbit/s path of 25 ms holds.
pub const MAX_QUEUED_REQUESTS: usize = 2_000;
/// The choker is asked after each piece that a peer was sent, but not more often than this: reviews cost time ...
const LEAST_LAP_BYTES: u64 = 64 << 10;
/// ... nor more seldom: an eighth of a turn at a seed.
const LONGEST_LAP_BYTES: u64 = 4 << 20;

/// Requests that wait, in the order in which they came, each once.
#[derive(Debug, Default)]
pub(super) struct RequestQueue {
    order: VecDeque<Block>,
    /// The same: a peer may have hundreds waiting, and each new one is looked up.
    waiting: BTreeSet<Block>,
}

impl RequestQueue {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn front(&self) -> Option<&Block> {
        self.order.front()
    }

    /// False if it waits already.
    fn push(&mut self, block: Block) -> bool {
        let new = self.waiting.insert(block);
        if new {
            self.order.push_back(block);
        }
        new
    }

    fn pop(&mut self) -> Option<Block> {
        let block = self.order.pop_front()?;
        self.waiting.remove(&block);
        Some(block)
    }

    fn retain(&mut self, mut keep: impl FnMut(&Block) -> bool) {
        self.order.retain(|block| {
            let keeps = keep(block);
            if !keeps {
                self.waiting.remove(block);
            }
            keeps
        });
    }
}

impl Swarm {
    /// The next block to send to this peer, taken off its queue. The shell calls it when the socket has room, and
    /// answers with [`Swarm::upload_done`] or [`Swarm::upload_failed`].
    pub fn next_upload(&mut self, id: SessionId) -> Option<Block> {
        let up = &mut self.sessions.get_mut(&id)?.up;
        let block = up.queue.pop()?;
        up.serving += 1;
        Some(block)
    }

    /// The block's payload went into the socket.
    pub fn upload_done(&mut self, now: Time, id: SessionId, block: Block) {
        let layout = self.layout();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.up.serving = session.up.serving.saturating_sub(1);
        session.up.last = Some(block);
        session.up.sent_bytes += u64::from(block.len());
        session.up.rate.add(now, u64::from(block.len()));
        let lap = session.up.sent_bytes - session.up.reviewed_bytes;
        if lap >= LEAST_LAP_BYTES && (lap >= LONGEST_LAP_BYTES || !session.up.mid_piece(layout)) {
            // Its turn may be over.
            session.up.reviewed_bytes = session.up.sent_bytes;
            self.request_review();
        }
        self.superseed_sent(now, id, block);
    }

    /// The block could not be read: the peer is told, where it understands (BEP 6).
    pub fn upload_failed(&mut self, id: SessionId, block: Block) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.up.serving = session.up.serving.saturating_sub(1);
        session.reject(block.into());
    }

    /// Applies the choker's decision. Choking drops what waits: with the fast extension each request is rejected, else
    /// the choke says it all (BEP 3, BEP 6).
    pub fn set_choke(&mut self, id: SessionId, choke: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if std::mem::replace(&mut session.we_choke, choke) == choke {
            return;
        }
        session.send(if choke { &Message::Choke } else { &Message::Unchoke });
        session.up.reviewed_bytes = session.up.sent_bytes;
        if choke {
            session.withdraw(|_| true);
        }
        self.wake(id);
    }

    pub(super) fn peer_requests(&mut self, now: Time, id: SessionId, raw: RawBlock) -> Result<(), PeerFault> {
        let block = self.picker.layout().block(raw);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let Some(had) = block.filter(|block| self.picker.have().get(block.piece())) else {
            session.reject(raw);
            // A piece may have been forgotten after it was announced: a peer that can be told is told.
            return if block.is_some() && session.info.fast { Ok(()) } else { session.offend(PeerFault::BadRequests) };
        };
        let full = session.up.queue.len() + session.up.serving as usize >= MAX_QUEUED_REQUESTS;
        if session.we_choke || full {
            session.reject(raw);
        } else if session.up.queue.push(had) {
            self.superseed_asked(now, id, had.piece());
        }
        Ok(())
    }

    pub(super) fn peer_cancels(&mut self, id: SessionId, raw: RawBlock) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // With the fast extension every request is answered, a cancelled one by a reject (BEP 6).
        session.withdraw(|block| RawBlock::from(*block) == raw);
    }
}

impl Upload {
    /// It was sent a part of a piece and not the end of it, as far as one can tell from here: choked now, it would be
    /// left with what it cannot pass on.
    pub(super) fn mid_piece(&self, layout: Layout) -> bool {
        self.last.is_some_and(|last| match self.queue.front() {
            Some(next) => next.piece() == last.piece(),
            None => last.end() < layout.piece_len(last.piece()),
        })
    }
}

impl Session {
    /// Takes requests off the peer's queue, each answered by a reject where the peer understands it.
    pub(super) fn withdraw(&mut self, which: impl Fn(&Block) -> bool) {
        let mut gone = Vec::new();
        self.up.queue.retain(|block| {
            let goes = which(block);
            gone.extend(goes.then_some(RawBlock::from(*block)));
            !goes
        });
        gone.into_iter().for_each(|raw| self.reject(raw));
    }

    fn reject(&mut self, raw: RawBlock) {
        if self.info.fast {
            self.send(&Message::Reject(raw));
        }
    }
}
