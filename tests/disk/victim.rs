//! A real peerd on the failing disk, and what can be told of it while it is down.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use peerd::daemon::records::{BITFIELDS, LEDGER, LedgerRecord, OriginRecord, TORRENTS, TorrentRecord};
use peerd::db::record::decode_record;
use peerd::db::segments::SegmentLog;
use peerd::db::{SledStore, Store, chunks};
use peerd::wire::bitfield::Bitfield;
use peerd::wire::id::{InfoHash, PieceCheck};
use peerd::wire::layout::PieceIndex;
use peerd::wire::metainfo::Metainfo;
use serde_json::Value;
use sha1::{Digest, Sha1};

use crate::support::PEERD;
use crate::support::content::make_folder;
use crate::support::disk::{Disk, Leaves};
use crate::support::net::Host;
use crate::support::peer::{at_home, peerctl, rows};
use crate::support::process::{Output, Process, run, signal};
use crate::support::{secs, wait_for, wait_until};

/// Ten times what a start may take.
pub const START_LIMIT: Duration = secs(50);

/// A daemon whose state and data lie on the failing disk.
pub struct Victim {
    pub disk: Disk,
    host: Host,
    /// On an ordinary disk: its log and its socket.
    pub home: PathBuf,
    tracker: String,
    pub starts: Vec<Duration>,
}

impl Victim {
    pub fn new(host: &Host, folder: &Path, tracker: &str) -> Victim {
        let home = folder.join("V");
        make_folder(&home);
        let disk = Disk::mount(&folder.join("disk"));
        Victim { disk, host: host.clone(), home, tracker: tracker.to_string(), starts: Vec::new() }
    }

    pub fn launch(&self) -> Process {
        let mut command = self.host.command(PEERD);
        at_home(&mut command, &self.home);
        command.args([self.tracker.as_str(), "6969", "--foreground", "--home"]).arg(self.disk.path());
        command.arg("--socket").arg(self.socket());
        Process::start("peerd V", &mut command, &self.home.join("peerd.log"))
    }

    fn socket(&self) -> PathBuf {
        self.home.join("peerd.sock")
    }

    fn ctl_command(&self, args: &[&str]) -> std::process::Command {
        let mut command = peerctl(&self.host, &self.home, &["--socket"]);
        command.arg(self.socket()).args(args);
        command
    }

    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> Output {
        run(&mut self.ctl_command(args), secs(60))
    }

    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        rows(self.ctl(&["--json", "list"]).expect_success().json())
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) -> Process {
        let begun = Instant::now();
        let mut process = self.launch();
        wait_until(START_LIMIT, "peerd V answers", || {
            assert!(process.ended().is_none(), "peerd V has ended");
            run(&mut self.ctl_command(&["status"]), secs(60)).code == Some(0)
        });
        self.starts.push(begun.elapsed());
        process
    }

    /// The row of `list` for `name`, once it is in this state.
    #[track_caller]
    pub fn wait_state(&self, name: &str, state: &str, limit: Duration) -> Value {
        wait_for(limit, &format!("{name} is {state} at V"), || {
            self.list().into_iter().find(|row| row["name"] == name && row["state"] == state)
        })
    }

    /// Nothing lies in downloads/ but what is listed.
    #[track_caller]
    pub fn expect_nothing_left_behind(&self, when: &str) {
        let listed = self.list();
        let is_listed = |first: &str| {
            listed.iter().any(|row| {
                row["name"] == *first || row["key"].as_str().is_some_and(|key| first == format!(".{key}.part"))
            })
        };
        for path in self.disk.files("downloads") {
            let below = path.strip_prefix("downloads").expect("a path in downloads/");
            let first = below.iter().next().expect("a name").to_string_lossy();
            let len = self.disk.read(&path.to_string_lossy()).map_or(0, |bytes| bytes.len());
            // Nothing is left by whoever looked whether the folder can be written to.
            let is_trial = first.ends_with(".part") && len == 0;
            assert!(is_trial || is_listed(&first), "{when}: {} ({len} bytes) belongs to nothing", path.display());
        }
    }

    /// Something that peerd may never come to answer.
    pub fn order(&self, args: &[&str]) -> Process {
        Process::start("peerctl", &mut self.ctl_command(args), &self.home.join("peerctl.log"))
    }
}

/// Ends a process in whatever it is doing, and gives the disk back with what that leaves.
pub fn crash(disk: &Disk, process: &mut Process, leaves: Leaves) {
    disk.cut();
    if process.ended().is_none() {
        signal(process.pid(), "KILL");
    }
    // It has been told to die: nothing that it hears from here on changes what it does.
    disk.power_off();
    process.kill9();
    disk.power_on(leaves);
}

/// What the store says of a torrent, and which of its pieces are right on the disk.
pub struct Found {
    pub name: String,
    /// Bytes.
    pub piece_bytes: u64,
    /// Pieces that the store says are had.
    pub recorded: u32,
    /// Pieces that are right.
    pub right: u32,
}

/// Opens a copy of the state and holds it against the disk: no recorded piece may be wrong.
#[track_caller]
pub fn look(disk: &Disk, folder: &Path, when: &str) -> Vec<Found> {
    let copy = folder.join("copy");
    let _ = std::fs::remove_dir_all(&copy);
    disk.copy_out("state", &copy);
    let store = SledStore::open(&copy.join("db")).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(store.restored().is_none(), "{when}: {:?}", store.restored());
    let segments = SegmentLog::open(&copy.join("torrents")).unwrap_or_else(|error| panic!("{when}: {error}"));
    let mut records = Vec::new();
    let keep = &mut |key: &[u8], value: &[u8]| {
        let record: TorrentRecord = decode_record(value).unwrap_or_else(|error| panic!("{when}: {error}"));
        records.push((InfoHash::from_slice(key).expect("a key"), record));
        std::ops::ControlFlow::Continue(())
    };
    store.for_each(TORRENTS, &[], keep).unwrap_or_else(|error| panic!("{when}: {error}"));
    let mut all = Vec::new();
    for (key, record) in records {
        let bytes = segments.read(record.position).unwrap_or_else(|error| panic!("{when}: {error}"));
        let meta = Metainfo::parse(&bytes).unwrap_or_else(|error| panic!("{when}: {error}"));
        let pieces = meta.layout().piece_count();
        let recorded = chunks::get_chunks(&store, BITFIELDS, key.as_bytes(), pieces.div_ceil(8) as usize)
            .unwrap_or_else(|error| panic!("{when}: {error}"))
            .map(|bytes| Bitfield::from_wire(&bytes, pieces).expect("a bitfield"));
        let name = String::from_utf8_lossy(&record.name).into_owned();
        let right = right_pieces(disk, &meta, &record, &key);
        let claims = |piece: PieceIndex| record.complete || recorded.as_ref().is_some_and(|bits| bits.get(piece));
        let is_fetched = matches!(record.origin, OriginRecord::Download { .. });
        for piece in meta.layout().pieces().filter(|piece| is_fetched && claims(*piece)) {
            assert!(right.get(piece), "{when}: piece {} of {name} is recorded and wrong on the disk", piece.get());
        }
        let recorded = recorded.map_or(0, |bits| bits.count());
        all.push(Found { name, piece_bytes: u64::from(record.piece_bytes), recorded, right: right.count() });
    }
    all
}

/// What the store that [`look`] has copied says of payload: received from all peers, and sent to all.
#[track_caller]
pub fn persisted_ledger(folder: &Path) -> (u64, u64) {
    let store = SledStore::open(&folder.join("copy/db")).expect("it was opened before");
    let mut sums = (0, 0);
    let add = &mut |_: &[u8], value: &[u8]| {
        let row: LedgerRecord = decode_record(value).expect("a row of the ledger");
        sums = (sums.0 + row.received_bytes, sums.1 + row.sent_bytes);
        std::ops::ControlFlow::Continue(())
    };
    store.for_each(LEDGER, &[], add).expect("the ledger");
    sums
}

fn right_pieces(disk: &Disk, meta: &Metainfo, record: &TorrentRecord, key: &InfoHash) -> Bitfield {
    let layout = meta.layout();
    let name = String::from_utf8_lossy(&record.name);
    let part = disk.read(&format!("downloads/.{key}.part"));
    let data = match &record.origin {
        OriginRecord::Upload { path } => disk.read(&format!("upload/{}", String::from_utf8_lossy(path))),
        _ => part.or_else(|| disk.read(&format!("downloads/{name}"))),
    };
    let data = data.unwrap_or_default();
    let mut right = Bitfield::empty(layout.piece_count());
    for piece in layout.pieces() {
        let start = layout.piece_start(piece) as usize;
        let PieceCheck::Sha1(expected) = meta.piece_check(piece);
        let Some(bytes) = data.get(start..start + layout.piece_len(piece) as usize) else { continue };
        if Sha1::digest(bytes).as_slice() == expected {
            right.set(piece);
        }
    }
    right
}
