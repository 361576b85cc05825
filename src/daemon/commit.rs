//! The order of writes: data (written and hashed before it comes here) → fdatasync of each touched file → one batch of
//! bitfields → the store's barrier. A bit is set only for bytes that a power cut cannot take back. What waits for its commit
//! is named in the journal ([`super::journal`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::core::Core;
use super::disk::storage::StorageError;
use super::records;
use super::torrent::{Active, Torrent};
use crate::db::{Batch, StoreError, chunks};
use crate::wire::layout::PieceIndex;

/// Decision 7: bitfields are committed every 5 s ...
const COMMIT_AFTER: Duration = Duration::from_secs(5);
/// ... or as soon as so much waits.
const COMMIT_BYTES: u64 = 32 << 20;
/// Torrents whose files are synced, or given their final names, at once: enough to let the disk order the work.
const AT_ONCE: usize = 8;
/// More than this is never at stake: reading from peers stops.
const UNCOMMITTED_MAX_BYTES: u64 = 64 << 20;

/// Verified pieces that have been written and wait for their commit.
#[derive(Default)]
pub struct CommitQueue {
    /// By the active half that wrote them: a torrent that was set up anew has another.
    dirty: Mutex<HashMap<usize, Dirty>>,
    bytes: AtomicU64,
    /// Something is waiting.
    some: Notify,
    /// It is time: enough waits, a torrent is complete, or somebody asks.
    now: Notify,
    room: Notify,
}

struct Dirty {
    torrent: Arc<Torrent>,
    active: Arc<Active>,
    pieces: Vec<PieceIndex>,
    bytes: u64,
}

impl CommitQueue {
    /// A verified piece is on its way to disk.
    pub fn add(&self, torrent: &Arc<Torrent>, active: &Arc<Active>, piece: PieceIndex, bytes: u64) {
        let mut dirty = self.lock();
        let of = dirty.entry(Arc::as_ptr(active) as usize).or_insert_with(|| Dirty {
            torrent: torrent.clone(),
            active: active.clone(),
            pieces: Vec::new(),
            bytes: 0,
        });
        of.pieces.push(piece);
        of.bytes += bytes;
        let waiting = self.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        drop(dirty);
        self.some.notify_one();
        if waiting >= COMMIT_BYTES {
            self.now.notify_one();
        }
    }

    /// Commits without waiting for the timer.
    pub fn hurry(&self) {
        self.some.notify_one();
        self.now.notify_one();
    }

    /// Whether reading has to stop, with so many bytes more in memory.
    pub fn is_full(&self, in_memory_bytes: u64) -> bool {
        self.bytes.load(Ordering::Acquire) + in_memory_bytes >= UNCOMMITTED_MAX_BYTES
    }

    pub async fn wait_for_room(&self, in_memory_bytes: impl Fn() -> u64) {
        loop {
            let room = self.room.notified();
            if !self.is_full(in_memory_bytes()) {
                return;
            }
            self.now.notify_one();
            // Memory is given back without a word to us, so look again before long.
            let _ = tokio::time::timeout(Duration::from_millis(50), room).await;
        }
    }

    fn take(&self) -> Vec<Dirty> {
        std::mem::take(&mut *self.lock()).into_values().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Dirty>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commits until the daemon stops, and once more then.
pub async fn run(core: Arc<Core>) {
    let queue = &core.commits;
    while !core.tasks.is_stopping() {
        tokio::select! {
            () = queue.some.notified() => {}
            () = core.tasks.stopping() => break,
        }
        tokio::select! {
            () = queue.now.notified() => {}
            () = tokio::time::sleep(COMMIT_AFTER) => {}
            () = core.tasks.stopping() => {}
        }
        commit(&core).await;
    }
    commit(&core).await;
}

/// One commit of all that waits.
async fn commit(core: &Arc<Core>) {
    let side = core.journal.turn();
    let taken = core.commits.take();
    if taken.is_empty() {
        return;
    }
    let bytes: u64 = taken.iter().map(|dirty| dirty.bytes).sum();
    let mut synced = Vec::with_capacity(taken.len());
    let results = several(taken, |dirty| async move {
        let result = sync_files(&dirty.active).await;
        (dirty, result)
    });
    for (dirty, result) in results.await {
        match result {
            Ok(()) => synced.push(dirty),
            Err(error) => {
                give_up(&dirty);
                core.disk_failed(&dirty.torrent, &error);
            }
        }
    }
    match record(core, &synced).await {
        Ok(()) => {
            several(synced, |dirty| committed(core.clone(), dirty)).await;
        }
        Err(error) => {
            tracing::error!(%error, "progress could not be recorded; downloads stop until the store works again");
            for dirty in synced {
                give_up(&dirty);
                let name = &dirty.torrent.summary.name;
                core.fail(&dirty.torrent, format!("what was fetched of {name} could not be recorded: {error}"));
            }
        }
    }
    let of = core.clone();
    // It fails only if it panics.
    let _ = tokio::task::spawn_blocking(move || of.journal.clear(side)).await;
    core.commits.bytes.fetch_sub(bytes, Ordering::AcqRel);
    core.commits.room.notify_waiters();
}

/// Does the same with every item, [`AT_ONCE`] at a time, and comes back when all is done.
async fn several<T, R, F>(items: Vec<T>, work: impl Fn(T) -> F) -> Vec<R>
where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    let mut results = Vec::with_capacity(items.len());
    for item in items {
        if under_way.len() == AT_ONCE {
            results.extend(under_way.join_next().await.and_then(Result::ok));
        }
        under_way.spawn(work(item));
    }
    while let Some(done) = under_way.join_next().await {
        results.extend(done);
    }
    results
}

async fn sync_files(active: &Arc<Active>) -> Result<(), StorageError> {
    let active = active.clone();
    let synced = tokio::task::spawn_blocking(move || active.storage.take_touched().sync()).await;
    synced.unwrap_or_else(|error| Err(StorageError::Root(std::io::Error::other(error))))
}

async fn record(core: &Arc<Core>, synced: &[Dirty]) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    for dirty in synced.iter().filter(|dirty| !dirty.torrent.is_removed()) {
        let mut bits = {
            let inner = dirty.active.lock();
            if inner.retired {
                continue;
            }
            inner.committed.clone()
        };
        for piece in &dirty.pieces {
            bits.set(*piece);
        }
        let changed = dirty.pieces.iter().map(|piece| piece.as_usize() / 8);
        chunks::put_changed_chunks(
            &mut batch,
            records::BITFIELDS,
            dirty.torrent.key().as_bytes(),
            bits.as_bytes(),
            changed,
        );
    }
    core.submit(batch).await
}

async fn committed(core: Arc<Core>, dirty: Dirty) {
    let all = {
        let mut inner = dirty.active.lock();
        for piece in &dirty.pieces {
            inner.committed.set(*piece);
        }
        inner.committed.is_full() && !inner.retired
    };
    if all && !dirty.torrent.is_removed() {
        core.complete(&dirty.torrent, &dirty.active).await;
    } else if !dirty.torrent.is_removed() {
        core.keep_reserve(&dirty.torrent).await;
    }
    dirty.torrent.touch();
}

/// What could not be synced cannot be trusted, now or by trying again (Linux forgets what it failed to write): the
/// pieces are missing again.
fn give_up(dirty: &Dirty) {
    {
        let mut inner = dirty.active.lock();
        for piece in &dirty.pieces {
            inner.swarm.forget_piece(*piece);
        }
    }
    // Its storage has forgotten what it touched; a new half begins with what was committed before.
    dirty.torrent.let_go(true);
}
