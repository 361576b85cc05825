//! Threads for what takes milliseconds or waits for the disk, behind those that answer announces: a search takes as long as
//! hundreds of them. They are the catalogue's alone: peerd runs a tracker beside its own disk work, which steps back for
//! nobody, and a thread that has stepped back cannot come forward again without being root.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// A ninth of the weight of a thread at 0 (sched(7)), so that nothing starves either.
const NICE: i32 = 10;

pub struct Behind {
    handle: Handle,
    /// Of it only the threads that may block are used. `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Behind {
    /// # Errors
    /// When the system has no room for it.
    pub fn new() -> io::Result<Behind> {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.thread_name("tracker-search").on_thread_start(step_back).build()?;
        Ok(Behind { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Runs it on one of the threads.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn_blocking(work)
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        // A runtime that is dropped waits for its threads, which nobody may on a thread of another's.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn step_back() {
    let stepped = getpriority_process(None).and_then(|nice| setpriority_process(None, nice.max(NICE)));
    if let Err(error) = stepped {
        tracing::debug!(%error, "searches run at the priority of announces");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_threads_step_back_and_no_other_does() {
        let nice = || getpriority_process(None).unwrap();
        let before = nice();
        let behind = Behind::new().unwrap();
        assert_eq!(behind.run(nice).await.unwrap(), before.max(NICE));
        assert_eq!(tokio::task::spawn_blocking(nice).await.unwrap(), before);
        assert_eq!(nice(), before);
    }
}
