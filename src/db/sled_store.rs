//! The store on disk: sled 0.34.7, kept away from its known traps.
//!
//! - Its `flush` ends in `sync_file_range`, which neither commits the file's length nor empties the drive's cache: the
//!   barrier is `flush`, then `fdatasync` of a descriptor of our own on the same file. Errors are reported to every
//!   descriptor, so the one that sled's own thread swallows still reaches ours.
//! - `flush_async` can deadlock: not used. `flush` can hang on a full disk: the writer limits the wait.
//! - A start that was killed leaves `snap.*.generating`, which makes every later open fail: removed first.
//! - Batches are held in memory: at most [`super::ATOMIC_KEYS`] keys each.
//! - It never syncs `conf`, and does not open with a part of it: made anew then, for it is always the same.
//! - As it opens it syncs where pages lie and not the log that they lie in: that is synced first.
//! - Its lock is taken late and says little: ours is taken first and holds the owner's process id.
//! - Damage shows when it is read, as an error or a panic, or not at all when the log merely ends early: every open reads
//!   every row, and compares the generation of the last dump. What is damaged is moved aside, never deleted, and the rows
//!   of the dump take its place.
//! - It panics when its last sync fails as it is dropped: `Handle` holds that back.
//! - After an error of its own thread it neither writes nor reads: what must go on then is in memory.
//! - All tables lie in one tree, so that a batch over several tables is one atomic sled batch.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::ops::{ControlFlow, Deref};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::dirs::make_dirs;
use super::dump::{self, Dump};
use super::packed::{self, Packing, Place};
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
/// The last dump, in the database's folder; whoever moves that away begins anew.
const DUMP_FILE: &str = "dump";
const LOCK_FILE: &str = "lock";
/// sled's own log. A process that was killed leaves its end in memory alone, and sled writes down, and syncs, where its pages
/// lie as it opens: they must not outlive the log, so it is synced first.
const LOG_FILE: &str = "db";
/// Of folders that whoever opens the store has not made himself.
const DIR_MODE: u32 = 0o777;
/// sled's threads may hold the file for a moment after a store was dropped in the same process.
const REOPEN_PATIENCE: Duration = Duration::from_secs(2);

/// A folder of files that one process at a time has open.
pub struct SledStore {
    // Dropped in this order: the threads that write, the database, the lock.
    writer: Writer,
    db: Handle,
    packing: Arc<RwLock<Packing>>,
    dir: PathBuf,
    was_clean: bool,
    restored: Option<Restored>,
    /// Batches taken, and how many of them the last dump has.
    batches: AtomicU64,
    dumped: AtomicU64,
    _lock: Flock<File>,
}

/// sled's own handle, whose drop syncs once more and panics if the disk fails then: all that was acknowledged has been
/// synced before.
#[derive(Clone)]
struct Handle(Option<sled::Db>);

impl Deref for Handle {
    type Target = sled::Db;
    fn deref(&self) -> &sled::Db {
        match &self.0 {
            Some(db) => db,
            None => unreachable!("drop alone takes it"),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let db = self.0.take();
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::warn!("the database's last sync failed");
        }
    }
}

/// What became of a database that could not be used.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What was wrong with it.
    pub why: String,
    /// Where it lies now.
    pub aside: PathBuf,
    /// Rows taken from its last dump.
    pub rows: u64,
}

impl std::fmt::Display for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Restored { why, aside, rows } = self;
        let aside = aside.display();
        write!(
            f,
            "the database was damaged ({why}); it lies in {aside} now, {rows} rows of its last dump are used instead"
        )
    }
}

impl SledStore {
    /// Opens the database in `dir`, making both where there are none; a damaged one is replaced by its last dump
    /// ([`SledStore::restored`]). Blocking; recovery reads all that was written since the last open.
    ///
    /// # Errors
    /// When another process has it, it is of another schema, or the disk fails.
    pub fn open(dir: &Path) -> Result<SledStore, StoreError> {
        let in_dir = |error: io::Error| StoreError::Io { path: dir.to_path_buf(), detail: error.to_string() };
        make_dirs(dir, DIR_MODE).map_err(in_dir)?;
        let lock = take_lock_of_the_living(dir)?;
        remove_half_made_snapshots(dir).map_err(in_dir)?;
        remove_torn_conf(dir).map_err(in_dir)?;
        sync_if_there(&dir.join(LOG_FILE)).map_err(in_dir)?;
        let (db, packing, restored) = open_or_restore(dir)?;
        let packing = Arc::new(RwLock::new(packing));
        let barrier_file = File::open(dir.join(LOG_FILE)).map_err(in_dir)?;
        sync_dirs(dir).map_err(in_dir)?;

        let meta = |key| db.get(schema::META.full_key(key)).map_err(|error| sled_error(dir, &error));
        let was_clean = restored.is_none() && meta(schema::CLEAN_KEY)?.is_none_or(|flag| &*flag == b"1");
        let writer =
            Writer::start(SledBackend { db: db.clone(), packing: packing.clone(), barrier_file }).map_err(in_dir)?;
        writer.commit(schema::opening())?;
        let (batches, dumped) = (AtomicU64::new(1), AtomicU64::new(0));
        Ok(SledStore { writer, db, packing, dir: dir.to_path_buf(), was_clean, restored, batches, dumped, _lock: lock })
    }

    /// What was done if the database could not be used as it was found.
    pub fn restored(&self) -> Option<&Restored> {
        self.restored.as_ref()
    }

    /// Copies all rows to `<dir>/dump`, for the day the database cannot be read; does nothing if nothing was written since
    /// the last time. Blocking.
    ///
    /// # Errors
    /// When the disk fails or the store takes no more: the dump that was there stays.
    pub fn dump(&self) -> Result<(), StoreError> {
        let batches = self.batches.load(Ordering::Acquire);
        if self.dumped.load(Ordering::Acquire) == batches {
            return Ok(());
        }
        let path = self.dir.join(DUMP_FILE);
        let generation = generation_of(&self.dir, &self.db)? + 1;
        self.writer.commit(schema::dumping(generation))?;
        let rows = self.db.iter().filter(|row| !matches!(row, Ok((key, _)) if is_meta(key)));
        let rows = rows.map(|row| row.map_err(io::Error::other));
        dump::write(&path, generation, rows).map_err(|error| StoreError::Io { path, detail: error.to_string() })?;
        self.dumped.store(batches, Ordering::Release);
        Ok(())
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

    fn packing(&self) -> RwLockReadGuard<'_, Packing> {
        self.packing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the rows of a plain table, or those of a packed one that lie by themselves; whether `f` wants more.
    fn for_each_row(&self, table: Table, full_prefix: &[u8], f: &mut Visit<'_>) -> Result<ControlFlow<()>, StoreError> {
        let table_bytes = table.name().len() + 1;
        for entry in self.db.scan_prefix(full_prefix) {
            let (key, value) = entry.map_err(|error| StoreError::Read(error.to_string()))?;
            if f(&key[table_bytes..], &value).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Shows the records of a packed table that lie in rows together; whether `f` wants more.
    fn for_each_packed(&self, table: Table, prefix: &[u8], f: &mut Visit<'_>) -> Result<ControlFlow<()>, StoreError> {
        for entry in self.db.scan_prefix(table.full_key(&[])) {
            let (row_key, row) = entry.map_err(|error| StoreError::Read(error.to_string()))?;
            // Shown without the lock: `f` may use the store.
            let records = self.packing().holding(&row_key, &row);
            for (key, value) in records.into_iter().filter(|(key, _)| key.starts_with(prefix)) {
                if f(key, value).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Store for SledStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        // Held while the row is read: a writer might move the record.
        let packing = self.packing();
        let read = |key: &[u8]| self.db.get(key).map_err(|error| StoreError::Read(error.to_string()));
        Ok(match packing.place(&table.full_key(key)) {
            Place::Nowhere => None,
            Place::Alone(key) => read(&key)?.map(|value| value.to_vec()),
            Place::Row(row) => read(&row)?.and_then(|row| packed::find(&row, key).map(<[u8]>::to_vec)),
        })
    }

    fn for_each(&self, table: Table, prefix: &[u8], f: &mut Visit<'_>) -> Result<(), StoreError> {
        let Some(by_itself) = table.by_itself(prefix) else {
            return self.for_each_row(table, &table.full_key(prefix), f).map(drop);
        };
        match self.for_each_packed(table, prefix, f)? {
            ControlFlow::Continue(()) => self.for_each_row(table, &by_itself, f).map(drop),
            ControlFlow::Break(()) => Ok(()),
        }
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.batches.fetch_add(1, Ordering::AcqRel);
        self.writer.commit(batch)
    }

    fn submit(&self, batch: Batch) -> Submitted {
        self.batches.fetch_add(1, Ordering::AcqRel);
        self.writer.submit(batch)
    }
}

struct SledBackend {
    db: Handle,
    packing: Arc<RwLock<Packing>>,
    /// Read-only, on sled's own file: a sync is the file's, whichever descriptor asks.
    barrier_file: File,
}

impl Backend for SledBackend {
    fn apply(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        // Until sled has the batch nobody looks for a record where it will lie.
        let mut packing = self.packing.write().unwrap_or_else(PoisonError::into_inner);
        let read = |key: &[u8]| self.db.get(key).map(|row| row.map(|row| row.to_vec()));
        let ops = packing.pack(ops, |key| read(key).map_err(|error| StoreError::Failed(error.to_string())))?;
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
    let path = dir.join(LOCK_FILE);
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

/// A power cut or a kill in the first moments of the first open leaves part of `conf`: three lines and a checksum of four
/// bytes, the same ones for every database of ours. sled writes it again where there is none.
fn remove_torn_conf(dir: &Path) -> io::Result<()> {
    let path = dir.join("conf");
    let is_whole = |bytes: &[u8]| {
        let lines = bytes.split_last_chunk::<4>().map_or(&[][..], |(lines, _)| lines);
        lines.ends_with(b"\n") && lines.iter().filter(|byte| **byte == b'\n').count() == 3
    };
    match fs::read(&path) {
        Ok(bytes) if !is_whole(&bytes) => fs::remove_file(&path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_if_there(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => file.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The database, or what its dump makes of it.
fn open_or_restore(dir: &Path) -> Result<(Handle, Packing, Option<Restored>), StoreError> {
    let detail = match open_sound(dir) {
        Ok((db, packing)) => return Ok((db, packing, None)),
        Err(StoreError::Corrupt { detail, .. }) => detail,
        Err(other) => return Err(other),
    };
    let in_dir = |error: io::Error| StoreError::Io { path: dir.to_path_buf(), detail: error.to_string() };
    let aside = move_aside(dir).map_err(in_dir)?;
    let db = open_sled(dir)?;
    let rows = restore(dir, &db)?;
    let restored = Restored { why: detail, aside, rows };
    tracing::error!("{restored}");
    let packing = read_all(dir, &db)?;
    Ok((db, packing, Some(restored)))
}

/// Opens the database and reads all of it: sled meets damage where it lies, and with an error or a panic.
fn open_sound(dir: &Path) -> Result<(Handle, Packing), StoreError> {
    let corrupt = |detail: &str| StoreError::Corrupt { dir: dir.to_path_buf(), detail: detail.to_owned() };
    let opened = catch_unwind(AssertUnwindSafe(|| -> Result<(u64, Handle, Packing), StoreError> {
        let db = open_sled(dir)?;
        let version = db.get(schema::META.full_key(schema::SCHEMA_KEY)).map_err(|error| sled_error(dir, &error))?;
        schema::check_version(dir, version.as_deref())?;
        let packing = read_all(dir, &db)?;
        Ok((generation_of(dir, &db)?, db, packing))
    }));
    let (generation, db, packing) = opened.unwrap_or_else(|_| Err(corrupt("it could not be read to its end")))?;
    let of_dump = Dump::open(&dir.join(DUMP_FILE)).ok().flatten().map_or(0, |dump| dump.generation);
    if of_dump > generation { Err(corrupt("what was written to it last is gone")) } else { Ok((db, packing)) }
}

/// Reads every row; what the packed tables hold.
fn read_all(dir: &Path, db: &sled::Db) -> Result<Packing, StoreError> {
    let mut packing = Packing::default();
    for row in db.iter() {
        let (key, value) = row.map_err(|error| sled_error(dir, &error))?;
        packing.learn(&key, &value);
    }
    Ok(packing)
}

fn generation_of(dir: &Path, db: &sled::Db) -> Result<u64, StoreError> {
    let stored = db.get(schema::META.full_key(schema::GENERATION_KEY)).map_err(|error| sled_error(dir, &error))?;
    Ok(stored.and_then(|bytes| Some(u64::from_be_bytes(bytes.as_ref().try_into().ok()?))).unwrap_or(0))
}

fn is_meta(full_key: &[u8]) -> bool {
    full_key.starts_with(&schema::META.full_key(&[]))
}

/// Moves everything but the lock and the dump to a new folder beside `dir`.
fn move_aside(dir: &Path) -> io::Result<PathBuf> {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut number = 1_u32;
    let aside = loop {
        let aside = dir.with_file_name(format!("{name}.damaged-{number}"));
        if aside.try_exists()? {
            number += 1;
            continue;
        }
        make_dirs(&aside, DIR_MODE)?;
        break aside;
    };
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name != LOCK_FILE && name != DUMP_FILE {
            fs::rename(dir.join(&name), aside.join(&name))?;
        }
    }
    File::open(&aside)?.sync_all()?;
    sync_dirs(dir)?;
    Ok(aside)
}

/// Fills a new database from the dump, as far as that can be read. The generation comes last: until then the next open
/// finds a database that has lost what the dump has, and begins again.
fn restore(dir: &Path, db: &sled::Db) -> Result<u64, StoreError> {
    let path = dir.join(DUMP_FILE);
    let failed = |error: sled::Error| sled_error(dir, &error);
    let in_dump = |error: io::Error| StoreError::Io { path: path.clone(), detail: error.to_string() };
    let Some(mut dump) = Dump::open(&path).map_err(in_dump)? else { return Ok(0) };
    let generation = dump.generation;
    let mut rows = 0;
    let mut batch = sled::Batch::default();
    for (key, value) in dump.by_ref().map_while(Result::ok) {
        batch.insert(key, value);
        rows += 1;
        if rows % super::ATOMIC_KEYS as u64 == 0 {
            db.apply_batch(std::mem::take(&mut batch)).map_err(failed)?;
        }
    }
    db.apply_batch(batch).map_err(failed)?;
    db.flush().map_err(failed)?;
    for op in schema::dumping(generation).into_ops()? {
        if let (key, Some(value)) = op {
            db.insert(key, value).map_err(failed)?;
        }
    }
    Ok(rows)
}

fn open_sled(dir: &Path) -> Result<Handle, StoreError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(Some(CLEAN_EVERY_MS));
    let begun = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(Handle(Some(db))),
            // Nobody else can hold it: our lock is taken.
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && begun.elapsed() < REOPEN_PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                return Err(StoreError::Io { path: dir.to_path_buf(), detail: error.to_string() });
            }
            Err(error) => return Err(sled_error(dir, &error)),
        }
    }
}

/// What the system reports is the disk's; whatever else sled cannot read is damage.
fn sled_error(dir: &Path, error: &sled::Error) -> StoreError {
    let (dir, detail) = (dir.to_path_buf(), error.to_string());
    match error {
        sled::Error::Io(io) if io.raw_os_error().is_some() => StoreError::Io { path: dir, detail },
        _ => StoreError::Corrupt { dir, detail },
    }
}

/// sled syncs no folder: new files in `dir` would be gone after a power cut.
fn sync_dirs(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    let blobs = dir.join("blobs");
    if blobs.is_dir() {
        File::open(blobs)?.sync_all()?;
    }
    Ok(())
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
