//! Watching `upload/`: which files lie in it, and when each of them has *settled*.
//!
//! Notifications are hints and nothing more. Each says "look at this path"; what is there decides. What hints may have
//! missed (a queue that overflowed, a directory that was filled before it was watched) is found by looking at everything
//! again. When a file has settled is decided by [`settler::Settler`], which has neither clock nor files; the thread that
//! feeds it is in `shell`. A directory is always watched first and read afterwards, so that nothing can come between.

mod lease;
pub mod settler;
mod shell;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use tokio::sync::mpsc;

pub(super) use lease::open_plain;

use crate::clock::Clock;
use crate::wire::name::RelPath;

/// Events on their way to the consumer. The watcher waits when it is full; what happens meanwhile is found by a rescan.
const EVENT_QUEUE: usize = 1024;

/// What tells two states of a file apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileStat {
    pub dev: u64,
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the bytes, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Last change of bytes or attributes, nanoseconds since 1970.
    pub ctime_ns: i64,
}

impl FileStat {
    pub fn of(metadata: &Metadata) -> FileStat {
        let ns = |secs: i64, nanos: i64| secs.saturating_mul(1_000_000_000).saturating_add(nanos);
        FileStat {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The same file with the same bytes as far as a stat can tell. It keeps through a rename; `ctime` does not.
    pub fn same_bytes(&self, other: &FileStat) -> bool {
        FileStat { ctime_ns: other.ctime_ns, ..*self } == *other
    }
}

/// What the watcher says, paths below its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The file stopped changing: hash it and share it. Said again when only its `ctime` changed since.
    Settled { path: RelPath, stat: FileStat },
    /// A file that was settled is gone from this path. A rename is this, then `Settled` under the new path with the same
    /// `dev`, `ino`, `size` and `mtime_ns`.
    Removed { path: RelPath },
    /// A file that was settled is being written to, or was replaced: stop serving it. `Settled` or `Removed` follows.
    Changing { path: RelPath },
    /// Lies there and is not shared, although its name would allow it. Said once for each path, up to a limit.
    Skipped { path: PathBuf, why: SkipReason },
    /// Everything that lay there at the start was looked at; only files younger than a few seconds may still settle.
    ScanDone,
    /// Something that a person should hear.
    Warning(String),
}

/// Why something below `upload/` is not shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SkipReason {
    #[error("its name begins with a dot")]
    Hidden,
    #[error("its name says that it is temporary")]
    Temporary,
    #[error("it is a symbolic link")]
    Symlink,
    #[error("it is neither a file nor a folder")]
    Special,
    #[error("it lies too deep or its path is too long")]
    TooDeep,
    #[error("the folder contains itself")]
    Loop,
    #[error("it cannot be read by this user")]
    Unreadable,
}

/// Endings of names that programs give to files they have not finished.
const TEMPORARY_ENDINGS: [&[u8]; 5] = [b"~", b".part", b".tmp", b".crdownload", b".!qB"];

/// Why nothing of this name, file or folder, is ever shared.
pub fn refused_name(name: &[u8]) -> Option<SkipReason> {
    if name.starts_with(b".") {
        Some(SkipReason::Hidden)
    } else if TEMPORARY_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        Some(SkipReason::Temporary)
    } else {
        None
    }
}

/// What `lstat` says a path is, as far as sharing goes.
pub(super) enum Kind {
    File,
    Dir,
    Other(SkipReason),
}

impl Kind {
    pub(super) fn of(metadata: &Metadata) -> Kind {
        let kind = metadata.file_type();
        if kind.is_file() {
            Kind::File
        } else if kind.is_dir() {
            Kind::Dir
        } else if kind.is_symlink() {
            Kind::Other(SkipReason::Symlink)
        } else {
            Kind::Other(SkipReason::Special)
        }
    }
}

/// Why a folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("cannot watch {path}: {source}", path = .path.display())]
    Root { path: PathBuf, source: std::io::Error },
    #[error("cannot start the thread that watches: {0}")]
    Thread(std::io::Error),
}

/// A folder that is being watched, by a thread of its own; dropping this ends it.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<AtomicBool>,
    wake: SyncSender<shell::Note>,
}

impl Watcher {
    /// Begins to watch `root` and all below it. Where the system's notifications cannot be had, everything is looked at
    /// every few seconds, and a `Warning` says so.
    ///
    /// # Errors
    /// When `root` is no folder that can be opened.
    pub fn start(root: PathBuf, clock: Arc<dyn Clock>) -> Result<(Watcher, mpsc::Receiver<WatchEvent>), WatchError> {
        // Notifications name paths as they were given to the kernel: an absolute one does not depend on the folder we
        // run from, and one without links is what a look at each component compares with.
        let root = root.canonicalize().map_err(|source| WatchError::Root { path: root, source })?;
        if let Err(source) = std::fs::read_dir(&root) {
            return Err(WatchError::Root { path: root, source });
        }
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let stop = Arc::new(AtomicBool::new(false));
        let wake = shell::spawn(root, clock, events, stop.clone()).map_err(WatchError::Thread)?;
        Ok((Watcher { stop, wake }, receiver))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A full queue means that the thread is awake and will see the flag.
        let _ = self.wake.try_send(shell::Note::Wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use std::collections::BTreeSet;
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::time::{Duration, Instant};

    /// Ample: what is waited for comes within some 4 s.
    const PATIENCE: Duration = Duration::from_secs(30);

    struct Watched {
        dir: tempfile::TempDir,
        _watcher: Watcher,
        events: mpsc::Receiver<WatchEvent>,
        /// What is settled by what was said so far.
        settled: BTreeSet<String>,
        /// Everything that was said.
        said: Vec<WatchEvent>,
    }

    impl Watched {
        fn start(dir: tempfile::TempDir) -> Watched {
            let (watcher, events) = Watcher::start(dir.path().to_path_buf(), Arc::new(SystemClock::new())).unwrap();
            Watched { dir, _watcher: watcher, events, settled: BTreeSet::new(), said: Vec::new() }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn take(&mut self) -> bool {
            let Ok(event) = self.events.try_recv() else { return false };
            match &event {
                WatchEvent::Settled { path, .. } => drop(self.settled.insert(path.to_string())),
                WatchEvent::Removed { path } | WatchEvent::Changing { path } => {
                    assert!(self.settled.remove(&path.to_string()), "{path} was not settled");
                }
                _ => {}
            }
            self.said.push(event);
            true
        }

        #[track_caller]
        fn wait_until(&mut self, done: impl Fn(&Watched) -> bool) {
            let began = Instant::now();
            while !done(self) {
                assert!(began.elapsed() < PATIENCE, "{} settled, {:?}", self.settled.len(), self.said.last());
                if !self.take() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }

        #[track_caller]
        fn wait_for(&mut self, files: &[&str]) {
            self.wait_until(|watched| watched.settled.iter().map(String::as_str).eq(files.iter().copied()));
        }

        fn scan_done(&self) -> bool {
            self.said.contains(&WatchEvent::ScanDone)
        }
    }

    fn dir() -> tempfile::TempDir {
        // Not the default name, which begins with a dot: it need not matter, but it must not hide a fault.
        tempfile::Builder::new().prefix("watch").tempdir().unwrap()
    }

    fn make_old(path: &Path) {
        let day_ago = std::time::SystemTime::now() - Duration::from_secs(86_400);
        fs::File::options().append(true).open(path).unwrap().set_modified(day_ago).unwrap();
    }

    #[test]
    fn what_lies_there_is_told_before_the_scan_is_done() {
        let dir = dir();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        for name in ["a/b/deep", "top", ".hidden", "half.part"] {
            fs::write(dir.path().join(name), "x").unwrap();
            make_old(&dir.path().join(name));
        }
        fs::write(dir.path().join("young"), "x").unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut watched = Watched::start(dir);
        watched.wait_until(Watched::scan_done);
        assert_eq!(watched.settled.iter().collect::<Vec<_>>(), ["a/b/deep", "top"]);
        for (name, why) in [("link", SkipReason::Symlink), ("fifo", SkipReason::Special)] {
            let path = watched.dir.path().canonicalize().unwrap().join(name);
            assert!(watched.said.contains(&WatchEvent::Skipped { path, why }), "{name}");
        }
        watched.wait_for(&["a/b/deep", "top", "young"]);
    }

    #[test]
    fn nothing_in_fresh_nested_folders_is_missed() {
        let mut watched = Watched::start(dir());
        watched.wait_until(Watched::scan_done);
        let mut expected = BTreeSet::new();
        for n in 0..200 {
            let folder = format!("top/{}/{}", n % 7, n % 31);
            fs::create_dir_all(watched.at(&folder)).unwrap();
            fs::write(watched.at(&format!("{folder}/{n}")), "x").unwrap();
            expected.insert(format!("{folder}/{n}"));
        }
        watched.wait_until(|watched| watched.settled == expected);
    }

    #[test]
    fn folders_move_in_within_and_out_with_what_is_in_them() {
        let outside = dir();
        fs::create_dir_all(outside.path().join("tree/sub")).unwrap();
        fs::write(outside.path().join("tree/sub/file"), "x").unwrap();
        let mut watched = Watched::start(dir());
        watched.wait_until(Watched::scan_done);
        fs::rename(outside.path().join("tree"), watched.at("in")).unwrap();
        watched.wait_for(&["in/sub/file"]);
        fs::rename(watched.at("in"), watched.at("within")).unwrap();
        watched.wait_for(&["within/sub/file"]);
        let stats: Vec<FileStat> = watched
            .said
            .iter()
            .filter_map(|event| match event {
                WatchEvent::Settled { stat, .. } => Some(*stat),
                _ => None,
            })
            .collect();
        assert!(stats.len() == 2 && stats[0].same_bytes(&stats[1]), "hashes can be kept: {stats:?}");
        fs::write(watched.at("within/sub/new"), "x").unwrap();
        watched.wait_for(&["within/sub/file", "within/sub/new"]);
        fs::rename(watched.at("within"), outside.path().join("tree")).unwrap();
        watched.wait_for(&[]);
        // The same place again: the old watches must not stand for the new ones.
        fs::create_dir(watched.at("within")).unwrap();
        fs::write(watched.at("within/again"), "x").unwrap();
        watched.wait_for(&["within/again"]);
        fs::remove_dir_all(watched.at("within")).unwrap();
        watched.wait_for(&[]);
        assert!(!watched.said.iter().any(|event| matches!(event, WatchEvent::Warning(_))));
    }

    #[test]
    fn a_file_held_open_is_told_once_when_it_is_closed() {
        let mut watched = Watched::start(dir());
        watched.wait_until(Watched::scan_done);
        let mut file = fs::File::create(watched.at("film.mp4")).unwrap();
        file.write_all(b"first half").unwrap();
        // Another program opens and closes it meanwhile, which looks like the end.
        drop(fs::File::options().append(true).open(watched.at("film.mp4")).unwrap());
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(3500) {
            watched.take();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(watched.settled.is_empty());
        file.write_all(b", second half").unwrap();
        drop(file);
        watched.wait_for(&["film.mp4"]);
        let sizes = watched.said.iter().filter_map(|event| match event {
            WatchEvent::Settled { stat, .. } => Some(stat.size),
            _ => None,
        });
        assert_eq!(sizes.collect::<Vec<_>>(), [23]);
        fs::write(watched.at("film.mp4"), "another").unwrap();
        watched.wait_until(
            |watched| matches!(watched.said.last(), Some(WatchEvent::Settled { stat, .. }) if stat.size == 7),
        );
        fs::rename(watched.at("film.mp4"), watched.at("film.mp4.part")).unwrap();
        watched.wait_for(&[]);
    }

    #[test]
    fn a_consumer_that_lags_misses_nothing() {
        let mut watched = Watched::start(dir());
        watched.wait_until(Watched::scan_done);
        let names: BTreeSet<String> = (0..EVENT_QUEUE * 3).map(|n| format!("{n}")).collect();
        for name in &names {
            fs::write(watched.at(name), "x").unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
        watched.wait_until(|watched| watched.settled == names);
    }

    #[test]
    fn a_root_that_goes_takes_everything_with_it_and_is_said() {
        let mut watched = Watched::start(dir());
        fs::create_dir(watched.at("folder")).unwrap();
        fs::write(watched.at("folder/file"), "x").unwrap();
        watched.wait_for(&["folder/file"]);
        fs::remove_dir_all(watched.dir.path()).unwrap();
        watched.wait_for(&[]);
        watched.wait_until(|watched| watched.said.iter().any(|event| matches!(event, WatchEvent::Warning(_))));
    }

    #[test]
    fn dropping_it_ends_the_thread() {
        let mut watched = Watched::start(dir());
        watched.wait_until(Watched::scan_done);
        let Watched { _watcher: watcher, mut events, dir, .. } = watched;
        drop(watcher);
        let began = Instant::now();
        while !matches!(events.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)) {
            assert!(began.elapsed() < PATIENCE, "the thread still holds its end");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(dir);
    }
}
