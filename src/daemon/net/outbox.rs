//! What a session has to send: encoded messages, and batches of blocks fetched from disk on another thread while the
//! batch before them is being sent.

use std::io::{self, IoSlice};
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::pipe::{PIPE_SLOTS, Pipe, slots};
use super::stream::PeerStream;
use crate::clock::Time;
use crate::daemon::core::Core;
use crate::daemon::disk::storage::StorageError;
use crate::daemon::torrent::{Active, Torrent};
use crate::swarm::{SessionId, Swarm};
use crate::wire::layout::{BLOCK_BYTES, Block};
use crate::wire::message::{self, Message, PIECE_HEADER_BYTES};

/// Blocks are fetched and sent in batches of at most so many bytes: each costs two changes of thread and a look at the
/// file. A batch in a pipe takes no memory, and at most the pipe's slots ...
const MAX_BATCH_BYTES: usize = 1 << 20;
/// ... a copied one does: two of them for each of 200 sessions stay bounded (only unchoked sessions have any) ...
const MAX_COPIED_BYTES: usize = 256 * 1024;
/// ... and at least so many: one block is read while another is sent.
const MIN_BATCH_BYTES: usize = BLOCK_BYTES as usize;
/// What has left the rules' hands cannot be taken back when its taker is choked or has it from elsewhere: it is as much
/// as the session sends in this time, once in a batch and once in the socket.
const AHEAD_MS: u64 = 50;
/// Encoded messages taken from the rules at a time.
const MESSAGES_BYTES: usize = 64 * 1024;

/// Blocks with their frame headers before them, as they go out.
pub struct Batch {
    bytes: Bytes,
    blocks: Vec<Block>,
}

enum Bytes {
    Copied {
        bytes: Vec<u8>,
        sent: usize,
    },
    /// To links so fast that a copy shows.
    Piped(Pipe),
}

/// A batch's memory, used again.
#[derive(Default)]
struct Spare {
    bytes: Vec<u8>,
    pipe: Option<Pipe>,
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
    Blocks(Batch),
}

#[derive(Default)]
pub struct Outbox {
    messages: Vec<u8>,
    sending: Sending,
    sent_blocks: Vec<Block>,
    wanted: Vec<Block>,
    reading: Option<JoinHandle<BatchRead>>,
    ready: Option<Batch>,
    spare: Spare,
    batch_bytes: usize,
    /// The last batch is in a pipe: so, most likely, will be the next.
    piped: bool,
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

    /// Of what is being sent.
    pub fn left_bytes(&self) -> usize {
        match &self.sending {
            Sending::Nothing => 0,
            Sending::Messages { sent } => self.messages.len() - sent,
            Sending::Blocks(batch) => batch.bytes.left(),
        }
    }

    /// Writes at most so many bytes of it; returns how many the stream took.
    ///
    /// # Errors
    /// `WouldBlock` when it takes none now; anything else breaks it.
    pub fn write(&mut self, stream: &impl PeerStream, most_bytes: usize) -> io::Result<usize> {
        let took = match &mut self.sending {
            Sending::Nothing => return Ok(0),
            Sending::Messages { sent } => write_some(stream, &self.messages, sent, most_bytes)?,
            Sending::Blocks(Batch { bytes: Bytes::Copied { bytes, sent }, .. }) => {
                write_some(stream, bytes, sent, most_bytes)?
            }
            Sending::Blocks(Batch { bytes: Bytes::Piped(pipe), .. }) => stream.try_write_pipe(pipe, most_bytes)?,
        };
        if self.left_bytes() == 0 {
            match std::mem::take(&mut self.sending) {
                Sending::Nothing => {}
                Sending::Messages { .. } => self.messages.clear(),
                Sending::Blocks(mut batch) => {
                    self.sent_blocks.append(&mut batch.blocks);
                    self.spare.keep(batch.bytes);
                }
            }
        }
        Ok(took)
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
        changed.then(|| (!self.is_fast()).then_some(batch_bytes as u32))
    }

    /// It sends so fast that a copy shows.
    fn is_fast(&self) -> bool {
        self.batch_bytes >= MAX_COPIED_BYTES
    }

    /// Chooses what goes out next, messages before blocks, and which blocks are to be read meanwhile.
    pub fn fill(&mut self, swarm: &mut Swarm, now: Time, id: SessionId) {
        if matches!(self.sending, Sending::Nothing) {
            swarm.drain_sends(now, id, &mut self.messages, MESSAGES_BYTES);
            if !self.messages.is_empty() {
                self.sending = Sending::Messages { sent: 0 };
            } else if let Some(batch) = self.ready.take() {
                self.sending = Sending::Blocks(batch);
            }
        }
        if self.reading.is_some() || self.ready.is_some() {
            return;
        }
        let mut bytes: usize = self.wanted.iter().map(|b| b.len() as usize).sum();
        let most = if self.piped { self.batch_bytes } else { self.batch_bytes.min(MAX_COPIED_BYTES) };
        let mut free_slots = PIPE_SLOTS;
        while bytes < most {
            let Some(block) = swarm.next_upload(id) else { break };
            let len = block.len() as usize;
            bytes += len;
            self.wanted.push(block);
            free_slots = free_slots.saturating_sub(slots(len));
            // The next one is as long, or is copied with the others.
            if free_slots < slots(len) {
                break;
            }
        }
    }

    /// Starts fetching the blocks that [`Outbox::fill`] chose, off the runtime.
    pub fn start_reading(&mut self, core: &Core, torrent: &Arc<Torrent>, active: &Arc<Active>) {
        if self.reading.is_some() || self.ready.is_some() {
            return;
        }
        if self.wanted.is_empty() {
            if !self.has_bytes() && !self.is_fast() {
                // Nobody takes anything: a pipe is others'.
                self.spare = Spare::default();
            }
            return;
        }
        let blocks = std::mem::take(&mut self.wanted);
        let spare = std::mem::take(&mut self.spare);
        let pipes = self.is_fast().then(|| core.pipe_permits.clone());
        let (torrent, active) = (torrent.clone(), active.clone());
        self.reading = Some(tokio::task::spawn_blocking(move || fetch_batch(&torrent, &active, blocks, spare, pipes)));
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
                self.piped = matches!(batch.bytes, Bytes::Piped(_));
                self.ready = Some(batch);
                Vec::new()
            }
            BatchRead::Failed(blocks) => blocks,
        }
    }
}

fn write_some(stream: &impl PeerStream, bytes: &[u8], sent: &mut usize, most_bytes: usize) -> io::Result<usize> {
    let left = &bytes[*sent..];
    let took = stream.try_write_vectored(&[IoSlice::new(&left[..most_bytes.min(left.len())])])?;
    *sent += took;
    Ok(took)
}

impl Bytes {
    fn left(&self) -> usize {
        match self {
            Bytes::Copied { bytes, sent } => bytes.len() - sent,
            Bytes::Piped(pipe) => pipe.held_bytes(),
        }
    }
}

impl Spare {
    fn keep(&mut self, of: Bytes) {
        match of {
            Bytes::Copied { bytes, .. } => self.bytes = bytes,
            Bytes::Piped(pipe) => self.pipe = Some(pipe),
        }
    }
}

/// `pipes` where the link is fast.
fn fetch_batch(
    torrent: &Torrent,
    active: &Active,
    blocks: Vec<Block>,
    spare: Spare,
    pipes: Option<Arc<Semaphore>>,
) -> BatchRead {
    let layout = active.meta.layout();
    let unchanged = |block: &Block| {
        active.storage.unchanged(layout.piece_start(block.piece()) + u64::from(block.begin()), u64::from(block.len()))
    };
    // A file that is not what was hashed is not served: one look covers a run of blocks of one file.
    let looked_at = if active.meta.is_multi_file() { blocks.len() } else { blocks.len().min(1) };
    if !blocks.iter().take(looked_at).all(unchanged) {
        return BatchRead::Failed(blocks);
    }
    // Where there is no pipe, or it cannot be filled, a copy is as good.
    let pipe = pipes.and_then(|pipes| spare.pipe.or_else(|| Pipe::new(pipes.try_acquire_owned().ok()?).ok()));
    let bytes = match pipe.and_then(|pipe| pipe_blocks(active, &blocks, pipe).ok()) {
        Some(pipe) => Ok(Bytes::Piped(pipe)),
        None => copy_blocks(active, &blocks, spare.bytes).map(|bytes| Bytes::Copied { bytes, sent: 0 }),
    };
    match bytes {
        Ok(bytes) => BatchRead::Read(Batch { bytes, blocks }),
        Err(error) => {
            tracing::warn!(torrent = %torrent.summary.name, %error, "a block could not be read");
            BatchRead::Failed(blocks)
        }
    }
}

fn pipe_blocks(active: &Active, blocks: &[Block], mut pipe: Pipe) -> Result<Pipe, StorageError> {
    let layout = active.meta.layout();
    for block in blocks {
        pipe.push(&message::encode_piece_header((*block).into())).map_err(StorageError::Root)?;
        let start = layout.piece_start(block.piece()) + u64::from(block.begin());
        active.storage.visit(start, u64::from(block.len()), |file, at, len| pipe.push_file(file, at, len))?;
    }
    Ok(pipe)
}

fn copy_blocks(active: &Active, blocks: &[Block], mut bytes: Vec<u8>) -> Result<Vec<u8>, StorageError> {
    bytes.resize(blocks.iter().map(|b| b.len() as usize + PIECE_HEADER_BYTES).sum(), 0);
    let layout = active.meta.layout();
    let mut at = 0;
    for block in blocks {
        let (header, rest) = bytes[at..].split_at_mut(PIECE_HEADER_BYTES);
        header.copy_from_slice(&message::encode_piece_header((*block).into()));
        let start = layout.piece_start(block.piece()) + u64::from(block.begin());
        active.storage.read(start, &mut rest[..block.len() as usize])?;
        at += PIECE_HEADER_BYTES + block.len() as usize;
    }
    Ok(bytes)
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
        assert_eq!(outbox.pace(5_000_000), Some(None));
        assert_eq!(outbox.pace(500_000_000), Some(None));
        assert_eq!(outbox.pace(u64::MAX), None);
        assert_eq!(outbox.pace(100_000), Some(Some(16 << 10)));
    }
}
