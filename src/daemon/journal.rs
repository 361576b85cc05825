//! Names of pieces that have been written and not committed: after a stop without warning they are hashed where they lie,
//! and kept if they are right.
//!
//! Two files, `state/written.0` and `state/written.1`, of records of 28 bytes: info-hash, piece u32 BE, CRC32C u32 BE of
//! both. One takes names while the other's pieces are being committed; then that one is emptied. Nothing here is synced: a
//! name that a power cut takes costs a piece fetched again, a name too many a piece hashed in vain.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::wire::id::InfoHash;
use crate::wire::layout::{Layout, PieceIndex};

const RECORD_BYTES: usize = InfoHash::LEN + 8;
/// Bytes read back of each file: what may lie uncommitted ([`super::commit`]) is 4,096 pieces of the smallest size, and a
/// stop may leave that many again of the run before.
const MAX_READ_BYTES: u64 = 16_384 * RECORD_BYTES as u64;

/// The two files, and what an earlier run left in them.
pub struct Journal {
    sides: [File; 2],
    /// Which of them takes names.
    current: AtomicUsize,
    /// A file could not be emptied: no further name is written, so that it cannot grow.
    stopped: AtomicBool,
    left: Mutex<HashMap<InfoHash, BTreeSet<u32>>>,
}

impl Journal {
    /// Opens or makes the files. What an earlier run left stays in one of them until the commit after the next.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(state_dir: &Path) -> io::Result<Journal> {
        let open = |number: usize| {
            let path = state_dir.join(format!("written.{number}"));
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
        };
        let sides = [open(0)?, open(1)?];
        let mut left: HashMap<InfoHash, BTreeSet<u32>> = HashMap::new();
        for side in &sides {
            let mut bytes = Vec::new();
            side.take(MAX_READ_BYTES).read_to_end(&mut bytes)?;
            for (key, piece) in bytes.chunks_exact(RECORD_BYTES).filter_map(decode) {
                left.entry(key).or_default().insert(piece);
            }
            side.set_len(0)?;
        }
        let records = left.iter().flat_map(|(key, pieces)| pieces.iter().map(|piece| encode(*key, *piece)));
        let mut old = &sides[0];
        old.write_all(&records.collect::<Vec<_>>().concat())?;
        let (current, stopped) = (AtomicUsize::new(1), AtomicBool::new(false));
        Ok(Journal { sides, current, stopped, left: Mutex::new(left) })
    }

    /// The pieces of a torrent that an earlier run wrote and did not commit; told once.
    pub fn take_left(&self, key: InfoHash, layout: Layout) -> Vec<PieceIndex> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.remove(&key).unwrap_or_default().into_iter().filter_map(|piece| layout.piece(piece)).collect()
    }

    /// A piece is written. Blocking.
    pub fn add(&self, key: InfoHash, piece: PieceIndex) {
        if self.stopped.load(Ordering::Relaxed) {
            return;
        }
        let mut side = &self.sides[self.current.load(Ordering::Acquire)];
        if let Err(error) = side.write_all(&encode(key, piece.get())) {
            // On a full disk, say. The piece is committed all the same.
            tracing::debug!(%error, "a written piece could not be named");
        }
    }

    /// A commit begins: names go to the other file from now on. Call it before choosing the pieces: a name too many on
    /// that side does no harm.
    pub fn turn(&self) -> usize {
        self.current.fetch_xor(1, Ordering::AcqRel)
    }

    /// The commit that began with this side has ended. Blocking.
    pub fn clear(&self, side: usize) {
        if let Err(error) = self.sides[side].set_len(0) {
            tracing::warn!(%error, "the names of written pieces could not be cleared: no more are kept");
            self.stopped.store(true, Ordering::Relaxed);
        }
    }
}

fn encode(key: InfoHash, piece: u32) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..InfoHash::LEN].copy_from_slice(key.as_bytes());
    record[InfoHash::LEN..][..4].copy_from_slice(&piece.to_be_bytes());
    let sum = crc32c::crc32c(&record[..InfoHash::LEN + 4]);
    record[InfoHash::LEN + 4..].copy_from_slice(&sum.to_be_bytes());
    record
}

fn decode(record: &[u8]) -> Option<(InfoHash, u32)> {
    let (named, sum) = record.split_last_chunk::<4>()?;
    let (key, piece) = named.split_last_chunk::<4>()?;
    (crc32c::crc32c(named) == u32::from_be_bytes(*sum))
        .then(|| InfoHash::from_slice(key).map(|key| (key, u32::from_be_bytes(*piece))))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> InfoHash {
        InfoHash::new([n; 20])
    }

    fn layout() -> Layout {
        Layout::new(100 * 16_384, 16_384).unwrap()
    }

    fn add(journal: &Journal, of: u8, pieces: &[u32]) {
        for piece in pieces {
            journal.add(key(of), layout().piece(*piece).unwrap());
        }
    }

    fn left(journal: &Journal, of: u8) -> Vec<u32> {
        journal.take_left(key(of), layout()).into_iter().map(PieceIndex::get).collect()
    }

    #[test]
    fn what_was_not_committed_is_known_to_the_next_run_and_the_one_after() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        add(&journal, 1, &[5, 3, 5]);
        let side = journal.turn();
        add(&journal, 1, &[7]);
        add(&journal, 2, &[0]);
        journal.clear(side);
        drop(journal);
        for _ in 0..2 {
            let journal = Journal::open(dir.path()).unwrap();
            assert_eq!(left(&journal, 1), [7]);
            assert_eq!(left(&journal, 1), [0; 0], "told once");
            assert_eq!(left(&journal, 2), [0]);
        }
        let journal = Journal::open(dir.path()).unwrap();
        for _ in 0..2 {
            journal.clear(journal.turn());
        }
        assert_eq!(left(&Journal::open(dir.path()).unwrap(), 1), [0; 0], "two commits later it is of no use");
    }

    #[test]
    fn a_torn_or_damaged_record_is_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        add(&journal, 1, &[1, 2, 3]);
        drop(journal);
        let path = dir.path().join("written.1");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[RECORD_BYTES + 4] ^= 1;
        bytes.truncate(3 * RECORD_BYTES - 1);
        std::fs::write(&path, bytes).unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(left(&journal, 1), [1]);
    }
}
