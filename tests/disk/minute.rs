//! How much a power cut takes, by the clock: a download at a slow, steady rate, cut off after more than a minute. What came
//! more than a commit ago is on record, and what came more than a minute ago stands in the ledger.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::victim::{Victim, crash, look, persisted_ledger};
use crate::support::content::MIB;
use crate::support::disk::Leaves;
use crate::support::net::Host;
use crate::support::scripted::Scripted;
use crate::support::secs;

pub const NAME: &str = "slow.bin";
pub const LEN: u64 = 64 * MIB;
/// After each block of 16 KiB: some 400 KiB a second.
pub const REST: Duration = Duration::from_millis(40);

/// When it is cut off: the ledger was written once, and not long ago.
const CUT_AFTER: Duration = secs(72);
const LEDGER_EVERY: Duration = secs(60);
const COMMIT_EVERY: Duration = secs(5);
/// What a busy machine may add to either.
const GRACE: Duration = secs(6);
/// Pieces that may be under way from one peer.
const UNDER_WAY: u64 = 2;

pub struct Slow(JoinHandle<()>);

/// Begins the download on this host, from a peer that counts.
pub fn begin(host: &Host, folder: &Path, tracker: &str, from: Scripted) -> Slow {
    let folder: PathBuf = folder.join("slow");
    let mut victim = Victim::new(host, &folder, tracker);
    Slow(std::thread::spawn(move || {
        let mut process = victim.start();
        victim.ctl(&["get", "--detach", NAME]).expect_success();
        let begun = Instant::now();
        let mut samples = Vec::new();
        while begun.elapsed() < CUT_AFTER {
            samples.push((Instant::now(), from.payload_bytes()));
            std::thread::sleep(Duration::from_millis(100));
        }
        let cut = Instant::now();
        crash(&victim.disk, &mut process, Leaves::Nothing);
        let given = from.payload_bytes();
        let before = |age: Duration| {
            let earlier = samples.iter().rev().find(|(at, _)| cut.duration_since(*at) >= age + GRACE);
            earlier.map_or(0, |(_, bytes)| *bytes)
        };
        let found = look(&victim.disk, &folder, "after the slow download").remove(0);
        let (received, _) = persisted_ledger(&folder);
        let recorded = u64::from(found.recorded) * found.piece_bytes;
        println!("{given} bytes in {CUT_AFTER:?}: {recorded} on record, {received} in the ledger");
        assert!(given < LEN && before(LEDGER_EVERY) > 4 * found.piece_bytes, "it was not slow and steady: {given}");
        let (commit, ledger) = (before(COMMIT_EVERY), before(LEDGER_EVERY));
        assert!(
            recorded + UNDER_WAY * found.piece_bytes >= commit,
            "{recorded} on record, {commit} came before the last"
        );
        assert!(
            received + UNDER_WAY * found.piece_bytes >= ledger,
            "{received} in the ledger of {ledger}, a minute old"
        );
        assert!(received <= given, "{received} in the ledger, {given} were sent");
    }))
}

impl Slow {
    /// Waits until it has been cut off and looked at.
    pub fn end(self) {
        if let Err(panic) = self.0.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
