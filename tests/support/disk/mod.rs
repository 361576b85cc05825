//! A disk that fails on demand: a file system in memory, mounted with FUSE, that remembers what was synced.
//!
//! Between the daemon and this stands the kernel alone: reads and writes come uncached (`FOPEN_DIRECT_IO`), nothing is
//! remembered of names. `sync_file_range` never arrives, as on a disk with a cache of its own it would be of no use.

mod front;
mod rules;
mod tree;

pub use rules::{Call, EIO, ENOSPC, EROFS, Fault, Moment, Rule};

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuser::{BackgroundSession, Config, Errno, MountOption};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use rules::{Rules, Traffic};
use tree::{Kind, Tree};

/// What `statfs` says is free, unless told otherwise.
const FREE_BYTES: u64 = 1 << 40;

/// A mounted disk. Dropped, it answers whatever still waits with an error and is unmounted.
pub struct Disk {
    shared: Arc<Shared>,
    mount: PathBuf,
    _session: BackgroundSession,
    watch: Child,
}

/// Takes the disk away from a test process that has been killed. What such a process still asks of a disk that it was
/// itself would never be answered, and it would never be gone.
const WATCH: &str = r#"
while read -r stat <"/proc/$1/stat" && [ "${stat#*) Z}" = "$stat" ]; do sleep 1; done 2>/dev/null
umount --force "$2" 2>/dev/null
umount --lazy "$2" 2>/dev/null
"#;

struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

type Held = Box<dyn FnOnce(&mut State, Option<Errno>) + Send>;

struct State {
    tree: Tree,
    rules: Rules,
    power: Power,
    moment: Option<Moment>,
    traffic: Traffic,
    free_bytes: u64,
    /// Calls that wait for the disk to heal, or for whoever asked to be dead.
    held: Vec<Held>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// The moment has come: nothing moves any more.
    Going,
    Off,
}

/// What a cut leaves of what was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Leaves {
    /// The machine goes on, a process alone is killed.
    Everything,
    Nothing,
    /// Any part of it, by this seed.
    Some(u64),
}

impl Disk {
    /// Mounts an empty one at `mount`, which is made.
    #[track_caller]
    pub fn mount(mount: &Path) -> Disk {
        std::fs::create_dir_all(mount).expect("make a mount point");
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
            panic!("the failing disk needs /dev/fuse, to be opened for reading and writing: {error}");
        }
        let state = State {
            tree: Tree::new(),
            rules: Rules::default(),
            power: Power::On,
            moment: None,
            traffic: Traffic::default(),
            free_bytes: FREE_BYTES,
            held: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), stopped: Condvar::new() });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("failing".into())];
        let session = fuser::spawn_mount(front::Front(shared.clone()), mount, &config)
            .unwrap_or_else(|error| panic!("the failing disk could not be mounted at {}: {error}", mount.display()));
        let mut watch = Command::new("sh");
        watch.args(["-c", WATCH, "sh", &std::process::id().to_string()]).arg(mount);
        let watch = watch.stdin(Stdio::null()).spawn().expect("start sh");
        Disk { shared, mount: mount.to_path_buf(), _session: session, watch }
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    pub fn order(&self, rule: Rule) {
        self.lock().rules.add(rule);
    }

    /// No more faults; what stalled is carried out.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.free_bytes = FREE_BYTES;
        for held in std::mem::take(&mut state.held) {
            held(&mut state, None);
        }
    }

    /// How many calls have been failed.
    pub fn struck(&self) -> u64 {
        self.lock().rules.struck
    }

    /// What `statfs` says.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.lock().free_bytes = bytes;
    }

    pub fn traffic(&self) -> Traffic {
        self.lock().traffic
    }

    /// The power goes at this moment: from then on nothing is answered until [`Disk::power_off`].
    pub fn cut_at(&self, moment: Moment) {
        let mut state = self.lock();
        let so_far = state.traffic;
        state.moment = Some(match moment {
            Moment::Byte(bytes) => Moment::Byte(so_far.written_bytes + bytes),
            Moment::Call(calls) => Moment::Call(so_far.calls + calls),
            Moment::Sync(syncs) => Moment::Sync(so_far.file_syncs + so_far.folder_syncs + syncs),
        });
    }

    /// The power goes now.
    pub fn cut(&self) {
        let mut state = self.lock();
        state.moment = None;
        state.power = Power::Going;
    }

    /// Whether the moment has come within `limit`: a write or a sync is under way, and will never be answered.
    pub fn wait_cut(&self, limit: Duration) -> bool {
        let state = self.lock();
        let waited = self.shared.stopped.wait_timeout_while(state, limit, |state| state.power == Power::On);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.power != Power::On
    }

    /// Everything that waits and everything that comes is an error. Kill first whoever must not see it.
    pub fn power_off(&self) {
        let mut state = self.lock();
        (state.power, state.moment) = (Power::Off, None);
        for held in std::mem::take(&mut state.held) {
            held(&mut state, Some(Errno::EIO));
        }
    }

    /// Whoever used it is gone: the disk is itself again, with what the cut leaves.
    pub fn power_on(&self, leaves: Leaves) {
        let mut state = self.lock();
        match leaves {
            Leaves::Everything => state.tree.forget_unreachable(),
            Leaves::Nothing => state.tree.lose(None),
            Leaves::Some(seed) => state.tree.lose(Some(&mut SmallRng::seed_from_u64(seed))),
        }
        state.power = Power::On;
    }

    /// The bytes of a file, read past all faults; `None` if there is none.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let ino = state.tree.at(Path::new(path)).ok()?;
        let len = state.tree.node(ino).ok()?.len();
        state.tree.read(ino, 0, len as usize).ok()
    }

    /// Flips one bit of a file, behind everybody's back.
    #[track_caller]
    pub fn flip(&self, path: &str, bit: u64) {
        let mut state = self.lock();
        let ino = state.tree.at(Path::new(path)).expect("the file");
        let mut byte = state.tree.read(ino, bit / 8, 1).expect("the byte");
        byte[0] ^= 1 << (bit % 8);
        state.tree.write(ino, bit / 8, &byte).expect("a page");
        state.tree.sync(ino, false).expect("a page");
    }

    /// The paths of all files below a folder.
    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        let state = self.lock();
        let mut files = Vec::new();
        let mut open = vec![PathBuf::from(folder)];
        while let Some(path) = open.pop() {
            let Ok(node) = state.tree.at(&path).and_then(|ino| state.tree.node(ino)) else { continue };
            match node.kind {
                Kind::Folder => open.extend(node.names().keys().map(|name| path.join(name))),
                Kind::File => files.push(path),
                Kind::Socket => {}
            }
        }
        files.sort();
        files
    }

    /// Copies a folder, as it is seen just now, to an ordinary disk.
    #[track_caller]
    pub fn copy_out(&self, folder: &str, to: &Path) {
        for path in self.files(folder) {
            let target = to.join(path.strip_prefix(folder).expect("below the folder"));
            std::fs::create_dir_all(target.parent().expect("a folder")).expect("make a folder");
            let bytes = self.read(&path.to_string_lossy()).expect("a file");
            std::fs::write(target, bytes).expect("write a copy");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.power_off();
        // Lazily: a thread that has a file open still, on its way to its end, must not keep the mount.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount).status();
        let _ = self.watch.kill();
        let _ = self.watch.wait();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a call.
enum Verdict {
    Go,
    /// Only so many bytes of a write; said so, unless it is the last.
    Part(usize),
    Torn(usize),
    Swallow,
    Refuse(Errno),
    Hold,
}

impl State {
    /// Counts a call and says what becomes of it. `at` is whom it concerns: a node, and a name below it.
    fn judge(&mut self, call: Call, at: (u64, Option<&OsStr>), written_bytes: usize) -> Verdict {
        match self.power {
            Power::On => {}
            Power::Going => return Verdict::Hold,
            Power::Off => return Verdict::Refuse(Errno::EIO),
        }
        let before = self.traffic;
        match call {
            Call::Sync => self.traffic.file_syncs += 1,
            Call::SyncFolder => self.traffic.folder_syncs += 1,
            _ => {}
        }
        self.traffic.calls += u64::from(matches!(call, Call::Write | Call::Sync | Call::SyncFolder));
        self.traffic.written_bytes += written_bytes as u64;
        match self.moment {
            Some(Moment::Call(last)) if self.traffic.calls > last => {
                (self.power, self.moment) = (Power::Going, None);
                return Verdict::Hold;
            }
            Some(Moment::Sync(last)) if self.traffic.file_syncs + self.traffic.folder_syncs > last => {
                (self.power, self.moment) = (Power::Going, None);
                return Verdict::Hold;
            }
            Some(Moment::Byte(last)) if self.traffic.written_bytes > last => {
                (self.power, self.moment) = (Power::Going, None);
                return Verdict::Torn(last.saturating_sub(before.written_bytes) as usize);
            }
            _ => {}
        }
        let mut path = self.tree.path(at.0);
        path.extend(at.1);
        match self.rules.judge(call, &path) {
            Some(Fault::Short) if written_bytes > 1 => Verdict::Part(written_bytes / 2),
            None | Some(Fault::Short) => Verdict::Go,
            Some(Fault::Refuse(errno)) => {
                if call == Call::Sync {
                    self.tree.forget_unsynced(at.0);
                }
                Verdict::Refuse(Errno::from_i32(errno))
            }
            Some(Fault::Stall) => Verdict::Hold,
            Some(Fault::Swallow) => Verdict::Swallow,
        }
    }
}
