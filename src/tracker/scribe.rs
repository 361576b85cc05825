//! The threads that write behind: one what was published and withdrawn, in groups, another the lines of
//! `search_content.txt`, which is rewritten whole when something leaves it: the registry does not wait for that.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::content_file::ContentFile;
use crate::db::journal::Journal;
use crate::db::segments::SegmentLog;
use crate::db::{Batch, Store};
use crate::wire::id::InfoHash;

/// Between two writings. A power cut loses at most what was published within this time and those that two writings take: a
/// second, on a disk that is well. A process that is killed loses nothing: what it has answered for stands in the journal.
const WRITE_EVERY: Duration = Duration::from_millis(200);
/// Publications are to be in the content file within a second.
const WRITE_LINES_EVERY: Duration = Duration::from_millis(500);
/// Withdrawals leave `search_content.txt` within 10 s; each rewrite is of the whole file, so it is not done for each.
const REWRITE_EVERY: Duration = Duration::from_secs(5);
/// Changes that wait for the disk: minutes of a slow one. Beyond, publishing is refused.
pub const MAX_UNWRITTEN: usize = 200_000;
/// Lines that wait for the disk.
const MAX_UNWRITTEN_LINE_BYTES: usize = 64 << 20;

/// What memory has and the store has not.
pub struct Pending {
    batch: Batch,
    journal: Journal,
    lines: String,
    /// Torrents whose lines are to leave the content file.
    gone: HashSet<InfoHash>,
    stop: bool,
}

impl Pending {
    /// Takes a change that somebody will be told of: a process that is killed from here on finds it when it starts again.
    ///
    /// # Errors
    /// When the disk does not take it: nothing has changed then.
    pub fn keep(&mut self, change: Batch) -> io::Result<()> {
        self.journal.note(&change)?;
        self.batch.append(change);
        Ok(())
    }

    /// Takes a change that comes again if it is lost.
    pub fn add(&mut self, change: Batch) {
        self.batch.append(change);
    }

    /// Changes that wait.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    pub fn add_lines(&mut self, key: &InfoHash, lines: &str) {
        // Withdrawn a moment ago: its lines have not left yet.
        if !self.gone.remove(key) {
            self.lines.push_str(lines);
        }
    }

    pub fn remove_lines(&mut self, key: InfoHash) {
        self.gone.insert(key);
    }
}

struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
    /// The store takes nothing more: what is published now would be lost.
    failed: AtomicBool,
}

/// The handle of the threads.
pub struct Scribe {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    max_unwritten: usize,
}

impl Scribe {
    /// At most about `max_unwritten` changes wait.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(
        store: Arc<dyn Store>,
        segments: Arc<SegmentLog>,
        journal: Journal,
        content: ContentFile,
        max_unwritten: usize,
    ) -> io::Result<Scribe> {
        let (batch, lines, gone) = (Batch::new(), String::new(), HashSet::new());
        let pending = Mutex::new(Pending { batch, journal, lines, gone, stop: false });
        let shared = Arc::new(Shared { pending, wake: Condvar::new(), failed: AtomicBool::new(false) });
        let scribe = Scribe { shared: shared.clone(), threads: Mutex::default(), max_unwritten };
        let mut registrar = Registrar { store, segments, shared: shared.clone() };
        let mut copyist = Copyist { content, shared, rewritten: None };
        let mut threads = scribe.lock_threads();
        threads.push(std::thread::Builder::new().name("tracker-scribe".into()).spawn(move || registrar.run())?);
        threads.push(std::thread::Builder::new().name("tracker-content".into()).spawn(move || copyist.run())?);
        drop(threads);
        Ok(scribe)
    }

    /// Whether more may be added: the disk keeps up and works.
    pub fn has_room(&self) -> bool {
        let pending = self.pending();
        !self.has_failed() && pending.len() < self.max_unwritten && pending.lines.len() < MAX_UNWRITTEN_LINE_BYTES
    }

    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// What waits; written soon after the guard is dropped.
    pub fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.shared)
    }

    /// Writes what waits and ends the threads. Blocking.
    pub fn stop(&self) {
        lock(&self.shared).stop = true;
        self.shared.wake.notify_all();
        for thread in self.lock_threads().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that writes the registry had panicked");
            }
        }
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sleeps until the next writing is due, or everything ends.
fn rest(shared: &Shared, time: Duration) -> MutexGuard<'_, Pending> {
    let waited = shared.wake.wait_timeout_while(lock(shared), time, |pending| !pending.stop);
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// Writes the registry.
struct Registrar {
    store: Arc<dyn Store>,
    segments: Arc<SegmentLog>,
    shared: Arc<Shared>,
}

impl Registrar {
    fn run(&mut self) {
        loop {
            let (batch, stop) = {
                let mut pending = rest(&self.shared, WRITE_EVERY);
                pending.journal.turn();
                (std::mem::take(&mut pending.batch), pending.stop)
            };
            if !batch.is_empty()
                && let Err(error) = self.commit(batch)
            {
                tracing::error!(error, "the registry takes no more publications: restart when the disk is well");
                self.shared.failed.store(true, Ordering::Relaxed);
            }
            if stop {
                return;
            }
        }
    }

    /// The `.torrent`s before the records that point to them.
    fn commit(&self, batch: Batch) -> Result<(), String> {
        self.segments.sync().map_err(|error| error.to_string())?;
        self.store.commit(batch).map_err(|error| error.to_string())?;
        lock(&self.shared).journal.clear_before_turn().map_err(|error| error.to_string())
    }
}

/// Writes the content file.
struct Copyist {
    content: ContentFile,
    shared: Arc<Shared>,
    rewritten: Option<Instant>,
}

impl Copyist {
    fn run(&mut self) {
        loop {
            let (lines, gone, stop) = self.wait();
            if let Err(error) = self.write(&lines, &gone) {
                tracing::error!(%error, "search_content.txt is not current; it is put right at the next start");
            }
            if stop {
                return;
            }
        }
    }

    fn wait(&self) -> (String, HashSet<InfoHash>, bool) {
        let mut pending = rest(&self.shared, WRITE_LINES_EVERY);
        let rested = self.rewritten.is_none_or(|at| at.elapsed() >= REWRITE_EVERY);
        let rewrite = !pending.gone.is_empty() && (pending.stop || rested);
        let gone = if rewrite { std::mem::take(&mut pending.gone) } else { HashSet::new() };
        (std::mem::take(&mut pending.lines), gone, pending.stop)
    }

    fn write(&mut self, lines: &str, gone: &HashSet<InfoHash>) -> io::Result<()> {
        if !lines.is_empty() {
            self.content.append(lines)?;
        }
        if !gone.is_empty() {
            self.content.remove(gone)?;
            self.rewritten = Some(Instant::now());
        }
        Ok(())
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Pending> {
    shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
}
