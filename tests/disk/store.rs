//! The store and the segment log on the failing disk.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peerd::db::segments::SegmentLog;
use peerd::db::{Batch, SledStore, Store, Table};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::child::Keeper;
use crate::support::disk::{Call, Disk, EIO, ENOSPC, Leaves, Moment, Rule};
use crate::support::{folder, secs};

const ROWS: Table = Table::new("rows");

/// Runs `work` until the power goes at `moment`, then leaves what the cut leaves.
fn cut_during(disk: &Disk, moment: Moment, leaves: Leaves, work: impl FnOnce(&AtomicBool) + Send) {
    let stop = AtomicBool::new(false);
    disk.cut_at(moment);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&stop));
        while !disk.wait_cut(Duration::from_millis(20)) && !worker.is_finished() {}
        stop.store(true, Ordering::Relaxed);
        disk.power_off();
    });
    disk.power_on(leaves);
}

fn seed() -> (u64, SmallRng) {
    let seed = std::env::var("PEERD_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| getrandom::u64().expect("a seed"));
    println!("PEERD_SEED={seed}");
    (seed, SmallRng::seed_from_u64(seed))
}

fn leaves(rng: &mut SmallRng) -> Leaves {
    match rng.random_range(0..3) {
        0 => Leaves::Everything,
        1 => Leaves::Nothing,
        _ => Leaves::Some(rng.random()),
    }
}

/// Has the store opened and written to until the power goes, and kills its process. Returns how many rows it had
/// acknowledged, of which there were `from` before.
fn write_until_cut(
    disk: &Disk,
    dir: &Path,
    from: u32,
    rng: &mut SmallRng,
    moment: Moment,
    leaves: Leaves,
) -> (u32, bool) {
    disk.cut_at(moment);
    let mut keeper = Keeper::start(dir);
    keeper.tell("open");
    let mut batches = Vec::new();
    let mut next = from;
    for _ in 0..40 {
        let count = rng.random_range(1..120);
        keeper.tell(&format!("commit {next} {count}"));
        next += count;
        batches.push(next);
    }
    keeper.tell("check 0");
    let mut answers = Vec::new();
    let reached = loop {
        if disk.wait_cut(Duration::from_millis(5)) {
            break true;
        }
        answers.extend(keeper.answer(Duration::ZERO));
        if answers.last().is_some_and(|answer| answer == "whole") {
            break false;
        }
    };
    keeper.kill();
    disk.power_off();
    answers.extend(keeper.reap());
    disk.power_on(leaves);
    let acknowledged = answers.iter().filter(|answer| *answer == "done").count();
    (acknowledged.checked_sub(1).map_or(from, |last| batches[last]), reached)
}

#[test]
fn what_was_acknowledged_outlives_every_power_cut() {
    let folder = folder();
    let (seed, mut rng) = seed();
    let mut reached = 0;
    for round in 0..6 {
        let disk = Disk::mount(&folder.path().join(format!("disk{round}")));
        let dir = disk.path().join("state/db");
        let mut acknowledged = 0;
        for cut in 0..5 {
            let moment = Moment::Call(rng.random_range(0..if cut == 0 { 12 } else { 60 }));
            let leaves = leaves(&mut rng);
            let (after, hit) = write_until_cut(&disk, &dir, acknowledged, &mut rng, moment, leaves);
            acknowledged = after;
            reached += u32::from(hit);
            let mut keeper = Keeper::start(&dir);
            let what = format!("seed {seed}, round {round}, cut {cut} {moment:?} {leaves:?}");
            assert_eq!(keeper.ask("open"), "open", "{what}");
            assert_eq!(keeper.ask(&format!("check {acknowledged}")), "whole", "{what}");
        }
    }
    assert!(reached >= 24, "{reached} of 30 cuts came while it was written");
}

/// The canary: the same disk, the same cut, and sled's own `flush` in place of our barrier. That one may never return, which
/// is why the store does not wait for it for ever: then it is tried with another database.
#[test]
fn without_our_barrier_acknowledged_rows_are_lost() {
    const RETURNS: Duration = secs(60);
    let folder = folder();
    let after_a_cut = |order: &str, attempt: u32| -> Option<String> {
        let disk = Disk::mount(&folder.path().join(format!("{order} {attempt}")));
        let dir = disk.path().join("state/db");
        let mut keeper = Keeper::open(&dir);
        keeper.expect("close", "done");
        if order != "bare 50" {
            keeper.expect("open", "open");
        }
        keeper.tell(order);
        assert_eq!(keeper.answer(RETURNS)?, "done", "to {order:?}");
        disk.cut();
        keeper.kill();
        disk.power_off();
        drop(keeper);
        disk.power_on(Leaves::Nothing);
        Some(Keeper::open(&dir).ask("check 50"))
    };
    assert_eq!(after_a_cut("commit 0 50", 0).as_deref(), Some("whole"));
    let bare = (0..4).find_map(|attempt| after_a_cut("bare 50", attempt)).expect("a flush that returns");
    assert_ne!(bare, "whole", "sled's flush alone kept everything: the failing disk does not bite");
}

#[test]
fn an_appended_torrent_that_was_synced_outlives_every_power_cut() {
    let folder = folder();
    let (seed, mut rng) = seed();
    let disk = Disk::mount(&folder.path().join("disk"));
    let dir = disk.path().join("state/torrents");
    let mut synced = Vec::new();
    let record = |n: usize| vec![n as u8; 1 + n * 37 % 9_000];
    for cut in 0..20 {
        let (calls, half): (u64, bool) = (rng.random_range(2..40), rng.random());
        let leaves = if rng.random() { Leaves::Nothing } else { Leaves::Some(rng.random()) };
        let (kept, dir) = (&mut synced, &dir);
        cut_during(&disk, Moment::Call(calls), leaves, move |stop| {
            let Ok(log) = SegmentLog::open(dir) else { return };
            while !stop.load(Ordering::Relaxed) {
                let appended: Result<Vec<_>, _> = (0..3).map(|n| log.append(&record(kept.len() + n))).collect();
                let Ok(positions) = appended else { return };
                if !half || kept.len() % 2 == 0 {
                    if log.sync().is_err() {
                        return;
                    }
                    kept.extend(positions);
                }
            }
        });
        let log = SegmentLog::open(&disk.path().join("state/torrents")).expect("the log opens");
        for (n, position) in synced.iter().enumerate() {
            assert!(log.read(*position).ok() == Some(record(n)), "seed {seed}, cut {cut}: record {n} is lost");
        }
    }
    assert!(synced.len() > 10, "{} records", synced.len());
}

#[test]
fn a_full_or_failing_disk_is_said_at_once_and_what_was_acknowledged_stays() {
    for (call, fault) in [(Call::Write, ENOSPC), (Call::Write, EIO), (Call::Sync, EIO)] {
        let what = format!("{call:?} {fault:?}");
        let folder = folder();
        let disk = Disk::mount(&folder.path().join("disk"));
        let dir = disk.path().join("db");
        let mut keeper = Keeper::open(&dir);
        keeper.expect("commit 0 100", "done");
        disk.order(Rule::all(call, "db", fault));
        let begun = Instant::now();
        let refused = keeper.ask("commit 100 100");
        // It fails, or hangs in the database, which is found out after 30 s.
        assert!(refused.starts_with("failed: "), "{what}: {refused}");
        assert!(begun.elapsed() < secs(40), "{what} took {:?}", begun.elapsed());
        assert_ne!(keeper.ask("has 7"), "false", "{what}: a row is said not to be");
        disk.heal();
        let refused = keeper.ask("commit 100 100");
        assert!(refused.starts_with("failed: "), "{what}: what was refused once is promised again");
        keeper.reap();
        let mut keeper = Keeper::open(&dir);
        assert_eq!(keeper.ask("check 100"), "whole", "{what}");
        keeper.expect("commit 100 100", "done");
    }
}

#[test]
fn after_a_flipped_bit_every_row_is_there_from_the_database_or_from_its_dump() {
    let folder = folder();
    let (seed, mut rng) = seed();
    let disk = Disk::mount(&folder.path().join("disk"));
    let dir = disk.path().join("state/db");
    let mut keeper = Keeper::open(&dir);
    for order in ["commit 0 600", "dump", "close"] {
        keeper.expect(order, "done");
    }
    drop(keeper);
    let mut restored = 0;
    for flip in 0..25 {
        let bits = disk.read("state/db/db").expect("a database").len() as u64 * 8;
        let bit = rng.random_range(0..bits);
        disk.flip("state/db/db", bit);
        let mut keeper = Keeper::start(&dir);
        let opened = keeper.ask("open");
        assert!(opened.starts_with("open"), "seed {seed}, flip {flip}: {opened}");
        assert_eq!(keeper.ask("check 600"), "whole", "seed {seed}, flip {flip} of bit {bit}: {opened}");
        restored += u32::from(opened != "open");
        for order in ["dump", "close"] {
            keeper.expect(order, "done");
        }
    }
    assert!(restored > 0, "seed {seed}: no flip of 25 was met");
    assert!(!disk.files("state/db.damaged-1").is_empty(), "a damaged database was not kept");
}

#[test]
fn a_database_that_has_lost_its_end_is_known_by_its_dump() {
    let folder = folder();
    let dir = folder.path().join("db");
    let copy = folder.path().join("old");
    let write = |order: &str| {
        let mut keeper = Keeper::open(&dir);
        for order in [order, "dump", "close"] {
            keeper.expect(order, "done");
        }
    };
    write("commit 0 10");
    std::fs::copy(dir.join("db"), &copy).expect("a copy");
    write("commit 10 100");
    std::fs::copy(&copy, dir.join("db")).expect("a copy");
    let mut keeper = Keeper::start(&dir);
    assert!(keeper.ask("open").starts_with("open, restored"));
    keeper.expect("check 110", "whole");
}

#[test]
fn rewriting_the_same_keys_does_not_fill_the_disk() {
    let folder = folder();
    let store = SledStore::open(&folder.path().join("db")).unwrap();
    let live = 100 * 1_024;
    for round in 0..200_u32 {
        let mut batch = Batch::new();
        for n in 0..100_u32 {
            batch.put(ROWS, &n.to_be_bytes(), vec![(round + n) as u8; 1_024]);
        }
        store.commit(batch).unwrap();
    }
    let bytes = store.size_on_disk().unwrap();
    println!("{live} bytes rewritten 200 times lie in {bytes} bytes");
    assert!(bytes < 32 << 20, "{bytes} bytes");
}

#[test]
fn a_store_of_a_million_keys_stays_small() {
    let folder = folder();
    let dir = folder.path().join("db");
    let peak = |orders: &[&str]| -> u32 {
        let mut keeper = Keeper::open(&dir);
        orders.iter().for_each(|order| keeper.expect(order, "done"));
        keeper.ask("peak").parse().expect("MiB")
    };
    let begun = Instant::now();
    let filled = peak(&["fill 1000000"]);
    let filling = begun.elapsed();
    // It was killed: this open reads the log again, and every row.
    let opened = peak(&[]);
    println!(
        "filled in {filling:.1?} with {filled} MiB resident at most, opened in {:.1?} with {opened} MiB",
        begun.elapsed() - filling
    );
    assert!(filled < 400 && opened < 400, "{filled} MiB to fill it, {opened} MiB to open it");
}
