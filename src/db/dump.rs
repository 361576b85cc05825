//! A copy of all rows in one file, for the day the database cannot be read.
//!
//! ```text
//! "peerd dump" | schema u32 | generation u64          integers little-endian
//! key length u32 | value length u32 | key | value | CRC32C u32 of these four       one row after the other
//! 0 u32 | 0 u32 | CRC32C u32                                                       the end
//! ```
//!
//! It is written beside itself, synced and renamed: there is always a whole one. The generation stands in the database
//! too, before the file has its name: a database that knows a smaller one than its dump has lost what it had acknowledged.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use super::schema::SCHEMA_VERSION;
use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

const MAGIC: &[u8] = b"peerd dump";
/// Of a key in the common key space: a table's name, NUL, key.
const MAX_FULL_KEY_BYTES: u32 = 32 + 1 + MAX_KEY_BYTES as u32;

/// Writes `rows` to `path`.
///
/// # Errors
/// When the disk fails or a row cannot be read; the dump that was there stays.
pub(super) fn write<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    path: &Path,
    generation: u64,
    rows: impl Iterator<Item = io::Result<(K, V)>>,
) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = BufWriter::new(File::create(&beside)?);
    file.write_all(MAGIC)?;
    file.write_all(&SCHEMA_VERSION.to_le_bytes())?;
    file.write_all(&generation.to_le_bytes())?;
    for row in rows {
        let (key, value) = row?;
        write_row(&mut file, key.as_ref(), value.as_ref())?;
    }
    write_row(&mut file, &[], &[])?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn write_row(file: &mut impl Write, key: &[u8], value: &[u8]) -> io::Result<()> {
    let lengths = [(key.len() as u32).to_le_bytes(), (value.len() as u32).to_le_bytes()].concat();
    file.write_all(&lengths)?;
    file.write_all(key)?;
    file.write_all(value)?;
    file.write_all(&checksum(&lengths, key, value).to_le_bytes())
}

fn checksum(lengths: &[u8], key: &[u8], value: &[u8]) -> u32 {
    [key, value].iter().fold(crc32c::crc32c(lengths), |sum, bytes| crc32c::crc32c_append(sum, bytes))
}

/// A dump being read, row by row.
pub(super) struct Dump {
    file: BufReader<File>,
    pub(super) generation: u64,
    ended: bool,
}

impl Dump {
    /// `None` if there is none of this schema.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn open(path: &Path) -> io::Result<Option<Dump>> {
        let mut file = match File::open(path) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut head = [0; MAGIC.len() + 12];
        match file.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let (magic, rest) = head.split_at(MAGIC.len());
        let Some((schema, generation)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let Ok(generation) = generation.try_into().map(u64::from_le_bytes) else { return Ok(None) };
        let known = magic == MAGIC && u32::from_le_bytes(*schema) == SCHEMA_VERSION;
        Ok(known.then_some(Dump { file, generation, ended: false }))
    }

    fn row(&mut self) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        let mut lengths = [0; 8];
        self.file.read_exact(&mut lengths)?;
        let [k0, k1, k2, k3, v0, v1, v2, v3] = lengths;
        let (key, value) = (u32::from_le_bytes([k0, k1, k2, k3]), u32::from_le_bytes([v0, v1, v2, v3]));
        if key > MAX_FULL_KEY_BYTES || value as usize > MAX_VALUE_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (mut key, mut value, mut sum) = (vec![0; key as usize], vec![0; value as usize], [0; 4]);
        self.file.read_exact(&mut key)?;
        self.file.read_exact(&mut value)?;
        self.file.read_exact(&mut sum)?;
        if u32::from_le_bytes(sum) != checksum(&lengths, &key, &value) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((!key.is_empty()).then_some((key, value)))
    }
}

impl Iterator for Dump {
    type Item = io::Result<(Vec<u8>, Vec<u8>)>;

    /// Nothing comes after the end or after an error: what lies behind damage cannot be told from it.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.row().transpose();
        self.ended = !matches!(row, Some(Ok(_)));
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<(Vec<u8>, Vec<u8>)> {
        (0..100u32).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; n as usize * 40])).collect()
    }

    fn written(rows: Vec<(Vec<u8>, Vec<u8>)>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dump");
        write(&path, 7, rows.into_iter().map(Ok)).unwrap();
        (dir, path)
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        let (dir, path) = written(rows());
        let dump = Dump::open(&path).unwrap().unwrap();
        assert_eq!(dump.generation, 7);
        assert_eq!(dump.collect::<io::Result<Vec<_>>>().unwrap(), rows());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(Dump::open(&dir.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn a_dump_that_could_not_be_written_leaves_the_old_one() {
        let (_dir, path) = written(rows());
        let failing = [Ok((vec![1], vec![1])), Err(io::Error::other("unreadable"))];
        assert!(write(&path, 8, failing.into_iter()).is_err());
        assert_eq!(Dump::open(&path).unwrap().unwrap().generation, 7);
    }

    #[test]
    fn what_stands_before_damage_is_read_and_nothing_behind_it() {
        let (_dir, path) = written(rows());
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(97) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            let Some(dump) = Dump::open(&path).unwrap() else { continue };
            let read: Vec<_> = dump.map_while(Result::ok).collect();
            assert!(rows().starts_with(&read), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            let read: Vec<_> = Dump::open(&path).unwrap().into_iter().flatten().collect();
            assert!(read.is_empty() || read.last().unwrap().is_err(), "cut at {at}: the end is missed");
        }
    }
}
