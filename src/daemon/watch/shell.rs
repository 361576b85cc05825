//! The thread that watches: it takes notifications, looks at what they name, asks the rule, and tells the consumer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::lease;
use super::settler::{Cause, Input, Output, Settler, Writer};
use super::{FileStat, Kind, SkipReason, WatchEvent, refused_name};
use crate::clock::{Clock, Time};
use crate::wire::name::RelPath;

/// Notifications on their way to the thread, as many as the kernel queues by default. When it is full, everything is
/// looked at again: the same as when the kernel's own queue overflows.
const NOTE_QUEUE: usize = 16_384;
/// Overflows cause at most one scan of everything in this time.
const MIN_RESCAN_GAP: Duration = Duration::from_secs(1);
/// How often everything is looked at where notifications cannot be had.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Polling takes at most one part in this many of the thread's time.
const POLL_SHARE: u32 = 10;
/// Paths of which it was said that they are not shared: said once each, so they are remembered.
const MAX_REPORTED: usize = 10_000;
/// Files of one directory that are looked at before those that have settled are told.
const SCAN_RUN: usize = 256;
/// At the start a file this old settles at once: whoever wrote it is long done.
const OLD: Duration = Duration::from_secs(10);

/// What a notification comes down to.
#[derive(Debug)]
pub(super) enum Note {
    Look {
        path: PathBuf,
        cause: Cause,
        /// What was there was removed or moved away, whatever is there now: watches on it are void.
        lost: bool,
    },
    Wake,
}

/// The consumer is gone or the watcher was dropped.
struct Stopped;

/// Starts the thread; the sender wakes it.
pub(super) fn spawn(
    root: PathBuf,
    clock: Arc<dyn Clock>,
    events: mpsc::Sender<WatchEvent>,
    stop: Arc<AtomicBool>,
) -> io::Result<SyncSender<Note>> {
    let (sender, notes) = sync_channel(NOTE_QUEUE);
    let overflow = Arc::new(AtomicBool::new(false));
    let wake = sender.clone();
    thread::Builder::new().name("watch".to_owned()).spawn(move || {
        let inotify = notifications(sender.clone(), overflow.clone());
        let shell = Shell {
            poll_at: None,
            root,
            clock,
            events,
            stop,
            notes,
            overflow,
            inotify: None,
            settler: Settler::new(),
            dirs: BTreeMap::new(),
            reported: HashSet::new(),
            rescan_at: None,
            scanned: Time::ZERO,
            // Kept so that a lack of notifications does not look like a hang-up.
            _sender: sender,
        };
        // The only other outcome is a consumer that is not interested any more.
        let _ = shell.run(inotify);
    })?;
    Ok(wake)
}

/// Begins to take notifications. Their thread must never wait for ours, which waits for it when a watch is added.
fn notifications(sender: SyncSender<Note>, overflow: Arc<AtomicBool>) -> notify::Result<notify::RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            _ => {
                overflow.store(true, Ordering::Release);
                let _ = sender.try_send(Note::Wake);
                return;
            }
        };
        let (cause, lost) = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => (Cause::Closed, false),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => (Cause::Closed, false),
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => (Cause::Found, true),
            EventKind::Modify(ModifyKind::Metadata(_)) => (Cause::Attributes, false),
            EventKind::Modify(ModifyKind::Data(_)) | EventKind::Create(_) => (Cause::Written, false),
            _ => return,
        };
        for path in event.paths {
            if let Err(TrySendError::Full(_)) = sender.try_send(Note::Look { path, cause, lost }) {
                overflow.store(true, Ordering::Release);
            }
        }
    })
}

struct Shell {
    root: PathBuf,
    clock: Arc<dyn Clock>,
    events: mpsc::Sender<WatchEvent>,
    stop: Arc<AtomicBool>,
    notes: Receiver<Note>,
    _sender: SyncSender<Note>,
    /// Notifications were lost.
    overflow: Arc<AtomicBool>,
    /// `None` once it turned out not to work.
    inotify: Option<notify::RecommendedWatcher>,
    settler: Settler,
    /// The directories that are watched and were read, by device and inode; the root has no path and is not among them.
    dirs: BTreeMap<RelPath, (u64, u64)>,
    reported: HashSet<PathBuf>,
    /// When to scan everything because notifications were lost.
    rescan_at: Option<Time>,
    /// When to scan everything because notifications cannot be had.
    poll_at: Option<Time>,
    /// When everything was scanned last.
    scanned: Time,
}

impl Shell {
    fn run(mut self, inotify: notify::Result<notify::RecommendedWatcher>) -> Result<(), Stopped> {
        match inotify {
            Ok(inotify) => self.inotify = Some(inotify),
            Err(error) => self.fall_back(&error.to_string())?,
        }
        if let Some(kind) = remote_file_system(&self.root) {
            self.fall_back(&format!("it lies on {kind}, whose other users are not notified about"))?;
        }
        self.scan_all(true)?;
        self.tell(WatchEvent::ScanDone)?;
        loop {
            let notes = self.wait()?;
            for note in notes {
                self.look(note)?;
            }
            self.scan_if_due()?;
            self.settle_due()?;
        }
    }

    /// Waits for notifications or the next deadline; several about one path become one.
    fn wait(&mut self) -> Result<Vec<Note>, Stopped> {
        let deadline = [self.settler.next_timeout(), self.rescan_at, self.poll_at].into_iter().flatten().min();
        let first = match deadline {
            None => self.notes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self.notes.recv_timeout(at.since(self.clock.now())),
        };
        let mut batch: Vec<Note> = Vec::new();
        let mut known: HashMap<PathBuf, usize> = HashMap::new();
        for note in first.into_iter().chain(self.notes.try_iter().take(NOTE_QUEUE)) {
            let Note::Look { path, cause, lost } = &note else { continue };
            match known.get(path).and_then(|&index| batch.get_mut(index)) {
                Some(Note::Look { cause: before, lost: lost_before, .. }) => {
                    *before = (*before).max(*cause);
                    *lost_before |= lost;
                }
                _ => {
                    known.insert(path.clone(), batch.len());
                    batch.push(note);
                }
            }
        }
        if self.stop.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        Ok(batch)
    }

    fn scan_if_due(&mut self) -> Result<(), Stopped> {
        let now = self.clock.now();
        if self.overflow.swap(false, Ordering::AcqRel) && self.rescan_at.is_none() {
            self.rescan_at = Some(now.max(self.scanned + MIN_RESCAN_GAP));
        }
        if [self.rescan_at, self.poll_at].into_iter().flatten().any(|at| at <= now) {
            self.rescan_at = None;
            self.scan_all(false)?;
        }
        Ok(())
    }

    fn scan_all(&mut self, at_start: bool) -> Result<(), Stopped> {
        let began = Instant::now();
        let cause = if at_start { Cause::FoundOld } else { Cause::Found };
        self.scan(None, cause)?;
        self.scanned = self.clock.now();
        if self.poll_at.is_some() {
            // The first scan also waits for its consumer: it says nothing about the next ones.
            let gap = if at_start { POLL_INTERVAL } else { POLL_INTERVAL.max(began.elapsed() * POLL_SHARE) };
            self.poll_at = Some(self.scanned + gap);
        }
        Ok(())
    }

    /// From now on everything is looked at every few seconds.
    fn fall_back(&mut self, why: &str) -> Result<(), Stopped> {
        if self.poll_at.is_some() {
            return Ok(());
        }
        self.poll_at = Some(self.clock.now() + POLL_INTERVAL);
        let root = self.root.display();
        let seconds = POLL_INTERVAL.as_secs();
        self.tell(WatchEvent::Warning(format!(
            "{root} cannot be watched by notifications alone ({why}); it is read every {seconds} s or more as well"
        )))
    }

    fn absolute(&self, path: Option<&RelPath>) -> PathBuf {
        path.map_or_else(|| self.root.clone(), |path| self.root.join(path.as_path()))
    }

    /// Something happened to a path: whatever is there now decides.
    fn look(&mut self, note: Note) -> Result<(), Stopped> {
        let Note::Look { path: absolute, cause, lost } = note else { return Ok(()) };
        let Ok(below) = absolute.strip_prefix(&self.root) else { return Ok(()) };
        if below.as_os_str().is_empty() {
            // The root itself went, or came back.
            self.rescan_at = lost.then(|| self.clock.now()).or(self.rescan_at);
            return Ok(());
        }
        let Some(path) = self.shareable(below)? else { return Ok(()) };
        let metadata = match fs::symlink_metadata(&absolute) {
            Ok(metadata) => metadata,
            Err(_) => return self.gone(&path),
        };
        if lost {
            self.forget_dirs(Some(&path));
        }
        match Kind::of(&metadata) {
            Kind::File => {
                let cause = if lost { cause.max(Cause::Written) } else { cause };
                self.forget_dirs(Some(&path));
                self.file(&path, &metadata, cause);
                self.deliver()
            }
            Kind::Dir if self.dirs.get(&path) == Some(&identity(&metadata)) => Ok(()),
            Kind::Dir => {
                let cause = if cause == Cause::Closed { Cause::Closed } else { Cause::Found };
                self.scan(Some(&path), cause)
            }
            Kind::Other(why) => {
                self.report(&absolute, why)?;
                self.gone(&path)
            }
        }
    }

    /// The path as one that may be shared by its name.
    fn shareable(&mut self, below: &Path) -> Result<Option<RelPath>, Stopped> {
        if below.iter().any(|name| refused_name(name.as_bytes()).is_some()) {
            return Ok(None);
        }
        let path = RelPath::from_path(below).ok();
        if path.is_none() {
            self.report(&self.root.join(below), SkipReason::TooDeep)?;
        }
        Ok(path)
    }

    fn file(&mut self, path: &RelPath, metadata: &Metadata, cause: Cause) {
        let age = self.clock.unix_seconds().saturating_sub(metadata.mtime().try_into().unwrap_or(0));
        let young = age < OLD.as_secs();
        let cause = if cause == Cause::FoundOld && young { Cause::Found } else { cause };
        let input = Input::File { path, stat: FileStat::of(metadata), cause };
        self.settler.handle_event(self.clock.now(), input);
    }

    fn gone(&mut self, path: &RelPath) -> Result<(), Stopped> {
        self.forget_dirs(Some(path));
        self.settler.handle_event(self.clock.now(), Input::Gone { path });
        self.deliver()
    }

    fn forget_dirs(&mut self, top: Option<&RelPath>) {
        let Some(top) = top else { return self.dirs.clear() };
        self.dirs.remove(top);
        let start = [top.as_bytes(), b"/"].concat();
        let range = self.dirs.range::<[u8], _>((Bound::Included(&start[..]), Bound::Unbounded));
        let below: Vec<RelPath> = range.map(|(path, _)| path).take_while(|path| path.is_below(top)).cloned().collect();
        for path in below {
            self.dirs.remove(&path);
        }
    }

    /// Looks at everything below a directory: watches and reads it, then those in it.
    fn scan(&mut self, top: Option<&RelPath>, cause: Cause) -> Result<(), Stopped> {
        self.forget_dirs(top);
        self.settler.scan_started();
        let mut dirs = vec![top.cloned()];
        while let Some(dir) = dirs.pop() {
            if let Err(error) = self.scan_dir(dir.as_ref(), cause, &mut dirs)? {
                self.unreadable(dir.as_ref(), &error)?;
            }
            self.settle_due()?;
        }
        self.settler.scan_ended(top);
        self.deliver()
    }

    fn scan_dir(
        &mut self,
        dir: Option<&RelPath>,
        cause: Cause,
        dirs: &mut Vec<Option<RelPath>>,
    ) -> Result<io::Result<()>, Stopped> {
        let absolute = self.absolute(dir);
        match fs::symlink_metadata(&absolute) {
            Ok(metadata) if !metadata.is_dir() => return Ok(Ok(())),
            Ok(metadata) => {
                if let Some(dir) = dir {
                    if self.contains_itself(dir, identity(&metadata)) {
                        return self.report(&absolute, SkipReason::Loop).map(Ok);
                    }
                    self.dirs.insert(dir.clone(), identity(&metadata));
                }
            }
            Err(error) => return Ok(Err(error)),
        }
        self.watch(&absolute)?;
        let entries = match fs::read_dir(&absolute) {
            Ok(entries) => entries,
            Err(error) => return Ok(Err(error)),
        };
        for (count, entry) in entries.enumerate() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return Ok(Err(error)),
            };
            self.entry(&entry, cause, dirs)?;
            if count % SCAN_RUN == SCAN_RUN - 1 {
                self.settle_due()?;
            }
        }
        Ok(Ok(()))
    }

    fn entry(&mut self, entry: &fs::DirEntry, cause: Cause, dirs: &mut Vec<Option<RelPath>>) -> Result<(), Stopped> {
        let absolute = entry.path();
        let Ok(below) = absolute.strip_prefix(&self.root) else { return Ok(()) };
        let Some(path) = self.shareable(below)? else { return Ok(()) };
        // Gone already: its notification is on its way.
        let Ok(metadata) = entry.metadata() else { return Ok(()) };
        match Kind::of(&metadata) {
            Kind::File => self.file(&path, &metadata, cause),
            Kind::Dir => dirs.push(Some(path)),
            Kind::Other(why) => self.report(&absolute, why)?,
        }
        Ok(())
    }

    /// Whether one of the directories above is the same one: a bind mount can do that.
    fn contains_itself(&self, dir: &RelPath, id: (u64, u64)) -> bool {
        let above = std::iter::successors(dir.parent(), RelPath::parent);
        let root = fs::symlink_metadata(&self.root).ok().map(|root| identity(&root));
        above.filter_map(|path| self.dirs.get(&path).copied()).chain(root).any(|known| known == id)
    }

    fn watch(&mut self, absolute: &Path) -> Result<(), Stopped> {
        let Some(inotify) = &mut self.inotify else { return Ok(()) };
        // Not recursive: notify would watch what is new in it only after others had time to fill it.
        match inotify.watch(absolute, RecursiveMode::NonRecursive) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => Ok(()),
            Err(error) if denied(&error) => Ok(()),
            Err(error) => {
                let why = match error.kind {
                    notify::ErrorKind::MaxFilesWatch => {
                        "too many folders: raise fs.inotify.max_user_watches".to_owned()
                    }
                    _ => error.to_string(),
                };
                self.fall_back(&why)
            }
        }
    }

    /// A directory that cannot be read. One that is gone takes its files with it; of any other they stay as they are.
    fn unreadable(&mut self, dir: Option<&RelPath>, error: &io::Error) -> Result<(), Stopped> {
        let absolute = self.absolute(dir);
        if let Some(dir) = dir {
            // So that the next look reads it.
            self.dirs.remove(dir);
        }
        match (error.kind(), dir) {
            (ErrorKind::NotFound, Some(_)) => Ok(()),
            (ErrorKind::NotFound, None) => self.fall_back("it is gone; what lay in it is not shared any more"),
            (ErrorKind::PermissionDenied, _) => self.report(&absolute, SkipReason::Unreadable),
            _ => {
                self.settler.scan_failed(dir);
                self.tell(WatchEvent::Warning(format!("cannot read {}: {error}", absolute.display())))
            }
        }
    }

    fn settle_due(&mut self) -> Result<(), Stopped> {
        self.settler.handle_timeout(self.clock.now());
        self.deliver()
    }

    /// Does what the rule asks for.
    fn deliver(&mut self) -> Result<(), Stopped> {
        while let Some(output) = self.settler.poll_output() {
            match output {
                Output::Check(path) => self.check(&path)?,
                Output::Settled(path, stat) => self.tell(WatchEvent::Settled { path, stat })?,
                Output::Changing(path) => self.tell(WatchEvent::Changing { path })?,
                Output::Removed(path) => self.tell(WatchEvent::Removed { path })?,
            }
        }
        Ok(())
    }

    fn check(&mut self, path: &RelPath) -> Result<(), Stopped> {
        let absolute = self.absolute(Some(path));
        let opened = lease::open_plain(&absolute).and_then(|file| Ok((file.metadata()?, file)));
        let input = match &opened {
            Ok((metadata, _)) if !metadata.is_file() => Input::Gone { path },
            Ok((metadata, file)) => {
                Input::Checked { path, stat: FileStat::of(metadata), writer: lease::writer_of(file) }
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                self.report(&absolute, SkipReason::Unreadable)?;
                Input::Gone { path }
            }
            Err(_) => match fs::symlink_metadata(&absolute) {
                // Out of descriptors, or an ailing disk: it is tried again as if somebody had it open.
                Ok(metadata) if metadata.is_file() => {
                    Input::Checked { path, stat: FileStat::of(&metadata), writer: Writer::Open }
                }
                _ => Input::Gone { path },
            },
        };
        self.settler.handle_event(self.clock.now(), input);
        Ok(())
    }

    fn report(&mut self, path: &Path, why: SkipReason) -> Result<(), Stopped> {
        if self.reported.len() < MAX_REPORTED && self.reported.insert(path.to_path_buf()) {
            self.tell(WatchEvent::Skipped { path: path.to_path_buf(), why })?;
        }
        Ok(())
    }

    fn tell(&self, event: WatchEvent) -> Result<(), Stopped> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        self.events.blocking_send(event).map_err(|_| Stopped)
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn denied(error: &notify::Error) -> bool {
    matches!(&error.kind, notify::ErrorKind::Io(error) if error.kind() == ErrorKind::PermissionDenied)
}

/// The name of a file system whose files others can change without our kernel's knowing.
fn remote_file_system(root: &Path) -> Option<&'static str> {
    const V9FS_MAGIC: i64 = 0x0102_1997;
    const SMB2_MAGIC: i64 = 0xFE53_4D42;
    const CIFS_MAGIC: i64 = 0xFF53_4D42;
    let kind = statfs::statfs(root).ok()?.filesystem_type();
    match kind {
        statfs::NFS_SUPER_MAGIC => Some("NFS"),
        statfs::SMB_SUPER_MAGIC => Some("SMB"),
        statfs::FUSE_SUPER_MAGIC => Some("FUSE"),
        statfs::FsType(V9FS_MAGIC) => Some("9P"),
        statfs::FsType(SMB2_MAGIC | CIFS_MAGIC) => Some("SMB"),
        _ => None,
    }
}
