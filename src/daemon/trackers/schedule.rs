//! When to announce what to whom: pure rules, the time and the generator are arguments.
//!
//! An *entry* is one torrent at one tracker. What the tracker should know of it (does it run, is it complete) stands
//! beside what the tracker was told last; the event of the next announce is the difference. An entry is in exactly one
//! place:
//!
//! - *queued*: due at a known time;
//! - *ready*: due, and waiting for its tracker, which is busy or down;
//! - *in flight*: handed out as a [`Job`], until [`Schedule::done`] says how it went.
//!
//! A tracker that is down has one timer, not one for each torrent: its entries gather in *ready*, one of them at a time
//! is the probe. When the probe is answered, the others are spread over the seconds that follow. A tracker that was
//! never heard of begins the same way, with a probe that is due at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::{OurTracker, TrackerError, TrackerUrl};
use crate::clock::Time;
use crate::wire::announce::Event;
use crate::wire::id::InfoHash;

/// No foreign tracker needs to hear of a torrent more often, whatever it says (reliability: interval 0, negative).
const MIN_FOREIGN_INTERVAL: Duration = Duration::from_secs(60);
/// Our own tracker's word counts down to this, so that tests and small networks can be quick.
const MIN_OWN_INTERVAL: Duration = Duration::from_secs(1);
/// No tracker silences a torrent for longer, whatever it says (an interval of 10 years).
const MAX_INTERVAL: Duration = Duration::from_secs(2 * 3600);
/// A tracker that is down is asked again after this, doubling up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A torrent that a tracker declined is offered again after this, doubling up to [`MAX_REFUSED`]: the tracker is well,
/// and will most likely say the same again.
const MIN_REFUSED: Duration = Duration::from_secs(60);
const MAX_REFUSED: Duration = Duration::from_secs(3600);
/// Regular announces fall due together, once in so long: with 10,000 torrents one at a time would wake us, and the tracker,
/// a hundred times a second ...
const STEP: Duration = Duration::from_secs(1);
/// ... unless they are so frequent that it would show.
const LEAST_IN_STEP: Duration = Duration::from_secs(30);
/// Announces at once to our own tracker: at 50 ms each that is 10,000 torrents in 10 s.
const OWN_IN_FLIGHT: u32 = 50;
/// Announces at once to one foreign tracker: more looks like an attack.
const FOREIGN_IN_FLIGHT: u32 = 8;
/// Announces at once to all of them: each holds a socket's worth of memory, or a socket.
const ALL_IN_FLIGHT: u32 = 200;
/// Announces a second to a tracker that has just come back: 10,000 torrents take 20 s, and no other peer's are crowded
/// out.
const RECOVERY_PER_S: u32 = 500;
/// Trackers of one torrent; a `.torrent` of 10 MiB could name 100,000.
pub const MAX_TRACKERS_PER_TORRENT: usize = 20;

/// Names a tracker within one schedule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TrackerId(u32);

/// One announce to be made now. Exactly one [`Schedule::done`] must follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub tracker: TrackerId,
    pub url: Arc<TrackerUrl>,
    pub info_hash: InfoHash,
    pub event: Event,
    /// Whether the torrent counted as complete when the event was chosen; `left` must agree with it.
    pub complete: bool,
}

/// How an announce went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered {
        interval_s: u32,
        min_interval_s: Option<u32>,
    },
    /// No answer: the tracker counts as down.
    Unreachable(String),
    /// It declined this torrent, or answered nonsense: the tracker counts as up.
    Declined(String),
}

impl From<&TrackerError> for Outcome {
    fn from(error: &TrackerError) -> Outcome {
        match error {
            TrackerError::Unreachable { .. } => Outcome::Unreachable(error.to_string()),
            TrackerError::Refused { .. } | TrackerError::BadReply { .. } => Outcome::Declined(error.to_string()),
        }
    }
}

/// What an outcome means for the whole tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The first answer ever, or since it was down: it may have lost everything meanwhile.
    Connected(TrackerId),
    /// It was up, or never asked before, and does not answer.
    Lost(TrackerId),
}

/// How a tracker does, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    Up,
    Down {
        failures: u32,
        retry_at: Time,
    },
}

/// One tracker, for `status`.
#[derive(Clone, Debug)]
pub struct TrackerStatus<'a> {
    pub url: &'a TrackerUrl,
    pub health: Health,
    /// Torrents announced to it, or about to be.
    pub torrents: usize,
    /// What it said last, if that was no answer.
    pub last_error: Option<&'a str>,
}

/// One torrent at one tracker, for `show`.
#[derive(Clone, Debug)]
pub struct EntryStatus<'a> {
    pub url: &'a TrackerUrl,
    pub health: Health,
    /// When the next announce is due; `None` while one is under way or the tracker is down.
    pub due: Option<Time>,
    pub last_error: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queued(Time),
    /// With its place in the line.
    Ready(u64),
    InFlight {
        event: Event,
        complete: bool,
    },
}

/// What the tracker knows of the torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Leeching,
    Complete,
}

#[derive(Debug)]
struct Entry {
    url: Arc<TrackerUrl>,
    /// Shall it be announced (not: is it)?
    runs: bool,
    complete: bool,
    told: Told,
    place: Place,
    /// The tracker wants no announce without news before this.
    soonest: Time,
    /// More peers are wanted than there are; since the last announce.
    in_want: bool,
    /// Announces in a row after which that was still so.
    hurried: u32,
    /// Refusals in a row.
    refusals: u32,
    last_error: Option<String>,
}

#[derive(Debug)]
struct Tracker {
    url: Arc<TrackerUrl>,
    health: Health,
    /// First come, first served.
    ready: BTreeMap<u64, InfoHash>,
    in_flight: u32,
    /// While it is not known to be up: the one torrent whose announce is to tell.
    probe: Option<InfoHash>,
    torrents: usize,
    last_error: Option<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Schedule {
    trackers: BTreeMap<TrackerId, Tracker>,
    by_endpoint: BTreeMap<(String, u16), TrackerId>,
    next_tracker: u32,
    entries: BTreeMap<(InfoHash, TrackerId), Entry>,
    queue: BTreeSet<(Time, TrackerId, InfoHash)>,
    /// Trackers that have something ready.
    waiting: BTreeSet<TrackerId>,
    /// The tracker served last: the next one is first, so that a busy tracker does not starve the others.
    served_last: Option<TrackerId>,
    next_in_line: u64,
    in_flight: u32,
}

impl Schedule {
    pub fn new() -> Schedule {
        Schedule::default()
    }

    /// Announces a torrent from now on, at once. The same host and port is one tracker, whatever the protocol. A torrent
    /// that is there already runs again and takes `complete`. Returns `None` when the torrent has
    /// [`MAX_TRACKERS_PER_TORRENT`].
    pub fn add(&mut self, now: Time, info_hash: InfoHash, url: &Arc<TrackerUrl>, complete: bool) -> Option<TrackerId> {
        let endpoint = url.endpoint();
        let known = self.by_endpoint.get(&endpoint).copied();
        if let Some(id) = known.filter(|&id| self.entries.contains_key(&(info_hash, id))) {
            self.change(now, info_hash, id, |entry| {
                entry.runs = true;
                entry.complete = complete;
            });
            return Some(id);
        }
        if self.ids_of(info_hash).count() >= MAX_TRACKERS_PER_TORRENT {
            return None;
        }
        let id = known.unwrap_or(TrackerId(self.next_tracker));
        if known.is_none() {
            self.next_tracker += 1;
            self.by_endpoint.insert(endpoint, id);
        }
        let tracker = self.trackers.entry(id).or_insert_with(|| Tracker {
            url: url.clone(),
            health: Health::Unknown,
            ready: BTreeMap::new(),
            in_flight: 0,
            probe: None,
            torrents: 0,
            last_error: None,
        });
        if url.is_ours() {
            tracker.url = url.clone();
        }
        tracker.torrents += 1;
        let entry = Entry {
            url: url.clone(),
            runs: true,
            complete,
            told: Told::Nothing,
            place: Place::Queued(now),
            soonest: now,
            in_want: false,
            hurried: 0,
            refusals: 0,
            last_error: None,
        };
        self.entries.insert((info_hash, id), entry);
        self.queue.insert((now, id, info_hash));
        Some(id)
    }

    /// The torrent has all its data now: its trackers hear of it at once.
    pub fn completed(&mut self, now: Time, info_hash: InfoHash) {
        self.change_all(now, info_hash, |entry| entry.complete = true);
    }

    /// The torrent lost data, or was found to have less: it counts as leeching from the next announce on.
    pub fn incomplete(&mut self, info_hash: InfoHash) {
        for id in self.ids_of(info_hash).collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&(info_hash, id)) {
                entry.complete = false;
            }
        }
    }

    /// The torrent has too few peers: it is announced before its interval is over, as soon as the tracker allows. While it
    /// stays so each announce waits twice as long as the one before, up to the interval: who has no more peers to name
    /// need not be asked for ever.
    pub fn hurry(&mut self, now: Time, info_hash: InfoHash) {
        for id in self.ids_of(info_hash).collect::<Vec<_>>() {
            let Some(entry) = self.entries.get_mut(&(info_hash, id)) else { continue };
            entry.in_want = true;
            let (place, soonest) = (entry.place, entry.soonest.max(now));
            if let Place::Queued(due) = place
                && entry.refusals == 0
                && soonest < due
            {
                self.queue.remove(&(due, id, info_hash));
                self.enqueue(soonest, info_hash, id);
            }
        }
    }

    /// The torrent leaves its swarms: trackers that know of it hear `stopped` at once, if they are up; the others drop
    /// it by its silence.
    pub fn leave(&mut self, now: Time, info_hash: InfoHash) {
        self.change_all(now, info_hash, |entry| entry.runs = false);
    }

    /// [`Schedule::leave`] for everything. [`Schedule::is_idle`] says when all is told.
    pub fn leave_all(&mut self, now: Time) {
        for (info_hash, id) in self.entries.keys().copied().collect::<Vec<_>>() {
            self.change(now, info_hash, id, |entry| entry.runs = false);
        }
    }

    /// Nothing is announced and nothing will be.
    pub fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// The next announce to make now, if there is one; to be called until there is none.
    pub fn poll(&mut self, now: Time) -> Option<Job> {
        while let Some(&(due, id, info_hash)) = self.queue.first().filter(|(due, ..)| *due <= now) {
            self.queue.remove(&(due, id, info_hash));
            self.make_ready(info_hash, id);
        }
        if self.in_flight >= ALL_IN_FLIGHT {
            return None;
        }
        let id = self.next_able(now)?;
        let tracker = self.trackers.get_mut(&id)?;
        let (_, info_hash) = tracker.ready.pop_first()?;
        if tracker.ready.is_empty() {
            self.waiting.remove(&id);
        }
        let entry = self.entries.get_mut(&(info_hash, id))?;
        let event = entry.event();
        entry.place = Place::InFlight { event, complete: entry.complete };
        tracker.in_flight += 1;
        if tracker.health != Health::Up {
            tracker.probe = Some(info_hash);
        }
        self.in_flight += 1;
        self.served_last = Some(id);
        Some(Job { tracker: id, url: entry.url.clone(), info_hash, event, complete: entry.complete })
    }

    /// When to call [`Schedule::poll`] again; `None`: only after another call.
    pub fn next_due(&self) -> Option<Time> {
        if self.in_flight >= ALL_IN_FLIGHT {
            return None;
        }
        let queued = self.queue.first().map(|(due, ..)| *due);
        let able = self.waiting.iter().filter_map(|id| self.trackers.get(id)?.able_at());
        able.chain(queued).min()
    }

    /// Says how the announce went that `job` asked for.
    pub fn done(&mut self, now: Time, rng: &mut impl Rng, job: &Job, outcome: Outcome) -> Option<Change> {
        let key = (job.info_hash, job.tracker);
        let entry = self.entries.get_mut(&key).filter(|entry| matches!(entry.place, Place::InFlight { .. }))?;
        let tracker = self.trackers.get_mut(&job.tracker)?;
        tracker.in_flight = tracker.in_flight.saturating_sub(1);
        self.in_flight = self.in_flight.saturating_sub(1);
        let mut wait = Duration::ZERO;
        let was_told = entry.told;
        match &outcome {
            Outcome::Answered { interval_s, min_interval_s } => {
                entry.heard(job);
                tracker.last_error = None;
                wait = entry.interval(rng, was_told, *interval_s, *min_interval_s);
                entry.hurried = if std::mem::take(&mut entry.in_want) { entry.hurried + 1 } else { 0 };
                entry.soonest = now + entry.least(*min_interval_s) * (1 << entry.hurried.min(16));
            }
            Outcome::Declined(reason) => {
                wait = jittered(rng, backoff(entry.refusals, MIN_REFUSED, MAX_REFUSED));
                entry.refusals = entry.refusals.saturating_add(1);
                entry.last_error = Some(reason.clone());
                // A goodbye that is declined is none the less all that can be said.
                entry.told = if job.event == Event::Stopped { Told::Nothing } else { entry.told };
            }
            Outcome::Unreachable(reason) => {
                entry.last_error = Some(reason.clone());
                tracker.last_error = Some(reason.clone());
                entry.told = if job.event == Event::Stopped { Told::Nothing } else { entry.told };
            }
        }
        let news = entry.has_news();
        let gone = !entry.runs && !news;
        let unreachable = matches!(outcome, Outcome::Unreachable(_));
        let declined = matches!(outcome, Outcome::Declined(_));
        let is_probe = tracker.probe.take_if(|probe| *probe == job.info_hash).is_some();
        let says_goodbye = !entry.runs;
        let change = match (unreachable, is_probe || tracker.health == Health::Up) {
            (true, true) => self.went_down(now, rng, job.tracker),
            // It was under way when the tracker went down, and tells nothing new.
            (true, false) => None,
            (false, _) => self.came_up(now, job.tracker),
        };
        if gone {
            self.forget(job.info_hash, job.tracker);
        } else if unreachable {
            self.make_ready(job.info_hash, job.tracker);
        } else {
            let due = if news && (says_goodbye || !declined) { now } else { in_step(now, wait) };
            self.enqueue(due, job.info_hash, job.tracker);
        }
        change
    }

    /// All trackers, in the order in which they were first named.
    pub fn trackers(&self) -> impl Iterator<Item = TrackerStatus<'_>> {
        self.trackers.values().map(|tracker| TrackerStatus {
            url: &tracker.url,
            health: tracker.health,
            torrents: tracker.torrents,
            last_error: tracker.last_error.as_deref(),
        })
    }

    /// The trackers of one torrent.
    pub fn torrent(&self, info_hash: InfoHash) -> impl Iterator<Item = EntryStatus<'_>> {
        self.ids_of(info_hash).filter_map(move |id| {
            let (entry, tracker) = (self.entries.get(&(info_hash, id))?, self.trackers.get(&id)?);
            let due = if let Place::Queued(due) = entry.place { Some(due) } else { None };
            let last_error = entry.last_error.as_deref();
            Some(EntryStatus { url: &entry.url, health: tracker.health, due, last_error })
        })
    }

    /// How our tracker does, once it has been named.
    pub fn ours(&self, ours: &OurTracker) -> Option<TrackerStatus<'_>> {
        self.trackers().find(|status| status.url.names(ours))
    }

    fn ids_of(&self, info_hash: InfoHash) -> impl Iterator<Item = TrackerId> + '_ {
        let all = (info_hash, TrackerId(0))..=(info_hash, TrackerId(u32::MAX));
        self.entries.range(all).map(|((_, id), _)| *id)
    }

    fn change_all(&mut self, now: Time, info_hash: InfoHash, change: impl Fn(&mut Entry)) {
        for id in self.ids_of(info_hash).collect::<Vec<_>>() {
            self.change(now, info_hash, id, &change);
        }
    }

    /// Changes what a tracker should know; what follows from it is due at once.
    fn change(&mut self, now: Time, info_hash: InfoHash, id: TrackerId, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(&(info_hash, id)) else { return };
        change(entry);
        let (runs, news, place) = (entry.runs, entry.has_news(), entry.place);
        let down = self.trackers.get(&id).is_none_or(|tracker| tracker.health != Health::Up);
        match place {
            // `done` looks again.
            Place::InFlight { .. } => {}
            _ if !runs && (down || !news) => self.forget(info_hash, id),
            Place::Queued(due) if news && due > now => {
                self.queue.remove(&(due, id, info_hash));
                self.enqueue(now, info_hash, id);
            }
            Place::Queued(_) | Place::Ready(_) => {}
        }
    }

    fn enqueue(&mut self, due: Time, info_hash: InfoHash, id: TrackerId) {
        if let Some(entry) = self.entries.get_mut(&(info_hash, id)) {
            entry.place = Place::Queued(due);
            self.queue.insert((due, id, info_hash));
        }
    }

    fn make_ready(&mut self, info_hash: InfoHash, id: TrackerId) {
        let (Some(entry), Some(tracker)) = (self.entries.get_mut(&(info_hash, id)), self.trackers.get_mut(&id)) else {
            return;
        };
        entry.place = Place::Ready(self.next_in_line);
        tracker.ready.insert(self.next_in_line, info_hash);
        self.next_in_line += 1;
        self.waiting.insert(id);
    }

    /// The next tracker in turn that may be asked now.
    fn next_able(&self, now: Time) -> Option<TrackerId> {
        let able =
            |id: &&TrackerId| self.trackers.get(*id).and_then(Tracker::able_at).is_some_and(|able_at| able_at <= now);
        let after = self.served_last.map_or(0, |TrackerId(id)| id + 1);
        let mut in_turn = self.waiting.range(TrackerId(after)..).chain(self.waiting.range(..TrackerId(after)));
        in_turn.find(able).copied()
    }

    fn went_down(&mut self, now: Time, rng: &mut impl Rng, id: TrackerId) -> Option<Change> {
        let tracker = self.trackers.get_mut(&id)?;
        let failures = match tracker.health {
            Health::Unknown | Health::Up => 0,
            Health::Down { failures, .. } => failures,
        };
        let retry_at = now + jittered(rng, backoff(failures, MIN_BACKOFF, MAX_BACKOFF));
        let was_down = matches!(tracker.health, Health::Down { .. });
        tracker.health = Health::Down { failures: failures.saturating_add(1), retry_at };
        // What would only say goodbye is dropped.
        let leaving: Vec<InfoHash> = tracker.ready.values().copied().collect();
        for info_hash in leaving {
            if self.entries.get(&(info_hash, id)).is_some_and(|entry| !entry.runs) {
                self.forget(info_hash, id);
            }
        }
        (!was_down).then_some(Change::Lost(id))
    }

    fn came_up(&mut self, now: Time, id: TrackerId) -> Option<Change> {
        let tracker = self.trackers.get_mut(&id)?;
        if tracker.health == Health::Up {
            return None;
        }
        tracker.health = Health::Up;
        tracker.probe = None;
        self.waiting.remove(&id);
        // Downloads first: somebody waits for them.
        let (seeding, leeching): (Vec<_>, Vec<_>) = std::mem::take(&mut tracker.ready)
            .into_values()
            .partition(|&info_hash| self.entries.get(&(info_hash, id)).is_some_and(|entry| entry.complete));
        for (at, info_hash) in (0u32..).zip(leeching.into_iter().chain(seeding)) {
            self.enqueue(now + Duration::from_secs(1) * at / RECOVERY_PER_S, info_hash, id);
        }
        Some(Change::Connected(id))
    }

    fn forget(&mut self, info_hash: InfoHash, id: TrackerId) {
        let Some(entry) = self.entries.remove(&(info_hash, id)) else { return };
        let Some(tracker) = self.trackers.get_mut(&id) else { return };
        match entry.place {
            Place::Queued(due) => drop(self.queue.remove(&(due, id, info_hash))),
            Place::Ready(line) => drop(tracker.ready.remove(&line)),
            Place::InFlight { .. } => {}
        }
        if tracker.ready.is_empty() {
            self.waiting.remove(&id);
        }
        tracker.torrents = tracker.torrents.saturating_sub(1);
        // `status` goes on showing our own tracker when nothing is announced to it.
        if tracker.torrents == 0 && !tracker.url.is_ours() {
            let endpoint = tracker.url.endpoint();
            self.trackers.remove(&id);
            self.by_endpoint.remove(&endpoint);
        }
    }
}

impl Entry {
    fn event(&self) -> Event {
        match (self.runs, self.told, self.complete) {
            (false, ..) => Event::Stopped,
            (true, Told::Nothing, _) => Event::Started,
            (true, Told::Leeching, true) => Event::Completed,
            (true, ..) => Event::None,
        }
    }

    /// Whether there is something to say before the interval is over.
    fn has_news(&self) -> bool {
        match self.event() {
            Event::None => false,
            Event::Stopped => self.told != Told::Nothing,
            Event::Started | Event::Completed => true,
        }
    }

    /// The least time between two announces without news.
    fn least(&self, min_interval_s: Option<u32>) -> Duration {
        let least = if self.url.is_ours() { MIN_OWN_INTERVAL } else { MIN_FOREIGN_INTERVAL };
        min_interval_s.map_or(least, |s| Duration::from_secs(s.into()).clamp(least, MAX_INTERVAL))
    }

    fn heard(&mut self, job: &Job) {
        self.told = match job.event {
            Event::Stopped => Told::Nothing,
            _ if job.complete => Told::Complete,
            _ => Told::Leeching,
        };
        self.refusals = 0;
        self.last_error = None;
    }

    /// Until the next regular announce. After the first one of a seeding torrent the wait is drawn from a whole
    /// interval, so that torrents that started together do not go on in step.
    fn interval(&self, rng: &mut impl Rng, was_told: Told, interval_s: u32, min_interval_s: Option<u32>) -> Duration {
        let ours = self.url.is_ours();
        let interval = Duration::from_secs(interval_s.into()).clamp(self.least(None), MAX_INTERVAL);
        let least = self.least(min_interval_s);
        let first = was_told == Told::Nothing && self.complete;
        match (first, ours) {
            // Our tracker waits 2.5 intervals before it misses anybody.
            (true, true) => interval + interval.mul_f64(rng.random()),
            // Others may not: sooner, but not sooner than they allow.
            (true, false) => interval.mul_f64(rng.random_range(0.5..1.0)).max(least),
            (false, _) => interval.max(least),
        }
    }
}

impl Tracker {
    /// When it may be asked next; `None` while as much is under way as may be: one probe, until it is known to be up.
    fn able_at(&self) -> Option<Time> {
        let most = if self.url.is_ours() { OWN_IN_FLIGHT } else { FOREIGN_IN_FLIGHT };
        match self.health {
            Health::Up => (self.in_flight < most).then_some(Time::ZERO),
            Health::Unknown => self.probe.is_none().then_some(Time::ZERO),
            Health::Down { retry_at, .. } => self.probe.is_none().then_some(retry_at),
        }
    }
}

/// When a wait from now on is over: a long one with others, on a multiple of [`STEP`].
fn in_step(now: Time, wait: Duration) -> Time {
    let due = now + wait;
    if wait < LEAST_IN_STEP {
        return due;
    }
    let step = STEP.as_nanos() as u64;
    Time::from_nanos(due.as_nanos().div_ceil(step).saturating_mul(step))
}

fn backoff(failures: u32, first: Duration, most: Duration) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(most)
}

/// Between three quarters of it and all: so that the peers that lost a tracker together do not come back together.
fn jittered(rng: &mut impl Rng, wait: Duration) -> Duration {
    wait.mul_f64(rng.random_range(0.75..=1.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const T0: Time = Time::from_secs(1_000);

    fn hash(n: u32) -> InfoHash {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        InfoHash::new(bytes)
    }

    fn ours() -> Arc<TrackerUrl> {
        Arc::new(TrackerUrl::Ours(OurTracker::new("t", 6969)))
    }

    fn foreign(host: &str) -> Arc<TrackerUrl> {
        Arc::new(TrackerUrl::parse(&format!("http://{host}/announce")).unwrap())
    }

    fn answered(interval_s: u32) -> Outcome {
        Outcome::Answered { interval_s, min_interval_s: None }
    }

    fn unreachable() -> Outcome {
        Outcome::Unreachable("cannot be reached: test".into())
    }

    /// A schedule with a clock and a generator of its own; announces are answered at once by `answer`.
    struct World {
        schedule: Schedule,
        now: Time,
        rng: SmallRng,
        /// What was announced, in order.
        log: Vec<(Time, Job)>,
        changes: Vec<(Time, Change)>,
    }

    impl World {
        fn new(seed: u64) -> World {
            let rng = SmallRng::seed_from_u64(seed);
            World { schedule: Schedule::new(), now: T0, rng, log: Vec::new(), changes: Vec::new() }
        }

        fn done(&mut self, job: &Job, outcome: Outcome) {
            let change = self.schedule.done(self.now, &mut self.rng, job, outcome);
            self.changes.extend(change.map(|change| (self.now, change)));
        }

        fn run(&mut self, for_s: u64, mut answer: impl FnMut(Time, &Job) -> Outcome) {
            let end = self.now + Duration::from_secs(for_s);
            loop {
                while let Some(job) = self.schedule.poll(self.now) {
                    let outcome = answer(self.now, &job);
                    self.log.push((self.now, job.clone()));
                    self.done(&job, outcome);
                }
                match self.schedule.next_due() {
                    Some(due) if due <= end => {
                        assert!(due > self.now, "a due time in the past after `poll` had no more");
                        self.now = due;
                    }
                    _ => break,
                }
            }
            self.now = end;
        }

        fn events(&mut self) -> Vec<Event> {
            self.log.drain(..).map(|(_, job)| job.event).collect()
        }
    }

    #[test]
    fn started_then_regular_then_completed_once_then_stopped() {
        let mut world = World::new(1);
        world.schedule.add(T0, hash(1), &ours(), false);
        world.run(250, |_, _| answered(100));
        assert_eq!(world.events(), [Event::Started, Event::None, Event::None]);
        world.schedule.completed(world.now, hash(1));
        world.run(1, |_, job| {
            assert!(job.complete);
            answered(100)
        });
        assert_eq!(world.events(), [Event::Completed]);
        world.schedule.completed(world.now, hash(1));
        world.run(100, |_, _| answered(100));
        assert_eq!(world.events(), [Event::None]);
        world.schedule.leave(world.now, hash(1));
        assert!(!world.schedule.is_idle());
        world.run(1, |_, _| answered(100));
        assert_eq!(world.events(), [Event::Stopped]);
        assert!(world.schedule.is_idle() && world.schedule.next_due().is_none());
    }

    #[test]
    fn what_is_complete_at_the_start_never_sends_completed() {
        let mut world = World::new(2);
        world.schedule.add(T0, hash(1), &ours(), true);
        world.schedule.completed(T0, hash(1));
        world.run(3600, |_, job| {
            assert!(job.complete);
            answered(600)
        });
        let events = world.events();
        assert_eq!(events[0], Event::Started);
        assert!(events.len() > 4 && events[1..].iter().all(|event| *event == Event::None), "{events:?}");
    }

    #[test]
    fn who_has_too_few_peers_asks_sooner_but_not_sooner_than_allowed_nor_for_ever() {
        let answer = || Outcome::Answered { interval_s: 1_800, min_interval_s: Some(120) };
        for (url, least) in [(ours(), 120), (foreign("a:1"), 120)] {
            let mut world = World::new(5);
            world.schedule.add(T0, hash(1), &url, false);
            for _ in 0..7_000 {
                world.run(1, |_, _| answer());
                world.schedule.hurry(world.now, hash(1));
            }
            let gaps: Vec<u64> = world.log.windows(2).map(|pair| pair[1].0.since(pair[0].0).as_secs()).collect();
            assert_eq!(gaps, [least, 2 * least, 4 * least, 8 * least, 1_800, 1_800]);
        }
        // Once there are enough the next want is answered at once again.
        let mut world = World::new(6);
        world.schedule.add(T0, hash(1), &ours(), false);
        world.schedule.hurry(T0, hash(1));
        world.run(1_799, |_, _| answer());
        assert_eq!(world.log.len(), 1, "a want before the first answer was met by it");
        world.schedule.hurry(world.now, hash(1));
        world.run(1, |_, _| answer());
        assert_eq!(world.log.len(), 2);
        // A tracker that declines is not pressed.
        let mut world = World::new(7);
        world.schedule.add(T0, hash(1), &ours(), false);
        world.run(1, |_, _| Outcome::Declined("no".into()));
        world.schedule.hurry(world.now, hash(1));
        world.run(30, |_, _| Outcome::Declined("no".into()));
        assert_eq!(world.log.len(), 1);
    }

    #[test]
    fn completion_while_started_is_under_way_is_told_after_it() {
        let mut world = World::new(3);
        world.schedule.add(T0, hash(1), &ours(), false);
        let job = world.schedule.poll(T0).unwrap();
        world.schedule.completed(T0, hash(1));
        assert_eq!(world.schedule.poll(T0), None);
        world.done(&job, answered(600));
        let job = world.schedule.poll(T0).unwrap();
        assert_eq!((job.event, job.complete), (Event::Completed, true));
    }

    #[test]
    fn intervals_are_clamped_and_ours_is_believed() {
        let gap = |url: &Arc<TrackerUrl>, outcome: Outcome| {
            let mut world = World::new(4);
            world.schedule.add(T0, hash(1), url, false);
            world.run(10_000, |_, _| outcome.clone());
            let times: Vec<Time> = world.log.iter().map(|(at, _)| *at).collect();
            times[1] - times[0]
        };
        let secs = Duration::from_secs;
        assert_eq!(gap(&foreign("f"), answered(0)), secs(60));
        assert_eq!(gap(&foreign("f"), answered(u32::MAX)), secs(7200));
        assert_eq!(gap(&foreign("f"), answered(1800)), secs(1800));
        assert_eq!(gap(&ours(), answered(0)), secs(1));
        assert_eq!(gap(&ours(), answered(5)), secs(5));
        assert_eq!(gap(&ours(), answered(u32::MAX)), secs(7200));
        let longer = Outcome::Answered { interval_s: 100, min_interval_s: Some(300) };
        assert_eq!(gap(&foreign("f"), longer), secs(300));
        let absurd = Outcome::Answered { interval_s: 100, min_interval_s: Some(u32::MAX) };
        assert_eq!(gap(&foreign("f"), absurd), secs(7200));
    }

    #[test]
    fn ten_thousand_torrents_at_a_tracker_that_is_down_cost_one_probe_each_backoff() {
        let mut world = World::new(5);
        let url = ours();
        for n in 0..10_000 {
            world.schedule.add(T0, hash(n), &url, n != 9_999);
        }
        world.run(600, |_, _| unreachable());
        let gaps: Vec<f64> = world.log.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs_f64()).collect();
        for (n, gap) in gaps.iter().enumerate() {
            let due = f64::from(1u32 << n.min(6)).min(60.0);
            assert!((due * 0.75..=due).contains(gap), "gap {n} is {gap} s");
        }
        assert!((12..=20).contains(&gaps.len()), "{} probes in 10 min", gaps.len() + 1);
        assert!(matches!(world.changes.as_slice(), [(T0, Change::Lost(_))]));
        assert!(matches!(world.schedule.trackers().next().unwrap().health, Health::Down { .. }));

        // It comes back: all are announced, the download first after the probe, never more than so many a second.
        world.log.clear();
        world.changes.clear();
        world.run(90, |_, _| answered(1800));
        assert!(matches!(world.changes.as_slice(), [(_, Change::Connected(_))]));
        assert_eq!(world.log.len(), 10_000);
        assert_eq!(world.log[1].1.info_hash, hash(9_999));
        let (first, last) = (world.log[0].0, world.log[9_999].0);
        assert!(last - first >= Duration::from_secs(19) && last - first <= Duration::from_secs(21));
        for (n, (at, _)) in world.log.iter().enumerate().skip(600) {
            assert!(*at - world.log[n - 600].0 > Duration::from_secs(1), "a burst at announce {n}");
        }
    }

    #[test]
    fn seeding_torrents_are_spread_over_the_interval() {
        let mut world = World::new(6);
        let url = ours();
        for n in 0..6_000 {
            world.schedule.add(T0, hash(n), &url, true);
        }
        world.run(1_200 * 4, |_, _| answered(1_200));
        let mut minutes = [0; 20];
        for (at, _) in world.log.iter().filter(|(at, _)| *at >= T0 + Duration::from_secs(1_200 * 3)) {
            minutes[((*at - T0).as_secs() / 60 % 20) as usize] += 1;
        }
        assert!(minutes.iter().all(|count| (200..400).contains(count)), "{minutes:?}");
    }

    #[test]
    fn regular_announces_fall_due_together_once_a_second_and_frequent_ones_by_themselves() {
        for (interval_s, together) in [(100, true), (5, false)] {
            let mut world = World::new(8);
            let url = ours();
            for n in 0..500 {
                world.schedule.add(T0, hash(n), &url, true);
            }
            world.run(interval_s * 4, |_, _| answered(interval_s as u32));
            let later = world.log.iter().filter(|(at, _)| *at > T0 + Duration::from_secs(interval_s * 2));
            let (whole, all): (Vec<bool>, usize) =
                (later.clone().map(|(at, _)| at.as_nanos() % 1_000_000_000 == 0).collect(), later.count());
            assert!(all >= 500, "{all}");
            let shares = whole.iter().filter(|whole| **whole).count() * 10 / all;
            assert_eq!(shares, if together { 10 } else { 0 }, "of {all}, interval {interval_s} s");
        }
    }

    #[test]
    fn concurrency_is_bounded_for_each_tracker_and_for_all() {
        let mut schedule = Schedule::new();
        let mut rng = SmallRng::seed_from_u64(7);
        let mut urls = vec![ours()];
        urls.extend((0..40).map(|n| foreign(&format!("f{n}"))));
        for url in &urls {
            for n in 0..60 {
                schedule.add(T0, hash(n), url, false);
            }
        }
        let probes: Vec<Job> = std::iter::from_fn(|| schedule.poll(T0)).collect();
        assert_eq!(probes.len(), MAX_TRACKERS_PER_TORRENT, "one for each tracker that was taken");
        for probe in &probes {
            assert!(schedule.done(T0, &mut rng, probe, answered(60)).is_some());
        }
        let later = T0 + Duration::from_secs(1);
        let jobs: Vec<Job> = std::iter::from_fn(|| schedule.poll(later)).collect();
        let mut counts: BTreeMap<TrackerId, u32> = BTreeMap::new();
        for job in &jobs {
            *counts.entry(job.tracker).or_default() += 1;
        }
        assert_eq!(jobs.len() as u32, ALL_IN_FLIGHT.min(OWN_IN_FLIGHT + 19 * FOREIGN_IN_FLIGHT));
        assert!(counts.values().max().is_some_and(|most| *most <= OWN_IN_FLIGHT));
        assert!(counts.iter().skip(1).all(|(_, count)| *count <= FOREIGN_IN_FLIGHT), "{counts:?}");
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn leaving_waits_for_nobody_who_is_down() {
        let mut world = World::new(8);
        world.schedule.add(T0, hash(1), &ours(), true);
        world.schedule.add(T0, hash(1), &foreign("f"), true);
        world.run(10, |_, job| if job.url.is_ours() { answered(1800) } else { unreachable() });
        world.log.clear();
        world.schedule.leave_all(world.now);
        world.run(1, |_, job| {
            assert!(job.url.is_ours());
            answered(1800)
        });
        assert_eq!(world.events(), [Event::Stopped]);
        assert!(world.schedule.is_idle());
    }

    #[test]
    fn leaving_while_started_is_under_way_says_stopped_after_it() {
        let mut world = World::new(9);
        world.schedule.add(T0, hash(1), &ours(), true);
        let job = world.schedule.poll(T0).unwrap();
        world.schedule.leave(T0, hash(1));
        world.done(&job, answered(1800));
        world.run(1, |_, _| unreachable());
        assert_eq!(world.events(), [Event::Stopped]);
        assert!(world.schedule.is_idle(), "a goodbye is said once, heard or not");
    }

    #[test]
    fn a_torrent_that_comes_back_starts_again() {
        let mut world = World::new(10);
        world.schedule.add(T0, hash(1), &ours(), false);
        world.run(1, |_, _| answered(1800));
        world.schedule.leave(world.now, hash(1));
        let goodbye = world.schedule.poll(world.now).unwrap();
        world.schedule.add(world.now, hash(1), &ours(), true);
        world.done(&goodbye, answered(1800));
        let again = world.schedule.poll(world.now).unwrap();
        assert_eq!((again.event, again.complete), (Event::Started, true));
    }

    #[test]
    fn a_refusal_concerns_one_torrent_and_is_repeated_ever_later() {
        let mut world = World::new(11);
        let url = foreign("f");
        world.schedule.add(T0, hash(1), &url, false);
        world.schedule.add(T0, hash(2), &url, false);
        world.run(86_400, |_, job| {
            if job.info_hash == hash(1) { Outcome::Declined("refused: unregistered".into()) } else { answered(1800) }
        });
        let refused: Vec<Time> =
            world.log.iter().filter(|(_, job)| job.info_hash == hash(1)).map(|(at, _)| *at).collect();
        let gaps: Vec<f64> = refused.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        for (n, gap) in gaps.iter().enumerate() {
            let due = (60.0 * f64::from(1u32 << n.min(10))).min(3600.0);
            assert!((due * 0.75..=due).contains(gap), "gap {n} is {gap} s");
        }
        let served = world.log.iter().filter(|(_, job)| job.info_hash == hash(2)).count();
        assert_eq!(served, 49, "the other torrent goes on every 30 min");
        let status = world.schedule.torrent(hash(1)).next().unwrap();
        assert_eq!((status.health, status.last_error), (Health::Up, Some("refused: unregistered")));
    }

    #[test]
    fn one_host_and_port_is_one_tracker_and_a_torrent_has_so_many() {
        let mut schedule = Schedule::new();
        let by_udp = Arc::new(TrackerUrl::parse("udp://T:6969").unwrap());
        let first = schedule.add(T0, hash(1), &ours(), false);
        assert_eq!(schedule.add(T0, hash(1), &by_udp, false), first);
        assert!(schedule.poll(T0).is_some() && schedule.poll(T0).is_none());
        for n in 0..MAX_TRACKERS_PER_TORRENT as u32 - 1 {
            assert!(schedule.add(T0, hash(1), &foreign(&format!("f{n}")), false).is_some());
        }
        assert_eq!(schedule.add(T0, hash(1), &foreign("more"), false), None);
        assert_eq!(schedule.trackers().count(), MAX_TRACKERS_PER_TORRENT);
    }

    /// What a tracker may hear of one torrent, in order.
    fn check_grammar(heard: &[(Event, bool)]) {
        let (mut known, mut complete) = (false, false);
        for (event, is_complete) in heard {
            match event {
                Event::Started => assert!(!known, "started twice: {heard:?}"),
                Event::Completed => assert!(known && !complete, "completed out of place: {heard:?}"),
                Event::Stopped | Event::None => assert!(known, "{event:?} before started: {heard:?}"),
            }
            known = *event != Event::Stopped;
            complete = known && *is_complete;
        }
    }

    #[test]
    fn whatever_happens_each_tracker_hears_a_sensible_story() {
        for seed in 0..60 {
            let mut world = World::new(seed);
            let urls = [ours(), foreign("f"), foreign("g")];
            let mut under_way: Vec<Job> = Vec::new();
            let mut heard: BTreeMap<(InfoHash, TrackerId), Vec<(Event, bool)>> = BTreeMap::new();
            for _ in 0..400 {
                let torrent = hash(world.rng.random_range(0..5));
                match world.rng.random_range(0..10) {
                    0 | 1 => {
                        let url = &urls[world.rng.random_range(0..3)];
                        let complete = world.rng.random();
                        world.schedule.add(world.now, torrent, url, complete);
                    }
                    2 => world.schedule.completed(world.now, torrent),
                    3 => world.schedule.leave(world.now, torrent),
                    4 | 5 => under_way.extend(world.schedule.poll(world.now)),
                    6 | 7 if !under_way.is_empty() => {
                        let job = under_way.swap_remove(world.rng.random_range(0..under_way.len()));
                        let outcome = match world.rng.random_range(0..4) {
                            0 => unreachable(),
                            1 => Outcome::Declined("refused: test".into()),
                            _ => answered(world.rng.random_range(0..200)),
                        };
                        if let Outcome::Answered { .. } = outcome {
                            let story = heard.entry((job.info_hash, job.tracker)).or_default();
                            story.push((job.event, job.complete));
                        } else if job.event == Event::Stopped {
                            // Not heard; but for us the story is over.
                            heard.entry((job.info_hash, job.tracker)).or_default().clear();
                        }
                        world.done(&job, outcome);
                    }
                    _ => world.now = world.now + Duration::from_millis(world.rng.random_range(0..30_000)),
                }
                // What is forgotten without a word (its tracker was down) may begin anew.
                heard.retain(|key, _| {
                    world.schedule.entries.contains_key(key)
                        || under_way.iter().any(|j| (j.info_hash, j.tracker) == *key)
                });
                heard.values().for_each(|story| check_grammar(story));
                check_places(&world.schedule, &under_way);
            }
        }
    }

    fn check_places(schedule: &Schedule, under_way: &[Job]) {
        let (mut queued, mut ready, mut in_flight) = (0, 0, 0);
        for ((info_hash, id), entry) in &schedule.entries {
            match entry.place {
                Place::Queued(due) => {
                    assert!(schedule.queue.contains(&(due, *id, *info_hash)));
                    queued += 1;
                }
                Place::Ready(line) => {
                    assert_eq!(schedule.trackers[id].ready.get(&line), Some(info_hash));
                    ready += 1;
                }
                Place::InFlight { .. } => in_flight += 1,
            }
        }
        assert_eq!(queued, schedule.queue.len());
        assert_eq!(ready, schedule.trackers.values().map(|tracker| tracker.ready.len()).sum::<usize>());
        assert_eq!((in_flight, in_flight as u32), (under_way.len(), schedule.in_flight));
        let torrents: usize = schedule.trackers.values().map(|tracker| tracker.torrents).sum();
        assert_eq!(torrents, schedule.entries.len());
        for (id, tracker) in &schedule.trackers {
            assert_eq!(schedule.waiting.contains(id), !tracker.ready.is_empty());
        }
    }
}
