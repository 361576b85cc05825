//! One torrent in the daemon: what it is, what state a user sees it in, and, while somebody needs it, its *active*
//! half: the rules of its swarm, the pieces in progress, its files.
//!
//! States, disjoint: *checking* (data found on disk is being hashed) → *downloading* → *seeding*; *paused* from each of
//! them and back; *error* (our own disk or a clash of names: says which, waits for `resume`); *missing* (the data is not
//! where it was). Ten thousand idle torrents are only their summaries: the active half is made on demand and let go.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::disk::assembly::Assembly;
use super::disk::check::Progress;
use super::disk::storage::Storage;
use super::records::StatRecord;
use super::trackers::TrackerUrl;
use crate::clock::Time;
use crate::db::segments::Position;
use crate::swarm::dial::KnownPeers;
use crate::swarm::neighbours::Neighbours;
use crate::swarm::{Identity, SessionId, Swarm};
use crate::wire::bitfield::Bitfield;
use crate::wire::id::{InfoHash, PeerId};
use crate::wire::layout::Layout;
use crate::wire::metainfo::Metainfo;
use crate::wire::name::{FileName, RelPath};

/// A file that could not be read so often, though it looks the same, is read whole: one error may pass, a disk that fails
/// does not.
const MAX_TROUBLES: u32 = 3;

/// What is known of a torrent without opening its `.torrent`.
#[derive(Clone, Debug)]
pub struct Summary {
    pub key: InfoHash,
    pub name: FileName,
    pub layout: Layout,
    pub private: bool,
    pub multi_file: bool,
    pub position: Position,
    /// Where a torrent that is not of our network is announced: what its `.torrent` says.
    pub trackers: Vec<Arc<TrackerUrl>>,
    /// Seconds since 1970.
    pub added: u64,
}

impl Summary {
    pub fn of(meta: &Metainfo, position: Position, ours: bool, added: u64) -> Summary {
        Summary {
            key: meta.info_hash(),
            name: meta.name().clone(),
            layout: meta.layout(),
            private: meta.is_private(),
            multi_file: meta.is_multi_file(),
            position,
            trackers: if ours { Vec::new() } else { foreign_trackers(meta) },
            added,
        }
    }
}

/// The trackers that a `.torrent` names, those that peerd can ask.
pub fn foreign_trackers(meta: &Metainfo) -> Vec<Arc<TrackerUrl>> {
    meta.trackers().iter().flatten().filter_map(|url| TrackerUrl::parse(url).ok()).map(Arc::new).collect()
}

/// Where the data came from, and so where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file of upload/, at this path below it.
    Upload { path: RelPath },
    /// Shared in place: the folder that holds it, absolute.
    InPlace { folder: PathBuf },
    /// Fetched into this folder, absolute.
    Download { folder: PathBuf },
}

/// What a user sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Checking,
    Downloading,
    Seeding,
    Error(String),
    Missing,
}

/// The part of a torrent that changes.
#[derive(Clone, Debug)]
pub struct Status {
    pub phase: Phase,
    pub paused: bool,
    pub origin: Origin,
    /// Of our network.
    pub ours: bool,
    /// All pieces verified and committed.
    pub complete: bool,
    /// What the file was when it last held the pieces.
    pub stat: Option<StatRecord>,
    /// Taken out of the catalogue, but still served to those in the middle of it.
    pub withdrawn: bool,
    /// A publisher's duty: told to the tracker (or to be told).
    pub publish: bool,
}

impl Status {
    /// Whether peers may be connected.
    pub fn is_live(&self) -> bool {
        !self.paused && matches!(self.phase, Phase::Downloading | Phase::Seeding)
    }

    /// Whether the data is not of this machine's making: it came, or comes, from peers.
    pub fn is_fetched(&self) -> bool {
        matches!(self.origin, Origin::Download { .. })
    }
}

pub struct Torrent {
    pub summary: Summary,
    status: Mutex<Status>,
    active: Mutex<Option<Arc<Active>>>,
    /// Held while the active half is made or let go, so that there is never a second one.
    making: tokio::sync::Mutex<()>,
    /// Counts changes of status and progress; `get` waits on it.
    changes: watch::Sender<u64>,
    /// The check under way, if there is one.
    pub check: Progress,
    /// Payload moved since the daemon started, for announces.
    pub downloaded_bytes: AtomicU64,
    pub uploaded_bytes: AtomicU64,
    removed: AtomicBool,
    /// What is recorded of its pieces cannot be trusted: they are to be hashed.
    suspect: AtomicBool,
    /// How often its file could not be read since it looked like this.
    troubles: Mutex<(Option<StatRecord>, u32)>,
    /// Its pieces are wanted in file order, until the daemon ends.
    in_order: AtomicBool,
}

/// The half that costs memory.
pub struct Active {
    pub meta: Metainfo,
    pub storage: Storage,
    inner: Mutex<Inner>,
}

pub struct Inner {
    pub swarm: Swarm,
    pub assembly: Assembly,
    pub book: KnownPeers,
    pub neighbours: Neighbours,
    /// Addresses of peers as the store has them.
    pub remembered: Vec<SocketAddr>,
    pub sessions: HashMap<SessionId, Arc<SessionHandle>>,
    /// Pieces whose bits have passed the store's barrier.
    pub committed: Bitfield,
    /// Let go for good: nothing of it counts any more, another half has taken or will take its place.
    pub retired: bool,
}

impl Active {
    pub fn new(meta: Metainfo, storage: Storage, inner: Inner) -> Active {
        Active { meta, storage, inner: Mutex::new(inner) }
    }

    /// Held for moments, never over an await.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Sessions that have not been told to end.
    pub fn live_sessions(&self) -> usize {
        self.sessions.values().filter(|session| session.closing().is_none()).count()
    }
}

impl Torrent {
    pub fn new(summary: Summary, status: Status) -> Torrent {
        Torrent {
            summary,
            status: Mutex::new(status),
            active: Mutex::new(None),
            making: tokio::sync::Mutex::new(()),
            changes: watch::Sender::new(0),
            check: Progress::default(),
            downloaded_bytes: AtomicU64::new(0),
            uploaded_bytes: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            troubles: Mutex::default(),
            in_order: AtomicBool::new(false),
        }
    }

    pub fn key(&self) -> InfoHash {
        self.summary.key
    }

    pub fn status(&self) -> Status {
        self.lock_status().clone()
    }

    /// Reads one thing of the status without copying it.
    pub fn with_status<T>(&self, read: impl FnOnce(&Status) -> T) -> T {
        read(&self.lock_status())
    }

    /// Changes the status and tells whoever watches.
    pub fn update<T>(&self, change: impl FnOnce(&mut Status) -> T) -> T {
        let result = change(&mut self.lock_status());
        self.touch();
        result
    }

    /// Tells whoever watches that something moved.
    pub fn touch(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The torrent is gone: whoever works on it stops.
    pub fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
        self.check.cancel.store(true, Ordering::Release);
    }

    /// What is recorded of its pieces was found not to fit.
    pub fn set_suspect(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    /// Whether its pieces are to be hashed before anything else; asked once.
    pub fn take_suspect(&self) -> bool {
        self.suspect.swap(false, Ordering::AcqRel)
    }

    /// Its file could not be read. Returns whether that happens time and again although nothing has changed it: then its
    /// disk fails, and looking at it once more mends nothing.
    pub fn is_in_trouble_again(&self) -> bool {
        let stat = self.with_status(|status| status.stat);
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let count = if troubles.0 == stat { troubles.1 + 1 } else { 1 };
        *troubles = (stat, count % MAX_TROUBLES);
        count == MAX_TROUBLES
    }

    /// From now on its pieces are fetched in file order.
    pub fn fetch_in_order(&self) {
        self.in_order.store(true, Ordering::Release);
        if let Some(active) = self.active() {
            active.lock().swarm.fetch_in_order();
        }
    }

    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// The active half, if there is one just now: none while it is being made.
    pub fn active(&self) -> Option<Arc<Active>> {
        self.lock_active().clone()
    }

    /// To be held by who makes the active half or lets it go.
    pub(in crate::daemon) async fn making(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.making.lock().await
    }

    pub(in crate::daemon) fn set_active(&self, active: Arc<Active>) {
        let mut slot = self.lock_active();
        if self.in_order.load(Ordering::Acquire) {
            active.lock().swarm.fetch_in_order();
        }
        *slot = Some(active);
    }

    /// Lets go of the active half; unless `by_force`, only if nobody holds it: a session, disk work, a commit. Returns
    /// whether there is none any more.
    pub(in crate::daemon) fn let_go(&self, by_force: bool) -> bool {
        let mut active = self.lock_active();
        if let Some(active) = active.take_if(|active| by_force || Arc::strong_count(active) == 1) {
            let mut inner = active.lock();
            inner.retired = true;
            for session in inner.sessions.values() {
                session.close("its torrent is set up anew");
            }
        }
        active.is_none()
    }

    fn lock_active(&self) -> MutexGuard<'_, Option<Arc<Active>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A live session as the rest of the daemon sees it.
pub struct SessionHandle {
    pub id: SessionId,
    pub addr: SocketAddr,
    pub peer_id: PeerId,
    pub outgoing: bool,
    pub since: Time,
    pub wake: Notify,
    facts: Mutex<Facts>,
}

struct Facts {
    identity: Identity,
    listens: Option<SocketAddr>,
    introduced: bool,
    client: Option<String>,
    closing: Option<String>,
}

impl SessionHandle {
    pub fn new(id: SessionId, addr: SocketAddr, peer_id: PeerId, outgoing: bool, since: Time) -> SessionHandle {
        let identity = Identity::Address(addr.ip().to_canonical());
        let facts = Facts { identity, listens: None, introduced: false, client: None, closing: None };
        SessionHandle { id, addr, peer_id, outgoing, since, wake: Notify::new(), facts: Mutex::new(facts) }
    }

    /// Takes what the peer says of itself (BEP 10). Returns whether it is the first time: it may repeat itself.
    pub fn introduce(&self, client: Option<String>) -> bool {
        let mut facts = self.facts();
        facts.client = client;
        !std::mem::replace(&mut facts.introduced, true)
    }

    /// Whose account in the ledger it is.
    pub fn identity(&self) -> Identity {
        self.facts().identity
    }

    pub fn set_identity(&self, identity: Identity) {
        self.facts().identity = identity;
    }

    /// The address in the torrent's book that this session stands for: where the peer listens, if that is known.
    pub fn listens(&self) -> Option<SocketAddr> {
        self.facts().listens
    }

    pub fn set_listens(&self, addr: SocketAddr) {
        self.facts().listens = Some(addr);
    }

    /// The book's address passes to another session of the same peer.
    pub fn take_listens(&self) -> Option<SocketAddr> {
        self.facts().listens.take()
    }

    /// The client's name for itself, else what its peer id says.
    pub fn client(&self) -> String {
        self.facts().client.clone().unwrap_or_else(|| {
            let id: Vec<u8> = self.peer_id.0.iter().copied().take_while(u8::is_ascii_graphic).take(8).collect();
            String::from_utf8_lossy(&id).into_owned()
        })
    }

    pub fn close(&self, why: impl Into<String>) {
        self.facts().closing.get_or_insert(why.into());
        self.wake.notify_one();
    }

    pub fn closing(&self) -> Option<String> {
        self.facts().closing.clone()
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
