//! What every part of the daemon shares, and the few things that need all of it: granting memory for a block, making a
//! torrent's active half.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::sync::{Notify, Semaphore};

use super::announcing::Announcer;
use super::banning::Bouncer;
use super::commit::CommitQueue;
use super::descriptors;
use super::disk::assembly::Assembly;
use super::disk::check;
use super::disk::fs::{FileStat, FileSystem};
use super::disk::pool::{Buffer, BufferPool, DEFAULT_BUDGET_BYTES};
use super::disk::storage::{FdCache, PlaceError, Storage, StorageError};
use super::hashing::Hashing;
use super::identity::Signer;
use super::journal::Journal;
use super::ledger::Ledger;
use super::limits::Limits;
use super::missing::Gone;
use super::neighbours;
use super::options::Options;
use super::publishing::Publisher;
use super::records;
use super::sharing::Shares;
use super::tasks::Tasks;
use super::torrent::{Active, Inner, Origin, Status, Torrent};
use super::trackers::catalogue::Catalogue;
use super::trackers::client::{Patience, TrackerClient};
use super::trackers::http::HttpSetupError;
use super::trackers::{OurTracker, TrackerUrl};
use crate::clock::{Clock, Time};
use crate::db::chunks::{self, ChunkError};
use crate::db::segments::{SegmentError, SegmentLog};
use crate::db::{Batch, Store, StoreError};
use crate::swarm::choker::{Choker, UploadSlots};
use crate::swarm::dial::KnownPeers;
use crate::swarm::neighbours::Neighbours;
use crate::swarm::{SessionId, Swarm, SwarmConfig};
use crate::wire::bitfield::Bitfield;
use crate::wire::id::{InfoHash, PeerId};
use crate::wire::layout::{MAX_BLOCK_BYTES, PieceIndex};
use crate::wire::metainfo::{FileEntry, Metainfo, MetainfoError};
use crate::wire::name::{FileName, NameError, RelPath};

/// design.md section 6: sessions of one torrent.
pub const MAX_SESSIONS_PER_TORRENT: usize = 50;
/// How long a torrent is news: those who heard of it come within the hour.
const NEWS: Duration = Duration::from_secs(3_600);
/// Warnings kept for `peerctl status`.
const MAX_WARNINGS: usize = 20;
/// A request window's bound per peer: 1 Gbit/s over 40 ms of round trip is 5 MB in flight.
const WINDOW_MAX_BYTES: u32 = 8 << 20;

pub struct Core {
    pub options: Options,
    pub clock: Arc<dyn Clock>,
    pub store: Arc<dyn Store>,
    pub segments: Arc<SegmentLog>,
    pub files: Arc<dyn FileSystem>,
    pub descriptors: Arc<FdCache>,
    pub pool: BufferPool,
    pub tasks: Tasks,
    pub identity: Signer,
    pub peer_id: PeerId,
    /// What we listen on; the first port of it is the one we announce.
    pub listening: Vec<SocketAddr>,
    pub session_permits: Arc<Semaphore>,
    pub shares_of_descriptors: descriptors::Shares,
    /// One for each pipe of a fast upload.
    pub pipe_permits: Arc<Semaphore>,
    pub hashing: Hashing,
    pub commits: CommitQueue,
    pub journal: Journal,
    pub ledger: Ledger,
    pub limits: Limits,
    pub announcer: Announcer,
    pub publisher: Publisher,
    pub shares: Shares,
    pub trackers: Arc<TrackerClient>,
    pub our_tracker: Arc<TrackerUrl>,
    pub further_trackers: Vec<Arc<TrackerUrl>>,
    /// Tells trackers that it is still us when our address changes.
    pub announce_key: u32,
    pub choking: Notify,
    pub dialling: Notify,
    pub bouncer: Bouncer,
    /// `peerctl leave` has been carried out.
    pub leave: Notify,
    choker: Mutex<Choker>,
    pub started: Time,
    /// The daemon stops: whoever hashes gives up.
    pub stopping: AtomicBool,
    catalogue: Catalogue,
    /// What the user should know, newest last.
    warnings: Mutex<VecDeque<String>>,
    torrents: RwLock<Torrents>,
    /// Torrents that have an active half: the only ones that timers look at.
    live: Mutex<HashMap<InfoHash, Arc<Torrent>>>,
    next_session: AtomicU32,
    random: Mutex<SmallRng>,
}

/// All torrents, and where the data of those that are or were fetched lies.
#[derive(Default)]
struct Torrents {
    by_key: HashMap<InfoHash, Arc<Torrent>>,
    fetched: HashMap<PathBuf, InfoHash>,
}

/// The parts of [`Core`] that somebody else makes.
pub struct Parts {
    pub options: Options,
    pub clock: Arc<dyn Clock>,
    pub store: Arc<dyn Store>,
    pub segments: Arc<SegmentLog>,
    pub files: Arc<dyn FileSystem>,
    pub identity: Signer,
    pub journal: Journal,
    pub listening: Vec<SocketAddr>,
    pub ledger: Ledger,
    pub shares: Shares,
    pub tracker: OurTracker,
    /// The tracker runs inside this process.
    pub embedded: bool,
    pub seed: u64,
}

/// Why a torrent's active half could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    #[error("its .torrent could not be read back: {0}")]
    Store(#[from] StoreError),
    #[error("its .torrent is damaged: {0}")]
    Metainfo(#[from] MetainfoError),
    #[error("its .torrent could not be read back: {0}")]
    Segments(#[from] SegmentError),
    #[error("its files cannot be placed: {0}")]
    Place(#[from] PlaceError),
    #[error("its name cannot be used: {0}")]
    Name(#[from] NameError),
    #[error("{0}")]
    Storage(#[from] StorageError),
    #[error("{}: {source}", folder.display())]
    Folder { folder: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Gone(#[from] Gone),
}

impl Core {
    /// # Errors
    /// When HTTP cannot be set up.
    pub fn new(parts: Parts) -> Result<Core, HttpSetupError> {
        let mut random = SmallRng::seed_from_u64(parts.seed);
        let mut bytes = [0; 12];
        random.fill_bytes(&mut bytes);
        let trackers = Arc::new(TrackerClient::new(Patience::default())?);
        let further = parts.options.further_trackers.iter().filter_map(|url| TrackerUrl::parse(url).ok());
        let slots = parts.options.upload_slots.map_or(UploadSlots::Default, UploadSlots::Fixed);
        let further_trackers = further.filter(|url| !url.names(&parts.tracker)).map(Arc::new).collect();
        let shares_of_descriptors = descriptors::Shares::of_this_process();
        Ok(Core {
            shares_of_descriptors,
            catalogue: Catalogue::new(trackers.clone(), parts.tracker.clone(), parts.clock.clone()),
            trackers,
            our_tracker: Arc::new(TrackerUrl::Ours(parts.tracker.clone())),
            further_trackers,
            announce_key: random.next_u32(),
            leave: Notify::new(),
            choker: Mutex::new(Choker::new(slots, random.next_u64())),
            started: parts.clock.now(),
            stopping: AtomicBool::new(false),
            warnings: Mutex::default(),
            announcer: Announcer::new(parts.tracker, parts.embedded),
            publisher: Publisher::default(),
            limits: Limits::new(
                parts.clock.now(),
                parts.options.limit_up,
                parts.options.limit_down,
                parts.options.lan_exempt,
            ),
            options: parts.options,
            clock: parts.clock,
            store: parts.store,
            segments: parts.segments,
            files: parts.files,
            descriptors: Arc::new(FdCache::new(shares_of_descriptors.files)),
            pool: BufferPool::new(DEFAULT_BUDGET_BYTES),
            tasks: Tasks::new(),
            identity: parts.identity,
            peer_id: PeerId::ours(bytes),
            listening: parts.listening,
            session_permits: Arc::new(Semaphore::new(shares_of_descriptors.sessions)),
            pipe_permits: Arc::new(Semaphore::new(shares_of_descriptors.pipes)),
            hashing: Hashing::default(),
            commits: CommitQueue::default(),
            journal: parts.journal,
            ledger: parts.ledger,
            shares: parts.shares,
            bouncer: Bouncer::default(),
            choking: Notify::new(),
            dialling: Notify::new(),
            torrents: RwLock::default(),
            live: Mutex::new(HashMap::new()),
            next_session: AtomicU32::new(1),
            random: Mutex::new(random),
        })
    }

    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Whether a `.torrent` names our tracker, and so belongs to our network.
    pub fn names_our_tracker(&self, meta: &Metainfo) -> bool {
        let ours = self.catalogue.tracker();
        meta.trackers().iter().flatten().any(|url| TrackerUrl::parse(url).is_ok_and(|url| url.names(ours)))
    }

    /// Something for `peerctl status`: said once, until twenty others have come.
    pub fn warn(&self, warning: String) {
        tracing::warn!("{warning}");
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.retain(|known| *known != warning);
        if warnings.len() == MAX_WARNINGS {
            warnings.pop_front();
        }
        warnings.push_back(warning);
    }

    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// A seed or id from the daemon's generator.
    pub fn random_u64(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }

    pub fn next_session_id(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    pub fn torrent(&self, key: InfoHash) -> Option<Arc<Torrent>> {
        self.read_torrents().by_key.get(&key).cloned()
    }

    /// All torrents, in no order.
    pub fn torrents_unsorted(&self) -> Vec<Arc<Torrent>> {
        self.read_torrents().by_key.values().cloned().collect()
    }

    /// All torrents, oldest first.
    pub fn torrents(&self) -> Vec<Arc<Torrent>> {
        let mut all = self.torrents_unsorted();
        all.sort_by(|a, b| (a.summary.added, &a.summary.name).cmp(&(b.summary.added, &b.summary.name)));
        all
    }

    /// Adds a torrent unless there is one of its key; returns the one that stands.
    pub fn insert(&self, torrent: Arc<Torrent>) -> Arc<Torrent> {
        let mut torrents = self.torrents.write().unwrap_or_else(PoisonError::into_inner);
        let torrent = torrents.by_key.entry(torrent.key()).or_insert(torrent).clone();
        if torrent.with_status(Status::is_fetched) {
            torrents.fetched.insert(self.data_path(&torrent), torrent.key());
        }
        torrent
    }

    /// Whether a path is, or lies in, what a torrent was fetched as.
    pub fn is_fetched(&self, path: &Path) -> bool {
        let torrents = self.read_torrents();
        let key = path.ancestors().find_map(|path| torrents.fetched.get(path));
        let torrent = key.and_then(|key| torrents.by_key.get(key));
        torrent.is_some_and(|torrent| torrent.with_status(Status::is_fetched))
    }

    pub fn forget(&self, key: InfoHash) {
        let mut torrents = self.torrents.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(torrent) = torrents.by_key.remove(&key) {
            let path = self.data_path(&torrent);
            if torrents.fetched.get(&path) == Some(&key) {
                torrents.fetched.remove(&path);
            }
        }
        drop(torrents);
        self.live().remove(&key);
    }

    fn read_torrents(&self) -> RwLockReadGuard<'_, Torrents> {
        self.torrents.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Torrents with an active half.
    /// Who may be served. Held for the time of a review.
    pub fn choker(&self) -> MutexGuard<'_, Choker> {
        self.choker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn live_torrents(&self) -> Vec<Arc<Torrent>> {
        self.live().values().cloned().collect()
    }

    fn live(&self) -> MutexGuard<'_, HashMap<InfoHash, Arc<Torrent>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for a block of `bytes`, at once.
    pub fn try_grant(&self, bytes: u32) -> Option<Buffer> {
        if self.commits.is_full(self.pool.in_use_bytes() as u64) {
            return None;
        }
        self.pool.try_take(bytes as usize)
    }

    /// Memory for a block, when there is some and the disk keeps up: until then the peer is not read from. Never
    /// resolves for a length that no block has.
    pub async fn grant(&self, bytes: u32) -> Buffer {
        loop {
            self.commits.wait_for_room(|| self.pool.in_use_bytes() as u64).await;
            let Some(buffer) = self.pool.take(bytes as usize).await else { return std::future::pending().await };
            if !self.commits.is_full(self.pool.in_use_bytes() as u64) {
                return buffer;
            }
        }
    }

    /// The torrent's active half, made if there is none.
    ///
    /// # Errors
    /// When its `.torrent` cannot be read back or its folder cannot be opened.
    pub async fn activate(self: &Arc<Self>, torrent: &Arc<Torrent>) -> Result<Arc<Active>, ActivateError> {
        let _making = torrent.making().await;
        if let Some(active) = torrent.active() {
            return Ok(active);
        }
        let core = self.clone();
        let of = torrent.clone();
        let (active, regained) = tokio::task::spawn_blocking(move || core.make_active(&of))
            .await
            .map_err(|_| ActivateError::Store(StoreError::Closed))??;
        let active = Arc::new(active);
        torrent.set_active(active.clone());
        for piece in regained {
            self.commits.add(torrent, &active, piece, u64::from(torrent.summary.layout.piece_len(piece)));
            self.commits.hurry();
        }
        self.live().insert(torrent.key(), torrent.clone());
        Ok(active)
    }

    /// Lets go of the active half of a torrent that nobody needs just now.
    /// `by_force` even if somebody does: sessions end on the old half, and the next one begins on a new one.
    pub async fn deactivate(&self, torrent: &Arc<Torrent>, by_force: bool) {
        let _making = torrent.making().await;
        if torrent.let_go(by_force) {
            self.live().remove(&torrent.key());
        }
    }

    /// The active half, and pieces of an earlier run that are had and still to be committed.
    fn make_active(&self, torrent: &Torrent) -> Result<(Active, Vec<PieceIndex>), ActivateError> {
        let meta = self.read_metainfo(torrent)?;
        let layout = meta.layout();
        let status = torrent.status();
        let storage = self.open_storage(&meta, &status)?;
        let committed = if status.complete {
            Bitfield::full(layout.piece_count())
        } else {
            self.load_bitfield(torrent, &meta, &storage)?
        };
        let regained = if status.complete { Vec::new() } else { self.regain(torrent, &meta, &storage, &committed) };
        let mut have = committed.clone();
        for piece in &regained {
            have.set(*piece);
        }
        let config = SwarmConfig {
            max_block_bytes: MAX_BLOCK_BYTES,
            window_max_bytes: WINDOW_MAX_BYTES,
            windows_total_bytes: DEFAULT_BUDGET_BYTES as u64,
            sequential: false,
            crowd_expected: self.is_news(torrent),
        };
        let mut book = KnownPeers::new(MAX_SESSIONS_PER_TORRENT, self.random_u64());
        for own in &self.listening {
            book.add_own(*own);
        }
        let remembered = neighbours::recall(self, torrent, &mut book)?;
        let inner = Inner {
            swarm: Swarm::new(config, layout, have, self.random_u64()),
            assembly: Assembly::new(layout),
            book,
            neighbours: Neighbours::default(),
            remembered,
            sessions: HashMap::new(),
            committed,
            retired: false,
        };
        Ok((Active::new(meta, storage, inner), regained))
    }

    /// Whether it was added a short while ago, and since we were started: what was there before has met its crowd.
    fn is_news(&self, torrent: &Torrent) -> bool {
        let age_s = self.clock.unix_seconds().saturating_sub(torrent.summary.added);
        age_s <= NEWS.min(self.clock.now().since(self.started)).as_secs()
    }

    /// Pieces that an earlier run wrote and could not commit, and that are right as they lie.
    fn regain(&self, torrent: &Torrent, meta: &Metainfo, storage: &Storage, committed: &Bitfield) -> Vec<PieceIndex> {
        let (key, layout) = (torrent.key(), meta.layout());
        let mut left = self.journal.take_left(key, layout);
        left.retain(|piece| !committed.get(*piece));
        let named = left.len();
        left.retain(|&piece| {
            let (start, len) = (layout.piece_start(piece), u64::from(layout.piece_len(piece)));
            let right = check::check_piece(storage, layout, piece, &meta.piece_check(piece));
            right.is_ok_and(|right| right) && storage.touch(start, len).is_ok()
        });
        for piece in &left {
            self.journal.add(key, *piece);
        }
        if named > 0 {
            tracing::info!(torrent = %torrent.summary.name, named, kept = left.len(), "pieces written before an unclean stop");
        }
        left
    }

    /// Opens the files of a torrent where its status says that they lie.
    ///
    /// # Errors
    /// When the folder cannot be opened.
    pub fn open_storage(&self, meta: &Metainfo, status: &Status) -> Result<Storage, ActivateError> {
        let folder = self.folder_of(&status.origin);
        let root = self.files.open_root(&folder).map_err(|source| ActivateError::Folder { folder, source })?;
        let cache = self.descriptors.clone();
        let files = meta.files().to_vec();
        match &status.origin {
            Origin::Upload { path } => {
                // The name may have changed since the torrent was made: the path says where the one file lies.
                let files = files.into_iter().map(|file| FileEntry { path: path.clone(), ..file }).collect();
                Ok(Storage::in_place(root, files, self.recorded_stats(meta, status)?, cache))
            }
            Origin::Download { .. } if !status.complete => {
                let (part, whole) = part_and_whole(meta.info_hash(), meta.name())?;
                Ok(Storage::recover(root, files, part, whole, cache)?)
            }
            _ => Ok(Storage::in_place(root, files, self.recorded_stats(meta, status)?, cache)),
        }
    }

    /// The `.torrent`, read back. Blocking.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn read_metainfo(&self, torrent: &Torrent) -> Result<Metainfo, ActivateError> {
        Ok(Metainfo::parse(&self.segments.read(torrent.summary.position)?)?)
    }

    /// What the files looked like when their content was last known to be right; empty if that is not known, or there is no
    /// such content yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn recorded_stats(&self, meta: &Metainfo, status: &Status) -> Result<Vec<FileStat>, StoreError> {
        if let Origin::Upload { .. } = status.origin {
            let recorded = status.stat.map(|stat| FileStat { len: stat.bytes, modified_ns: stat.mtime_ns });
            return Ok(recorded.into_iter().collect());
        }
        if !status.complete {
            return Ok(Vec::new());
        }
        let len = records::file_stats_len(meta.files().len());
        match chunks::get_chunks(&*self.store, records::FILE_STATS, meta.info_hash().as_bytes(), len) {
            Ok(kept) => Ok(records::decode_file_stats(&kept.unwrap_or_default())),
            Err(ChunkError::Store(error)) => Err(error),
            // Damaged, or of another number of files: then changes are seen by the hash alone, as if never recorded.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// The folder that a torrent's paths lie below.
    pub fn folder_of(&self, origin: &Origin) -> PathBuf {
        match origin {
            Origin::Upload { .. } => self.options.upload_dir.clone(),
            Origin::InPlace { folder } | Origin::Download { folder } => folder.clone(),
        }
    }

    /// The pieces of an unfinished torrent that are on record; `None` if that is damaged.
    pub fn recorded_pieces(&self, torrent: &Torrent) -> Option<Bitfield> {
        let count = torrent.summary.layout.piece_count();
        let bytes = count.div_ceil(8) as usize;
        let kept = chunks::get_chunks(&*self.store, records::BITFIELDS, torrent.key().as_bytes(), bytes).ok()??;
        Bitfield::from_wire(&kept, count).ok()
    }

    /// What is recorded of an unfinished torrent's pieces, as far as its files can hold them. A damaged record is
    /// nothing to trust: the torrent is marked to be checked.
    fn load_bitfield(&self, torrent: &Torrent, meta: &Metainfo, storage: &Storage) -> Result<Bitfield, ActivateError> {
        let layout = meta.layout();
        let bytes = layout.piece_count().div_ceil(8) as usize;
        let kept = match chunks::get_chunks(&*self.store, records::BITFIELDS, torrent.key().as_bytes(), bytes) {
            Err(ChunkError::Store(error)) => return Err(error.into()),
            Ok(kept) => Ok(kept.unwrap_or_else(|| vec![0; bytes])),
            Err(error) => Err(error.to_string()),
        };
        let loaded =
            kept.and_then(|kept| Bitfield::from_wire(&kept, layout.piece_count()).map_err(|error| error.to_string()));
        let mut have = loaded.unwrap_or_else(|error| {
            tracing::warn!(torrent = %torrent.summary.name, error, "what is recorded of its pieces is damaged: they are checked");
            torrent.set_suspect();
            Bitfield::empty(layout.piece_count())
        });
        let before = have.count();
        if before > 0 {
            self.expect_data(torrent, &**storage.root())?;
        }
        clear_what_is_not_there(&mut have, meta, storage);
        if have.count() < before {
            tracing::warn!(torrent = %torrent.summary.name, pieces = before - have.count(), "data that was fetched is not there any more");
            let mut batch = Batch::new();
            chunks::put_chunks(&mut batch, records::BITFIELDS, torrent.key().as_bytes(), have.as_bytes());
            self.store.commit(batch)?;
        }
        Ok(have)
    }
}

/// Pieces of files that are missing or short are not there, whatever is recorded: a file is made at its full length.
fn clear_what_is_not_there(have: &mut Bitfield, meta: &Metainfo, storage: &Storage) {
    let layout = meta.layout();
    for (index, file) in meta.files().iter().enumerate().filter(|(_, file)| !file.padding && file.len > 0) {
        let whole = storage.root().stat(&storage.path(index)).is_ok_and(|stat| stat.len == file.len);
        if whole {
            continue;
        }
        let piece_bytes = u64::from(layout.piece_bytes());
        for number in file.offset / piece_bytes..(file.offset + file.len).div_ceil(piece_bytes) {
            if let Some(piece) = layout.piece(number as u32) {
                have.clear(piece);
            }
        }
    }
}

/// Where unfinished data lies, and where it goes when it is whole.
///
/// # Errors
/// Never for a name that a `.torrent` may have.
pub fn part_and_whole(key: InfoHash, name: &FileName) -> Result<(RelPath, RelPath), NameError> {
    let part = format!(".{key}.part");
    Ok((RelPath::parse(part.as_bytes())?, RelPath::from_components([name.as_bytes()])?))
}
