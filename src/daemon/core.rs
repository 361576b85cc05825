//! What every part of the daemon shares, and the few things that need all of it: granting memory for a block, making a
//! torrent's active half.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::sync::{Notify, Semaphore};

use super::announcing::Announcer;
use super::commit::CommitQueue;
use super::disk::assembly::Assembly;
use super::disk::fs::FileSystem;
use super::disk::pool::{Buffer, BufferPool};
use super::disk::storage::{FdCache, Storage};
use super::identity::Identity;
use super::ledger::Ledger;
use super::options::Options;
use super::publishing::Publisher;
use super::records;
use super::sharing::Shares;
use super::tasks::Tasks;
use super::torrent::{Active, Inner, Origin, SessionHandle, Torrent};
use crate::clock::Clock;
use crate::db::chunks::{self, ChunkError};
use crate::db::segments::{SegmentError, SegmentLog};
use crate::db::{Store, StoreError};
use crate::swarm::dial::Book;
use crate::swarm::{SessionId, Swarm, SwarmConfig};
use crate::wire::bitfield::{Bitfield, BitfieldError};
use crate::wire::id::{InfoHash, PeerId};
use crate::wire::layout::MAX_BLOCK_BYTES;
use crate::wire::metainfo::{Metainfo, MetainfoError};

/// design.md section 6: sessions over all torrents. (libtorrent's default too.)
pub const MAX_SESSIONS: usize = 200;
/// design.md section 6: sessions of one torrent.
pub const MAX_SESSIONS_PER_TORRENT: usize = 50;
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
    pub identity: Identity,
    pub peer_id: PeerId,
    /// What we listen on; the first port of it is the one we announce.
    pub listening: Vec<SocketAddr>,
    pub session_permits: Arc<Semaphore>,
    pub commits: CommitQueue,
    pub ledger: Ledger,
    pub announcer: Announcer,
    pub publisher: Publisher,
    pub shares: Shares,
    pub choking: Notify,
    pub dialling: Notify,
    pub uploaded_bytes: AtomicU64,
    pub downloaded_bytes: AtomicU64,
    torrents: RwLock<HashMap<InfoHash, Arc<Torrent>>>,
    /// Torrents that have an active half: the only ones that timers look at.
    live: Mutex<HashMap<InfoHash, Arc<Torrent>>>,
    next_session: AtomicU32,
    random: Mutex<SmallRng>,
}

/// The parts of [`Core`] that somebody else makes.
pub struct Parts {
    pub options: Options,
    pub clock: Arc<dyn Clock>,
    pub store: Arc<dyn Store>,
    pub segments: Arc<SegmentLog>,
    pub files: Arc<dyn FileSystem>,
    pub identity: Identity,
    pub listening: Vec<SocketAddr>,
    pub ledger: Ledger,
    pub announcer: Announcer,
    pub publisher: Publisher,
    pub shares: Shares,
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
    #[error("what is recorded of its pieces is damaged ({0}): peerctl verify checks the data itself")]
    Bitfield(#[from] ChunkError),
    #[error("what is recorded of its pieces is damaged ({0}): peerctl verify checks the data itself")]
    BitfieldShape(#[from] BitfieldError),
    #[error("{}: {source}", folder.display())]
    Folder { folder: PathBuf, source: std::io::Error },
}

impl Core {
    pub fn new(parts: Parts) -> Core {
        let mut random = SmallRng::seed_from_u64(parts.seed);
        let mut bytes = [0; 12];
        random.fill_bytes(&mut bytes);
        Core {
            options: parts.options,
            clock: parts.clock,
            store: parts.store,
            segments: parts.segments,
            files: parts.files,
            descriptors: Arc::new(FdCache::default()),
            pool: BufferPool::default(),
            tasks: Tasks::new(),
            identity: parts.identity,
            peer_id: PeerId::ours(bytes),
            listening: parts.listening,
            session_permits: Arc::new(Semaphore::new(MAX_SESSIONS)),
            commits: CommitQueue::default(),
            ledger: parts.ledger,
            announcer: parts.announcer,
            publisher: parts.publisher,
            shares: parts.shares,
            choking: Notify::new(),
            dialling: Notify::new(),
            uploaded_bytes: AtomicU64::new(0),
            downloaded_bytes: AtomicU64::new(0),
            torrents: RwLock::new(HashMap::new()),
            live: Mutex::new(HashMap::new()),
            next_session: AtomicU32::new(1),
            random: Mutex::new(random),
        }
    }

    /// A seed or id from the daemon's generator.
    pub fn random_u64(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }

    pub fn next_session_id(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    pub fn torrent(&self, key: InfoHash) -> Option<Arc<Torrent>> {
        self.torrents.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// All torrents, oldest first.
    pub fn torrents(&self) -> Vec<Arc<Torrent>> {
        let mut all: Vec<_> =
            self.torrents.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by(|a, b| (a.summary.added, &a.summary.name).cmp(&(b.summary.added, &b.summary.name)));
        all
    }

    /// Adds a torrent unless there is one of its key; returns the one that stands.
    pub fn insert(&self, torrent: Arc<Torrent>) -> Arc<Torrent> {
        let mut torrents = self.torrents.write().unwrap_or_else(PoisonError::into_inner);
        torrents.entry(torrent.key()).or_insert(torrent).clone()
    }

    pub fn forget(&self, key: InfoHash) {
        self.torrents.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.live().remove(&key);
    }

    /// Torrents with an active half.
    pub fn live_torrents(&self) -> Vec<Arc<Torrent>> {
        self.live().values().cloned().collect()
    }

    fn live(&self) -> MutexGuard<'_, HashMap<InfoHash, Arc<Torrent>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for a block of `bytes`, at once.
    pub fn try_grant(&self, bytes: u32) -> Option<Buffer> {
        if self.commits.is_full(self.pool.in_use_bytes()) {
            return None;
        }
        self.pool.try_take(bytes as usize)
    }

    /// Memory for a block, when there is some and the disk keeps up: until then the peer is not read from.
    pub async fn grant(&self, bytes: u32) -> Buffer {
        loop {
            self.commits.wait_for_room(|| self.pool.in_use_bytes()).await;
            let buffer = self.pool.take(bytes as usize).await;
            if !self.commits.is_full(self.pool.in_use_bytes()) {
                return buffer;
            }
        }
    }

    /// The torrent's active half, made if there is none.
    ///
    /// # Errors
    /// When its `.torrent` cannot be read back or its folder cannot be opened.
    pub async fn activate(self: &Arc<Self>, torrent: &Arc<Torrent>) -> Result<Arc<Active>, ActivateError> {
        let mut slot = torrent.active_slot().await;
        if let Some(active) = &*slot {
            return Ok(active.clone());
        }
        let core = self.clone();
        let of = torrent.clone();
        let active = tokio::task::spawn_blocking(move || core.make_active(&of))
            .await
            .map_err(|_| ActivateError::Store(StoreError::Closed))??;
        let active = Arc::new(active);
        *slot = Some(active.clone());
        self.live().insert(torrent.key(), torrent.clone());
        Ok(active)
    }

    /// Lets go of the active half of a torrent that nobody needs just now.
    pub async fn deactivate(&self, torrent: &Arc<Torrent>) {
        let mut slot = torrent.active_slot().await;
        let busy = slot.as_ref().is_some_and(|active| !active.lock().sessions.is_empty());
        if !busy {
            *slot = None;
            self.live().remove(&torrent.key());
        }
    }

    fn make_active(&self, torrent: &Torrent) -> Result<Active, ActivateError> {
        let meta = Metainfo::parse(&self.segments.read(torrent.summary.position)?)?;
        let layout = meta.layout();
        let status = torrent.status();
        let storage = self.open_storage(&meta, &status.origin, status.complete)?;
        let have = if status.complete { Bitfield::full(layout.piece_count()) } else { self.load_bitfield(torrent)? };
        let config =
            SwarmConfig { max_block_bytes: MAX_BLOCK_BYTES, window_max_bytes: WINDOW_MAX_BYTES, sequential: false };
        let mut book = Book::new(self.random_u64());
        for own in &self.listening {
            book.never(*own);
        }
        let inner = Inner {
            swarm: Swarm::new(config, layout, have.clone(), self.random_u64()),
            assembly: Assembly::new(layout),
            book,
            sessions: HashMap::new(),
            committed: have,
        };
        Ok(Active::new(meta, storage, inner))
    }

    /// Opens the files of a torrent where its origin says that they lie.
    pub fn open_storage(&self, meta: &Metainfo, origin: &Origin, complete: bool) -> Result<Storage, ActivateError> {
        let (folder, opened) = match origin {
            Origin::Upload { path } => {
                let folder = self.options.upload_dir.clone();
                let opened = self.files.open_root(&folder).map(|root| Storage::in_place_at(meta, root, path, self.descriptors.clone()));
                (folder, opened)
            }
            Origin::InPlace { folder } => {
                let opened = self.files.open_root(folder).map(|root| Storage::in_place(meta, root, self.descriptors.clone()));
                (folder.clone(), opened)
            }
            Origin::Download { folder } => {
                let opened = self.files.open_root(folder).map(|root| {
                    if complete {
                        Storage::in_place(meta, root, self.descriptors.clone())
                    } else {
                        Storage::unfinished(meta, root, self.descriptors.clone())
                    }
                });
                (folder.clone(), opened)
            }
        };
        opened.map_err(|source| ActivateError::Folder { folder, source })
    }

    /// A damaged bitfield is nothing to trust: the torrent's data is checked instead.
    fn load_bitfield(&self, torrent: &Torrent) -> Result<Bitfield, ActivateError> {
        let pieces = torrent.summary.layout.piece_count();
        let bytes = pieces.div_ceil(8) as usize;
        let kept = chunks::get_chunks(&*self.store, records::BITFIELDS, torrent.key().as_bytes(), bytes)?;
        let kept = kept.unwrap_or_else(|| vec![0; bytes]);
        Ok(Bitfield::from_wire(&kept, pieces)?)
    }

    /// The session that this id names, wherever it is.
    pub fn session(&self, id: SessionId) -> Option<Arc<SessionHandle>> {
        self.live_torrents()
            .iter()
            .find_map(|torrent| torrent.active_now().and_then(|active| active.lock().sessions.get(&id).cloned()))
    }
}
