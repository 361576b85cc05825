//! What peerd keeps in its store: own versioned shapes, converted by hand, so that the types of the running daemon can
//! move without the format moving with them.

use serde::{Deserialize, Serialize};

use crate::db::record::Record;
use crate::db::segments::Position;
use crate::db::{Batch, StoreError, Table};
use crate::wire::bitfield::Bitfield;
use crate::wire::id::InfoHash;

/// Key: the info-hash's bytes. Value: [`TorrentRecord`].
pub const TORRENTS: Table = Table::new("torrents");
/// Key: the info-hash's bytes, then a chunk number (u32, big-endian). Value: that chunk of the bitfield, bare bytes.
pub const BITFIELDS: Table = Table::new("bitfields");
/// Key: a path below upload/. Value: [`ShareRecord`].
pub const SHARES: Table = Table::new("shares");
/// Key: a path below upload/. Value: [`StatRecord`] of the content that is not to be shared.
pub const DECLINED: Table = Table::new("declined");
/// Key: an identity (its kind, then its bytes). Value: [`LedgerRecord`].
pub const LEDGER: Table = Table::new("ledger");
/// Key: an identity, then an info-hash. Value: [`LedgerFileRecord`].
pub const LEDGER_FILES: Table = Table::new("ledger_files");
/// Key: a word. Value: [`SettingRecord`].
pub const SETTINGS: Table = Table::new("settings");

/// Bitfields are kept in chunks so that no value passes 4 KiB.
const CHUNK_BYTES: usize = 4_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentRecord {
    /// Where the `.torrent` lies in the segments.
    pub position: Position,
    pub name: Vec<u8>,
    pub total_bytes: u64,
    pub piece_bytes: u32,
    pub private: bool,
    pub multi_file: bool,
    pub origin: OriginRecord,
    /// Of our network: announced on whatever tracker we are given, and published.
    pub ours: bool,
    pub complete: bool,
    pub paused: bool,
    /// Seconds since 1970.
    pub added: u64,
    /// What the file was when it was last known to hold the pieces; for what is shared in place.
    pub stat: Option<StatRecord>,
}

impl Record for TorrentRecord {
    const VERSION: u8 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OriginRecord {
    /// A file of upload/, at this path below it.
    Upload { path: Vec<u8> },
    /// A file or folder shared where it lies: the folder that holds it.
    InPlace { folder: Vec<u8> },
    /// Fetched into this folder.
    Download { folder: Vec<u8> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatRecord {
    pub device: u64,
    pub inode: u64,
    pub bytes: u64,
    pub mtime_ns: i128,
    pub ctime_ns: i128,
}

impl Record for StatRecord {
    const VERSION: u8 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRecord {
    pub key: Vec<u8>,
    pub stat: StatRecord,
}

impl Record for ShareRecord {
    const VERSION: u8 = 1;
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRecord {
    /// Verified payload received from this identity, over all time.
    pub received_bytes: u64,
    /// Payload sent to it.
    pub sent_bytes: u64,
    /// Seconds since 1970.
    pub first_seen: u64,
    pub last_seen: u64,
}

impl Record for LedgerRecord {
    const VERSION: u8 = 1;
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerFileRecord {
    pub name: String,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub last_seen: u64,
}

impl Record for LedgerFileRecord {
    const VERSION: u8 = 1;
}

/// A small fact of the last run: the tracker that was used, the port that was listened on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingRecord(pub String);

impl Record for SettingRecord {
    const VERSION: u8 = 1;
}

/// Puts those chunks of the bitfield that hold `pieces`.
pub fn put_bitfield_chunks(batch: &mut Batch, key: InfoHash, bitfield: &Bitfield, pieces: impl Iterator<Item = u32>) -> Result<(), StoreError> {
    let mut chunks: Vec<usize> = pieces.map(|piece| piece as usize / 8 / CHUNK_BYTES).collect();
    chunks.sort_unstable();
    chunks.dedup();
    for chunk in chunks {
        let bytes = bitfield.as_bytes().chunks(CHUNK_BYTES).nth(chunk).unwrap_or_default();
        batch.put(BITFIELDS, &chunk_key(key, chunk), bytes.to_vec())?;
    }
    Ok(())
}

/// Deletes every chunk of the torrent's bitfield.
pub fn delete_bitfield(batch: &mut Batch, key: InfoHash, pieces: u32) {
    for chunk in 0..=(pieces as usize / 8 / CHUNK_BYTES) {
        batch.delete(BITFIELDS, &chunk_key(key, chunk));
    }
}

/// Puts chunks together again; a missing or short chunk counts as no pieces, spare bits are dropped.
pub fn join_bitfield(pieces: u32, chunks: impl Iterator<Item = (u32, Vec<u8>)>) -> Bitfield {
    let mut bytes = vec![0; pieces.div_ceil(8) as usize];
    for (number, chunk) in chunks {
        let start = number as usize * CHUNK_BYTES;
        if let Some(to) = bytes.get_mut(start..).and_then(|rest| rest.get_mut(..chunk.len())) {
            to.copy_from_slice(&chunk);
        }
    }
    let spare = pieces.div_ceil(8) * 8 - pieces;
    if let Some(last) = bytes.last_mut() {
        *last = *last >> spare << spare;
    }
    Bitfield::from_wire(&bytes, pieces).unwrap_or_else(|_| Bitfield::empty(pieces))
}

/// The chunk number at the end of a key of [`BITFIELDS`].
pub fn chunk_number(key: &[u8]) -> Option<u32> {
    key.last_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

fn chunk_key(key: InfoHash, chunk: usize) -> Vec<u8> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.extend_from_slice(&(chunk as u32).to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::Layout;

    #[test]
    fn a_bitfield_of_several_chunks_comes_back_and_a_lost_chunk_only_costs_its_pieces() {
        let pieces = 3 * 32_000 + 5;
        let layout = Layout::new(u64::from(pieces) * 16_384, 16_384).unwrap();
        let mut bitfield = Bitfield::empty(pieces);
        for piece in layout.pieces().step_by(3) {
            bitfield.set(piece);
        }
        let chunks: Vec<(u32, Vec<u8>)> =
            (0..).zip(bitfield.as_bytes().chunks(CHUNK_BYTES).map(<[u8]>::to_vec)).collect();
        assert_eq!(chunks.len(), 4);
        assert_eq!(join_bitfield(pieces, chunks.clone().into_iter()), bitfield);
        let without: Vec<_> = chunks.into_iter().filter(|(number, _)| *number != 1).collect();
        let joined = join_bitfield(pieces, without.into_iter());
        for piece in layout.pieces() {
            let lost = (32_000..64_000).contains(&piece.get());
            assert_eq!(joined.get(piece), bitfield.get(piece) && !lost);
        }
    }
}
