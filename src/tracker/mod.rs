//! trackerd as a library: who has what, search, and what was published. peerd runs one inside itself when asked to.
//!
//! - [`swarms`], [`limits`], [`search`]: the tables; `now` and the generator are arguments, nothing is read from a clock.
//! - [`announcer`] is what [`udp`] and [`http`] share: one announce, whichever way it came.
//! - [`catalogue`] is what was published, in memory; `registry` its form in the store, `scribe` the thread that writes
//!   behind, [`content_file`] the list for people. [`keeper`] does the same for the swarms.
//! - [`transfer`] exports and imports what a stopped tracker keeps.
//! - [`Tracker`] puts them together, starts the threads and stops them.

pub mod addresses;
pub mod announcer;
pub mod auth;
pub mod catalogue;
pub mod check;
pub mod config;
pub mod connection_id;
pub mod content_file;
pub mod http;
pub mod keeper;
mod keyed_hash;
pub mod limits;
pub mod lists;
pub mod metrics;
mod publishers;
mod registry;
mod scribe;
pub mod search;
pub mod sockets;
pub mod swarms;
pub mod transfer;
pub mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::http::HeaderName;
use nix::sys::resource::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::addresses::{OwnAddresses, interface_addresses};
use self::announcer::Announcer;
use self::catalogue::seedless::Patience;
use self::catalogue::{Caps, Catalogue, OpenError};
use self::connection_id::{ConnectionIds, seeded_rng};
use self::http::Site;
use self::http::server::{MAX_CONNECTIONS, Timeouts, serve};
use self::keeper::{Keeper, KeeperError};
use self::lists::{Gate, ListError, ListFiles, Listed};
use self::sockets::{BindError, Bound, bind_all};
use self::udp::UdpThreads;
use crate::clock::{Clock, SystemClock};
use crate::db::{SledStore, StoreError};

/// How often the tables are looked after.
const UPKEEP_EVERY: Duration = Duration::from_millis(500);
/// Torrents whose seeders are told at once: some milliseconds.
const SEEDERS_AT_ONCE: usize = 5_000;
/// In upkeeps: the interfaces are looked at every 30 s.
const ADDRESSES_EVERY: u64 = 60;
/// In upkeeps: what was withdrawn an hour ago, or was without a seeder for too long, goes within a minute.
const WITHDRAWN_EVERY: u64 = 120;
/// What most reverse proxies send.
pub const DEFAULT_PROXY_HEADER: &str = "x-forwarded-for";
/// The folder of the database within the state folder; the lock that says who runs lies in it.
pub const STORE_DIR: &str = "registry";
/// The folder of the `.torrent`s within it.
const SEGMENTS_DIR: &str = "torrents";

/// How to run a tracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackerOptions {
    /// Where to listen, TCP and UDP; port 0 is any free one. Empty: port 6969 of every address.
    pub listen: Vec<SocketAddr>,
    /// Made if it is not there.
    pub state_dir: PathBuf,
    /// Whether `/torrents/<key>/peers` names anybody.
    pub list_peers: bool,
    /// `host` or `host:port` by which this tracker is known outside.
    pub public_address: Option<String>,
    /// Proxies whose word on who asks, and whose clients' `ip=`, are believed.
    pub trusted_proxies: Vec<IpAddr>,
    /// The header in which they say who asks.
    pub proxy_header: String,
    /// Which torrents are tracked, if not all.
    pub lists: ListFiles,
    /// How long what nobody seeds stays in the catalogue.
    pub patience: Patience,
    /// What the catalogue may grow to.
    pub caps: Caps,
}

impl TrackerOptions {
    /// The defaults, with this state folder.
    pub fn new(state_dir: impl Into<PathBuf>) -> TrackerOptions {
        TrackerOptions {
            listen: Vec::new(),
            state_dir: state_dir.into(),
            list_peers: true,
            public_address: None,
            trusted_proxies: Vec::new(),
            proxy_header: DEFAULT_PROXY_HEADER.to_owned(),
            lists: ListFiles::default(),
            patience: Patience::default(),
            caps: Caps::default(),
        }
    }
}

/// Why a tracker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{}: {source}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("proxy_header {0:?}: the name of an HTTP header is expected")]
    ProxyHeader(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Catalogue(#[from] OpenError),
    #[error(transparent)]
    List(#[from] ListError),
    #[error("public_address {0:?}: a host name or an address, with or without a port, is expected")]
    PublicAddress(String),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
}

/// A running tracker. Dropped without [`Tracker::stop`] it ends too, without waiting for requests in hand.
pub struct Tracker {
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    http: tokio::task::JoinHandle<()>,
    announcer: Arc<Announcer>,
    threads: Threads,
    store: Arc<SledStore>,
}

/// What runs beside the runtime. Dropped in this order.
struct Threads {
    udp: Vec<UdpThreads>,
    upkeep: Upkeep,
    keeper: Arc<Keeper>,
    catalogue: Arc<Catalogue>,
}

impl Tracker {
    /// Listens first, then reads its state, then answers. To be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub async fn start(options: TrackerOptions) -> Result<Tracker, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let for_state = clock.clone();
        let prepared = tokio::task::spawn_blocking(move || Prepared::new(options, for_state));
        let prepared = prepared.await.map_err(|error| StartError::Thread(io::Error::other(error)))??;
        let site = prepared.site(clock.clone()).map_err(StartError::Thread)?;
        let Prepared { bound, options, announcer, ids, store, catalogue, keeper, .. } = prepared;
        let addresses = bound.iter().map(|bound| bound.address).collect();
        let (mut listeners, mut udp) = (Vec::new(), Vec::new());
        for bound in bound {
            listeners.push(TcpListener::from_std(bound.tcp).map_err(StartError::Thread)?);
            let of_v4 = bound.address.is_ipv4();
            udp.push(UdpThreads::start(bound.udp, of_v4, &announcer, &ids, &clock).map_err(StartError::Thread)?);
        }
        let upkeep =
            Upkeep::start(announcer.clone(), catalogue.clone(), options.patience, clock).map_err(StartError::Thread)?;
        let (stop, stopped) = watch::channel(false);
        let http = tokio::spawn(serve(site, listeners, max_connections(), Timeouts::default(), stopped));
        Ok(Tracker { addresses, stop, http, announcer, threads: Threads { udp, upkeep, keeper, catalogue }, store })
    }

    /// Where it listens, the ports filled in.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Reads the lists again.
    ///
    /// # Errors
    /// When one cannot be read; those of before stay in force.
    pub async fn reload_lists(&self) -> Result<Listed, ListError> {
        let announcer = self.announcer.clone();
        let reloaded = tokio::task::spawn_blocking(move || announcer.gate.reload()).await;
        reloaded.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Finishes what is in hand, writes everything.
    ///
    /// # Errors
    /// When not everything could be written.
    pub async fn stop(self) -> Result<(), StoreError> {
        let Tracker { stop, http, threads, store, .. } = self;
        // The receivers may be gone already: then there is nothing to tell.
        let _ = stop.send(true);
        if let Err(error) = http.await {
            tracing::error!(%error, "HTTP had ended before");
        }
        let ended = tokio::task::spawn_blocking(move || {
            let Threads { udp, upkeep, keeper, catalogue } = threads;
            drop((udp, upkeep));
            let kept = keeper.stop();
            catalogue.stop();
            store.close().and(kept)
        });
        ended.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// What blocks while starting.
struct Prepared {
    bound: Vec<Bound>,
    proxy_header: HeaderName,
    options: TrackerOptions,
    announcer: Arc<Announcer>,
    ids: Arc<ConnectionIds>,
    store: Arc<SledStore>,
    catalogue: Arc<Catalogue>,
    keeper: Arc<Keeper>,
}

impl Prepared {
    fn new(options: TrackerOptions, clock: Arc<dyn Clock>) -> Result<Prepared, StartError> {
        let public_ip = match &options.public_address {
            Some(address) => public_ip(address).ok_or_else(|| StartError::PublicAddress(address.clone()))?,
            None => None,
        };
        let proxy_header = HeaderName::try_from(options.proxy_header.as_str())
            .map_err(|_| StartError::ProxyHeader(options.proxy_header.clone()))?;
        let bound = bind_all(&options.listen, udp::threads())?;
        let state_dir = &options.state_dir;
        let state = |source| StartError::State { path: state_dir.clone(), source };
        std::fs::create_dir_all(state_dir).map_err(state)?;
        let store = Arc::new(SledStore::open(&state_dir.join(STORE_DIR))?);
        let ids = Arc::new(ConnectionIds::load(state_dir).map_err(state)?);
        let own = OwnAddresses::new(public_ip);
        own.refresh();
        let trusted_proxies = options.trusted_proxies.iter().map(IpAddr::to_canonical).collect();
        let gate = Gate::load(options.lists.clone())?;
        let announcer = Arc::new(Announcer { own, trusted_proxies, gate, ..Announcer::default() });
        let mut rng = seeded_rng().map_err(state)?;
        let unix_seconds = clock.unix_seconds();
        // A million of each take seconds: side by side.
        let (keeper, catalogue) = std::thread::scope(|scope| {
            let keeper = scope.spawn(|| Keeper::start(&announcer, store.clone(), state_dir, clock, &mut rng));
            let catalogue = Catalogue::open(state_dir, store.clone(), options.caps, unix_seconds);
            (keeper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), catalogue)
        });
        let (keeper, catalogue) = (Arc::new(keeper?), Arc::new(catalogue?));
        catalogue.rank_by(|key| announcer.swarms.scrape(key).seeders);
        Ok(Prepared { bound, proxy_header, options, announcer, ids, store, catalogue, keeper })
    }

    fn site(&self, clock: Arc<dyn Clock>) -> io::Result<Arc<Site>> {
        Ok(Arc::new(Site {
            announcer: self.announcer.clone(),
            catalogue: self.catalogue.clone(),
            keeper: self.keeper.clone(),
            clock,
            list_peers: self.options.list_peers,
            public_address: self.options.public_address.clone(),
            proxy_header: self.proxy_header.clone(),
            gatekeeper: auth::Gatekeeper::default(),
            bodies: http::BodyBudget::default(),
            behind: http::Behind::new()?,
            connections: AtomicUsize::new(0),
        }))
    }
}

/// The address in `host` or `host:port`, if it is one and no name; `None` when it is neither.
fn public_ip(address: &str) -> Option<Option<IpAddr>> {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return Some(Some(address.ip()));
    }
    if let Ok(ip) = address.parse() {
        return Some(Some(ip));
    }
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
    let is_name = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    (is_name && port.parse::<u16>().is_ok()).then_some(None)
}

/// Half of the descriptors that the process may have: the rest is for the store, peers and logs.
fn max_connections() -> usize {
    let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1_024, 1_024));
    usize::try_from(descriptors / 2).unwrap_or(MAX_CONNECTIONS).clamp(16, MAX_CONNECTIONS)
}

/// What others type to use a tracker that listens on `addresses`: a command for each of this host's addresses by which it
/// can be reached.
pub fn commands_for_others(addresses: &[SocketAddr]) -> Vec<String> {
    let mut commands = Vec::new();
    for address in addresses {
        let ips = if address.ip().is_unspecified() { interface_addresses() } else { vec![address.ip()] };
        let reachable = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        };
        let ips = ips.into_iter().filter(|ip| ip.is_ipv4() == address.is_ipv4() && reachable(ip));
        commands.extend(ips.map(|ip| format!("peerd {ip} {}", address.port())));
    }
    commands
}

/// Tells the index which torrents have how many seeders by now. Searches wait for a part of it at a time.
fn tell_seeders(announcer: &Announcer, catalogue: &Catalogue, unix_seconds: u64) {
    let mut changed = Vec::new();
    announcer.swarms.drain_changed(|key, counts| changed.push((*key, counts.seeders)));
    for part in changed.chunks(SEEDERS_AT_ONCE) {
        catalogue.set_seeders(part.to_vec(), unix_seconds);
    }
}

/// The thread that looks after the tables: drops the silent, tells the index who has seeders.
struct Upkeep {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    fn start(
        announcer: Arc<Announcer>,
        catalogue: Arc<Catalogue>,
        patience: Patience,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Upkeep> {
        let (stop, stopped) = sync_channel(0);
        let run = move || {
            for round in 0_u64.. {
                announcer.swarms.expire(clock.now());
                tell_seeders(&announcer, &catalogue, clock.unix_seconds());
                if round % ADDRESSES_EVERY == ADDRESSES_EVERY - 1 {
                    announcer.own.refresh();
                }
                if round % WITHDRAWN_EVERY == WITHDRAWN_EVERY - 1 {
                    catalogue.drop_withdrawn(clock.unix_seconds());
                    catalogue.tidy_seedless(patience, clock.unix_seconds());
                }
                if stopped.recv_timeout(UPKEEP_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("tracker-upkeep".into()).spawn(run)?;
        Ok(Upkeep { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        // Its end of the channel hears of it at once.
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that looks after the swarms had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses() {
        let ip = |text: &str| Some(Some(text.parse().unwrap()));
        assert_eq!(public_ip("203.0.113.1"), ip("203.0.113.1"));
        assert_eq!(public_ip("[2001:db8::1]:6969"), ip("2001:db8::1"));
        assert_eq!(public_ip("tracker.example.org:6969"), Some(None));
        assert_eq!(public_ip("tracker"), Some(None));
        for bad in ["", "http://x", "a b", "x:99999", ":80"] {
            assert_eq!(public_ip(bad), None, "{bad}");
        }
    }

    #[test]
    fn commands_name_a_given_address_as_it_is() {
        let commands = commands_for_others(&["192.0.2.7:7000".parse().unwrap(), "127.0.0.1:6969".parse().unwrap()]);
        assert_eq!(commands, ["peerd 192.0.2.7 7000"]);
    }
}

#[cfg(test)]
mod service_tests;
