//! Drives the announce schedule: what happens to torrents goes in, announces go out, the peers that come back go into
//! the torrents' books.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, watch};

use super::core::Core;
use super::publishing::Reached;
use super::torrent::{Status, Torrent};
use super::trackers::schedule::{Change, Health, Job, Outcome, Schedule};
use super::trackers::{OurTracker, TrackerUrl};
use crate::clock::Time;
use crate::swarm::dial::Source;
use crate::wire::announce::{AnnounceRequest, AnnounceResponse, Event};
use crate::wire::control::{TrackerState, TrackerStatus};
use crate::wire::id::InfoHash;

/// Answers that may wait for the schedule to hear of them.
const RESULTS: usize = 256;
/// Peers asked for while we need them; a seed is found by those who need it.
const WANTED_LEECHING: u32 = 50;
const WANTED_SEEDING: u32 = 20;

/// What happened to a torrent, as far as its trackers care. Of several, the last one counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Started,
    Completed,
    Stopped,
    Removed,
}

/// How leaving went.
#[derive(Default)]
pub struct Farewell {
    pub torrents: u32,
    pub told: Vec<String>,
    pub not_told: Vec<(String, String)>,
}

/// The way in. One waiting event a torrent, so what waits is bounded by what there is.
pub struct Announcer {
    ours: OurTracker,
    embedded: bool,
    waiting: Mutex<BTreeMap<InfoHash, What>>,
    /// Torrents that have too few neighbours.
    in_want: Mutex<BTreeSet<InfoHash>>,
    wake: Notify,
    schedule: Mutex<Schedule>,
    /// Counts finished announces.
    finished: watch::Sender<u64>,
    left: AtomicBool,
}

impl Announcer {
    pub fn new(ours: OurTracker, embedded: bool) -> Announcer {
        Announcer {
            ours,
            embedded,
            waiting: Mutex::default(),
            in_want: Mutex::default(),
            wake: Notify::new(),
            schedule: Mutex::new(Schedule::new()),
            finished: watch::Sender::new(0),
            left: AtomicBool::new(false),
        }
    }

    pub fn tell(&self, key: InfoHash, what: What) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(key, what);
        self.wake.notify_one();
    }

    /// The torrent has too few neighbours and nobody to dial: its trackers are asked as soon as they allow.
    pub fn wants_peers(&self, key: InfoHash) {
        self.in_want.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.wake.notify_one();
    }

    fn take_in_want(&self) -> BTreeSet<InfoHash> {
        std::mem::take(&mut *self.in_want.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take_waiting(&self) -> BTreeMap<InfoHash, What> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says goodbye to every tracker for every torrent; takes `within` at most.
    pub async fn leave(&self, core: &Core, within: Duration) -> Farewell {
        let before: Vec<(String, usize, Health)> = {
            let mut schedule = self.schedule();
            let before = schedule.trackers().map(|t| (t.url.to_string(), t.torrents, t.health)).collect();
            self.take_waiting();
            schedule.leave_all(core.clock.now());
            before
        };
        self.wake.notify_one();
        let mut finished = self.finished.subscribe();
        let _ = tokio::time::timeout(within, finished.wait_for(|_| self.schedule().is_idle())).await;
        self.left.store(true, Ordering::Release);
        let schedule = self.schedule();
        let mut farewell = Farewell::default();
        for (url, torrents, health) in before.into_iter().filter(|(_, torrents, _)| *torrents > 0) {
            farewell.torrents = farewell.torrents.max(torrents as u32);
            let now = schedule.trackers().find(|tracker| tracker.url.to_string() == url);
            let left = now.as_ref().map_or(0, |tracker| tracker.torrents);
            if left == 0 && health == Health::Up {
                farewell.told.push(url);
            } else {
                let error =
                    now.and_then(|t| t.last_error.map(str::to_owned)).unwrap_or_else(|| "it does not answer".into());
                farewell.not_told.push((url, error));
            }
        }
        farewell
    }

    /// Whether every tracker has been told that we leave, or has had its time to hear it.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Every tracker and how it does. Ours is among them before anything was announced there: then it does as its
    /// catalogue does.
    pub fn tracker_rows(&self, now: Time, catalogue: &Reached) -> Vec<TrackerStatus> {
        let schedule = self.schedule();
        let mut rows: Vec<TrackerStatus> = schedule
            .trackers()
            .filter(|tracker| tracker.health != Health::Unknown || !tracker.url.names(&self.ours))
            .map(|tracker| TrackerStatus {
                url: tracker.url.to_string(),
                state: match tracker.health {
                    Health::Unknown => TrackerState::Waiting,
                    Health::Up => TrackerState::Up,
                    Health::Down { .. } => TrackerState::Down,
                },
                embedded: self.embedded && tracker.url.names(&self.ours),
                last_error: tracker.last_error.map(str::to_owned),
                next_try_s: match tracker.health {
                    Health::Down { retry_at, .. } => Some(retry_at.since(now).as_secs()),
                    _ => None,
                },
            })
            .collect();
        if schedule.ours(&self.ours).is_none_or(|tracker| tracker.health == Health::Unknown) {
            rows.insert(0, self.unannounced(now, catalogue));
        }
        rows
    }

    fn unannounced(&self, now: Time, catalogue: &Reached) -> TrackerStatus {
        let (state, last_error, next_try_s) = match catalogue {
            Reached::NotYet => (TrackerState::Waiting, None, None),
            Reached::Yes => (TrackerState::Up, None, None),
            Reached::No { error, retry_at } => {
                (TrackerState::Down, Some(error.clone()), Some(retry_at.since(now).as_secs()))
            }
        };
        TrackerStatus { url: self.ours.to_string(), state, embedded: self.embedded, last_error, next_try_s }
    }
}

/// Announces until the daemon stops.
pub async fn run(core: Arc<Core>) {
    let announcer = &core.announcer;
    let mut rng = SmallRng::seed_from_u64(core.random_u64());
    let (done, mut results) = tokio::sync::mpsc::channel::<(Job, Outcome)>(RESULTS);
    let mut batch = Vec::new();
    loop {
        let now = core.clock.now();
        let mut jobs = Vec::new();
        let next = {
            let mut schedule = announcer.schedule();
            for (key, what) in announcer.take_waiting() {
                apply(&core, &mut schedule, now, key, what);
            }
            announcer.take_in_want().into_iter().for_each(|key| schedule.hurry(now, key));
            jobs.extend(std::iter::from_fn(|| schedule.poll(now)));
            schedule.next_due()
        };
        for job in jobs {
            let (core_, done) = (core.clone(), done.clone());
            core.tasks.spawn("one announce", async move {
                let outcome = announce(&core_, &job).await;
                let _ = done.send((job, outcome)).await;
            });
        }
        let wait = next.map_or(Duration::from_secs(3_600), |at| at.since(core.clock.now()));
        tokio::select! {
            () = announcer.wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
            // Never the end: we hold a sender ourselves.
            _ = results.recv_many(&mut batch, RESULTS) => {
                let now = core.clock.now();
                for (job, outcome) in batch.drain(..) {
                    let change = announcer.schedule().done(now, &mut rng, &job, outcome.clone());
                    report(&core, &job, &outcome, change);
                }
                announcer.finished.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }
}

fn apply(core: &Arc<Core>, schedule: &mut Schedule, now: Time, key: InfoHash, what: What) {
    let torrent = core.torrent(key);
    match (what, torrent) {
        (What::Started | What::Completed, Some(torrent))
            if torrent.with_status(Status::is_live) && !torrent.is_removed() =>
        {
            let complete = torrent.with_status(|status| status.complete);
            if !complete {
                schedule.incomplete(key);
            }
            for url in core.trackers_of(&torrent) {
                schedule.add(now, key, &url, complete);
            }
            if what == What::Completed {
                schedule.completed(now, key);
            }
        }
        _ => schedule.leave(now, key),
    }
}

fn report(core: &Arc<Core>, job: &Job, outcome: &Outcome, change: Option<Change>) {
    match (outcome, change) {
        (Outcome::Unreachable(reason), Some(Change::Lost(_))) => {
            tracing::warn!(tracker = %job.url, "{reason}; tried again until it answers");
        }
        (Outcome::Declined(reason), _) => tracing::warn!(tracker = %job.url, key = %job.info_hash, "{reason}"),
        (_, Some(Change::Connected(_))) => {
            tracing::info!(tracker = %job.url, "connected");
            if job.url.names(&core.announcer.ours) {
                core.publisher.tracker_is_back();
            }
        }
        _ => {}
    }
}

async fn announce(core: &Arc<Core>, job: &Job) -> Outcome {
    let torrent = core.torrent(job.info_hash);
    let request = request(core, job, torrent.as_deref());
    match core.trackers.announce(&job.url, &request).await {
        Ok(mut response) => {
            response.peers.retain(|peer| may_name(&job.url, peer.ip()));
            let outcome =
                Outcome::Answered { interval_s: response.interval_s, min_interval_s: response.min_interval_s };
            if let Some(torrent) = torrent.filter(|_| job.event != Event::Stopped) {
                welcome(core, &torrent, response).await;
            }
            outcome
        }
        Err(error) => Outcome::from(&error),
    }
}

fn request(core: &Core, job: &Job, torrent: Option<&Torrent>) -> AnnounceRequest {
    let left = match torrent {
        _ if job.complete => 0,
        Some(torrent) => match torrent.active() {
            Some(active) => active.lock().swarm.left_bytes(),
            None => torrent.summary.layout.total_bytes(),
        },
        None => 0,
    };
    AnnounceRequest {
        info_hash: job.info_hash,
        peer_id: core.peer_id,
        port: core.listening.first().map_or(0, SocketAddr::port),
        uploaded: torrent.map_or(0, |torrent| torrent.uploaded_bytes.load(Ordering::Relaxed)),
        downloaded: torrent.map_or(0, |torrent| torrent.downloaded_bytes.load(Ordering::Relaxed)),
        // `left` must agree with the event: the last piece may be on its way to its commit.
        left: if job.complete { 0 } else { left.max(1) },
        event: job.event,
        numwant: Some(match job.event {
            Event::Stopped => 0,
            _ if job.complete => WANTED_SEEDING,
            _ => WANTED_LEECHING,
        }),
        key: Some(core.announce_key),
        compact: true,
        no_peer_id: true,
        ip: None,
    }
}

/// What is on this machine is named by our own tracker, or by one on this machine: others would have us knock at services
/// that trust whoever reaches them.
fn may_name(tracker: &TrackerUrl, peer: IpAddr) -> bool {
    let on_this_machine = |host: &str| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    !peer.to_canonical().is_loopback() || tracker.is_ours() || on_this_machine(&tracker.endpoint().0)
}

/// Peers that a tracker named are dialled.
async fn welcome(core: &Arc<Core>, torrent: &Arc<Torrent>, response: AnnounceResponse) {
    if let Some(warning) = &response.warning {
        tracing::warn!(torrent = %torrent.summary.name, "the tracker says: {warning}");
    }
    if let (Some(ip), Some(active)) = (response.external_ip, torrent.active()) {
        let port = core.listening.first().map_or(0, SocketAddr::port);
        active.lock().book.add_own(SocketAddr::new(ip, port));
    }
    if response.peers.is_empty() || !torrent.with_status(|status| status.is_live()) {
        return;
    }
    // A seed whom nobody knocks at has no need to wake up for other seeds: trackers of ours do not name them to it.
    if let Ok(active) = core.activate(torrent).await {
        active.lock().book.add(response.peers, Source::Tracker, core.clock.now());
        core.dialling.notify_one();
    }
}

impl Core {
    /// Where a torrent is announced: of our network, on our tracker and the further ones; a foreign one on its own, and
    /// on ours as well if it is not private.
    pub fn trackers_of(&self, torrent: &Torrent) -> Vec<Arc<TrackerUrl>> {
        let ours = torrent.with_status(|status| status.ours);
        let mut urls: Vec<Arc<TrackerUrl>> = Vec::new();
        if ours || !torrent.summary.private {
            urls.push(self.our_tracker.clone());
        }
        if ours {
            urls.extend(self.further_trackers.iter().cloned());
        } else {
            urls.extend(torrent.summary.trackers.iter().cloned());
        }
        urls
    }

    pub fn our_tracker_urls(&self) -> Vec<String> {
        std::iter::once(&self.our_tracker).chain(&self.further_trackers).map(|url| url.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_on_this_machine_are_named_by_trackers_on_it_and_by_ours() {
        let foreign = |text: &str| TrackerUrl::parse(text).unwrap();
        let named = |tracker: &TrackerUrl, ip: &str| may_name(tracker, ip.parse().unwrap());
        let elsewhere = [foreign("http://198.18.0.1/announce"), foreign("udp://t.example:6969")];
        for tracker in &elsewhere {
            let here = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"];
            assert!(here.iter().all(|ip| !named(tracker, ip)), "{tracker}");
            assert!(named(tracker, "10.0.0.1") && named(tracker, "2001:db8::1"), "{tracker}");
        }
        let here = [foreign("http://127.0.0.1/announce"), foreign("udp://[::1]:6969"), foreign("http://localhost/x")];
        assert!(here.iter().all(|tracker| named(tracker, "127.0.0.1")));
        assert!(named(&TrackerUrl::Ours(OurTracker::new("10.0.0.1", 6969)), "127.0.0.1"));
    }

    #[test]
    fn a_tracker_that_nothing_was_announced_to_does_as_its_catalogue_does() {
        let announcer = Announcer::new(OurTracker::new("10.0.0.1", 6969), false);
        let row = |catalogue| {
            let mut rows = announcer.tracker_rows(Time::from_secs(10), &catalogue);
            assert_eq!(rows.len(), 1);
            rows.remove(0)
        };
        assert_eq!(row(Reached::NotYet).state, TrackerState::Waiting);
        assert_eq!(row(Reached::Yes).state, TrackerState::Up);
        let down = row(Reached::No { error: "refused".into(), retry_at: Time::from_secs(18) });
        assert_eq!(
            (down.state, down.last_error, down.next_try_s),
            (TrackerState::Down, Some("refused".into()), Some(8))
        );
        assert_eq!(down.url, "10.0.0.1:6969");
    }
}
