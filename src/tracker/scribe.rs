//! The thread that writes behind: what was published and withdrawn, twice a second in one group; and the lines of
//! `search_content.txt`.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::content_file::ContentFile;
use crate::db::segments::SegmentLog;
use crate::db::{Batch, Store};
use crate::wire::id::InfoHash;

/// A crash loses what was published within this time.
const WRITE_EVERY: Duration = Duration::from_millis(500);
/// Withdrawals leave `search_content.txt` within 10 s; each rewrite is of the whole file, so it is not done for each.
const REWRITE_EVERY: Duration = Duration::from_secs(5);
/// Changes that wait for the disk: minutes of a slow one. Beyond, publishing is refused.
pub const MAX_UNWRITTEN: usize = 200_000;
/// Lines that wait for the disk.
const MAX_UNWRITTEN_LINE_BYTES: usize = 64 << 20;

/// What memory has and the disk has not.
#[derive(Default)]
pub struct Pending {
    pub batch: Batch,
    lines: String,
    /// Torrents whose lines are to leave the content file.
    gone: HashSet<InfoHash>,
    stop: bool,
}

impl Pending {
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

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
    /// The store takes nothing more: what is published now would be lost.
    failed: AtomicBool,
}

/// The handle of the thread.
pub struct Scribe {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    max_unwritten: usize,
}

impl Scribe {
    /// At most about `max_unwritten` changes wait.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(
        store: Arc<dyn Store>,
        segments: Arc<SegmentLog>,
        content: ContentFile,
        max_unwritten: usize,
    ) -> io::Result<Scribe> {
        let shared = Arc::<Shared>::default();
        let mut desk = Desk { store, segments, content, shared: shared.clone(), rewritten: None };
        let thread = std::thread::Builder::new().name("tracker-scribe".into()).spawn(move || desk.run())?;
        Ok(Scribe { shared, thread: Mutex::new(Some(thread)), max_unwritten })
    }

    /// Whether more may be added: the disk keeps up and works.
    pub fn has_room(&self) -> bool {
        let pending = self.pending();
        !self.has_failed() && pending.batch.len() < self.max_unwritten && pending.lines.len() < MAX_UNWRITTEN_LINE_BYTES
    }

    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// What waits; written within half a second after the guard is dropped.
    pub fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.shared)
    }

    /// Writes what waits and ends the thread. Blocking.
    pub fn stop(&self) {
        lock(&self.shared).stop = true;
        self.shared.wake.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes the registry had panicked");
        }
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Desk {
    store: Arc<dyn Store>,
    segments: Arc<SegmentLog>,
    content: ContentFile,
    shared: Arc<Shared>,
    rewritten: Option<Instant>,
}

impl Desk {
    fn run(&mut self) {
        loop {
            let (batch, lines, gone, stop) = self.wait();
            if !batch.is_empty()
                && let Err(error) = self.commit(batch)
            {
                tracing::error!(error, "the registry takes no more publications: restart when the disk is well");
                self.shared.failed.store(true, Ordering::Relaxed);
            }
            if let Err(error) = self.write_lines(&lines, &gone) {
                tracing::error!(%error, "search_content.txt is not current; it is put right at the next start");
            }
            if stop {
                return;
            }
        }
    }

    /// Sleeps until the next writing is due, and takes what there is.
    fn wait(&mut self) -> (Batch, String, HashSet<InfoHash>, bool) {
        let pending = lock(&self.shared);
        let idle = |pending: &mut Pending| !pending.stop;
        let waited = self.shared.wake.wait_timeout_while(pending, WRITE_EVERY, idle);
        let (mut pending, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let rested = self.rewritten.is_none_or(|at| at.elapsed() >= REWRITE_EVERY);
        let rewrite = !pending.gone.is_empty() && (pending.stop || rested);
        let gone = if rewrite { std::mem::take(&mut pending.gone) } else { HashSet::new() };
        (std::mem::take(&mut pending.batch), std::mem::take(&mut pending.lines), gone, pending.stop)
    }

    /// The `.torrent`s before the records that point to them.
    fn commit(&self, batch: Batch) -> Result<(), String> {
        self.segments.sync().map_err(|error| error.to_string())?;
        self.store.commit(batch).map_err(|error| error.to_string())
    }

    fn write_lines(&mut self, lines: &str, gone: &HashSet<InfoHash>) -> io::Result<()> {
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
