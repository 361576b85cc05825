//! The store on disk: sled 0.34.7, kept away from its known traps.
//!
//! - Its `flush` ends in `sync_file_range`, which neither commits the file's length nor empties the drive's cache: the
//!   barrier is `flush`, then `fdatasync` of a descriptor of our own on the same file. Errors are reported to every
//!   descriptor, so the one that sled's own thread swallows still reaches ours.
//! - `flush_async` can deadlock: not used. `flush` can hang on a full disk: the writer limits the wait.
//! - A start that was killed leaves `snap.*.generating`, which makes every later open fail: removed first.
//! - Batches are held in memory: at most [`super::ATOMIC_KEYS`] keys each.
//! - Its lock is taken late and says little: ours is taken first and holds the owner's process id.
//! - All tables lie in one tree, so that a batch over several tables is one atomic sled batch.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::schema;
use super::writer::{Backend, Writer};
use super::{Batch, Op, Store, StoreError, Submitted, Table, Visit};

/// A killed process may take so long to let go.
const DYING: Duration = Duration::from_secs(10);
/// A holder of whom nothing is known is given the time to end or to write down who it is.
const UNKNOWN: Duration = Duration::from_millis(200);
/// How often is looked whether it has ended.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// sled's page cache, in on-disk bytes: users see some ten times as much in memory at its default of 1 GiB.
const CACHE_BYTES: u64 = 16 << 20;
/// sled's own thread cleans its file in this rhythm; without it nothing would.
const CLEAN_EVERY_MS: u64 = 1_000;
/// sled's threads may hold the file for a moment after a store was dropped in the same process.
const REOPEN_PATIENCE: Duration = Duration::from_secs(2);

/// A folder of files that one process at a time has open.
pub struct SledStore {
    // Dropped in this order: the threads that write, the database, the lock.
    writer: Writer,
    db: sled::Db,
    was_clean: bool,
    _lock: Flock<File>,
}

impl SledStore {
    /// Opens the database in `dir`, making both where there are none. Blocking; recovery reads all that was written since
    /// the last open.
    ///
    /// # Errors
    /// When another process has it, it is of another schema or damaged, or the disk fails.
    pub fn open(dir: &Path) -> Result<SledStore, StoreError> {
        let in_dir = |error: io::Error| StoreError::Io { path: dir.to_path_buf(), detail: error.to_string() };
        fs::create_dir_all(dir).map_err(in_dir)?;
        let lock = take_lock_of_the_living(dir)?;
        remove_half_made_snapshots(dir).map_err(in_dir)?;
        let db = open_sled(dir)?;
        let barrier_file = File::open(dir.join("db")).map_err(in_dir)?;
        sync_dirs(dir).map_err(in_dir)?;

        let meta = |key| db.get(schema::META.full_key(key)).map_err(|error| sled_error(dir, &error));
        schema::check_version(dir, meta(schema::SCHEMA_KEY)?.as_deref())?;
        let was_clean = meta(schema::CLEAN_KEY)?.is_none_or(|flag| &*flag == b"1");
        let writer = Writer::start(SledBackend { db: db.clone(), barrier_file }).map_err(in_dir)?;
        writer.commit(schema::opening())?;
        Ok(SledStore { writer, db, was_clean, _lock: lock })
    }

    /// Whether the last owner closed it, or there was none.
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Bytes of the database's files.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(|error| StoreError::Read(error.to_string()))
    }

    /// Writes what waits, then the note that the stop was clean; later writes are refused, reading goes on. Blocking.
    ///
    /// # Errors
    /// When it was closed before or the disk fails: the next open then finds an unclean stop.
    pub fn close(&self) -> Result<(), StoreError> {
        self.writer.close(schema::closing())
    }
}

impl Store for SledStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.db.get(table.full_key(key)).map_err(|error| StoreError::Read(error.to_string()))?;
        Ok(found.map(|value| value.to_vec()))
    }

    fn for_each(&self, table: Table, prefix: &[u8], f: &mut Visit<'_>) -> Result<(), StoreError> {
        let table_bytes = table.name().len() + 1;
        for entry in self.db.scan_prefix(table.full_key(prefix)) {
            let (key, value) = entry.map_err(|error| StoreError::Read(error.to_string()))?;
            if f(&key[table_bytes..], &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.writer.commit(batch)
    }

    fn submit(&self, batch: Batch) -> Submitted {
        self.writer.submit(batch)
    }
}

struct SledBackend {
    db: sled::Db,
    /// Read-only, on sled's own file: a sync is the file's, whichever descriptor asks.
    barrier_file: File,
}

impl Backend for SledBackend {
    fn apply(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in ops {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(|error| StoreError::Failed(error.to_string()))
    }

    fn barrier(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(|error| StoreError::Failed(error.to_string()))?;
        self.barrier_file.sync_data().map_err(|error| StoreError::Failed(error.to_string()))
    }
}

/// The lock, waiting for a holder that has been killed: it holds on until its last thread has ended, which a busy disk
/// can delay. Who lives is not waited for.
fn take_lock_of_the_living(dir: &Path) -> Result<Flock<File>, StoreError> {
    let begun = Instant::now();
    loop {
        let patience = match take_lock(dir) {
            Err(StoreError::Locked { dir, pid }) => match patience_with(&pid) {
                Some(patience) if begun.elapsed() < patience => patience,
                _ => return Err(StoreError::Locked { dir, pid }),
            },
            other => return other,
        };
        std::thread::sleep(LOCK_POLL.min(patience));
    }
}

/// How long to wait for this holder of the lock; `None` if it lives.
fn patience_with(pid: &str) -> Option<Duration> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which may hold anything.
        Ok(stat) => stat.rsplit_once(") ")?.1.starts_with(['Z', 'X']).then_some(DYING),
        // Ended in between, or of another process namespace, or not written down yet.
        Err(_) => Some(UNKNOWN),
    }
}

/// `<dir>/lock`, held until drop; the file stays, with the last owner's process id in it.
fn take_lock(dir: &Path) -> Result<Flock<File>, StoreError> {
    let path = dir.join("lock");
    let failed = |error: io::Error| StoreError::Io { path: path.clone(), detail: error.to_string() };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).and_then(|()| lock.rewind()).map_err(failed)?;
            write!(lock, "{}", std::process::id()).map_err(failed)?;
            Ok(lock)
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let known = file.take(20).read_to_string(&mut pid).is_ok() && !pid.is_empty();
            let pid = if known { pid } else { "(unknown)".into() };
            Err(StoreError::Locked { dir: dir.to_path_buf(), pid })
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

fn remove_half_made_snapshots(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn open_sled(dir: &Path) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(Some(CLEAN_EVERY_MS));
    let begun = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            // Nobody else can hold it: our lock is taken.
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && begun.elapsed() < REOPEN_PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(sled_error(dir, &error)),
        }
    }
}

fn sled_error(dir: &Path, error: &sled::Error) -> StoreError {
    let (dir, detail) = (dir.to_path_buf(), error.to_string());
    match error {
        sled::Error::Io(_) => StoreError::Io { path: dir, detail },
        _ => StoreError::Corrupt { dir, detail },
    }
}

/// sled syncs no folder: new files in `dir`, and `dir` itself, would be gone after a power cut.
fn sync_dirs(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    let blobs = dir.join("blobs");
    if blobs.is_dir() {
        File::open(blobs)?.sync_all()?;
    }
    match dir.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{self, A, keys};
    use super::*;

    fn put(store: &SledStore, key: &[u8], value: &[u8]) {
        let mut batch = Batch::new();
        batch.put(A, key, value.to_vec());
        store.commit(batch).unwrap();
    }

    fn copy_dir(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy_dir(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    #[test]
    fn it_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract::holds(&SledStore::open(dir.path()).unwrap());
    }

    #[test]
    fn what_was_committed_outlives_a_stop_and_whether_it_was_clean_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("not/yet/there");
        let store = SledStore::open(&state).unwrap();
        assert!(store.was_clean(), "a new one");
        put(&store, b"k", b"v");
        store.close().unwrap();
        assert_eq!(store.get(A, b"k").unwrap().as_deref(), Some(&b"v"[..]), "reading goes on");
        drop(store);

        let store = SledStore::open(&state).unwrap();
        assert!(store.was_clean());
        assert_eq!(store.get(A, b"k").unwrap().as_deref(), Some(&b"v"[..]));
        drop(store);
        assert!(!SledStore::open(&state).unwrap().was_clean(), "dropped without close");
    }

    #[test]
    fn what_was_committed_is_in_the_files_a_kill_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(&dir.path().join("live")).unwrap();
        for n in 0..50u32 {
            put(&store, &n.to_be_bytes(), &[n as u8; 100]);
        }
        let left = dir.path().join("left");
        copy_dir(&dir.path().join("live"), &left);
        fs::write(left.join("snap.00000000000000FF.generating"), b"half").unwrap();

        let found = SledStore::open(&left).unwrap();
        assert!(!found.was_clean());
        assert_eq!(keys(&found, A, b"").len(), 50);
        assert!(!left.join("snap.00000000000000FF.generating").exists());
    }

    #[test]
    fn a_second_opener_is_refused_at_once_and_told_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let _store = SledStore::open(dir.path()).unwrap();
        let begun = Instant::now();
        let refused = SledStore::open(dir.path()).err().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert!(refused.to_string().contains(&format!("in use by process {}", std::process::id())), "{refused}");
    }

    #[test]
    fn another_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let mut batch = Batch::new();
        batch.put(schema::META, schema::SCHEMA_KEY, (schema::SCHEMA_VERSION + 1).to_be_bytes().to_vec());
        store.commit(batch).unwrap();
        store.close().unwrap();
        drop(store);
        let refused = SledStore::open(dir.path()).err().unwrap();
        assert!(matches!(refused, StoreError::Schema { .. }), "{refused}");
        assert!(refused.to_string().contains("use the newer program"), "{refused}");
    }

    #[test]
    fn a_thousand_keys_go_in_parts_and_all_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let mut batch = Batch::new();
        for n in 0..1_000u32 {
            batch.put(A, &n.to_be_bytes(), vec![1; 10]);
        }
        store.commit(batch).unwrap();
        drop(store);
        let store = SledStore::open(dir.path()).unwrap();
        assert_eq!(keys(&store, A, b"").len(), 1_000);
    }

    #[tokio::test]
    async fn a_submitted_batch_is_answered_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let mut batch = Batch::new();
        batch.put(A, b"k", b"v".to_vec());
        store.submit(batch).await.unwrap();
        assert_eq!(store.get(A, b"k").unwrap().as_deref(), Some(&b"v"[..]));
    }
}
