//! What the end-to-end tests stand on: hosts of their own making, the real binaries, real clients, and waits that are
//! bounded and say what they waited for.

pub mod clients;
pub mod content;
pub mod disk;
pub mod gate;
pub mod net;
pub mod peer;
pub mod process;
pub mod scripted;
pub mod stranger;
pub mod taker;

use std::time::{Duration, Instant};

/// The binaries under test, as cargo built them.
pub const PEERD: &str = env!("CARGO_BIN_EXE_peerd");
pub const TRACKERD: &str = env!("CARGO_BIN_EXE_trackerd");
pub const PEERCTL: &str = env!("CARGO_BIN_EXE_peerctl");

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// `make story` and `PEERD_STORY=full`: the sizes of the contract in place of small ones.
pub fn full_size() -> bool {
    std::env::var_os("PEERD_STORY").is_some_and(|value| value == "full")
}

/// Asks `f` until it answers, and panics with `what` after `limit`.
#[track_caller]
pub fn wait_for<T>(limit: Duration, what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = f() {
            return answer;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
pub fn wait_until(limit: Duration, what: &str, mut f: impl FnMut() -> bool) {
    wait_for(limit, what, || f().then_some(()));
}

/// A folder for one test, with a space in its name.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("peerd test ").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}
