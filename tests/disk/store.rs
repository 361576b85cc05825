//! The store and the segment log on the failing disk.

use std::sync::atomic::{AtomicBool, Ordering};

use std::time::Instant;

use peerd::db::segments::SegmentLog;
use peerd::db::{Batch, SledStore, Store, StoreError, Table};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::support::disk::{Call, Disk, EIO, ENOSPC, Leaves, Moment, Rule};
use crate::support::{folder, secs};

const ROWS: Table = Table::new("rows");

fn numbered(from: u32, count: u32) -> Batch {
    let mut batch = Batch::new();
    for n in from..from + count {
        batch.put(ROWS, &n.to_be_bytes(), n.to_be_bytes().repeat(1 + n as usize % 60));
    }
    batch
}

/// The first of the rows `0..count` that is not there as it was written.
fn first_missing(store: &dyn Store, count: u32) -> Option<u32> {
    (0..count).find(|n| {
        let expected = n.to_be_bytes().repeat(1 + *n as usize % 60);
        store.get(ROWS, &n.to_be_bytes()).unwrap() != Some(expected)
    })
}

/// Runs `work` until the power goes at `moment`, then leaves what the cut leaves.
fn cut_during(disk: &Disk, moment: Moment, leaves: Leaves, work: impl FnOnce(&AtomicBool) + Send) -> bool {
    let stop = AtomicBool::new(false);
    disk.cut_at(moment);
    let reached = std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&stop));
        let reached = loop {
            if disk.wait_cut(std::time::Duration::from_millis(20)) {
                break true;
            }
            if worker.is_finished() {
                break false;
            }
        };
        stop.store(true, Ordering::Relaxed);
        disk.power_off();
        reached
    });
    disk.power_on(leaves);
    reached
}

#[test]
fn what_was_acknowledged_outlives_every_power_cut() {
    let folder = folder();
    let seed = getrandom::u64().expect("a seed");
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut reached = 0;
    for round in 0..6 {
        let disk = Disk::mount(&folder.path().join(format!("disk{round}")));
        let at = disk.path().join("state/db");
        let mut acknowledged = 0;
        for cut in 0..5 {
            let calls = rng.random_range(0..if cut == 0 { 12 } else { 60 });
            let leaves = if rng.random() { Leaves::Nothing } else { Leaves::Some(rng.random()) };
            let sizes: Vec<u32> = (0..200).map(|_| rng.random_range(1..120)).collect();
            let acked = &mut acknowledged;
            let (from, at) = (*acked, &at);
            reached += u32::from(cut_during(&disk, Moment::Call(calls), leaves, move |stop| {
                let Ok(store) = SledStore::open(at) else { return };
                assert_eq!(first_missing(&store, from), None, "seed {seed}, round {round}, cut {cut}");
                for size in sizes {
                    if stop.load(Ordering::Relaxed) || store.commit(numbered(*acked, size)).is_err() {
                        break;
                    }
                    *acked += size;
                }
            }));
        }
        let store = SledStore::open(&at).unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"));
        assert_eq!(first_missing(&store, acknowledged), None, "seed {seed}, round {round}");
        drop(store);
    }
    assert!(reached >= 24, "{reached} of 30 cuts came while it was written");
}

/// The canary: the same disk, the same cut, and sled's own `flush` in place of our barrier.
#[test]
fn without_our_barrier_acknowledged_rows_are_lost() {
    let folder = folder();
    let lost = |barrier: bool| {
        let disk = Disk::mount(&folder.path().join(if barrier { "with" } else { "without" }));
        let dir = disk.path().join("state/db");
        {
            let store = SledStore::open(&dir).unwrap();
            store.close().unwrap();
        }
        let cut_after = |write: &dyn Fn()| {
            write();
            disk.cut();
            assert!(disk.wait_cut(secs(1)));
            disk.power_off();
        };
        if barrier {
            let store = SledStore::open(&dir).unwrap();
            cut_after(&|| store.commit(numbered(0, 50)).unwrap());
        } else {
            // The flusher's own rhythm is kept out of it: it syncs, but half a second after it said that it had.
            let db = sled::Config::new().path(&dir).flush_every_ms(Some(60_000)).open().unwrap();
            cut_after(&|| {
                for n in 0..50u32 {
                    db.insert([&b"rows\0"[..], &n.to_be_bytes()].concat(), n.to_be_bytes().repeat(1 + n as usize))
                        .unwrap();
                }
                db.flush().unwrap();
            });
            // Its last sync fails, at which it panics.
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(db))));
        }
        disk.power_on(Leaves::Nothing);
        first_missing(&SledStore::open(&dir).unwrap(), 50)
    };
    assert_eq!(lost(true), None);
    assert!(lost(false).is_some(), "sled's flush alone kept everything: the failing disk does not bite");
}

#[test]
fn an_appended_torrent_that_was_synced_outlives_every_power_cut() {
    let folder = folder();
    let seed = getrandom::u64().expect("a seed");
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let disk = Disk::mount(&folder.path().join("disk"));
    let dir = disk.path().join("state/torrents");
    let mut synced = Vec::new();
    let record = |n: usize| vec![n as u8; 1 + n * 37 % 9_000];
    for cut in 0..20 {
        let (calls, half): (u64, bool) = (rng.random_range(0..30), rng.random());
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
    assert!(synced.len() > 30, "{} records", synced.len());
}

#[test]
fn a_full_or_failing_disk_is_said_at_once_and_what_was_acknowledged_stays() {
    for (call, fault) in [(Call::Write, ENOSPC), (Call::Write, EIO), (Call::Sync, EIO)] {
        let folder = folder();
        let disk = Disk::mount(&folder.path().join("disk"));
        let dir = disk.path().join("db");
        let store = SledStore::open(&dir).unwrap();
        store.commit(numbered(0, 100)).unwrap();
        disk.order(Rule::all(call, "db", fault));
        let begun = Instant::now();
        let refused = store.commit(numbered(100, 100));
        assert!(matches!(refused, Err(StoreError::Failed(_))), "{call:?} {fault:?}: {refused:?}");
        assert!(begun.elapsed() < secs(10), "{call:?} {fault:?} took {:?}", begun.elapsed());
        let read = store.get(ROWS, &7_u32.to_be_bytes());
        assert!(read.is_err() || read.is_ok_and(|row| row.is_some()), "{call:?} {fault:?}: a row is said not to be");
        disk.heal();
        assert!(store.commit(numbered(100, 100)).is_err(), "what was refused once is not promised again");
        drop(store);
        let store = SledStore::open(&dir).unwrap();
        assert_eq!(first_missing(&store, 100), None, "{call:?} {fault:?}");
        store.commit(numbered(100, 100)).unwrap();
    }
}

#[test]
fn after_a_flipped_bit_every_row_is_there_from_the_database_or_from_its_dump() {
    let folder = folder();
    let seed = getrandom::u64().expect("a seed");
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let disk = Disk::mount(&folder.path().join("disk"));
    let dir = disk.path().join("state/db");
    let (rows, mut restored) = (600, 0);
    let store = SledStore::open(&dir).unwrap();
    store.commit(numbered(0, rows)).unwrap();
    store.dump().unwrap();
    store.close().unwrap();
    drop(store);
    for flip in 0..25 {
        let bits = disk.read("state/db/db").unwrap().len() as u64 * 8;
        let bit = rng.random_range(0..bits);
        disk.flip("state/db/db", bit);
        let store = SledStore::open(&dir).unwrap_or_else(|error| panic!("seed {seed}, flip {flip}: {error}"));
        let missing = first_missing(&store, rows);
        assert_eq!(missing, None, "seed {seed}, flip {flip} of bit {bit}, {:?}", store.restored());
        if let Some(done) = store.restored() {
            restored += 1;
            assert!(done.rows >= u64::from(rows) && done.aside.is_dir(), "seed {seed}: {done:?}");
        }
        store.dump().unwrap();
        store.close().unwrap();
    }
    assert!(restored > 0, "seed {seed}: no flip of 25 was met");
}

#[test]
fn a_database_that_has_lost_its_end_is_known_by_its_dump() {
    let folder = folder();
    let dir = folder.path().join("db");
    let copy = folder.path().join("old");
    let open = || SledStore::open(&dir).unwrap();
    let store = open();
    store.commit(numbered(0, 10)).unwrap();
    store.dump().unwrap();
    store.close().unwrap();
    drop(store);
    std::fs::copy(dir.join("db"), &copy).unwrap();
    let store = open();
    store.commit(numbered(10, 100)).unwrap();
    store.dump().unwrap();
    store.close().unwrap();
    drop(store);
    std::fs::copy(&copy, dir.join("db")).unwrap();
    let store = open();
    assert!(store.restored().is_some());
    assert_eq!(first_missing(&store, 110), None);
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
