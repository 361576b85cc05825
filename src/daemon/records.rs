//! What peerd keeps in its store: own versioned shapes, converted by hand, so that the types of the running daemon can
//! move without the format moving with them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::disk::fs::FileStat;
use crate::db::Table;
use crate::db::record::Record;
use crate::db::segments::Position;

/// Key: the info-hash's bytes. Value: [`TorrentRecord`].
pub const TORRENTS: Table = Table::new("torrents");
/// Key: the info-hash's bytes. Value: the bitfield of what has been committed, in chunks.
pub const BITFIELDS: Table = Table::new("bitfields");
/// Key: the info-hash's bytes. Value: what each file looked like when its content was last known to be right, in chunks:
/// bytes (u64, big-endian) and time of change (i64, nanoseconds since 1970) of one file after the other.
pub const FILE_STATS: Table = Table::new("file_stats");
/// Key: a path below upload/. Value: [`ShareRecord`].
pub const SHARES: Table = Table::new("shares");
/// Key: a path below upload/. Value: [`StatRecord`] of the content that is not to be shared.
pub const DECLINED: Table = Table::new("declined");
/// Key: an identity (its kind, then its bytes). Value: [`LedgerRecord`].
pub const LEDGER: Table = Table::new("ledger");
/// Key: an identity, then an info-hash. Value: [`LedgerFileRecord`].
pub const LEDGER_FILES: Table = Table::new("ledger_files");
/// Key: the info-hash's bytes. Value: [`PeersRecord`]. Of unfinished torrents alone.
pub const PEERS: Table = Table::new("peers");
/// Key: the info-hash's bytes. Value: an empty [`SettingRecord`]. What our tracker is still to be told to forget.
pub const WITHDRAWALS: Table = Table::new("withdrawals");
/// Key: the info-hash's bytes. Value: [`TorrentRecord`] of a torrent that is forgotten and whose data is still to be deleted.
pub const DELETIONS: Table = Table::new("deletions");
/// Key: a word. Value: [`SettingRecord`].
pub const SETTINGS: Table = Table::new("settings");

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
    /// To be told to the tracker, and told again if it forgets.
    pub publish: bool,
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
    pub mtime_ns: i64,
    pub ctime_ns: i64,
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

/// Where peers of a torrent listened when we last had to do with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersRecord(pub Vec<SocketAddr>);

impl Record for PeersRecord {
    const VERSION: u8 = 1;
}

/// A small fact of the last run: the tracker that was used, the port that was listened on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingRecord(pub String);

impl Record for SettingRecord {
    const VERSION: u8 = 1;
}

/// Bytes of one file in [`FILE_STATS`].
const FILE_STAT_BYTES: usize = 16;

/// How long the value of [`FILE_STATS`] is for so many files.
pub const fn file_stats_len(files: usize) -> usize {
    files * FILE_STAT_BYTES
}

/// The value of [`FILE_STATS`].
pub fn encode_file_stats(stats: &[FileStat]) -> Vec<u8> {
    stats.iter().flat_map(|stat| [stat.len.to_be_bytes(), stat.modified_ns.to_be_bytes()]).flatten().collect()
}

/// Reads what [`encode_file_stats`] wrote.
pub fn decode_file_stats(bytes: &[u8]) -> Vec<FileStat> {
    let half = |bytes: &[u8], at: usize| bytes.get(at..at + 8).and_then(|half| half.try_into().ok()).unwrap_or([0; 8]);
    let stat = |bytes: &[u8]| FileStat {
        len: u64::from_be_bytes(half(bytes, 0)),
        modified_ns: i64::from_be_bytes(half(bytes, 8)),
    };
    bytes.chunks_exact(FILE_STAT_BYTES).map(stat).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::MAX_VALUE_BYTES;
    use crate::db::record::encode_record;
    use crate::swarm::dial::MAX_REMEMBERED;

    #[test]
    fn the_peers_of_a_torrent_fit_into_one_value() {
        let longest: SocketAddr = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        assert!(encode_record(&PeersRecord(vec![longest; MAX_REMEMBERED])).len() <= MAX_VALUE_BYTES);
    }

    #[test]
    fn file_stats_round_trip() {
        let stats = [FileStat { len: 0, modified_ns: 0 }, FileStat { len: 5 << 30, modified_ns: -7 }];
        let bytes = encode_file_stats(&stats);
        assert_eq!(bytes.len(), file_stats_len(2));
        assert_eq!(bytes[16..24], [0, 0, 0, 1, 0x40, 0, 0, 0]);
        assert_eq!(decode_file_stats(&bytes), stats);
    }
}
