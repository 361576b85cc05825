//! Piece hashes on all cores. Threads take the next piece each, so that a disk is read nearly in order.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use sha1::{Digest, Sha1};

use crate::daemon::disk::fs::DiskFile;
use crate::wire::id::PieceCheck;
use crate::wire::layout::{Layout, LayoutError, PieceIndex};

/// What a thread reads at once, in bytes: as fast as any larger run on the machines measured, and it bounds memory.
const READ_BYTES: usize = 1 << 20;

/// What can be hashed.
pub trait ReadAt {
    /// Fills the buffer from this position on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; else what the disk says.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for Arc<dyn DiskFile> {
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got => {
                    offset += got as u64;
                    buffer = buffer.get_mut(got..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }
}

impl<R: ReadAt> ReadAt for &R {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (*self).read_exact_at(buffer, offset)
    }
}

/// Why there are no hashes. `index` counts the files that were given.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error("stopped")]
    Cancelled,
    #[error("file {index} became shorter while it was hashed")]
    Shrunk { index: usize },
    #[error("cannot read file {index}: {source}")]
    Read { index: usize, source: io::Error },
    #[error("cannot be cut into pieces: {0}")]
    Layout(#[from] LayoutError),
}

/// Hashes the first `len` bytes of a file in pieces of `piece_bytes`, on `threads` threads (at least one). `progress`
/// grows by the bytes hashed; `cancel` may be set at any time.
///
/// # Errors
/// When the file is shorter than `len` or cannot be read, sizes are out of bounds, or `cancel` was set.
pub fn hash_file<F: ReadAt + Sync>(
    file: &F,
    len: u64,
    piece_bytes: u32,
    threads: usize,
    cancel: &AtomicBool,
    progress: &AtomicU64,
) -> Result<Vec<PieceCheck>, HashError> {
    hash_files(&[(file, len)], piece_bytes, threads, cancel, progress)
}

/// The same of several files end to end: pieces do not stop where files do.
///
/// # Errors
/// As [`hash_file`].
pub fn hash_files<F: ReadAt + Sync>(
    files: &[(F, u64)],
    piece_bytes: u32,
    threads: usize,
    cancel: &AtomicBool,
    progress: &AtomicU64,
) -> Result<Vec<PieceCheck>, HashError> {
    let lens = files.iter().map(|(_, len)| *len);
    let open = |index: usize| files.get(index).map(|(file, _)| file).ok_or_else(missing);
    run(lens, open, piece_bytes, threads, cancel, progress)
}

/// The same, each file opened by its index when its turn comes, so that their number does not matter.
///
/// # Errors
/// As [`hash_file`].
pub fn hash_opened<F: ReadAt>(
    lens: &[u64],
    open: impl Fn(usize) -> io::Result<F> + Sync,
    piece_bytes: u32,
    threads: usize,
    cancel: &AtomicBool,
    progress: &AtomicU64,
) -> Result<Vec<PieceCheck>, HashError> {
    run(lens.iter().copied(), open, piece_bytes, threads, cancel, progress)
}

fn missing() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "not a file any more")
}

/// What the threads share.
struct Job<'a, O> {
    layout: Layout,
    /// Where each file begins, and after them the total.
    starts: Vec<u64>,
    open: O,
    next: AtomicU32,
    failed: AtomicBool,
    cancel: &'a AtomicBool,
    progress: &'a AtomicU64,
}

fn run<F: ReadAt, O: Fn(usize) -> io::Result<F> + Sync>(
    lens: impl Iterator<Item = u64>,
    open: O,
    piece_bytes: u32,
    threads: usize,
    cancel: &AtomicBool,
    progress: &AtomicU64,
) -> Result<Vec<PieceCheck>, HashError> {
    let mut starts = vec![0u64];
    let mut total: u64 = 0;
    for len in lens {
        // A sum that overflows has too many pieces as well.
        total = total.saturating_add(len);
        starts.push(total);
    }
    let layout = Layout::new(total, u64::from(piece_bytes))?;
    let job = Job { layout, starts, open, next: AtomicU32::new(0), failed: AtomicBool::new(false), cancel, progress };
    let checks = Mutex::new(vec![PieceCheck::Sha1([0; 20]); layout.piece_count() as usize]);
    let threads = threads.clamp(1, layout.piece_count().max(1) as usize);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| job.work(&checks))).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(checks.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

impl<F: ReadAt, O: Fn(usize) -> io::Result<F> + Sync> Job<'_, O> {
    /// Takes pieces until there are none.
    fn work(&self, checks: &Mutex<Vec<PieceCheck>>) -> Result<(), HashError> {
        let mut buffer = vec![0; READ_BYTES.min(self.layout.piece_bytes() as usize)];
        let mut current: Option<(usize, F)> = None;
        while let Some(piece) = self.layout.piece(self.next.fetch_add(1, Ordering::Relaxed)) {
            let digest = match self.piece(piece, &mut buffer, &mut current) {
                Ok(digest) => digest,
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            };
            let Some(digest) = digest else { return Ok(()) };
            let mut checks = checks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(check) = checks.get_mut(piece.as_usize()) {
                *check = PieceCheck::Sha1(digest);
            }
        }
        Ok(())
    }

    /// `None` when another thread failed and this one's work is in vain.
    fn piece(
        &self,
        piece: PieceIndex,
        buffer: &mut [u8],
        current: &mut Option<(usize, F)>,
    ) -> Result<Option<[u8; 20]>, HashError> {
        let mut sha1 = Sha1::new();
        let mut at = self.layout.piece_start(piece);
        let end = at + u64::from(self.layout.piece_len(piece));
        while at < end {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(HashError::Cancelled);
            }
            if self.failed.load(Ordering::Relaxed) {
                return Ok(None);
            }
            // The last file that begins here or before: those before it at the same place are empty.
            let index = self.starts.partition_point(|start| *start <= at) - 1;
            let file_start = self.starts.get(index).copied().unwrap_or(at);
            let file_end = self.starts.get(index + 1).copied().unwrap_or(end);
            let run = (end.min(file_end) - at).min(buffer.len() as u64) as usize;
            let file = match current {
                Some((open, file)) if *open == index => &*file,
                _ => {
                    let file = (self.open)(index).map_err(|source| HashError::Read { index, source })?;
                    &current.insert((index, file)).1
                }
            };
            let Some(bytes) = buffer.get_mut(..run) else { return Ok(None) };
            file.read_exact_at(bytes, at - file_start).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => HashError::Shrunk { index },
                _ => HashError::Read { index, source },
            })?;
            sha1.update(&*bytes);
            at += run as u64;
            self.progress.fetch_add(run as u64, Ordering::Relaxed);
        }
        Ok(Some(sha1.finalize().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::id::to_hex;
    use std::io::Write;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn hash<F: ReadAt + Sync>(files: &[(F, u64)], piece_bytes: u32, threads: usize) -> Vec<String> {
        let progress = AtomicU64::new(0);
        let checks = hash_files(files, piece_bytes, threads, &AtomicBool::new(false), &progress).unwrap();
        assert_eq!(progress.into_inner(), files.iter().map(|(_, len)| len).sum::<u64>());
        checks.iter().map(|PieceCheck::Sha1(digest)| to_hex(digest)).collect()
    }

    const SHA1_OF_ABC: &str = "a9993e364706816aba3e25717850c26c9cd0d89d";
    const SHA1_OF_64_KIB_OF_ZEROS: &str = "1adc95bebe9eea8c112d40cd04ab7a8d75c4f961";
    const SHA1_OF_ONE_ZERO: &str = "5ba93c9db0cff93f52b521d7420e43f6eda2784f";

    #[test]
    fn known_digests() {
        assert_eq!(hash(&[(file_of(b"abc"), 3)], 65_536, 4), [SHA1_OF_ABC]);
        assert!(hash(&[(file_of(b""), 0)], 65_536, 4).is_empty());
        assert_eq!(hash(&[(file_of(&[0; 65_536]), 65_536)], 65_536, 4), [SHA1_OF_64_KIB_OF_ZEROS]);
        let one_more = hash(&[(file_of(&[0; 131_073]), 131_073)], 65_536, 4);
        assert_eq!(one_more, [SHA1_OF_64_KIB_OF_ZEROS, SHA1_OF_64_KIB_OF_ZEROS, SHA1_OF_ONE_ZERO]);
    }

    #[test]
    fn pieces_span_files_whatever_the_threads() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let whole = hash(&[(file_of(&bytes), 3_000_000)], 1_600_000, 1);
        let expected: Vec<String> = bytes.chunks(1_600_000).map(|piece| to_hex(&Sha1::digest(piece))).collect();
        assert_eq!(whole, expected);
        for cuts in [&[0, 0, 3_000_000][..], &[0, 1, 1, 1_599_999, 2_000_000, 3_000_000, 3_000_000]] {
            let parts = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            let files: Vec<(File, u64)> = parts.map(|part| (file_of(part), part.len() as u64)).collect();
            for threads in [1, 2, 7] {
                assert_eq!(hash(&files, 1_600_000, threads), whole, "{cuts:?} on {threads}");
            }
        }
    }

    #[test]
    fn files_are_opened_when_their_turn_comes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), [0; 65_536]).unwrap();
        std::fs::write(dir.path().join("b"), [0; 1]).unwrap();
        let open = |names: [&'static str; 2]| {
            let dir = dir.path();
            move |index: usize| File::open(dir.join(names[index]))
        };
        let (cancel, progress) = (AtomicBool::new(false), AtomicU64::new(0));
        let lens = [65_536, 1];
        let checks = hash_opened(&lens, open(["a", "b"]), 65_536, 2, &cancel, &progress).unwrap();
        let digests: Vec<String> = checks.iter().map(|PieceCheck::Sha1(digest)| to_hex(digest)).collect();
        assert_eq!(digests, [SHA1_OF_64_KIB_OF_ZEROS, SHA1_OF_ONE_ZERO]);
        let outcome = hash_opened(&lens, open(["a", "c"]), 65_536, 2, &cancel, &progress);
        assert!(matches!(outcome, Err(HashError::Read { index: 1, .. })));
    }

    #[test]
    fn a_shorter_file_and_a_cancel_are_said() {
        let (cancel, progress) = (AtomicBool::new(false), AtomicU64::new(0));
        let files = [(file_of(&[0; 100]), 100), (file_of(&[0; 99_999]), 100_000)];
        let outcome = hash_files(&files, 65_536, 2, &cancel, &progress);
        assert!(matches!(outcome, Err(HashError::Shrunk { index: 1 })));
        cancel.store(true, Ordering::Relaxed);
        let outcome = hash_file(&file_of(b"abc"), 3, 65_536, 2, &cancel, &progress);
        assert!(matches!(outcome, Err(HashError::Cancelled)));
    }
}
