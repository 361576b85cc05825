//! Who goes first on a core that several threads want.

use std::cell::Cell;

use rustix::process::setpriority_process;

/// A ninth of the weight of a thread at 0 (sched(7)), so that nothing starves either.
const NICE_BEHIND_ANSWERS: i32 = 10;

/// Lets every other thread go before the calling one, for good (who is not root cannot go back), and so those that it
/// makes. For work that takes milliseconds at a time beside threads that answer somebody in microseconds.
pub fn step_back() {
    thread_local!(static STEPPED_BACK: Cell<bool> = const { Cell::new(false) });
    if !STEPPED_BACK.replace(true)
        && let Err(error) = setpriority_process(None, NICE_BEHIND_ANSWERS)
    {
        tracing::debug!(%error, "a thread keeps the priority that it has");
    }
}
