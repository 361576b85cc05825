//! The one way to start a task: with a name, stopped together, counted, so that a stop can wait until none is left.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::Instrument;

/// A cheap handle; all clones are one group.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    stop: watch::Sender<bool>,
    live: AtomicUsize,
    ended: Notify,
}

impl Tasks {
    pub fn new() -> Tasks {
        let (stop, _) = watch::channel(false);
        Tasks { inner: Arc::new(Inner { stop, live: AtomicUsize::new(0), ended: Notify::new() }) }
    }

    /// Starts a task that is dropped at its next await once the group stops.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.clone();
        self.spawn_to_end(name, async move {
            tokio::select! {
                () = tasks.stopping() => {}
                () = task => {}
            }
        });
    }

    /// Starts a task that ends by itself after [`Tasks::stopping`] resolves: one that has something to put away.
    pub fn spawn_to_end(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let inner = self.inner.clone();
        inner.live.fetch_add(1, Ordering::Relaxed);
        let guard = Live(inner);
        tokio::spawn(
            async move {
                let _guard = guard;
                task.await;
            }
            .instrument(tracing::debug_span!("task", name)),
        );
    }

    /// Resolves when the group has been told to stop.
    pub async fn stopping(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.inner.stop.subscribe().wait_for(|stop| *stop).await;
    }

    pub fn is_stopping(&self) -> bool {
        *self.inner.stop.borrow()
    }

    /// Tells every task to stop and waits, at most `limit`, until none is left. Returns how many still ran then.
    pub async fn stop(&self, limit: Duration) -> usize {
        self.inner.stop.send_replace(true);
        let all_ended = async {
            loop {
                let ended = self.inner.ended.notified();
                if self.inner.live.load(Ordering::Acquire) == 0 {
                    return;
                }
                ended.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_ended).await;
        self.inner.live.load(Ordering::Acquire)
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Tasks::new()
    }
}

struct Live(Arc<Inner>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Release);
        self.0.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_waits_for_tasks_that_end_by_themselves_and_drops_the_others() {
        let tasks = Tasks::new();
        tasks.spawn("forever", std::future::pending());
        let last = tasks.clone();
        let (done, seen) = tokio::sync::oneshot::channel();
        tasks.spawn_to_end("puts away", async move {
            last.stopping().await;
            let _ = done.send(());
        });
        assert_eq!(tasks.stop(Duration::from_secs(30)).await, 0);
        assert_eq!(seen.await, Ok(()));
    }
}
