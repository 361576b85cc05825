//! What a session has to send: encoded messages, and batches of blocks read from disk on another thread while the
//! batch before them is being sent.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::clock::Time;
use crate::daemon::torrent::{Active, Torrent};
use crate::swarm::{SessionId, Swarm};
use crate::wire::layout::{BLOCK_BYTES, Block};
use crate::wire::message::{self, Message, PIECE_HEADER_BYTES};

/// Blocks are read and sent in batches of at most so many bytes: large enough that a call costs little per byte, small
/// enough that two of them for each of 200 sessions stay bounded (only unchoked sessions have any) ...
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// ... and at least so many: one block is read while another is sent.
const MIN_BATCH_BYTES: usize = BLOCK_BYTES as usize;
/// What has left the rules' hands cannot be taken back when its taker is choked or has it from elsewhere: it is as much
/// as the session sends in this time, once in a batch and once in the socket.
const AHEAD_MS: u64 = 50;
/// Encoded messages taken from the rules at a time.
const MESSAGES_BYTES: usize = 64 * 1024;

/// Blocks with their frame headers before them, as they go out.
pub struct Batch {
    bytes: Vec<u8>,
    blocks: Vec<Block>,
}

/// What the reading thread gives back.
pub enum BatchRead {
    Read(Batch),
    /// The disk failed, or the file is not what it was: these blocks cannot be served.
    Failed(Vec<Block>),
}

#[derive(Default)]
enum Sending {
    #[default]
    Nothing,
    Messages {
        sent: usize,
    },
    Blocks {
        batch: Batch,
        sent: usize,
    },
}

#[derive(Default)]
pub struct Outbox {
    messages: Vec<u8>,
    sending: Sending,
    sent_blocks: Vec<Block>,
    wanted: Vec<Block>,
    reading: Option<JoinHandle<BatchRead>>,
    ready: Option<Batch>,
    /// A batch's memory, used again.
    spare: Vec<u8>,
    batch_bytes: usize,
}

/// A power of two, so that it seldom changes.
fn batch_bytes(rate_bytes_per_s: u64) -> usize {
    let ahead = rate_bytes_per_s.saturating_mul(AHEAD_MS) / 1_000;
    usize::try_from(ahead).unwrap_or(MAX_BATCH_BYTES).min(MAX_BATCH_BYTES).next_power_of_two().max(MIN_BATCH_BYTES)
}

impl Outbox {
    pub fn keep_alive(&mut self) {
        Message::KeepAlive.encode(&mut self.messages);
    }

    pub fn has_bytes(&self) -> bool {
        !matches!(self.sending, Sending::Nothing)
    }

    /// What to write next; empty when there is nothing.
    pub fn bytes(&self) -> &[u8] {
        match &self.sending {
            Sending::Nothing => &[],
            Sending::Messages { sent } => &self.messages[*sent..],
            Sending::Blocks { batch, sent } => &batch.bytes[*sent..],
        }
    }

    pub fn advance(&mut self, count: usize) {
        match &mut self.sending {
            Sending::Nothing => {}
            Sending::Messages { sent } => {
                *sent += count;
                if *sent == self.messages.len() {
                    self.messages.clear();
                    self.sending = Sending::Nothing;
                }
            }
            Sending::Blocks { batch, sent } => {
                *sent += count;
                if *sent == batch.bytes.len() {
                    self.sent_blocks.append(&mut batch.blocks);
                    self.spare = std::mem::take(&mut batch.bytes);
                    self.sending = Sending::Nothing;
                }
            }
        }
    }

    /// Blocks whose last byte the socket has taken since the last call.
    pub fn take_sent_blocks(&mut self) -> Vec<Block> {
        std::mem::take(&mut self.sent_blocks)
    }

    /// Adapts to the rate at which the session sends. Returns what the socket is to be bounded to, if that changed:
    /// `Some(None)` is a link so fast that a bound would only cost.
    pub fn pace(&mut self, rate_bytes_per_s: u64) -> Option<Option<u32>> {
        let batch_bytes = batch_bytes(rate_bytes_per_s);
        let changed = std::mem::replace(&mut self.batch_bytes, batch_bytes) != batch_bytes;
        changed.then(|| (batch_bytes < MAX_BATCH_BYTES).then_some(batch_bytes as u32))
    }

    /// Chooses what goes out next, messages before blocks, and which blocks are to be read meanwhile.
    pub fn fill(&mut self, swarm: &mut Swarm, now: Time, id: SessionId) {
        if matches!(self.sending, Sending::Nothing) {
            swarm.drain_sends(now, id, &mut self.messages, MESSAGES_BYTES);
            if !self.messages.is_empty() {
                self.sending = Sending::Messages { sent: 0 };
            } else if let Some(batch) = self.ready.take() {
                self.sending = Sending::Blocks { batch, sent: 0 };
            }
        }
        if self.reading.is_some() || self.ready.is_some() {
            return;
        }
        let mut bytes: usize = self.wanted.iter().map(|b| b.len() as usize).sum();
        while bytes < self.batch_bytes {
            let Some(block) = swarm.next_upload(id) else { break };
            bytes += block.len() as usize;
            self.wanted.push(block);
        }
    }

    /// Starts reading the blocks that [`Outbox::fill`] chose, off the runtime.
    pub fn start_reading(&mut self, torrent: &Arc<Torrent>, active: &Arc<Active>) {
        if self.wanted.is_empty() || self.reading.is_some() || self.ready.is_some() {
            return;
        }
        let blocks = std::mem::take(&mut self.wanted);
        let bytes = std::mem::take(&mut self.spare);
        let (torrent, active) = (torrent.clone(), active.clone());
        self.reading = Some(tokio::task::spawn_blocking(move || read_batch(&torrent, &active, blocks, bytes)));
    }

    /// Resolves when the batch under way has been read; never if there is none.
    pub async fn read_done(&mut self) -> BatchRead {
        match &mut self.reading {
            Some(reading) => {
                let read = reading.await;
                self.reading = None;
                read.unwrap_or(BatchRead::Failed(Vec::new()))
            }
            None => std::future::pending().await,
        }
    }

    /// Takes a batch that was read; returns the blocks that could not be.
    pub fn put_batch(&mut self, read: BatchRead) -> Vec<Block> {
        match read {
            BatchRead::Read(batch) => {
                self.ready = Some(batch);
                Vec::new()
            }
            BatchRead::Failed(blocks) => blocks,
        }
    }
}

fn read_batch(torrent: &Torrent, active: &Active, blocks: Vec<Block>, mut bytes: Vec<u8>) -> BatchRead {
    let total = blocks.iter().map(|b| b.len() as usize + PIECE_HEADER_BYTES).sum();
    bytes.resize(total, 0);
    let layout = active.meta.layout();
    let unchanged = |block: &Block| {
        active.storage.unchanged(layout.piece_start(block.piece()) + u64::from(block.begin()), u64::from(block.len()))
    };
    // A file that is not what was hashed is not served: one look covers a run of blocks of one file.
    let looked_at = if active.meta.is_multi_file() { blocks.len() } else { blocks.len().min(1) };
    if !blocks.iter().take(looked_at).all(unchanged) {
        return BatchRead::Failed(blocks);
    }
    let mut at = 0;
    for block in &blocks {
        let (header, rest) = bytes[at..].split_at_mut(PIECE_HEADER_BYTES);
        header.copy_from_slice(&message::encode_piece_header((*block).into()));
        let start = layout.piece_start(block.piece()) + u64::from(block.begin());
        if let Err(error) = active.storage.read(start, &mut rest[..block.len() as usize]) {
            tracing::warn!(torrent = %torrent.summary.name, %error, "a block could not be read");
            return BatchRead::Failed(blocks);
        }
        at += PIECE_HEADER_BYTES + block.len() as usize;
    }
    BatchRead::Read(Batch { bytes, blocks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_session_has_little_ahead_and_a_fast_one_is_not_bounded() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.pace(0), Some(Some(16 << 10)), "nothing is known of it");
        assert_eq!(outbox.pace(200_000), None, "a block is the least");
        assert_eq!(outbox.pace(1_000_000), Some(Some(64 << 10)), "50 ms of 1 MB/s, rounded up");
        assert_eq!(outbox.pace(900_000), None);
        assert_eq!(outbox.pace(500_000_000), Some(None));
        assert_eq!(outbox.pace(u64::MAX), None);
        assert_eq!(outbox.pace(100_000), Some(Some(16 << 10)));
    }
}
