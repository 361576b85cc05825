//! What is known of each published torrent, in memory and as it lies in the store.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::auth::Publisher;
use super::catalogue::seedless::Seedless;
use super::content_file;
use super::publishers::PublisherNumber;
use super::search::Document;
use crate::db::journal::Journal;
use crate::db::record::{Record, RecordError, decode_record, encode_record};
use crate::db::segments::{Position, SegmentError};
use crate::db::{Batch, MAX_VALUE_BYTES, Store, StoreError, Table};
use crate::wire::id::InfoHash;
use crate::wire::metainfo::{Metainfo, MetainfoError};
use crate::wire::name::split_extension;

/// Where the registry's changes are noted before they are answered for: `journal.0` and `journal.1` in the state folder.
///
/// # Errors
/// When the disk fails. What a killed tracker had noted is in the store afterwards.
pub fn open_journal(state_dir: &Path, store: &dyn Store) -> Result<Journal, JournalError> {
    let (mut journal, noted) = Journal::open(state_dir)?;
    if !noted.is_empty() {
        tracing::info!(
            changes = noted.len(),
            "the tracker was killed: what was published last is taken from its journal"
        );
        store.commit(noted)?;
    }
    journal.clear()?;
    Ok(journal)
}

/// Why the journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the journal: {0}")]
    Io(#[from] io::Error),
}

/// Info-hash → [`TorrentRecord`].
const TORRENTS: Table = Table::packed("torrents");
/// Info-hash ‖ public key → [`PublisherRecord`].
const PUBLISHERS: Table = Table::packed("publishers");
/// Publishers of one torrent: who comes later finds it published, and cannot withdraw it.
pub const MAX_PUBLISHERS: usize = 1_000;

/// What a search shows, computed from the `.torrent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub name: Box<str>,
    /// Below upload/, components joined by `/`.
    pub path: Box<str>,
    pub size: u64,
    pub n_parts: u32,
    /// Lines in `search_content.txt`: its files, without padding.
    pub lines: u32,
    /// One file: everything that is indexed stands in this summary.
    pub single_file: bool,
}

impl Summary {
    pub fn of(metainfo: &Metainfo) -> Summary {
        let root = metainfo.root_keys();
        let files = metainfo.files().iter().filter(|file| !file.padding).count();
        let path = metainfo.upload_path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let name = root.name.to_string_lossy().into_owned();
        let mut summary = Summary::single(name.into(), path.into(), root.size, root.n_parts);
        if metainfo.is_multi_file() {
            summary.single_file = false;
            summary.lines = u32::try_from(files).unwrap_or(u32::MAX);
        }
        summary
    }

    fn single(name: Box<str>, path: Box<str>, size: u64, n_parts: u32) -> Summary {
        Summary { name, path, size, n_parts, lines: 1, single_file: true }
    }

    /// After the name's last dot; `-` for none, and for a folder.
    pub fn file_type(&self) -> &str {
        if self.single_file { split_extension(&self.name).1 } else { "-" }
    }

    /// Shows `take` what a search finds it by. `metainfo` is needed for a torrent of several files alone.
    pub fn document<T>(&self, key: InfoHash, metainfo: Option<&Metainfo>, take: impl FnOnce(Document<'_>) -> T) -> T {
        let mut types = BTreeSet::from([Cow::Borrowed(self.file_type())]);
        let files = metainfo.filter(|_| !self.single_file).map(Metainfo::files).unwrap_or_default();
        let files = files.iter().filter(|file| !file.padding);
        for file in files.clone() {
            types.insert(split_extension(&file.path.file_name().to_string_lossy()).1.to_owned().into());
        }
        let paths = files.map(|file| file.path.to_string_lossy());
        let mut paths = std::iter::once(Cow::Borrowed(&*self.path)).chain(paths);
        take(Document { key, name: &self.name, paths: &mut paths, types: &types, size: self.size })
    }
}

/// The torrent's lines of `search_content.txt`.
pub fn content_lines(metainfo: &Metainfo) -> String {
    let key = metainfo.info_hash();
    let files = metainfo.files().iter().filter(|file| !file.padding);
    files.map(|file| content_file::line(&file.path.file_name().to_string_lossy(), &key)).collect()
}

/// One published torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub summary: Summary,
    /// Where its `.torrent` lies.
    pub position: Position,
    /// Unix seconds of its publication.
    pub added: u64,
    /// Who may withdraw it; nobody if it was published without a signature.
    pub publishers: Vec<PublisherNumber>,
    /// Unix seconds since when it is gone from search, its `.torrent` still served to those in the middle of it.
    pub withdrawn_at: Option<u64>,
    pub seedless: Seedless,
}

#[derive(Serialize, Deserialize)]
struct TorrentRecord {
    position: Position,
    added: u64,
    withdrawn_at: Option<u64>,
    /// Spares reading the `.torrent` at start; not for torrents of several files, nor where it would be too long.
    summary: Option<SummaryRecord>,
}

#[derive(Serialize, Deserialize)]
struct SummaryRecord {
    name: Box<str>,
    path: Box<str>,
    size: u64,
    n_parts: u32,
}

impl Record for TorrentRecord {
    const VERSION: u8 = 1;
}

#[derive(Serialize, Deserialize)]
struct PublisherRecord {
    since: u64,
}

impl Record for PublisherRecord {
    const VERSION: u8 = 1;
}

/// Why a stored torrent is left out at start: it is logged, and the rest is served.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("its record: {0}")]
    Record(#[from] RecordError),
    #[error("its .torrent: {0}")]
    Segment(#[from] SegmentError),
    #[error("its .torrent: {0}")]
    Metainfo(#[from] MetainfoError),
}

impl Entry {
    /// Whether a search finds it.
    pub fn is_found(&self) -> bool {
        self.withdrawn_at.is_none() && !self.seedless.hidden
    }

    /// Puts the entry, without its publishers, into a batch.
    pub fn put(&self, key: &InfoHash, batch: &mut Batch) {
        let Summary { name, path, size, n_parts, .. } = self.summary.clone();
        let mut record = TorrentRecord {
            position: self.position,
            added: self.added,
            withdrawn_at: self.withdrawn_at,
            summary: self.summary.single_file.then_some(SummaryRecord { name, path, size, n_parts }),
        };
        let mut bytes = encode_record(&record);
        if bytes.len() > MAX_VALUE_BYTES {
            record.summary = None;
            bytes = encode_record(&record);
        }
        batch.put(TORRENTS, key.as_bytes(), bytes);
    }
}

/// Without its publishers.
pub fn delete(key: &InfoHash, batch: &mut Batch) {
    batch.delete(TORRENTS, key.as_bytes());
}

pub fn put_publisher(key: &InfoHash, publisher: &Publisher, since: u64, batch: &mut Batch) {
    batch.put(PUBLISHERS, &[key.as_bytes(), publisher].concat(), encode_record(&PublisherRecord { since }));
}

pub fn delete_publisher(key: &InfoHash, publisher: &Publisher, batch: &mut Batch) {
    batch.delete(PUBLISHERS, &[key.as_bytes(), publisher].concat());
}

/// Whether the store has it.
///
/// # Errors
/// When the disk fails.
pub fn is_known(store: &dyn Store, key: &InfoHash) -> Result<bool, StoreError> {
    Ok(store.get(TORRENTS, key.as_bytes())?.is_some())
}

/// What is stored of a torrent, unread.
pub struct Stored {
    key: InfoHash,
    record: TorrentRecord,
}

/// A stored torrent as it was found, its publishers aside.
pub struct Loaded {
    pub key: InfoHash,
    pub entry: Entry,
    /// Read where it was needed.
    pub metainfo: Option<Metainfo>,
}

/// Everything that is stored, oldest first.
///
/// # Errors
/// When the store cannot be read. What is damaged is told to `skipped` and left out.
pub fn stored(store: &dyn Store, skipped: impl Fn(&InfoHash, EntryError)) -> Result<Vec<Stored>, StoreError> {
    let mut all: Vec<Stored> = Vec::new();
    store.for_each(TORRENTS, &[], &mut |key, value| {
        let Some(key) = InfoHash::from_slice(key) else { return ControlFlow::Continue(()) };
        match decode_record(value) {
            Ok(record) => all.push(Stored { key, record }),
            Err(error) => skipped(&key, error.into()),
        }
        ControlFlow::Continue(())
    })?;
    all.sort_unstable_by_key(|Stored { record, .. }| (record.added, record.position.file, record.position.offset));
    Ok(all)
}

impl Stored {
    /// `read` fetches the `.torrent` if it is needed. `None` when it is damaged, which is told to `skipped`.
    pub fn load(
        self,
        read: impl Fn(Position) -> Result<Vec<u8>, SegmentError>,
        skipped: impl Fn(&InfoHash, EntryError),
    ) -> Option<Loaded> {
        let key = self.key;
        self.restore(read).map_err(|error| skipped(&key, error)).ok()
    }

    fn restore(self, read: impl Fn(Position) -> Result<Vec<u8>, SegmentError>) -> Result<Loaded, EntryError> {
        let Stored { key, record: TorrentRecord { position, added, withdrawn_at, summary } } = self;
        let (summary, metainfo) = match summary {
            Some(SummaryRecord { name, path, size, n_parts }) => (Summary::single(name, path, size, n_parts), None),
            None => {
                let metainfo = Metainfo::parse(&read(position)?)?;
                (Summary::of(&metainfo), Some(metainfo))
            }
        };
        let (seedless, publishers) = (Seedless::default(), Vec::new());
        Ok(Loaded { key, entry: Entry { summary, position, added, publishers, withdrawn_at, seedless }, metainfo })
    }
}

/// Who publishes what. What is damaged is left out.
///
/// # Errors
/// When the store cannot be read.
pub fn for_each_publisher(store: &dyn Store, mut each: impl FnMut(&InfoHash, &Publisher)) -> Result<(), StoreError> {
    store.for_each(PUBLISHERS, &[], &mut |key, value| {
        let (torrent, publisher) = key.split_at_checked(InfoHash::LEN).unwrap_or_default();
        if let (Some(torrent), Ok(publisher), Ok(_)) =
            (InfoHash::from_slice(torrent), publisher.try_into(), decode_record::<PublisherRecord>(value))
        {
            each(&torrent, publisher);
        }
        ControlFlow::Continue(())
    })
}
