//! Group commit. Batches queue; the *front* thread takes all that wait, hands them to the *disk* thread, which alone
//! writes, and answers everybody once the barrier has stood.
//!
//! Two threads, because a write can hang for ever inside the database when the disk is full: the front then answers
//! [`StoreError::Stuck`] after a limit, and at once from then on, until the disk thread comes back. An error of a write or
//! of a barrier is final: the kernel may have dropped what it could not write, so nothing after it could be trusted.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{ATOMIC_KEYS, Batch, Op, StoreError, Submitted};

/// Batches that may wait; whoever submits more is told [`StoreError::Busy`]. Commits are grouped by their owners (twice a
/// second, every 5 s), so a longer queue means a disk that does not keep up.
const MAX_WAITING: usize = 1_024;
/// Puts and deletes that share one barrier: bounds how long the first of them waits.
const MAX_GROUP_KEYS: usize = 10_000;
/// How long a group may take before its submitters are told. A loaded spinning disk needs seconds, a dead one for ever.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// What the writer drives.
pub(super) trait Backend: Send + 'static {
    /// Applies the operations atomically; not yet durable.
    fn apply(&self, ops: Vec<Op>) -> Result<(), StoreError>;
    /// Makes durable what was applied.
    fn barrier(&self) -> Result<(), StoreError>;
}

enum Reply {
    Future(oneshot::Sender<Result<(), StoreError>>),
    Thread(SyncSender<Result<(), StoreError>>),
}

impl Reply {
    fn answer(self, result: Result<(), StoreError>) {
        // Whoever no longer waits needs no answer.
        match self {
            Reply::Future(asker) => drop(asker.send(result)),
            Reply::Thread(asker) => drop(asker.send(result)),
        }
    }
}

struct Job {
    ops: Vec<Op>,
    reply: Reply,
}

/// The queue's near end.
pub(super) struct Writer {
    /// None once closed.
    queue: RwLock<Option<SyncSender<Job>>>,
    front: Option<JoinHandle<()>>,
}

impl Writer {
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start(backend: impl Backend) -> std::io::Result<Writer> {
        Writer::start_with_limit(backend, STUCK_AFTER)
    }

    fn start_with_limit(backend: impl Backend, stuck_after: Duration) -> std::io::Result<Writer> {
        let (queue, jobs) = sync_channel(MAX_WAITING);
        let (to_disk, groups) = sync_channel::<Vec<Vec<Op>>>(1);
        let (outcome, outcomes) = sync_channel(1);
        let disk = thread::Builder::new().name("db-disk".into()).spawn(move || {
            for group in groups {
                let result = write_group(&backend, group);
                if outcome.send(result).is_err() {
                    break;
                }
            }
        })?;
        let front = Front { jobs, to_disk, outcomes, stuck_after, stuck: false, failed: None };
        let front = thread::Builder::new().name("db-front".into()).spawn(move || {
            // A disk thread that hangs is left behind: waiting for it would hang the stop as well.
            if !front.run() {
                let _ = disk.join();
            }
        })?;
        Ok(Writer { queue: RwLock::new(Some(queue)), front: Some(front) })
    }

    /// Waits for room in the queue and for the answer.
    pub(super) fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let (asker, answer) = sync_channel(1);
        let job = Job { ops: batch.into_ops()?, reply: Reply::Thread(asker) };
        {
            let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
            queue.as_ref().ok_or(StoreError::Closed)?.send(job).map_err(|_| StoreError::Closed)?;
        }
        answer.recv().unwrap_or(Err(StoreError::Closed))
    }

    pub(super) fn submit(&self, batch: Batch) -> Submitted {
        let (asker, answer) = oneshot::channel();
        let ops = match batch.into_ops() {
            Ok(ops) => ops,
            Err(refused) => return Submitted::answered(Err(refused)),
        };
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = queue.as_ref() else { return Submitted::answered(Err(StoreError::Closed)) };
        match queue.try_send(Job { ops, reply: Reply::Future(asker) }) {
            Ok(()) => Submitted(answer),
            Err(TrySendError::Full(_)) => Submitted::answered(Err(StoreError::Busy)),
            Err(TrySendError::Disconnected(_)) => Submitted::answered(Err(StoreError::Closed)),
        }
    }

    /// Commits `last` after all that waits and takes nothing more.
    pub(super) fn close(&self, last: Batch) -> Result<(), StoreError> {
        let queue = self.queue.write().unwrap_or_else(PoisonError::into_inner).take().ok_or(StoreError::Closed)?;
        let (asker, answer) = sync_channel(1);
        queue.send(Job { ops: last.into_ops()?, reply: Reply::Thread(asker) }).map_err(|_| StoreError::Closed)?;
        answer.recv().unwrap_or(Err(StoreError::Closed))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(front) = self.front.take() {
            let _ = front.join();
        }
    }
}

struct Front {
    jobs: Receiver<Job>,
    to_disk: SyncSender<Vec<Vec<Op>>>,
    outcomes: Receiver<Result<(), StoreError>>,
    stuck_after: Duration,
    /// The disk thread owes an outcome that nobody waits for any more.
    stuck: bool,
    failed: Option<StoreError>,
}

impl Front {
    /// Until the queue closes. Returns whether the disk thread still hangs.
    fn run(mut self) -> bool {
        while let Ok(first) = self.jobs.recv() {
            let mut keys = first.ops.len();
            let (mut group, mut replies) = (vec![first.ops], vec![first.reply]);
            while keys < MAX_GROUP_KEYS
                && let Ok(job) = self.jobs.try_recv()
            {
                keys += job.ops.len();
                group.push(job.ops);
                replies.push(job.reply);
            }
            let result = self.write(group);
            for reply in replies {
                reply.answer(result.clone());
            }
        }
        self.stuck
    }

    fn write(&mut self, group: Vec<Vec<Op>>) -> Result<(), StoreError> {
        if self.stuck {
            match self.outcomes.try_recv() {
                Ok(late) => self.note(late),
                Err(TryRecvError::Empty) => return Err(self.is_stuck()),
                Err(TryRecvError::Disconnected) => self.note(Err(disk_thread_gone())),
            }
            self.stuck = false;
        }
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        if self.to_disk.send(group).is_err() {
            self.note(Err(disk_thread_gone()));
            return Err(disk_thread_gone());
        }
        match self.outcomes.recv_timeout(self.stuck_after) {
            Ok(result) => {
                self.note(result.clone());
                result
            }
            Err(RecvTimeoutError::Timeout) => {
                self.stuck = true;
                Err(self.is_stuck())
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.note(Err(disk_thread_gone()));
                Err(disk_thread_gone())
            }
        }
    }

    fn note(&mut self, result: Result<(), StoreError>) {
        if let Err(why) = result {
            tracing::error!(%why, "the database takes no more writes");
            self.failed = Some(why);
        }
    }

    fn is_stuck(&self) -> StoreError {
        StoreError::Stuck(self.stuck_after.as_secs())
    }
}

fn disk_thread_gone() -> StoreError {
    StoreError::Failed("its thread ended".into())
}

/// Applies the batches in order, at most [`ATOMIC_KEYS`] at a time and none of up to that many divided; then the barrier.
fn write_group(backend: &impl Backend, group: Vec<Vec<Op>>) -> Result<(), StoreError> {
    let mut part: Vec<Op> = Vec::with_capacity(ATOMIC_KEYS);
    for batch in group {
        if !part.is_empty() && part.len() + batch.len() > ATOMIC_KEYS {
            backend.apply(std::mem::take(&mut part))?;
        }
        for op in batch {
            part.push(op);
            if part.len() == ATOMIC_KEYS {
                backend.apply(std::mem::take(&mut part))?;
            }
        }
    }
    if !part.is_empty() {
        backend.apply(part)?;
    }
    backend.barrier()
}

#[cfg(test)]
mod tests {
    use super::super::contract::A;
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What the backend was asked, in order: the keys of each apply, or a barrier.
    #[derive(Debug, PartialEq, Clone)]
    enum Asked {
        Apply(usize),
        Barrier,
    }

    /// Answers each barrier with what the test sends it.
    struct Scripted {
        asked: Arc<Mutex<Vec<Asked>>>,
        barriers: Receiver<Result<(), StoreError>>,
    }

    impl Backend for Scripted {
        fn apply(&self, ops: Vec<Op>) -> Result<(), StoreError> {
            self.asked.lock().unwrap().push(Asked::Apply(ops.len()));
            Ok(())
        }
        fn barrier(&self) -> Result<(), StoreError> {
            self.asked.lock().unwrap().push(Asked::Barrier);
            self.barriers.recv().unwrap_or(Ok(()))
        }
    }

    fn batch(keys: usize) -> Batch {
        let mut batch = Batch::new();
        for key in 0..keys {
            batch.put(A, &key.to_be_bytes(), vec![1]);
        }
        batch
    }

    type Script = (Writer, Arc<Mutex<Vec<Asked>>>, SyncSender<Result<(), StoreError>>);

    fn writer(stuck_after: Duration) -> Script {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (allow, barriers) = sync_channel(16);
        let backend = Scripted { asked: asked.clone(), barriers };
        (Writer::start_with_limit(backend, stuck_after).unwrap(), asked, allow)
    }

    #[test]
    fn a_long_batch_goes_in_parts_and_short_ones_are_never_divided() {
        let parts = |sizes: &[usize]| {
            let (_, barriers) = sync_channel(0);
            let backend = Scripted { asked: Arc::default(), barriers };
            write_group(&backend, sizes.iter().map(|&n| batch(n).into_ops().unwrap()).collect()).unwrap();
            let asked = backend.asked.lock().unwrap();
            assert_eq!(asked.last(), Some(&Asked::Barrier));
            asked.iter().filter_map(|a| if let Asked::Apply(n) = a { Some(*n) } else { None }).collect::<Vec<_>>()
        };
        assert_eq!(parts(&[1_000]), [100; 10]);
        assert_eq!(parts(&[1_001]), [vec![100; 10], vec![1]].concat());
        assert_eq!(parts(&[40, 60, 1]), [100, 1]);
        assert_eq!(parts(&[60, 60, 60]), [60, 60, 60]);
        assert_eq!(parts(&[0, 0]), [0; 0]);
    }

    #[tokio::test]
    async fn nobody_is_answered_before_the_barrier_and_all_who_waited_share_one() {
        let (writer, asked, allow) = writer(STUCK_AFTER);
        let mut first = writer.submit(batch(1));
        while asked.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..5).map(|_| writer.submit(batch(1))).collect();
        assert!(matches!(first.0.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        allow.send(Ok(())).unwrap();
        allow.send(Ok(())).unwrap();
        first.await.unwrap();
        for other in others {
            other.await.unwrap();
        }
        let expected = [Asked::Apply(1), Asked::Barrier, Asked::Apply(5), Asked::Barrier];
        assert_eq!(*asked.lock().unwrap(), expected);
    }

    #[test]
    fn a_failed_barrier_is_final() {
        let (writer, asked, allow) = writer(STUCK_AFTER);
        allow.send(Err(StoreError::Failed("EIO".into()))).unwrap();
        allow.send(Ok(())).unwrap();
        assert!(matches!(writer.commit(batch(1)), Err(StoreError::Failed(_))));
        assert!(matches!(writer.commit(batch(1)), Err(StoreError::Failed(_))));
        assert_eq!(*asked.lock().unwrap(), [Asked::Apply(1), Asked::Barrier], "the second was not tried");
    }

    #[test]
    fn a_hanging_barrier_is_told_and_so_is_everybody_until_it_returns() {
        let (writer, asked, allow) = writer(Duration::from_millis(20));
        assert!(matches!(writer.commit(batch(1)), Err(StoreError::Stuck(_))));
        assert!(matches!(writer.commit(batch(1)), Err(StoreError::Stuck(_))));
        assert_eq!(asked.lock().unwrap().len(), 2, "nothing is piled on a hanging disk");
        for _ in 0..16 {
            allow.send(Ok(())).unwrap();
        }
        while writer.commit(batch(1)).is_err() {
            thread::yield_now();
        }
    }

    #[test]
    fn dropping_the_writer_does_not_wait_for_a_hanging_disk() {
        let (writer, _asked, _allow) = writer(Duration::from_millis(20));
        assert!(matches!(writer.commit(batch(1)), Err(StoreError::Stuck(_))));
        drop(writer);
    }

    #[tokio::test]
    async fn a_full_queue_is_said_and_a_closed_one_too() {
        let (writer, _asked, allow) = writer(STUCK_AFTER);
        let mut waiting = Vec::new();
        let refused = loop {
            let mut submitted = writer.submit(batch(1));
            match submitted.0.try_recv() {
                Ok(answer) => break answer,
                Err(_) => waiting.push(submitted),
            }
        };
        assert!(matches!(refused, Err(StoreError::Busy)));
        assert!(waiting.len() >= MAX_WAITING);
        drop(allow);
        writer.close(batch(1)).unwrap();
        assert!(matches!(writer.commit(batch(1)), Err(StoreError::Closed)));
        assert!(matches!(writer.submit(batch(1)).await, Err(StoreError::Closed)));
        for submitted in waiting {
            submitted.await.unwrap();
        }
    }
}
