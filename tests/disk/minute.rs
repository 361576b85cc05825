//! How much a power cut takes, by the clock: a download at a slow, steady rate, cut off after more than a minute. What came
//! more than a commit ago is on record, and what came more than a minute ago stands in the ledger.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::victim::{Victim, crash, look, persisted_ledger};
use crate::support::content::MIB;
use crate::support::disk::Leaves;
use crate::support::net::Host;
use crate::support::peer::Tracker;
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

/// Begins the download on this host, from a peer that counts; so often, one after the other.
pub fn begin(host: &Host, folder: &Path, tracker: &Tracker, from: Scripted, rounds: u64) -> Slow {
    let folder: PathBuf = folder.join("slow");
    let victim = Victim::new(host, &folder, &tracker.ip());
    let mut run = Run { victim, folder, from, tracker: tracker.url(), ledger_before: 0 };
    Slow(std::thread::spawn(move || (0..rounds).for_each(|round| run.round(round))))
}

struct Run {
    victim: Victim,
    folder: PathBuf,
    from: Scripted,
    tracker: String,
    /// What the ledger had when the last round ended.
    ledger_before: u64,
}

impl Run {
    fn round(&mut self, round: u64) {
        let mut process = self.victim.start();
        if round > 0 {
            self.victim.ctl(&["remove", "--data", NAME]).expect_success();
        }
        self.from.announce(&self.tracker, self.from.info_hash());
        let given_before = self.from.payload_bytes();
        self.victim.ctl(&["get", "--detach", NAME]).expect_success();
        let (begun, mut samples) = (Instant::now(), Vec::new());
        while begun.elapsed() < CUT_AFTER {
            samples.push((Instant::now(), self.from.payload_bytes() - given_before));
            std::thread::sleep(Duration::from_millis(100));
        }
        let cut = Instant::now();
        crash(&self.victim.disk, &mut process, Leaves::Nothing);
        let given = self.from.payload_bytes() - given_before;
        let before = |age: Duration| {
            let earlier = samples.iter().rev().find(|(at, _)| cut.duration_since(*at) >= age + GRACE);
            earlier.map_or(0, |(_, bytes)| *bytes)
        };
        let found = look(&self.victim.disk, &self.folder, "after the slow download").remove(0);
        let (received, _) = persisted_ledger(&self.folder);
        let (before_it, given_ever) = (self.ledger_before, self.from.payload_bytes());
        assert!(received >= before_it, "{before_it} bytes stood in the ledger, now {received}");
        assert!(received <= given_ever, "{received} stand in the ledger, {given_ever} were sent");
        let received = received - std::mem::replace(&mut self.ledger_before, received);
        let recorded = u64::from(found.recorded) * found.piece_bytes;
        println!("{given} bytes in {CUT_AFTER:?}: {recorded} on record, {received} in the ledger");
        let (commit, ledger) = (before(COMMIT_EVERY), before(LEDGER_EVERY));
        assert!(given < LEN && ledger > 4 * found.piece_bytes, "it was not slow and steady: {given}");
        let under_way = UNDER_WAY * found.piece_bytes;
        assert!(recorded + under_way >= commit, "{recorded} on record, {commit} came before the last commit");
        assert!(received + under_way >= ledger, "{received} in the ledger, {ledger} came more than a minute before");
    }
}

impl Slow {
    /// Waits until it has been cut off and looked at.
    pub fn end(self) {
        if let Err(panic) = self.0.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
