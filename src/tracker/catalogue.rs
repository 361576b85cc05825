//! What was published: found by words, served as `.torrent`, withdrawn by who published it. In memory; the scribe writes
//! behind.

pub mod seedless;

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::seedless::Seedless;
use super::SEGMENTS_DIR;
use super::auth::{Freshness, Publisher};
use super::content_file::{self, ContentFile};
use super::keyed_hash::BuildKeyedHasher;
use super::publishers::Publishers;
use super::registry::{self, Entry, EntryError, JournalError, Loaded, MAX_PUBLISHERS, Stored, Summary};
use super::scribe::{MAX_UNWRITTEN, Scribe};
use super::search::{Builder, Index, Part, Prepared, TooManyWords};
use crate::db::segments::{SegmentError, SegmentLog};
use crate::db::{Batch, Store, StoreError};
use crate::wire::catalogue::{Match, SearchQuery};
use crate::wire::id::InfoHash;
use crate::wire::metainfo::Metainfo;

/// Torrents known at most: some 2 GB of memory. Beyond, publishing is refused.
const MAX_TORRENTS: usize = 2_000_000;
/// Threads that load what is stored: the disk is not faster with more.
const MAX_LOADERS: usize = 16;
/// A withdrawn `.torrent` is served this long to those in the middle of it.
const SERVED_AFTER_WITHDRAWAL_S: u64 = 3_600;
/// The disk keeps this much for others.
pub const RESERVE_BYTES: u64 = 256 << 20;

/// What the catalogue may grow to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caps {
    pub torrents: usize,
    /// Changes that wait for the disk.
    pub unwritten: usize,
    /// Bytes that the disk keeps for others.
    pub reserve_bytes: u64,
}

impl Default for Caps {
    fn default() -> Caps {
        Caps { torrents: MAX_TORRENTS, unwritten: MAX_UNWRITTEN, reserve_bytes: RESERVE_BYTES }
    }
}

/// Who signed a publication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signed {
    pub publisher: Publisher,
    pub freshness: Freshness,
    /// Torrents that this key may publish.
    pub most: usize,
}

/// Why the catalogue cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Segments(#[from] SegmentError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// What publishing did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Published {
    New,
    /// It was there; the publisher is one more who may withdraw it.
    Known,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("this signature was used before: sign again")]
    Replayed,
    #[error("the catalogue is full")]
    Full,
    #[error("this key publishes {0} torrents, which is all that it may: withdraw some")]
    TooMany(usize),
    #[error("the tracker's disk does not keep up: try again in a minute")]
    Behind,
    #[error("the tracker's disk is full")]
    DiskFull,
    #[error("the tracker's disk: {0}")]
    Disk(#[from] SegmentError),
    #[error("the tracker's disk does not take the publication: {0}")]
    Journal(#[from] std::io::Error),
}

/// Why nothing was withdrawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WithdrawError {
    #[error("no such torrent")]
    Unknown,
    #[error("this key has not published it: only its publishers can withdraw it")]
    NotPublisher,
    #[error("the tracker's disk does not keep up: try again in a minute")]
    Behind,
}

/// One torrent in the answer to a search.
#[derive(Clone, Debug)]
pub struct FoundTorrent {
    pub key: InfoHash,
    pub summary: Summary,
    pub added: u64,
    pub matched: Match,
}

pub struct Catalogue {
    /// Whoever changes the tables has his turn. What he changes is noted while others read: they do not wait for the disk.
    turns: Mutex<()>,
    tables: RwLock<Tables>,
    segments: Arc<SegmentLog>,
    scribe: Scribe,
    state_dir: PathBuf,
    caps: Caps,
}

#[derive(Default)]
struct Tables {
    /// The withdrawn ones too, until they are dropped. Boxed: a table that grows holds its places twice, and half of them
    /// are empty.
    entries: HashMap<InfoHash, Box<Entry>, BuildKeyedHasher>,
    publishers: Publishers,
    /// Those that can be found.
    index: Index,
}

/// A publication about to be entered.
struct Change {
    entry: Entry,
    /// It was published before.
    live: bool,
    words: Option<Prepared>,
    joins: Option<Publisher>,
    batch: Batch,
}

impl Tables {
    fn is_live(&self, key: &InfoHash) -> bool {
        self.live(key).is_some()
    }

    fn live(&self, key: &InfoHash) -> Option<&Entry> {
        self.entries.get(key).map(Box::as_ref).filter(|entry| entry.withdrawn_at.is_none())
    }

    fn publishes(&self, entry: &Entry, publisher: &Publisher) -> bool {
        self.publishers.number(publisher).is_some_and(|number| entry.publishers.contains(&number))
    }

    /// What a publication changes. `None` when it was withdrawn at this very moment.
    fn change(
        &self,
        key: &InfoHash,
        prepared: Option<(Entry, Prepared)>,
        signed: Option<Signed>,
        unix_seconds: u64,
    ) -> Option<Change> {
        let live = self.is_live(key);
        let (mut entry, words) = match (self.entries.get(key), prepared) {
            // Two at once may have published it: the other one has entered it.
            (Some(entry), _) if live => ((**entry).clone(), None),
            (Some(entry), Some((_, words))) => ((**entry).clone(), Some(words)),
            (None, Some((new, words))) => (new, Some(words)),
            (_, None) => return None,
        };
        let mut batch = Batch::new();
        if !live {
            seedless::forget(key, &entry, &mut batch);
            entry.seedless = Seedless::since(unix_seconds);
            entry.withdrawn_at = None;
            entry.added = unix_seconds;
            entry.put(key, &mut batch);
        }
        let joins = signed.map(|signed| signed.publisher);
        let joins =
            joins.filter(|publisher| entry.publishers.len() < MAX_PUBLISHERS && !self.publishes(&entry, publisher));
        if let Some(publisher) = joins {
            registry::put_publisher(key, &publisher, unix_seconds, &mut batch);
        }
        Some(Change { entry, live, words, joins, batch })
    }

    /// Forgets the torrent and who published it.
    fn delete(&mut self, key: &InfoHash, batch: &mut Batch) {
        let Some(entry) = self.entries.remove(key) else { return };
        seedless::forget(key, &entry, batch);
        registry::delete(key, batch);
        for number in entry.publishers {
            registry::delete_publisher(key, &self.publishers.remove(number), batch);
        }
    }
}

impl Catalogue {
    /// Everything that the state folder holds. Of whom nothing is written about seeders was seeded until now. Blocking.
    ///
    /// # Errors
    /// When the disk fails. A torrent whose record or `.torrent` is damaged is left out, and logged.
    pub fn open(
        state_dir: &Path,
        store: Arc<dyn Store>,
        caps: Caps,
        unix_seconds: u64,
    ) -> Result<Catalogue, OpenError> {
        let segments = Arc::new(SegmentLog::open(&state_dir.join(SEGMENTS_DIR))?);
        let journal = registry::open_journal(state_dir, &*store)?;
        let mut tables = Tables::default();
        let seedless = seedless::load(&*store)?;
        let stored = registry::stored(&*store, left_out)?;
        let mut parts = Vec::new();
        tables.entries.reserve(stored.len());
        for Share { part, entries } in load_on_all_cores(stored, &segments, |key, entry| {
            entry.seedless = seedless.get(key).copied().unwrap_or(Seedless::since(unix_seconds));
        }) {
            parts.push(part);
            tables.entries.extend(entries);
        }
        drop(seedless);
        let Tables { entries, publishers, .. } = &mut tables;
        // Beside the end of the index, which takes a second for a million.
        let (index, content) = std::thread::scope(|scope| {
            let index = scope.spawn(|| Index::of_parts(parts));
            let rest = registry::for_each_publisher(&*store, |torrent, publisher| {
                if let Some(entry) = entries.get_mut(torrent) {
                    entry.publishers.push(publishers.add(publisher));
                }
            });
            let content = rest.map(|()| content_file(state_dir, entries, &segments));
            (index.join().unwrap_or_else(|panic| resume_unwind(panic)), content)
        });
        tables.index = index;
        let content =
            content?.map_err(|source| OpenError::Io { path: state_dir.join(content_file::FILE_NAME), source })?;
        let scribe = Scribe::start(store, segments.clone(), journal, content, caps.unwritten)
            .map_err(|source| OpenError::Io { path: state_dir.to_path_buf(), source })?;
        Ok(Catalogue {
            turns: Mutex::new(()),
            tables: RwLock::new(tables),
            segments,
            scribe,
            state_dir: state_dir.to_path_buf(),
            caps,
        })
    }

    /// Torrents that can be found.
    pub fn len(&self) -> usize {
        self.read().index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes that the disk does not have yet.
    pub fn unwritten(&self) -> usize {
        self.scribe.pending().len()
    }

    /// Whether the disk takes what is published.
    pub fn is_healthy(&self) -> bool {
        !self.scribe.has_failed()
    }

    /// Enters a torrent, or one more publisher of it. Without a publisher nobody can withdraw it. Blocking.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(
        &self,
        metainfo: &Metainfo,
        signed: Option<Signed>,
        unix_seconds: u64,
    ) -> Result<Published, PublishError> {
        let key = metainfo.info_hash();
        self.admit(&key, signed)?;
        let prepared = self.prepare(metainfo, unix_seconds)?;
        let _turn = self.turn();
        let Change { mut entry, live, words, joins, batch } =
            self.read().change(&key, prepared, signed, unix_seconds).ok_or(PublishError::Behind)?;
        if !batch.is_empty() {
            self.scribe.pending().keep(batch)?;
        }
        let mut tables = self.write();
        entry.publishers.extend(joins.map(|publisher| tables.publishers.add(&publisher)));
        if let Some(words) = words {
            tables.index.insert(words);
            self.scribe.pending().add_lines(&key, &registry::content_lines(metainfo));
        }
        tables.entries.insert(key, Box::new(entry));
        Ok(if live { Published::Known } else { Published::New })
    }

    /// The slow half, without holding anybody up: the entry to be and its words. `None` where the torrent is live.
    fn prepare(&self, metainfo: &Metainfo, unix_seconds: u64) -> Result<Option<(Entry, Prepared)>, PublishError> {
        let key = metainfo.info_hash();
        let (live, stored_at) = {
            let tables = self.read();
            (tables.is_live(&key), tables.entries.get(&key).map(|entry| entry.position))
        };
        if live {
            return Ok(None);
        }
        let position = match stored_at {
            Some(position) => position,
            // What lies beside `info` and is not ours is not kept: 10 MiB of it could be.
            None => self.segments.append(&metainfo.with_announce(None))?,
        };
        let summary = Summary::of(metainfo);
        let words = summary.document(key, Some(metainfo), Prepared::new);
        let (added, seedless) = (unix_seconds, Seedless::since(unix_seconds));
        let entry = Entry { summary, position, added, publishers: Vec::new(), withdrawn_at: None, seedless };
        Ok(Some((entry, words)))
    }

    fn admit(&self, key: &InfoHash, signed: Option<Signed>) -> Result<(), PublishError> {
        let tables = self.read();
        let entry = tables.live(key);
        if let Some(Signed { publisher, freshness, most }) = signed
            && !entry.is_some_and(|entry| tables.publishes(entry, &publisher))
        {
            if freshness == Freshness::Replayed {
                return Err(PublishError::Replayed);
            }
            // Those that come at the same moment are counted a moment later.
            let has = tables.publishers.torrents(&publisher);
            if has >= most {
                return Err(PublishError::TooMany(has));
            }
        }
        if entry.is_none() && tables.entries.len() >= self.caps.torrents {
            return Err(PublishError::Full);
        }
        if !self.scribe.has_room() {
            return Err(PublishError::Behind);
        }
        let full = disk_is_full(&self.state_dir, self.caps.reserve_bytes);
        if full { Err(PublishError::DiskFull) } else { Ok(()) }
    }

    /// Takes this publisher from the torrent; with the last one it leaves the search.
    ///
    /// # Errors
    /// See [`WithdrawError`].
    pub fn withdraw(&self, key: &InfoHash, publisher: &Publisher, unix_seconds: u64) -> Result<(), WithdrawError> {
        if !self.scribe.has_room() {
            return Err(WithdrawError::Behind);
        }
        let _turn = self.turn();
        let (changed, number, batch) = {
            let tables = self.read();
            let mut entry = tables.live(key).ok_or(WithdrawError::Unknown)?.clone();
            let number = tables.publishers.number(publisher).ok_or(WithdrawError::NotPublisher)?;
            let place = entry.publishers.iter().position(|known| *known == number);
            entry.publishers.swap_remove(place.ok_or(WithdrawError::NotPublisher)?);
            let mut batch = Batch::new();
            registry::delete_publisher(key, publisher, &mut batch);
            if entry.publishers.is_empty() {
                entry.withdrawn_at = Some(unix_seconds);
                entry.put(key, &mut batch);
            }
            (entry, number, batch)
        };
        self.scribe.pending().keep(batch).map_err(|_| WithdrawError::Behind)?;
        let mut tables = self.write();
        tables.publishers.remove(number);
        if changed.withdrawn_at.is_some() {
            tables.index.remove(key);
            self.scribe.pending().remove_lines(*key);
        }
        tables.entries.insert(*key, Box::new(changed));
        Ok(())
    }

    /// The `.torrent`, of a torrent withdrawn within the last hour too; `None` if it is not known. Blocking.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn torrent(&self, key: &InfoHash) -> Result<Option<Vec<u8>>, SegmentError> {
        let position = self.read().entries.get(key).map(|entry| entry.position);
        position.map(|position| self.segments.read(position)).transpose()
    }

    /// Whether it can be found.
    pub fn contains(&self, key: &InfoHash) -> bool {
        self.read().is_live(key)
    }

    /// Whether this key published it, and has not withdrawn it since.
    pub fn is_publisher(&self, key: &InfoHash, publisher: &Publisher) -> bool {
        let tables = self.read();
        tables.live(key).is_some_and(|entry| tables.publishes(entry, publisher))
    }

    /// Those of the concatenated keys that cannot be found, in the same form.
    pub fn unknown(&self, keys: &[u8]) -> Vec<u8> {
        let tables = self.read();
        let keys = keys.chunks_exact(InfoHash::LEN).filter_map(InfoHash::from_slice);
        keys.filter(|key| !tables.is_live(key)).flat_map(|key| key.as_bytes().to_vec()).collect()
    }

    /// The number of all that match, and the page asked for. Takes milliseconds with a million torrents.
    ///
    /// # Errors
    /// When the query has too many words.
    pub fn search(&self, query: &SearchQuery) -> Result<(u64, Vec<FoundTorrent>), TooManyWords> {
        let tables = self.read();
        let found = tables.index.search(query)?;
        let page = found.hits.into_iter().filter_map(|(key, matched)| {
            let entry = tables.entries.get(&key)?;
            Some(FoundTorrent { key, summary: entry.summary.clone(), added: entry.added, matched })
        });
        Ok((found.total, page.collect()))
    }

    /// Drops what was withdrawn an hour ago. To be called every minute or so.
    pub fn drop_withdrawn(&self, unix_seconds: u64) {
        let due = |entry: &Entry| {
            entry.withdrawn_at.is_some_and(|at| unix_seconds.saturating_sub(at) >= SERVED_AFTER_WITHDRAWAL_S)
        };
        let keys: Vec<InfoHash> =
            self.read().entries.iter().filter(|(_, entry)| due(entry.as_ref())).map(|(key, _)| *key).collect();
        if keys.is_empty() {
            return;
        }
        let _turn = self.turn();
        let mut tables = self.write();
        let mut pending = self.scribe.pending();
        let mut change = Batch::new();
        for key in keys {
            if tables.entries.get(&key).is_some_and(|entry| due(entry)) {
                tables.delete(&key, &mut change);
            }
        }
        pending.add(change);
    }

    /// The file that `GET /search_content.txt` serves.
    pub fn content_path(&self) -> PathBuf {
        self.state_dir.join(content_file::FILE_NAME)
    }

    /// Writes everything. Blocking.
    pub fn stop(&self) {
        self.scribe.stop();
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn left_out(key: &InfoHash, error: EntryError) {
    tracing::error!(%key, %error, "a published torrent is left out");
}

/// What one core has loaded.
struct Share {
    part: Part,
    entries: Vec<(InfoHash, Box<Entry>)>,
}

/// The stored torrents and their words, in parts, the oldest first.
fn load_on_all_cores(
    mut stored: Vec<Stored>,
    segments: &SegmentLog,
    complete: impl Fn(&InfoHash, &mut Entry) + Sync,
) -> Vec<Share> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_LOADERS));
    let each = stored.len().div_ceil(cores).max(1);
    let mut shares = Vec::new();
    while !stored.is_empty() {
        shares.push(stored.split_off(stored.len().saturating_sub(each)));
    }
    let load = |share: Vec<Stored>| {
        let (mut builder, mut entries) = (Builder::with_capacity(share.len()), Vec::with_capacity(share.len()));
        for stored in share {
            let Some(loaded) = stored.load(|position| segments.read(position), left_out) else { continue };
            let Loaded { key, mut entry, metainfo } = loaded;
            complete(&key, &mut entry);
            if entry.is_found() {
                entry.summary.document(key, metainfo.as_ref(), |document| builder.push(document));
            }
            entries.push((key, Box::new(entry)));
        }
        Share { part: builder.finish(), entries }
    };
    std::thread::scope(|scope| {
        let loaders: Vec<_> = shares.into_iter().rev().map(|share| scope.spawn(|| load(share))).collect();
        loaders.into_iter().map(|loader| loader.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Whether the disk is full but for what is left to others.
pub fn disk_is_full(state_dir: &Path, reserve_bytes: u64) -> bool {
    let free = nix::sys::statvfs::statvfs(state_dir);
    free.map_or(u64::MAX, |disk| disk.blocks_available() * disk.fragment_size()) < reserve_bytes
}

/// The content file as the registry demands it.
fn content_file(
    state_dir: &Path,
    entries: &HashMap<InfoHash, Box<Entry>, BuildKeyedHasher>,
    segments: &SegmentLog,
) -> std::io::Result<ContentFile> {
    let found = entries.iter().filter(|(_, entry)| entry.is_found());
    let lines = found.map(|(key, entry)| (*key, entry.summary.lines));
    let (mut content, missing) = ContentFile::open(state_dir, lines)?;
    for key in missing {
        let Some(entry) = entries.get(&key) else { continue };
        if entry.summary.single_file {
            content.append(&content_file::line(&entry.summary.name, &key))?;
            continue;
        }
        let metainfo = segments.read(entry.position).ok().and_then(|bytes| Metainfo::parse(&bytes).ok());
        match metainfo {
            Some(metainfo) => content.append(&registry::content_lines(&metainfo))?,
            None => tracing::error!(%key, "its files are missing from search_content.txt: its .torrent is damaged"),
        }
    }
    Ok(content)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::db::{MemStore, Submitted, Table, Visit};
    use crate::wire::id::PieceCheck;
    use crate::wire::metainfo::{InfoSpec, SpecFiles, build};
    use crate::wire::name::{FileName, RelPath};
    use std::time::{Duration, Instant};

    const HOUR: u64 = SERVED_AFTER_WITHDRAWAL_S;

    pub(in crate::tracker) fn torrent(name: &str, files: &[&str]) -> Metainfo {
        let name = FileName::new(name.as_bytes()).unwrap();
        let paths = files.iter().map(|file| (RelPath::parse(file.as_bytes()).unwrap(), 5));
        let files = if files.is_empty() { SpecFiles::Single(10) } else { SpecFiles::Multi(paths.collect()) };
        let pieces = vec![PieceCheck::Sha1([7; 20])];
        let spec = InfoSpec { name, files, piece_bytes: 65_536, pieces, private: true };
        let folder = RelPath::parse(b"some/folder").unwrap();
        Metainfo::parse(&build(&spec, None, Some(&folder)).unwrap()).unwrap()
    }

    pub(in crate::tracker) fn found(catalogue: &Catalogue, words: &str) -> Vec<String> {
        let (total, page) = catalogue.search(&SearchQuery::words(words)).unwrap();
        assert_eq!(total, page.len() as u64);
        page.into_iter().map(|found| found.summary.name.into()).collect()
    }

    pub(in crate::tracker) fn content(catalogue: &Catalogue) -> String {
        std::fs::read_to_string(catalogue.content_path()).unwrap()
    }

    pub(in crate::tracker) fn by(n: u8) -> Option<Signed> {
        Some(Signed { publisher: [n; 32], freshness: Freshness::New, most: 100 })
    }

    #[test]
    fn publishers_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(MemStore::new());
        let catalogue = Catalogue::open(dir.path(), store, Caps::default(), 0).unwrap();
        let metainfo = torrent("got5.mp4", &[]);
        let key = metainfo.info_hash();
        assert_eq!(catalogue.publish(&metainfo, by(1), 100).unwrap(), Published::New);
        assert_eq!(catalogue.publish(&metainfo, by(1), 101).unwrap(), Published::Known);
        assert_eq!(catalogue.publish(&metainfo, by(2), 102).unwrap(), Published::Known);
        assert_eq!(catalogue.publish(&metainfo, None, 103).unwrap(), Published::Known);
        assert_eq!(catalogue.withdraw(&key, &[9; 32], 104), Err(WithdrawError::NotPublisher));
        catalogue.withdraw(&key, &[1; 32], 105).unwrap();
        assert_eq!(found(&catalogue, "got5"), ["got5.mp4"]);
        catalogue.withdraw(&key, &[2; 32], 106).unwrap();
        assert_eq!(found(&catalogue, "got5"), [""; 0]);
        assert_eq!(catalogue.withdraw(&key, &[2; 32], 107), Err(WithdrawError::Unknown));
        assert_eq!(catalogue.unknown(&[key.as_bytes(), &[1; 20]].concat()), [key.as_bytes(), &[1; 20]].concat());
        // Those in the middle of it get the .torrent for an hour.
        catalogue.drop_withdrawn(105 + HOUR);
        let bytes = catalogue.torrent(&key).unwrap().unwrap();
        assert_eq!(Metainfo::parse(&bytes).unwrap().info_hash(), key);
        catalogue.drop_withdrawn(106 + HOUR);
        assert_eq!(catalogue.torrent(&key).unwrap(), None);
    }

    #[test]
    fn a_replayed_signature_does_nothing_that_was_undone() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(dir.path(), Arc::new(MemStore::new()), Caps::default(), 0).unwrap();
        let metainfo = torrent("a", &[]);
        let replayed = by(1).map(|by| Signed { freshness: Freshness::Replayed, ..by });
        assert!(matches!(catalogue.publish(&metainfo, replayed, 1), Err(PublishError::Replayed)));
        catalogue.publish(&metainfo, by(1), 1).unwrap();
        assert_eq!(catalogue.publish(&metainfo, replayed, 2).unwrap(), Published::Known);
        catalogue.withdraw(&metainfo.info_hash(), &[1; 32], 3).unwrap();
        assert!(matches!(catalogue.publish(&metainfo, replayed, 4), Err(PublishError::Replayed)));
    }

    #[test]
    fn a_publisher_has_its_share_over_restarts_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(MemStore::new());
        let few = |n| by(n).map(|by| Signed { most: 2, ..by });
        let torrents: Vec<Metainfo> = ["a", "b", "c", "d"].iter().map(|name| torrent(name, &[])).collect();
        let publish = |catalogue: &Catalogue, n: usize, by| catalogue.publish(&torrents[n], by, 1);
        let catalogue = Catalogue::open(dir.path(), store.clone(), Caps::default(), 0).unwrap();
        publish(&catalogue, 0, few(2)).unwrap();
        publish(&catalogue, 0, few(1)).unwrap();
        publish(&catalogue, 1, few(1)).unwrap();
        assert!(matches!(publish(&catalogue, 2, few(1)), Err(PublishError::TooMany(2))));
        assert_eq!(publish(&catalogue, 1, few(1)).unwrap(), Published::Known, "it is its own already");
        publish(&catalogue, 2, few(2)).unwrap();
        publish(&catalogue, 3, None).unwrap();
        catalogue.stop();
        drop(catalogue);
        let catalogue = Catalogue::open(dir.path(), store, Caps::default(), 0).unwrap();
        assert!(matches!(publish(&catalogue, 3, few(1)), Err(PublishError::TooMany(2))));
        catalogue.withdraw(&torrents[0].info_hash(), &[1; 32], 2).unwrap();
        publish(&catalogue, 3, few(1)).unwrap();
    }

    #[test]
    fn a_restart_knows_everything_and_the_content_file_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(MemStore::new());
        let single = torrent("Film (2020).mkv", &[]);
        let folder = torrent("Album.2.0", &["one.flac", "sub/two.flac", "cover.jpg"]);
        let long = torrent(&"x".repeat(255), &[]);
        let gone = torrent("gone.txt", &[]);
        let catalogue = Catalogue::open(dir.path(), store.clone(), Caps::default(), 0).unwrap();
        for (at, metainfo) in [(1, &single), (2, &folder), (3, &long), (4, &gone)] {
            catalogue.publish(metainfo, by(1), at).unwrap();
        }
        catalogue.withdraw(&gone.info_hash(), &[1; 32], 5).unwrap();
        let expected = [&single, &folder, &long].map(registry::content_lines).concat();
        assert_eq!(expected.lines().count(), 5);
        catalogue.stop();
        assert_eq!(content(&catalogue), expected);
        // As after a crash that lost the content file's end.
        let cut = content(&catalogue).len() - 400;
        std::fs::write(catalogue.content_path(), &content(&catalogue)[..cut]).unwrap();
        drop(catalogue);

        let catalogue = Catalogue::open(dir.path(), store, Caps::default(), 0).unwrap();
        assert_eq!(found(&catalogue, ""), [&"x".repeat(255), "Album.2.0", "Film (2020).mkv"]);
        assert_eq!(found(&catalogue, "two flac"), ["Album.2.0"]);
        assert_eq!(found(&catalogue, "some folder film"), ["Film (2020).mkv"]);
        let mut lines: Vec<String> = content(&catalogue).lines().map(str::to_owned).collect();
        let mut expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        lines.sort();
        expected.sort();
        assert_eq!(lines, expected);
        assert!(catalogue.torrent(&gone.info_hash()).unwrap().is_some());
        catalogue.withdraw(&single.info_hash(), &[1; 32], 9).unwrap();
        assert_eq!(catalogue.publish(&gone, by(1), 10).unwrap(), Published::New);
        assert_eq!(found(&catalogue, "gone"), ["gone.txt"]);
    }

    /// A store that takes nothing while its gate is held.
    #[derive(Default)]
    struct Held {
        store: MemStore,
        gate: Mutex<()>,
    }

    impl Store for Held {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.get(table, key)
        }
        fn for_each(&self, table: Table, prefix: &[u8], f: &mut Visit<'_>) -> Result<(), StoreError> {
            self.store.for_each(table, prefix, f)
        }
        fn commit(&self, batch: Batch) -> Result<(), StoreError> {
            let _gate = self.gate.lock().unwrap();
            self.store.commit(batch)
        }
        fn submit(&self, batch: Batch) -> Submitted {
            self.store.submit(batch)
        }
    }

    /// The files as a kill leaves them at this moment.
    fn left_by_a_kill(state_dir: &Path) -> tempfile::TempDir {
        let left = tempfile::tempdir().unwrap();
        std::fs::create_dir(left.path().join(SEGMENTS_DIR)).unwrap();
        for folder in ["", SEGMENTS_DIR] {
            for file in std::fs::read_dir(state_dir.join(folder)).unwrap().map(Result::unwrap) {
                if file.file_type().unwrap().is_file() {
                    std::fs::copy(file.path(), left.path().join(folder).join(file.file_name())).unwrap();
                }
            }
        }
        left
    }

    #[test]
    fn what_was_answered_outlives_a_kill_before_the_store_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Held::default());
        let catalogue = Catalogue::open(dir.path(), store.clone(), Caps::default(), 0).unwrap();
        let (kept, gone) = (torrent("kept.txt", &[]), torrent("gone.txt", &[]));
        let left = {
            let _gate = store.gate.lock().unwrap();
            catalogue.publish(&kept, by(1), 1).unwrap();
            catalogue.publish(&kept, by(2), 2).unwrap();
            catalogue.publish(&gone, by(1), 3).unwrap();
            catalogue.withdraw(&gone.info_hash(), &[1; 32], 4).unwrap();
            left_by_a_kill(dir.path())
        };
        for _ in 0..2 {
            // The second time as if the start had been killed too, before the store had it.
            let again = left_by_a_kill(left.path());
            let catalogue = Catalogue::open(again.path(), Arc::new(MemStore::new()), Caps::default(), 5).unwrap();
            assert_eq!(found(&catalogue, "txt"), ["kept.txt"]);
            assert!(catalogue.is_publisher(&kept.info_hash(), &[2; 32]));
            assert!(catalogue.torrent(&gone.info_hash()).unwrap().is_some(), "for those in the middle of it");
            assert_eq!(content(&catalogue), registry::content_lines(&kept));
        }
        catalogue.stop();
        let empty = left_by_a_kill(dir.path());
        let catalogue = Catalogue::open(empty.path(), Arc::new(MemStore::new()), Caps::default(), 5).unwrap();
        assert!(catalogue.is_empty(), "what the store has is not noted any more");
    }

    #[test]
    fn publications_reach_the_disk_by_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(MemStore::new());
        let catalogue = Catalogue::open(dir.path(), store.clone(), Caps::default(), 0).unwrap();
        let metainfo = torrent("a.txt", &[]);
        catalogue.publish(&metainfo, by(1), 1).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while catalogue.unwritten() > 0 || content(&catalogue).is_empty() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(content(&catalogue), registry::content_lines(&metainfo));
    }
}
