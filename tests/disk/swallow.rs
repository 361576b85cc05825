//! Every sync and rename that docs/reliability.md lists, swallowed alone: the loss that it prevents must show.

use std::fs;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use peerd::daemon::disk::fs::{FileSystem, NativeFs};
use peerd::daemon::disk::storage::{FdCache, Storage};
use peerd::daemon::identity::Signer;
use peerd::daemon::journal::Journal;
use peerd::db::segments::{Position, SegmentLog};
use peerd::db::{Batch, SledStore, Store, Table};
use peerd::wire::metainfo::FileEntry;
use peerd::wire::name::RelPath;

use crate::support::disk::{Call, Disk, Fault, Leaves, Rule};
use crate::support::folder;

const ROWS: Table = Table::new("rows");
const FIRST: Position = Position { file: 1, offset: 0, len: 5 };

fn put(store: &SledStore, key: &[u8]) {
    let mut batch = Batch::new();
    batch.put(ROWS, key, key.to_vec());
    store.commit(batch).expect("an acknowledgement");
}

fn has(store: &SledStore, key: &[u8]) -> bool {
    store.get(ROWS, key).expect("a row or none").as_deref() == Some(key)
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).expect("a path")
}

fn storage(root: &Path) -> Storage {
    let root = NativeFs.open_root(root).expect("a folder");
    let file = FileEntry { path: path("film"), offset: 0, len: 5_000, padding: false };
    Storage::recover(root, vec![file], path(".part"), path("film"), Arc::<FdCache>::default()).expect("a storage")
}

fn write_part(root: &Path) -> Storage {
    let storage = storage(root);
    storage.write_vectored(0, &[IoSlice::new(&[7; 5_000])]).expect("a write");
    storage
}

fn put_one(root: &Path) {
    put(&SledStore::open(&root.join("state/db")).expect("a store"), b"k");
}

fn has_one(disk: &Disk) -> bool {
    has(&SledStore::open(&disk.path().join("state/db")).expect("a store"), b"k")
}

/// What is done, and whether it is still so after the power was cut.
struct Case {
    name: &'static str,
    swallowed: (Call, &'static str),
    work: fn(&Path),
    kept: fn(&Disk) -> bool,
}

fn cases() -> Vec<Case> {
    vec![
        Case { name: "the barrier", swallowed: (Call::Sync, "state/db/db"), work: put_one, kept: has_one },
        Case {
            name: "the database's folder",
            swallowed: (Call::SyncFolder, "=state/db"),
            work: put_one,
            kept: has_one,
        },
        Case { name: "the folder above it", swallowed: (Call::SyncFolder, "=state"), work: put_one, kept: has_one },
        Case { name: "the folder above that", swallowed: (Call::SyncFolder, "="), work: put_one, kept: has_one },
        Case { name: "the dump's bytes", swallowed: (Call::Sync, "db/dump.new"), work: dump, kept: restored },
        Case { name: "the dump's new name", swallowed: (Call::Rename, "db/dump.new"), work: dump, kept: restored },
        Case { name: "the dump's folder", swallowed: (Call::SyncFolder, "=state/db"), work: dump, kept: restored },
        Case { name: "a .torrent's bytes", swallowed: (Call::Sync, ".seg"), work: append, kept: appended },
        Case {
            name: "a segment's name",
            swallowed: (Call::SyncFolder, "=state/torrents"),
            work: append,
            kept: appended,
        },
        Case {
            name: "the identity's bytes",
            swallowed: (Call::Sync, "identity.new"),
            work: identify,
            kept: identified,
        },
        Case {
            name: "the identity's name",
            swallowed: (Call::Rename, "identity.new"),
            work: identify,
            kept: identified,
        },
        Case { name: "the identity's folder", swallowed: (Call::SyncFolder, "="), work: identify, kept: identified },
        Case {
            name: "a piece's bytes",
            swallowed: (Call::Sync, ".part"),
            work: |root| write_part(root).take_touched().sync().expect("a sync"),
            kept: |disk| disk.read(".part") == Some(vec![7; 5_000]),
        },
        Case {
            name: "an unfinished file's name",
            swallowed: (Call::SyncFolder, "="),
            work: |root| write_part(root).take_touched().sync().expect("a sync"),
            kept: |disk| disk.read(".part") == Some(vec![7; 5_000]),
        },
        Case {
            name: "a piece that an earlier run wrote",
            swallowed: (Call::Sync, ".part"),
            work: |root| {
                drop(write_part(root));
                let storage = storage(root);
                storage.touch(0, 5_000).expect("a file");
                storage.take_touched().sync().expect("a sync");
            },
            kept: |disk| disk.read(".part") == Some(vec![7; 5_000]),
        },
        Case {
            name: "the name of a file that an earlier run made",
            swallowed: (Call::SyncFolder, "="),
            work: |root| {
                drop(write_part(root));
                write_part(root).take_touched().sync().expect("a sync");
            },
            kept: |disk| disk.read(".part") == Some(vec![7; 5_000]),
        },
        Case {
            name: "a final name that an earlier run gave",
            swallowed: (Call::SyncFolder, "="),
            work: |root| {
                write_part(root).take_touched().sync().expect("a sync");
                fs::rename(root.join(".part"), root.join("film")).expect("a rename");
                assert!(storage(root).finish().expect("it is there").is_none());
            },
            kept: |disk| disk.read("film") == Some(vec![7; 5_000]),
        },
        Case {
            name: "a finished file's name",
            swallowed: (Call::Rename, ".part"),
            work: |root| drop(write_part(root).finish()),
            kept: |disk| disk.read("film") == Some(vec![7; 5_000]),
        },
    ]
}

fn dump(root: &Path) {
    let store = SledStore::open(&root.join("state/db")).expect("a store");
    put(&store, b"k");
    store.dump().expect("a dump");
    store.close().expect("a clean stop");
}

/// Whether the row can be had when the database is lost.
fn restored(disk: &Disk) -> bool {
    disk.flip("state/db/db", 100);
    has(&SledStore::open(&disk.path().join("state/db")).expect("a store"), b"k")
}

fn append(root: &Path) {
    let log = SegmentLog::open(&root.join("state/torrents")).expect("a log");
    assert_eq!(log.append(b"bytes").expect("a position"), FIRST);
    log.sync().expect("a sync");
}

fn appended(disk: &Disk) -> bool {
    let log = SegmentLog::open(&disk.path().join("state/torrents")).expect("a log");
    log.read(FIRST).is_ok_and(|bytes| bytes == b"bytes")
}

fn identify(root: &Path) {
    let signer = Signer::load_or_create(&root.join("identity")).expect("an identity");
    fs::write(root.join("../public"), signer.public_key()).expect("a note");
}

fn identified(disk: &Disk) -> bool {
    let before = fs::read(disk.path().join("../public")).expect("a note");
    Signer::load_or_create(&disk.path().join("identity")).is_ok_and(|signer| signer.public_key()[..] == before)
}

#[test]
fn each_sync_and_rename_prevents_a_loss() {
    for Case { name, swallowed: (call, place), work, kept } in cases() {
        let outlives = |swallow: bool| {
            let folder = folder();
            let disk = Disk::mount(&folder.path().join("disk"));
            if swallow {
                // Opening the store has synced the folder once; the dump's turn comes then.
                let after = u64::from(name == "the dump's folder");
                disk.order(Rule { after, ..Rule::all(call, place, Fault::Swallow) });
            }
            work(disk.path());
            assert!(!swallow || disk.struck() > 0, "{name}: {call:?} of {place} was never asked for");
            disk.power_off();
            disk.heal();
            disk.power_on(Leaves::Nothing);
            kept(&disk)
        };
        assert!(outlives(false), "{name}: lost although everything was synced");
        assert!(!outlives(true), "{name}: kept without {call:?} of {place}: it does not bite, or is not needed");
    }
}

#[test]
fn a_journal_that_was_not_synced_costs_nothing_but_its_names() {
    let folder = folder();
    let disk = Disk::mount(&folder.path().join("disk"));
    drop(Journal::open(disk.path()).expect("a journal"));
    for seed in 0..8 {
        disk.power_off();
        disk.power_on(Leaves::Some(seed));
        drop(Journal::open(disk.path()).unwrap_or_else(|error| panic!("seed {seed}: {error}")));
    }
}
