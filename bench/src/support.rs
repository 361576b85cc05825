//! What the end-to-end tests stand on: hosts, processes and the three programs, here of the release build.

#![expect(dead_code, reason = "the tests use more of it")]

use std::path::Path;
use std::time::{Duration, Instant};

#[path = "../../tests/support/content.rs"]
pub mod content;
#[path = "../../tests/support/net.rs"]
pub mod net;
#[path = "../../tests/support/peer.rs"]
pub mod peer;
#[path = "../../tests/support/process.rs"]
pub mod process;

pub const PEERD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/peerd");
pub const TRACKERD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/trackerd");
pub const PEERCTL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/peerctl");

/// The package's folder: scripts and what is written lie in it.
pub fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
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
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
pub fn wait_until(limit: Duration, what: &str, mut f: impl FnMut() -> bool) {
    wait_for(limit, what, || f().then_some(()));
}
