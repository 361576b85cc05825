//! From a file that has settled in upload/ to a torrent that is published, announced and seeded; and back.
//!
//! A path is, disjointly: *unknown* → *hashing* → *shared* (its record names a key and what the file was); *declined*
//! (the user removed it: not shared again until its content changes). A shared path whose file goes waits a moment, so
//! that a move is seen as a move, and is then withdrawn.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::announcing::What as Announce;
use super::core::Core;
use super::deleting;
use super::disk::fs::Stat;
use super::lifecycle::put_torrent;
use super::making::{self, Made, MakeError};
use super::records::{self, ShareRecord, StatRecord};
use super::torrent::{Origin, Phase, Status, Summary, Torrent};
use super::watch::{FileStat, WatchEvent};
use crate::clock::Time;
use crate::db::record::{decode_record, encode_record};
use crate::db::{Batch, Store, StoreError};
use crate::wire::id::InfoHash;
use crate::wire::name::RelPath;

/// Decision 7: publications are recorded twice a second, all that are ready in one group.
const RECORD_EVERY: Duration = Duration::from_millis(500);
/// ... or when so many are ready.
const RECORD_AT_ONCE: usize = 1_000;
/// A file that goes and comes under another name within this time was moved.
const MOVE_GRACE: Duration = Duration::from_secs(2);
/// design.md *Share*: a second change within a minute waits for the minute's end.
const CHANGE_PAUSE: Duration = Duration::from_secs(60);
/// design.md *Share*: a renamed file is served under its old key for so long to those in the middle of it.
const LINGER: Duration = Duration::from_secs(3_600);

/// What is shared from upload/, by path; and how much hashing is ahead.
pub struct Shares {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    shared: HashMap<RelPath, Share>,
    declined: HashMap<RelPath, StatRecord>,
    /// Files that are being hashed, and their bytes.
    hashing: BTreeMap<RelPath, u64>,
    /// Files to look at again although nothing happened to them.
    again: Vec<RelPath>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Share {
    key: InfoHash,
    stat: StatRecord,
}

impl Shares {
    /// Reads what earlier runs shared.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn load(store: &dyn Store) -> Result<Shares, StoreError> {
        let mut state = State::default();
        store.for_each(records::SHARES, &[], &mut |path, bytes| {
            let row = (|| {
                let record: ShareRecord = decode_record(bytes).ok()?;
                Some((RelPath::parse(path).ok()?, Share { key: InfoHash::from_slice(&record.key)?, stat: record.stat }))
            })();
            // A damaged row only costs hashing the file again.
            state.shared.extend(row);
            std::ops::ControlFlow::Continue(())
        })?;
        store.for_each(records::DECLINED, &[], &mut |path, bytes| {
            if let (Ok(path), Ok(stat)) = (RelPath::parse(path), decode_record(bytes)) {
                state.declined.insert(path, stat);
            }
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(Shares { state: Mutex::new(state), wake: Notify::new() })
    }

    /// Files and bytes that are being hashed or wait for it.
    pub fn hashing(&self) -> (u64, u64) {
        let state = self.lock();
        (state.hashing.len() as u64, state.hashing.values().sum())
    }

    pub fn hashing_paths(&self) -> Vec<(RelPath, u64)> {
        self.lock().hashing.iter().map(|(path, bytes)| (path.clone(), *bytes)).collect()
    }

    /// Shares a file that was declined before, although nothing has happened to it.
    pub fn look_again(&self, path: &RelPath) {
        self.lock().again.push(path.clone());
        self.wake.notify_one();
    }

    /// Paths in upload/ that hold this torrent's file.
    pub fn paths_of(&self, key: InfoHash) -> Vec<RelPath> {
        self.lock().shared.iter().filter(|(_, share)| share.key == key).map(|(path, _)| path.clone()).collect()
    }

    /// The user does not want these files shared: remembered until their content changes.
    pub fn decline(&self, key: InfoHash, batch: &mut Batch) {
        let mut state = self.lock();
        let gone: Vec<_> =
            state.shared.iter().filter(|(_, share)| share.key == key).map(|(p, s)| (p.clone(), s.stat)).collect();
        for (path, stat) in gone {
            state.shared.remove(&path);
            batch.delete(records::SHARES, path.as_bytes());
            batch.put(records::DECLINED, path.as_bytes(), encode_record(&stat));
            state.declined.insert(path, stat);
        }
    }

    /// The user wants it after all.
    pub fn accept(&self, path: &RelPath, batch: &mut Batch) {
        if self.lock().declined.remove(path).is_some() {
            batch.delete(records::DECLINED, path.as_bytes());
        }
    }

    /// The torrent that holds the file at this path.
    pub fn key_at(&self, path: &RelPath) -> Option<InfoHash> {
        self.lock().shared.get(path).map(|share| share.key)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<FileStat> for StatRecord {
    fn from(stat: FileStat) -> StatRecord {
        StatRecord {
            device: stat.dev,
            inode: stat.ino,
            bytes: stat.size,
            mtime_ns: stat.mtime_ns,
            ctime_ns: stat.ctime_ns,
        }
    }
}

impl From<Stat> for StatRecord {
    fn from(stat: Stat) -> StatRecord {
        StatRecord {
            device: stat.device,
            inode: stat.inode,
            bytes: stat.len,
            mtime_ns: stat.modified_ns,
            ctime_ns: stat.changed_ns,
        }
    }
}

impl StatRecord {
    /// The same content as far as size and mtime tell; a new ctime alone (a rename, a link, a chmod) changes nothing.
    pub fn same_content(&self, other: &StatRecord) -> bool {
        self.bytes == other.bytes && self.mtime_ns == other.mtime_ns
    }

    /// The same file, perhaps under another name.
    pub fn same_file(&self, other: &StatRecord) -> bool {
        self.same_content(other) && self.device == other.device && self.inode == other.inode
    }
}

struct Sharing {
    core: Arc<Core>,
    jobs: JoinSet<(RelPath, StatRecord, Result<Made, MakeError>)>,
    ready: Vec<(RelPath, StatRecord, Made)>,
    record_at: Option<Time>,
    /// Paths whose file went, and when that is final.
    going: HashMap<RelPath, Time>,
    /// The same by device and inode, to know a file that was moved; entries may outlive those of `going`.
    gone_files: HashMap<(u64, u64), RelPath>,
    /// Paths that went while their file was being hashed.
    gone: HashSet<RelPath>,
    /// Settled changes that wait for their minute's end.
    later: HashMap<RelPath, (Time, StatRecord)>,
    recorded: HashMap<RelPath, Time>,
    lingering: Vec<(Time, InfoHash)>,
    /// Paths found since the start; whatever is not among them when the first scan is done went while we were away.
    seen: Option<HashSet<RelPath>>,
}

/// Follows upload/ until the daemon stops.
pub async fn run(core: Arc<Core>, mut events: mpsc::Receiver<WatchEvent>) {
    let at_once = std::thread::available_parallelism().map_or(1, |n| n.get()) * 2;
    let mut sharing = Sharing {
        core: core.clone(),
        jobs: JoinSet::new(),
        ready: Vec::new(),
        record_at: None,
        going: HashMap::new(),
        gone_files: HashMap::new(),
        gone: HashSet::new(),
        later: HashMap::new(),
        recorded: HashMap::new(),
        lingering: Vec::new(),
        seen: Some(HashSet::new()),
    };
    loop {
        let wait = sharing.next_timeout().map_or(Duration::from_secs(3_600), |at| at.since(core.clock.now()));
        tokio::select! {
            event = events.recv(), if sharing.jobs.len() < at_once => match event {
                Some(event) => sharing.event(event).await,
                None => return,
            },
            Some(done) = sharing.jobs.join_next() => sharing.hashed(done.ok()),
            () = core.shares.wake.notified() => sharing.look_again().await,
            () = tokio::time::sleep(wait) => {}
        }
        sharing.timers().await;
    }
}

impl Sharing {
    fn next_timeout(&self) -> Option<Time> {
        let going = self.going.values().copied();
        let later = self.later.values().map(|(at, _)| *at);
        let lingering = self.lingering.iter().map(|(at, _)| *at);
        going.chain(later).chain(lingering).chain(self.record_at).min()
    }

    async fn timers(&mut self) {
        let now = self.core.clock.now();
        if self.record_at.is_some_and(|at| at <= now) || self.ready.len() >= RECORD_AT_ONCE {
            self.record().await;
        }
        let gone: Vec<_> = self.going.iter().filter(|(_, at)| **at <= now).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.going.remove(&path);
            self.withdraw(&path).await;
        }
        if self.going.is_empty() {
            self.gone_files.clear();
        }
        let due: Vec<_> = self.later.iter().filter(|(_, (at, _))| *at <= now).map(|(path, _)| path.clone()).collect();
        for path in due {
            if let Some((_, stat)) = self.later.remove(&path) {
                self.hash(path, stat);
            }
        }
        while let Some(at) = self.lingering.iter().position(|(at, _)| *at <= now) {
            let (_, key) = self.lingering.swap_remove(at);
            let gone_for_good = self.core.torrent(key).is_some_and(|torrent| torrent.with_status(|s| s.withdrawn));
            if gone_for_good && self.core.shares.paths_of(key).is_empty() {
                self.forget(key).await;
            }
        }
    }

    async fn event(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Settled { path, stat } => self.settled(path, stat.into()).await,
            WatchEvent::Removed { path } => {
                self.later.remove(&path);
                self.ready.retain(|(ready, ..)| *ready != path);
                if self.core.shares.lock().hashing.contains_key(&path) {
                    self.gone.insert(path.clone());
                }
                let share = self.core.shares.lock().shared.get(&path).copied();
                if let Some(share) = share {
                    self.gone_files.insert((share.stat.device, share.stat.inode), path.clone());
                    self.going.insert(path, self.core.clock.now() + MOVE_GRACE);
                }
            }
            WatchEvent::Changing { path } => self.stop_serving(&path),
            WatchEvent::Skipped { path, why } => tracing::info!(path = %path.display(), %why, "not shared"),
            WatchEvent::Warning(warning) => {
                tracing::warn!("{warning}");
                self.core.warn(warning);
            }
            WatchEvent::ScanDone => self.scan_done(),
        }
    }

    async fn look_again(&mut self) {
        let again = std::mem::take(&mut self.core.shares.lock().again);
        for path in again {
            let (core, file) = (self.core.clone(), path.clone());
            let stat = tokio::task::spawn_blocking(move || {
                core.files.open_root(&core.options.upload_dir).and_then(|root| root.stat(&file))
            });
            let Ok(Ok(stat)) = stat.await else { continue };
            let stat = StatRecord::from(stat);
            let known = self.core.shares.lock().shared.get(&path).copied();
            // What has changed is the watcher's to tell, once it has settled.
            if known.is_none_or(|share| share.stat.same_content(&stat)) {
                self.settled(path, stat).await;
            }
        }
    }

    fn scan_done(&mut self) {
        let Some(seen) = self.seen.take() else { return };
        let now = self.core.clock.now();
        let state = self.core.shares.lock();
        for (path, share) in state.shared.iter().filter(|(path, _)| !seen.contains(*path)) {
            self.gone_files.insert((share.stat.device, share.stat.inode), path.clone());
            self.going.insert(path.clone(), now + MOVE_GRACE);
        }
        let shared: HashSet<InfoHash> = state.shared.values().map(|share| share.key).collect();
        drop(state);
        // What was withdrawn and served on for a while is not served for ever.
        for torrent in self.core.torrents() {
            let from_upload = torrent.with_status(|status| matches!(status.origin, Origin::Upload { .. }));
            if from_upload && !shared.contains(&torrent.key()) {
                self.lingering.push((now, torrent.key()));
                torrent.update(|status| status.withdrawn = true);
            }
        }
    }

    /// A file that is being written is not served, whatever size and time say.
    fn stop_serving(&self, path: &RelPath) {
        let key = self.core.shares.lock().shared.get(path).map(|share| share.key);
        let Some(torrent) = key.and_then(|key| self.core.torrent(key)) else { return };
        let served_from_here =
            torrent.with_status(|status| matches!(&status.origin, Origin::Upload { path: from } if from == path));
        if served_from_here {
            torrent.update(|status| status.phase = Phase::Missing);
            self.core.disconnect(&torrent, "its file is being changed");
        }
    }

    async fn settled(&mut self, path: RelPath, stat: StatRecord) {
        if let Some(seen) = &mut self.seen {
            seen.insert(path.clone());
        }
        self.going.remove(&path);
        self.gone.remove(&path);
        self.later.remove(&path);
        let (known, declined) = {
            let state = self.core.shares.lock();
            (state.shared.get(&path).copied(), state.declined.get(&path).copied())
        };
        if declined.is_some_and(|declined| declined.same_content(&stat)) || self.is_fetched(&path) {
            return;
        }
        let same = known.filter(|share| share.stat.same_content(&stat));
        if let Some(torrent) = same.and_then(|share| self.core.torrent(share.key)) {
            self.serve_again(&torrent, &path, stat).await;
            // Some programs put the old time back after a change; only the ctime tells. It is served on meanwhile.
            if same.is_some_and(|share| share.stat.ctime_ns != stat.ctime_ns) {
                self.hash(path, stat);
            }
            return;
        }
        if let Some((old, share)) = self.moved_from(&path, &stat) {
            self.moved(old, share, path, stat).await;
            return;
        }
        let now = self.core.clock.now();
        match self.recorded.get(&path).map(|at| *at + CHANGE_PAUSE).filter(|until| *until > now) {
            Some(until) => drop(self.later.insert(path, (until, stat))),
            None => self.hash(path, stat),
        }
    }

    /// The same content again: after `Changing`, or a restart.
    async fn serve_again(&self, torrent: &Arc<Torrent>, path: &RelPath, stat: StatRecord) {
        let resumed = torrent.update(|status| {
            let here = matches!(&status.origin, Origin::Upload { path: from } if from == path);
            if here {
                status.stat = Some(stat);
            }
            let missing = here && status.phase == Phase::Missing;
            if missing {
                status.phase = Phase::Seeding;
            }
            missing
        });
        if resumed {
            self.core.start(torrent).await;
        }
    }

    /// What peerd itself fetched into upload/ has its key already.
    fn is_fetched(&self, path: &RelPath) -> bool {
        self.core.is_fetched(&self.core.options.upload_dir.join(path.as_path()))
    }

    /// The path from which this very file has just gone.
    fn moved_from(&self, path: &RelPath, stat: &StatRecord) -> Option<(RelPath, Share)> {
        let old = self.gone_files.get(&(stat.device, stat.inode))?;
        let share = *self.core.shares.lock().shared.get(old)?;
        let moved = old != path && self.going.contains_key(old) && share.stat.same_file(stat);
        moved.then(|| (old.clone(), share))
    }

    /// Moved: the same torrent from another folder. Renamed: the same pieces under another key, without hashing.
    async fn moved(&mut self, old: RelPath, share: Share, path: RelPath, stat: StatRecord) {
        let Some(torrent) = self.core.torrent(share.key) else {
            self.hash(path, stat);
            return;
        };
        self.going.remove(&old);
        let mut batch = Batch::new();
        {
            let mut state = self.core.shares.lock();
            state.shared.remove(&old);
            batch.delete(records::SHARES, old.as_bytes());
            if old.file_name() == path.file_name() {
                state.shared.insert(path.clone(), Share { stat, ..share });
                let record = ShareRecord { key: share.key.as_bytes().to_vec(), stat };
                batch.put(records::SHARES, path.as_bytes(), encode_record(&record));
            }
        }
        torrent.update(|status| {
            status.stat = Some(stat);
            if matches!(&status.origin, Origin::Upload { path } if *path == old) {
                status.origin = Origin::Upload { path: path.clone() };
                // Whoever was served in between was told that the file is gone.
                if status.phase == Phase::Missing {
                    status.phase = Phase::Seeding;
                }
            }
        });
        let renamed = old.file_name() != path.file_name();
        if renamed {
            self.linger(&torrent);
        }
        self.core.deactivate(&torrent, true).await;
        self.core.start(&torrent).await;
        put_torrent(&mut batch, &torrent);
        if let Err(error) = self.core.submit(batch).await {
            tracing::error!(%error, "a move could not be recorded: the file is hashed again after a restart");
        }
        if !renamed {
            self.core.publisher.publish(share.key);
            return;
        }
        let key = share.key;
        let core = self.core.clone();
        let file = path.clone();
        self.core.shares.lock().hashing.insert(path, stat.bytes);
        self.jobs.spawn_blocking(move || {
            let made = making::rename(&core, key, &file);
            (file, stat, made)
        });
    }

    /// The old key leaves the catalogue at once and is served for a while.
    fn linger(&mut self, torrent: &Arc<Torrent>) {
        let elsewhere = !self.core.shares.paths_of(torrent.key()).is_empty();
        let ours = torrent.with_status(|status| matches!(status.origin, Origin::Upload { .. }));
        if elsewhere || !ours {
            return;
        }
        torrent.update(|status| {
            status.withdrawn = true;
            status.publish = false;
        });
        self.core.publisher.withdraw(torrent.key());
        self.lingering.push((self.core.clock.now() + LINGER, torrent.key()));
    }

    fn hash(&mut self, path: RelPath, stat: StatRecord) {
        let core = self.core.clone();
        self.core.shares.lock().hashing.insert(path.clone(), stat.bytes);
        self.jobs.spawn_blocking(move || {
            let made = making::make_shared(&core, &path, &stat, &core.stopping);
            (path, stat, made)
        });
    }

    fn hashed(&mut self, done: Option<(RelPath, StatRecord, Result<Made, MakeError>)>) {
        if let Some((path, ..)) = &done {
            self.core.shares.lock().hashing.remove(path);
        }
        match done {
            Some((path, ..)) if self.gone.remove(&path) => {}
            Some((path, stat, Ok(made))) => {
                self.ready.push((path, stat, made));
                self.record_at.get_or_insert(self.core.clock.now() + RECORD_EVERY);
            }
            // It is being written again: the watcher tells when it has settled.
            Some((path, _, Err(MakeError::Changed))) => tracing::debug!(%path, "changed while it was hashed"),
            Some((path, _, Err(error))) => {
                tracing::warn!(%path, %error, "not shared");
                self.core.warn(format!("upload/{path} is not shared: {error}"));
            }
            None => tracing::error!("a hashing task broke"),
        }
    }

    /// Records all that is ready in one group, then publishes and announces it.
    async fn record(&mut self) {
        self.record_at = None;
        let ready = std::mem::take(&mut self.ready);
        if ready.is_empty() {
            return;
        }
        let core = self.core.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let mut kept = Vec::with_capacity(ready.len());
            for (path, stat, made) in ready {
                let position = core.segments.append(made.meta.raw())?;
                kept.push((path, stat, made, position));
            }
            core.segments.sync()?;
            Ok::<_, crate::db::segments::SegmentError>(kept)
        });
        let kept = match kept.await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => return self.core.warn(format!("what was hashed could not be kept: {error}")),
            Err(error) => return self.core.warn(format!("what was hashed could not be kept: {error}")),
        };
        let now = self.core.clock.now();
        let mut batch = Batch::new();
        let mut begun = Vec::with_capacity(kept.len());
        let mut replaced = Vec::new();
        for (path, stat, made, position) in kept {
            let key = made.meta.info_hash();
            let summary = Summary::of(&made.meta, position, true, self.core.clock.unix_seconds());
            let torrent = self.core.insert(Arc::new(Torrent::new(summary, shared_status(path.clone(), stat))));
            self.take_over(&torrent, &path, stat).await;
            self.core.publisher.publish(key);
            put_torrent(&mut batch, &torrent);
            let record = ShareRecord { key: key.as_bytes().to_vec(), stat };
            batch.put(records::SHARES, path.as_bytes(), encode_record(&record));
            batch.delete(records::DECLINED, path.as_bytes());
            let mut state = self.core.shares.lock();
            state.declined.remove(&path);
            let before = state.shared.insert(path.clone(), Share { key, stat });
            replaced.extend(before.filter(|before| before.key != key).map(|before| (before.key, path.clone())));
            drop(state);
            self.recorded.insert(path, now);
            begun.push(torrent);
        }
        self.recorded.retain(|_, at| *at + CHANGE_PAUSE > now);
        if let Err(error) = self.core.submit(batch).await {
            self.core
                .warn(format!("what was hashed could not be recorded, it is hashed again after a restart: {error}"));
        }
        for torrent in begun {
            self.core.announcer.tell(torrent.key(), Announce::Started);
        }
        for (key, path) in replaced {
            self.abandon(key, &path).await;
        }
    }

    /// A torrent that was known before and whose file is here now: served from here if it has no place of its own.
    async fn take_over(&self, torrent: &Arc<Torrent>, path: &RelPath, stat: StatRecord) {
        let before = torrent.status();
        let here = matches!(&before.origin, Origin::Upload { path: from } if from == path);
        let there = tokio::fs::try_exists(self.core.data_path(torrent)).await.unwrap_or(false);
        let elsewhere = !here && before.complete && there;
        let fresh = here && before.stat == Some(stat);
        if !elsewhere && !fresh {
            if before.is_fetched() && !before.complete {
                let (core, of) = (self.core.clone(), torrent.clone());
                let folder = self.core.folder_of(&before.origin);
                let deleted = tokio::task::spawn_blocking(move || deleting::delete_unfinished(&core, &of, &folder));
                if let Ok(Err(error)) = deleted.await {
                    tracing::warn!(torrent = %torrent.summary.name, %error, "what was fetched of it could not be deleted");
                }
            }
            self.core.deactivate(torrent, true).await;
            torrent.update(|status| *status = Status { paused: status.paused, ..shared_status(path.clone(), stat) });
        }
        torrent.update(|status| {
            status.withdrawn = false;
            status.publish = true;
        });
    }

    async fn withdraw(&mut self, path: &RelPath) {
        let share = self.core.shares.lock().shared.remove(path);
        let Some(share) = share else { return };
        let mut batch = Batch::new();
        batch.delete(records::SHARES, path.as_bytes());
        if let Err(error) = self.core.submit(batch).await {
            tracing::error!(%error, "a withdrawal could not be recorded");
        }
        self.abandon(share.key, path).await;
    }

    /// The path no longer holds this torrent: another path with the same file takes its place, else it is withdrawn.
    async fn abandon(&mut self, key: InfoHash, path: &RelPath) {
        let Some(torrent) = self.core.torrent(key) else { return };
        let other = {
            let state = self.core.shares.lock();
            state.shared.iter().find(|(_, share)| share.key == key).map(|(path, share)| (path.clone(), share.stat))
        };
        let from_here = torrent.with_status(|s| matches!(&s.origin, Origin::Upload { path: from } if from == path));
        match other {
            Some((path, stat)) if from_here => {
                torrent.update(|status| {
                    status.origin = Origin::Upload { path };
                    status.stat = Some(stat);
                    status.phase = Phase::Seeding;
                });
                self.core.deactivate(&torrent, true).await;
                if let Err(error) = self.core.save(&torrent).await {
                    tracing::error!(%error, "a move could not be recorded");
                }
            }
            None if from_here => self.forget(key).await,
            _ => {}
        }
    }

    async fn forget(&self, key: InfoHash) {
        let Some(torrent) = self.core.torrent(key) else { return };
        if let Err(error) = self.core.remove(&torrent, false).await {
            tracing::error!(torrent = %torrent.summary.name, %error, "could not be forgotten");
        }
    }
}

/// The state of a file that has just been hashed in upload/.
fn shared_status(path: RelPath, stat: StatRecord) -> Status {
    Status {
        phase: Phase::Seeding,
        paused: false,
        origin: Origin::Upload { path },
        ours: true,
        complete: true,
        stat: Some(stat),
        withdrawn: false,
        publish: true,
    }
}

/// Whether a path given to `peerctl share` lies in upload/, and where.
pub fn path_in_upload(upload_dir: &Path, path: &Path) -> Option<RelPath> {
    RelPath::from_path(path.strip_prefix(upload_dir).ok()?).ok()
}
