//! The shell of `peerd`: everything that touches the world. The rules are [`crate::swarm`]'s.
//!
//! Start: [`State::open`] takes the state folder, then [`Daemon::start`] listens, loads, and runs until
//! [`Daemon::stop`]. A stop tells the trackers, commits what is in flight and closes the store cleanly.

pub mod announcing;
pub mod banning;
pub mod checking;
pub mod choking;
pub mod commands;
pub mod commit;
pub mod control;
pub mod core;
pub mod deleting;
pub mod descriptors;
pub mod disk;
pub mod dumping;
pub mod flow;
pub mod hashing;
pub mod identity;
pub mod janitor;
pub mod journal;
pub mod ledger;
pub mod lifecycle;
pub mod limits;
pub mod making;
pub mod missing;
pub mod neighbours;
pub mod net;
pub mod options;
pub mod publishing;
pub mod records;
pub mod room;
pub mod share;
pub mod sharing;
pub mod tasks;
pub mod torrent;
pub mod trackers;
pub mod waiting;
pub mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::db::dirs::make_dirs;
use crate::db::record::{decode_record, encode_record};
use crate::db::segments::{SegmentError, SegmentLog};
use crate::db::{Batch, SledStore, Store, StoreError};
use commands::Commands;
use control::{ControlSocket, SocketPlace};
use core::{Core, Parts};
use disk::fs::NativeFs;
use identity::{IdentityError, Signer};
use journal::Journal;
use ledger::Ledger;
use options::{Options, TrackerChoice};
use records::{SETTINGS, SettingRecord};
use sharing::Shares;
use trackers::OurTracker;
use trackers::http::HttpSetupError;
use watch::{WatchError, Watcher};

/// The trackers have so long to hear that we stop.
const FAREWELL: Duration = Duration::from_secs(3);
/// What is in flight has so long to be committed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// What this peer shares and has fetched is its owner's business alone.
pub const STATE_DIR_MODE: u32 = 0o700;

/// Why peerd did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{}: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(
        "a peerd runs here already (process {pid}, its state is in {}): `peerctl` talks to it, `peerctl leave` ends it; \
         give a second one folders of its own with --home",
        state_dir.display()
    )]
    Running { state_dir: PathBuf, pid: String },
    #[error("the state folder {}: {source}", path.display())]
    Store { path: PathBuf, source: StoreError },
    #[error("the state folder: {0}")]
    Segments(#[from] SegmentError),
    #[error("{0}")]
    Identity(#[from] IdentityError),
    #[error("{0}")]
    Bind(#[from] net::bind::BindError),
    #[error("{0}")]
    Control(#[from] control::BindError),
    #[error("{0}")]
    Http(#[from] HttpSetupError),
    #[error("upload/ cannot be watched: {0}")]
    Watch(#[from] WatchError),
    #[error("no random numbers from the operating system: {0}")]
    Random(getrandom::Error),
}

/// The state folder, taken: no other peerd can run on it.
pub struct State {
    options: Options,
    store: Arc<SledStore>,
    segments: SegmentLog,
    identity: Signer,
    journal: Journal,
}

impl State {
    /// Makes the folders, locks the state and reads who we are.
    ///
    /// # Errors
    /// When a folder cannot be used or another peerd has it.
    pub fn open(options: Options) -> Result<State, StartError> {
        make_dir(&options.state_dir, STATE_DIR_MODE)?;
        make_dir(&options.upload_dir, 0o755)?;
        make_dir(&options.download_dir, 0o755)?;
        let store = SledStore::open(&options.state_dir.join("db")).map_err(|source| match source {
            StoreError::Locked { pid, .. } => StartError::Running { state_dir: options.state_dir.clone(), pid },
            source => StartError::Store { path: options.state_dir.clone(), source },
        })?;
        let segments = SegmentLog::open(&options.state_dir.join("torrents"))?;
        let identity = Signer::load_or_create(&options.state_dir.join("identity"))?;
        let journal = Journal::open(&options.state_dir)
            .map_err(|source| StartError::Folder { path: options.state_dir.clone(), source })?;
        Ok(State { options, store: Arc::new(store), segments, identity, journal })
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The tracker to use: as asked, or as the last time, or our own.
    pub fn tracker(&self) -> TrackerChoice {
        match &self.options.tracker {
            TrackerChoice::AsBefore => match self.setting("tracker").as_deref() {
                None | Some("own") => TrackerChoice::Own,
                Some(text) => options::parse_tracker(text, None).unwrap_or(TrackerChoice::Own),
            },
            chosen => chosen.clone(),
        }
    }

    fn setting(&self, name: &str) -> Option<String> {
        let bytes = self.store.get(SETTINGS, name.as_bytes()).ok()??;
        decode_record::<SettingRecord>(&bytes).ok().map(|record| record.0)
    }
}

/// A running peerd.
pub struct Daemon {
    core: Arc<Core>,
    store: Arc<SledStore>,
    _watcher: Watcher,
}

impl Daemon {
    /// Listens and runs. `tracker` is where our tracker answers; `embedded` says that it runs inside this process.
    ///
    /// # Errors
    /// When there is no place to listen, or a folder or the control socket cannot be used.
    pub async fn start(state: State, tracker: OurTracker, embedded: bool) -> Result<Daemon, StartError> {
        let last_port = state.setting("port").and_then(|text| text.parse().ok());
        let listeners = net::bind::listeners(&state.options.listen, last_port)?;
        let listening: Vec<SocketAddr> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let socket = ControlSocket::bind(&socket_place(&state.options))?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let store_error = |source| StartError::Store { path: state.options.state_dir.clone(), source };
        remember(&*state.store, &state.options.tracker, &tracker, embedded, &listening).map_err(store_error)?;
        let parts = Parts {
            ledger: Ledger::load(&*state.store).map_err(store_error)?,
            shares: Shares::load(&*state.store).map_err(store_error)?,
            options: state.options.clone(),
            clock: clock.clone(),
            store: state.store.clone(),
            segments: Arc::new(state.segments),
            files: Arc::new(NativeFs),
            identity: state.identity,
            journal: state.journal,
            listening,
            tracker,
            embedded,
            seed: seed()?,
        };
        let core = Arc::new(Core::new(parts)?);
        lifecycle::load(&core).map_err(store_error)?;
        publishing::load(&core).map_err(store_error)?;
        if let Some(restored) = state.store.restored() {
            core.warn(format!("{restored}; what was fetched is checked again"));
            core.torrents().iter().for_each(|torrent| torrent.set_suspect());
        }
        // Before anybody looks into the folders: what is half deleted is nothing to share or to go on with.
        deleting::resume(&core).map_err(store_error)?;
        let (watcher, events) = Watcher::start(core.options.upload_dir.clone(), clock)?;
        let tasks = &core.tasks;
        for listener in listeners {
            tasks.spawn("listen", net::listen::run(core.clone(), listener));
        }
        tasks.spawn("dial", net::dial::run(core.clone()));
        tasks.spawn("choke", choking::run(core.clone()));
        tasks.spawn("limit rates", limits::run(core.clone()));
        tasks.spawn("announce", announcing::run(core.clone()));
        tasks.spawn("publish", publishing::run(core.clone()));
        tasks.spawn("share", sharing::run(core.clone(), events));
        tasks.spawn("janitor", janitor::run(core.clone()));
        tasks.spawn("dump", dumping::run(state.store.clone()));
        tasks.spawn_to_end("commit", commit::run(core.clone()));
        tasks.spawn_to_end("ledger", ledger::run(core.clone()));
        tasks.spawn_to_end("remember peers", neighbours::run(core.clone()));
        tasks.spawn("start torrents", start_all(core.clone()));
        let engine = Arc::new(Commands::new(core.clone()));
        let stopping = core.tasks.clone();
        tasks.spawn_to_end(
            "control",
            async move { socket.serve(engine, async move { stopping.stopping().await }).await },
        );
        Ok(Daemon { core, store: state.store, _watcher: watcher })
    }

    pub fn listening(&self) -> &[SocketAddr] {
        &self.core.listening
    }

    /// Resolves when `peerctl leave` has been carried out.
    pub async fn left(&self) {
        self.core.leave.notified().await;
    }

    /// Tells the trackers, ends all sessions, commits, closes the store.
    pub async fn stop(self) {
        // Whoever hashes on a blocking thread would keep the process alive.
        self.core.stopping.store(true, Ordering::Relaxed);
        self.core.torrents().iter().for_each(|torrent| torrent.check.cancel.store(true, Ordering::Relaxed));
        if !self.core.announcer.has_left() {
            self.core.announcer.leave(&self.core, FAREWELL).await;
        }
        let left = self.core.tasks.stop(STOP_LIMIT).await;
        if left > 0 {
            tracing::warn!(left, "tasks did not end in time");
        }
        let store = self.store;
        let close = move || {
            if let Err(error) = store.dump() {
                tracing::warn!(%error, "the database could not be copied; the last copy stays");
            }
            store.close()
        };
        match tokio::task::spawn_blocking(close).await {
            Ok(Ok(())) => tracing::info!("stopped"),
            Ok(Err(error)) => tracing::error!(%error, "the store could not be closed cleanly"),
            Err(error) => tracing::error!(%error, "the store could not be closed cleanly"),
        }
    }
}

async fn start_all(core: Arc<Core>) {
    for torrent in core.torrents() {
        core.start(&torrent).await;
    }
}

fn socket_place(options: &Options) -> SocketPlace {
    let path = options.socket.clone().unwrap_or_else(|| options.state_dir.join("peerd.sock"));
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    SocketPlace::new(path, options.control_group.clone(), runtime_dir)
}

/// What the next start without arguments goes by.
fn remember(
    store: &dyn Store,
    asked: &TrackerChoice,
    tracker: &OurTracker,
    embedded: bool,
    listening: &[SocketAddr],
) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    if *asked != TrackerChoice::AsBefore {
        let text = if embedded { "own".to_owned() } else { tracker.to_string() };
        batch.put(SETTINGS, b"tracker", encode_record(&SettingRecord(text)));
    }
    if let Some(addr) = listening.first() {
        batch.put(SETTINGS, b"port", encode_record(&SettingRecord(addr.port().to_string())));
    }
    store.commit(batch)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), StartError> {
    make_dirs(path, mode).map_err(|source| StartError::Folder { path: path.to_owned(), source })
}

fn seed() -> Result<u64, StartError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(StartError::Random)?;
    Ok(u64::from_le_bytes(bytes))
}
