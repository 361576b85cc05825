//! Whether the bytes on disk are the torrent's: one piece, or many on several threads.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha1::{Digest, Sha1};

use super::storage::{Storage, StorageError};
use crate::wire::bitfield::Bitfield;
use crate::wire::id::PieceCheck;
use crate::wire::layout::{Layout, PieceIndex};

/// Read at a time by each thread: enough for a disk's full speed, small beside the memory budget.
const READ_BYTES: usize = 1 << 20;

/// A piece's digest in the making.
#[derive(Clone)]
pub enum PieceHasher {
    Sha1(Sha1),
}

impl PieceHasher {
    /// The kind of digest that `check` wants.
    pub fn for_check(check: &PieceCheck) -> PieceHasher {
        match check {
            PieceCheck::Sha1(_) => PieceHasher::Sha1(Sha1::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            PieceHasher::Sha1(sha1) => sha1.update(bytes),
        }
    }

    pub fn finish(self) -> PieceCheck {
        match self {
            PieceHasher::Sha1(sha1) => PieceCheck::Sha1(sha1.finalize().into()),
        }
    }

    pub fn matches(self, check: &PieceCheck) -> bool {
        self.finish() == *check
    }
}

/// Hashes one piece. What is not there, or too short, is not right; that is no error.
///
/// # Errors
/// When the disk fails.
pub fn check_piece(
    storage: &Storage,
    layout: Layout,
    piece: PieceIndex,
    check: &PieceCheck,
) -> Result<bool, StorageError> {
    check_with(&mut Vec::new(), storage, layout, piece, check)
}

fn check_with(
    scratch: &mut Vec<u8>,
    storage: &Storage,
    layout: Layout,
    piece: PieceIndex,
    check: &PieceCheck,
) -> Result<bool, StorageError> {
    let (mut offset, mut left) = (layout.piece_start(piece), layout.piece_len(piece) as usize);
    scratch.resize(scratch.len().max(left.min(READ_BYTES)), 0);
    let mut hasher = PieceHasher::for_check(check);
    while left > 0 {
        let part = &mut scratch[..left.min(READ_BYTES)];
        match storage.read(offset, part) {
            Ok(()) => hasher.update(part),
            Err(error) if error.is_absent() => return Ok(false),
            Err(error) => return Err(error),
        }
        offset += part.len() as u64;
        left -= part.len();
    }
    Ok(hasher.matches(check))
}

/// What a check of many pieces found.
#[derive(Debug)]
pub struct Checked {
    /// The pieces that are right, of those looked at.
    pub good: Bitfield,
    /// It was cancelled: not all were looked at.
    pub cancelled: bool,
}

/// How a check of many pieces is watched and stopped.
#[derive(Default, Debug)]
pub struct Progress {
    /// Of the pieces looked at so far, right or not.
    pub bytes: AtomicU64,
    /// Set to stop: within one piece per thread.
    pub cancel: AtomicBool,
}

/// Hashes `pieces` on `threads` threads, this one included. Blocking.
///
/// # Errors
/// The first failure of the disk; the rest is not looked at.
pub fn check_pieces(
    storage: &Storage,
    layout: Layout,
    pieces: &[PieceIndex],
    check_of: &(dyn Fn(PieceIndex) -> PieceCheck + Sync),
    threads: usize,
    progress: &Progress,
) -> Result<Checked, StorageError> {
    let next = AtomicUsize::new(0);
    let good = Mutex::new(Bitfield::empty(layout.piece_count()));
    let failed = Mutex::new(None);
    let stopped = AtomicBool::new(false);
    let work = || {
        let mut scratch = Vec::new();
        let mut right = Vec::new();
        while !progress.cancel.load(Ordering::Relaxed) && !stopped.load(Ordering::Relaxed) {
            let Some(&piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            match check_with(&mut scratch, storage, layout, piece, &check_of(piece)) {
                Ok(true) => right.push(piece),
                Ok(false) => {}
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    lock(&failed).get_or_insert(error);
                }
            }
            progress.bytes.fetch_add(u64::from(layout.piece_len(piece)), Ordering::Relaxed);
        }
        let mut good = lock(&good);
        for piece in right {
            good.set(piece);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(pieces.len()) {
            // Where no further thread can be had, those that run do its share.
            let _ = std::thread::Builder::new().name("check".into()).spawn_scoped(scope, work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            let good = good.into_inner().unwrap_or_else(PoisonError::into_inner);
            // Every piece was taken up unless the threads were told to stop before.
            Ok(Checked { good, cancelled: next.into_inner() < pieces.len() })
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::storage::test_storage::{TestStorage, content};
    use super::*;

    fn checks(layout: Layout, content: &[u8]) -> Vec<PieceCheck> {
        let piece = |chunk: &[u8]| PieceCheck::Sha1(Sha1::digest(chunk).into());
        content.chunks(layout.piece_bytes() as usize).map(piece).collect()
    }

    #[test]
    fn right_wrong_short_and_missing() {
        let content = content(5 * 16_384 + 100);
        let layout = Layout::new(content.len() as u64, 16_384).unwrap();
        let checks = checks(layout, &content);
        let test = TestStorage::single(content.len() as u64);
        let pieces: Vec<PieceIndex> = layout.pieces().collect();
        let progress = Progress::default();
        let all = |progress: &Progress| {
            check_pieces(&test.storage, layout, &pieces, &|piece| checks[piece.as_usize()], 3, progress).unwrap()
        };
        assert!(all(&progress).good.is_empty(), "nothing is there");

        test.write(0, &content);
        let checked = all(&progress);
        assert!(checked.good.is_full() && !checked.cancelled);
        assert_eq!(progress.bytes.load(Ordering::Relaxed), 2 * content.len() as u64);

        test.write(16_384 + 5, &[!content[16_384 + 5]]);
        test.cut_part(4 * 16_384 + 1);
        let good: Vec<u32> = all(&Progress::default()).good.iter_set(layout).map(PieceIndex::get).collect();
        assert_eq!(good, [0, 2, 3]);
        assert!(check_piece(&test.storage, layout, pieces[0], &checks[0]).unwrap());
        assert!(!check_piece(&test.storage, layout, pieces[1], &checks[1]).unwrap());
    }

    #[test]
    fn pieces_longer_than_one_read_are_hashed_whole() {
        let content = content(5 << 19);
        let layout = Layout::new(content.len() as u64, 3 << 19).unwrap();
        let checks = checks(layout, &content);
        let test = TestStorage::single(content.len() as u64);
        test.write(0, &content);
        for (piece, check) in layout.pieces().zip(&checks) {
            assert!(check_piece(&test.storage, layout, piece, check).unwrap());
        }
    }

    #[test]
    fn a_cancelled_check_says_so() {
        let test = TestStorage::single(1 << 20);
        let layout = Layout::new(1 << 20, 16_384).unwrap();
        let pieces: Vec<PieceIndex> = layout.pieces().collect();
        let progress = Progress { cancel: true.into(), ..Progress::default() };
        let check_of = |_| PieceCheck::Sha1([0; 20]);
        let checked = check_pieces(&test.storage, layout, &pieces, &check_of, 2, &progress).unwrap();
        assert!(checked.cancelled && checked.good.is_empty());
    }
}
