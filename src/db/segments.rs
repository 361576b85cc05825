//! An append-only log for the bytes of `.torrent` files: too long for sled, never changed once written.
//!
//! Files `00000001.seg`, `00000002.seg`, ...; in each, records of length u32 LE, CRC32C u32 LE (over length and bytes),
//! bytes. An index of [`Position`]s lies in the [`super::Store`], committed after [`SegmentLog::sync`]: what no position
//! names does not exist. One process at a time, which the store's lock ensures.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::dirs::make_dirs;

/// Longest record: a `.torrent` has at most 10 MiB.
pub const MAX_RECORD_BYTES: u32 = 16 << 20;
/// A file that has reached this size gets a successor.
const ROLL_BYTES: u64 = 256 << 20;
const HEADER_BYTES: u64 = 8;

/// Where a record lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Number of the file, from 1.
    pub file: u32,
    /// Of the record's header, in bytes from the file's start.
    pub offset: u64,
    /// Bytes, without the header.
    pub len: u32,
}

/// Why the log did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("a record of {0} bytes: 1 to {MAX_RECORD_BYTES} are kept")]
    Length(usize),
    #[error("{}: the record at byte {offset} is damaged", path.display())]
    Damaged { path: PathBuf, offset: u64 },
    #[error("{} takes no more records until it is opened again: a write or sync has failed", .0.display())]
    Failed(PathBuf),
}

/// The log in one folder. Appending and reading need no exclusive access.
pub struct SegmentLog {
    dir: PathBuf,
    tail: Mutex<Tail>,
}

struct Tail {
    number: u32,
    file: Arc<File>,
    end: u64,
    /// After a failed sync the kernel may have dropped what it could not write: nothing more is promised.
    failed: bool,
}

impl SegmentLog {
    /// Opens or makes the log in `dir` and cuts off what a crash left half written at its end.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(dir: &Path) -> Result<SegmentLog, SegmentError> {
        make_dirs(dir, 0o777).map_err(at(dir))?;
        let newest = newest_number(dir).map_err(at(dir))?;
        let path = segment_path(dir, newest.unwrap_or(1));
        let file = open_segment(&path).map_err(at(&path))?;
        let mut tail = Tail { number: newest.unwrap_or(1), file: Arc::new(file), end: 0, failed: false };
        match sound_end(&tail.file).map_err(at(&path))? {
            (end, End::Whole) => tail.end = end,
            (end, End::Torn) => {
                tail.file.set_len(end).and_then(|()| tail.file.sync_all()).map_err(at(&path))?;
                tail.end = end;
            }
            // More than an append can tear: something else has damaged it. What lies behind stays readable.
            (_, End::Damaged) => tail = tail.successor(dir)?,
        }
        sync_dir(dir).map_err(at(dir))?;
        Ok(SegmentLog { dir: dir.to_path_buf(), tail: Mutex::new(tail) })
    }

    /// Writes a record; [`SegmentLog::sync`] makes it last.
    ///
    /// # Errors
    /// When it is empty or over [`MAX_RECORD_BYTES`], or the disk fails.
    pub fn append(&self, bytes: &[u8]) -> Result<Position, SegmentError> {
        let len = u32::try_from(bytes.len()).ok().filter(|len| (1..=MAX_RECORD_BYTES).contains(len));
        let len = len.ok_or(SegmentError::Length(bytes.len()))?;
        let mut record = Vec::with_capacity(bytes.len() + HEADER_BYTES as usize);
        record.extend_from_slice(&len.to_le_bytes());
        record.extend_from_slice(&checksum(len, bytes).to_le_bytes());
        record.extend_from_slice(bytes);

        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.failed {
            return Err(SegmentError::Failed(self.dir.clone()));
        }
        if tail.end >= ROLL_BYTES {
            *tail = tail.successor(&self.dir).inspect_err(|_| tail.failed = true)?;
        }
        // A write that fails leaves `end` where it was: the next one goes over its remains.
        tail.file.write_all_at(&record, tail.end).map_err(at(&segment_path(&self.dir, tail.number)))?;
        let position = Position { file: tail.number, offset: tail.end, len };
        tail.end += record.len() as u64;
        Ok(position)
    }

    /// Makes everything appended before this call outlive power loss. Blocking.
    ///
    /// # Errors
    /// When the disk fails: what was appended since the last sync may be lost, and nothing more is taken.
    pub fn sync(&self) -> Result<(), SegmentError> {
        let (file, number) = {
            let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.failed {
                return Err(SegmentError::Failed(self.dir.clone()));
            }
            (tail.file.clone(), tail.number)
        };
        file.sync_data().map_err(|source| {
            self.tail.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
            SegmentError::Io { path: segment_path(&self.dir, number), source }
        })
    }

    /// # Errors
    /// When the record is not there or not whole, or the disk fails.
    pub fn read(&self, position: Position) -> Result<Vec<u8>, SegmentError> {
        let path = segment_path(&self.dir, position.file);
        let damaged = || SegmentError::Damaged { path: path.clone(), offset: position.offset };
        if position.len > MAX_RECORD_BYTES {
            return Err(damaged());
        }
        let current = {
            let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            (tail.number == position.file).then(|| tail.file.clone())
        };
        let file = match current {
            Some(file) => file,
            None => Arc::new(File::open(&path).map_err(at(&path))?),
        };
        let mut header = [0; HEADER_BYTES as usize];
        let mut bytes = vec![0; position.len as usize];
        let read = file
            .read_exact_at(&mut header, position.offset)
            .and_then(|()| file.read_exact_at(&mut bytes, position.offset.saturating_add(HEADER_BYTES)));
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(damaged()),
            Err(error) => Err(at(&path)(error)),
            Ok(()) if split_header(header) != (position.len, checksum(position.len, &bytes)) => Err(damaged()),
            Ok(()) => Ok(bytes),
        }
    }
}

impl Tail {
    /// Ends this file, durably, and begins the next.
    fn successor(&self, dir: &Path) -> Result<Tail, SegmentError> {
        self.file.sync_all().map_err(at(&segment_path(dir, self.number)))?;
        let number = self.number + 1;
        let path = segment_path(dir, number);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(at(&path))?;
        sync_dir(dir).map_err(at(dir))?;
        Ok(Tail { number, file: Arc::new(file), end: 0, failed: false })
    }
}

enum End {
    /// The last record ends where the file ends.
    Whole,
    /// A rest that one append could have left.
    Torn,
    /// A rest longer than any record.
    Damaged,
}

/// Walks the headers; reads the last record alone, because only that one can have a header without its bytes and yet end
/// where the file ends. Reading checks every record anyhow.
fn sound_end(file: &File) -> io::Result<(u64, End)> {
    let file_bytes = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let (mut end, mut last) = (0, 0);
    while end + HEADER_BYTES <= file_bytes {
        let mut header = [0; HEADER_BYTES as usize];
        reader.read_exact(&mut header)?;
        let (len, _) = split_header(header);
        let next = end + HEADER_BYTES + u64::from(len);
        if len == 0 || len > MAX_RECORD_BYTES || next > file_bytes {
            break;
        }
        reader.seek_relative(i64::from(len))?;
        (last, end) = (end, next);
    }
    if end > 0 && !is_sound(file, last, end)? {
        end = last;
    }
    let kind = match file_bytes - end {
        0 => End::Whole,
        rest if rest <= HEADER_BYTES + u64::from(MAX_RECORD_BYTES) => End::Torn,
        _ => End::Damaged,
    };
    Ok((end, kind))
}

fn is_sound(file: &File, offset: u64, end: u64) -> io::Result<bool> {
    let mut header = [0; HEADER_BYTES as usize];
    let mut bytes = vec![0; (end - offset - HEADER_BYTES) as usize];
    file.read_exact_at(&mut header, offset)?;
    file.read_exact_at(&mut bytes, offset + HEADER_BYTES)?;
    let (len, sum) = split_header(header);
    Ok(checksum(len, &bytes) == sum)
}

fn split_header(header: [u8; HEADER_BYTES as usize]) -> (u32, u32) {
    let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
    (u32::from_le_bytes([l0, l1, l2, l3]), u32::from_le_bytes([c0, c1, c2, c3]))
}

fn checksum(len: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&len.to_le_bytes()), bytes)
}

fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.seg"))
}

fn open_segment(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn newest_number(dir: &Path) -> io::Result<Option<u32>> {
    let mut newest = None;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|digits| digits.parse().ok());
        newest = newest.max(number);
    }
    Ok(newest)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn at(path: &Path) -> impl Fn(io::Error) -> SegmentError {
    move |source| SegmentError::Io { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> (tempfile::TempDir, Vec<Position>) {
        let dir = tempfile::tempdir().unwrap();
        let log = SegmentLog::open(dir.path()).unwrap();
        let at = [&b"first"[..], &[7; 3_000], b"third"].map(|bytes| log.append(bytes).unwrap());
        log.sync().unwrap();
        (dir, at.to_vec())
    }

    fn segment(dir: &tempfile::TempDir) -> PathBuf {
        segment_path(dir.path(), 1)
    }

    #[test]
    fn the_bytes_are_length_checksum_and_record() {
        let (dir, at) = three();
        let stored = fs::read(segment(&dir)).unwrap();
        let sum = crc32c::crc32c(b"\x05\0\0\0first").to_le_bytes();
        assert_eq!(stored[..13], [&[5, 0, 0, 0][..], &sum, b"first"].concat());
        assert_eq!(at[1], Position { file: 1, offset: 13, len: 3_000 });
    }

    #[test]
    fn records_outlive_a_reopen_and_appending_goes_on_behind_them() {
        let (dir, mut at) = three();
        let log = SegmentLog::open(dir.path()).unwrap();
        at.push(log.append(b"fourth").unwrap());
        let read: Vec<_> = at.iter().map(|&position| log.read(position).unwrap()).collect();
        assert_eq!(read, [&b"first"[..], &[7; 3_000], b"third", b"fourth"]);
        assert!(matches!(log.append(b""), Err(SegmentError::Length(0))));
        assert!(matches!(log.append(&vec![0; MAX_RECORD_BYTES as usize + 1]), Err(SegmentError::Length(_))));
    }

    #[test]
    fn a_torn_tail_is_cut_wherever_it_was_torn() {
        let (dir, at) = three();
        let whole = fs::read(segment(&dir)).unwrap();
        let third = at[2].offset as usize;
        for cut in third + 1..whole.len() {
            fs::write(segment(&dir), &whole[..cut]).unwrap();
            let log = SegmentLog::open(dir.path()).unwrap();
            assert_eq!(fs::metadata(segment(&dir)).unwrap().len(), third as u64);
            assert!(matches!(log.read(at[2]), Err(SegmentError::Damaged { .. })));
            assert_eq!(log.append(b"again").unwrap(), at[2]);
        }
        // The file's length arrived, its bytes did not: zeros at the end, whole or in part.
        for zeros_from in [third, third + 4, third + 9] {
            let mut torn = whole.clone();
            torn[zeros_from..].fill(0);
            torn.resize(whole.len() + 5_000, 0);
            fs::write(segment(&dir), &torn).unwrap();
            let log = SegmentLog::open(dir.path()).unwrap();
            assert_eq!(log.append(b"again").unwrap(), at[2], "zeros from {zeros_from}");
            assert_eq!(log.read(at[1]).unwrap(), [7; 3_000]);
        }
    }

    #[test]
    fn a_flipped_bit_is_seen_and_costs_that_record_alone() {
        let (dir, at) = three();
        let mut stored = fs::read(segment(&dir)).unwrap();
        stored[at[1].offset as usize + 100] ^= 1;
        fs::write(segment(&dir), &stored).unwrap();
        let log = SegmentLog::open(dir.path()).unwrap();
        assert!(matches!(log.read(at[1]), Err(SegmentError::Damaged { .. })));
        assert_eq!(log.read(at[2]).unwrap(), b"third");
    }

    #[test]
    fn damage_with_more_behind_it_than_one_record_cuts_nothing() {
        let (dir, at) = three();
        let file = OpenOptions::new().write(true).open(segment(&dir)).unwrap();
        file.write_all_at(&[0; 4], at[1].offset).unwrap();
        file.set_len(2 * u64::from(MAX_RECORD_BYTES)).unwrap();
        let log = SegmentLog::open(dir.path()).unwrap();
        assert_eq!(log.read(at[2]).unwrap(), b"third");
        assert_eq!(log.append(b"on").unwrap(), Position { file: 2, offset: 0, len: 2 });
    }

    #[test]
    fn a_full_file_gets_a_successor_and_both_are_read() {
        let (dir, at) = three();
        let log = SegmentLog::open(dir.path()).unwrap();
        log.tail.lock().unwrap().end = ROLL_BYTES;
        let next = log.append(b"next").unwrap();
        assert_eq!(next, Position { file: 2, offset: 0, len: 4 });
        log.sync().unwrap();
        let log = SegmentLog::open(dir.path()).unwrap();
        assert_eq!(log.read(next).unwrap(), b"next");
        assert_eq!(log.read(at[0]).unwrap(), b"first");
    }

    #[test]
    fn positions_that_lie_are_errors() {
        let (dir, at) = three();
        let log = SegmentLog::open(dir.path()).unwrap();
        let lies = [
            Position { len: 4, ..at[0] },
            Position { offset: 1, ..at[0] },
            Position { offset: u64::MAX - 3, ..at[0] },
            Position { len: u32::MAX, ..at[0] },
            Position { file: 9, ..at[0] },
        ];
        for lie in lies {
            assert!(log.read(lie).is_err(), "{lie:?}");
        }
    }
}
