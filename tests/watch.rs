//! The watched folder: what is written slowly, what arrives by other programs, what arrives too fast to be told of.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::content::{MIB, Noise, assert_same, make, make_folder};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::process::{Process, run, signal};
use crate::support::{full_size, gate, secs, wait_until};

/// A tracker, a peer that shares and one that fetches. The folder goes last: processes and their logs lie in it.
struct Scene {
    tracker: Tracker,
    sharer: Peer,
    fetcher: Peer,
    _net: Net,
    folder: tempfile::TempDir,
}

fn scene() -> Scene {
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let sharer = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let fetcher = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    Scene { tracker, sharer, fetcher, _net: net, folder }
}

impl Scene {
    /// The names in search_content.txt, as `stem.type`.
    fn names(&self) -> Vec<String> {
        let text = self.tracker.get("/search_content.txt").unwrap_or_default();
        let text = String::from_utf8(text).expect("UTF-8");
        text.lines()
            .map(|line| {
                let rest = line.strip_prefix("Name : ").unwrap_or_else(|| panic!("{line}"));
                let (stem, rest) = rest.rsplit_once(" type: ").unwrap_or_else(|| panic!("{line}"));
                let (kind, _) = rest.split_once(" tor : ").unwrap_or_else(|| panic!("{line}"));
                format!("{stem}.{kind}")
            })
            .collect()
    }

    /// `name` is on the tracker once, and what the other peer fetches is what lies in upload/.
    #[track_caller]
    fn expect_right(&self, name: &str) {
        wait_until(secs(60), &format!("{name} on the tracker"), || self.names().iter().any(|known| known == name));
        self.fetcher.fetch(name, secs(60));
        assert_same(&self.sharer.upload().join(name), &self.fetcher.downloads().join(name));
    }
}

/// Writes `len` bytes in `steps`, with a stall in the middle, and holds the file open until `for_long` is over.
fn write_slowly(path: &Path, seed: u64, len: u64, for_long: Duration, stall: Duration) {
    const STEPS: u64 = 40;
    let mut noise = Noise::new(seed, len);
    let mut file = File::create(path).expect("create a file");
    let pause = (for_long - stall) / STEPS as u32;
    for step in 0..STEPS {
        let until = len * (step + 1) / STEPS;
        let part = until - len * step / STEPS;
        std::io::copy(&mut Read::by_ref(&mut noise).take(part), &mut file).expect("write a file");
        std::thread::sleep(if step == STEPS / 2 { pause + stall } else { pause });
    }
}

#[test]
fn a_file_written_slowly_is_published_once_at_its_end() {
    let _turn = gate::heavy();
    let scene = scene();
    let (len, long, stall) = if full_size() { (1024 * MIB, secs(30), secs(10)) } else { (64 * MIB, secs(12), secs(5)) };
    let path = scene.sharer.upload().join("slow.bin");
    let closed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            write_slowly(&path, 1, len, long, stall);
            closed.store(true, Ordering::SeqCst);
        });
        while !closed.load(Ordering::SeqCst) {
            let names = scene.names();
            assert!(names.is_empty() || closed.load(Ordering::SeqCst), "published while it was written: {names:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    scene.expect_right("slow.bin");
    assert_eq!(scene.names(), ["slow.bin"]);
    let log = scene.sharer.process.log();
    let shares = scene.sharer.list();
    assert_eq!(shares.len(), 1, "{shares:?}\n{log}");
}

#[test]
fn files_arrive_the_way_programs_write_them() {
    let _turn = gate::heavy();
    let scene = scene();
    let (upload, beside) = (scene.sharer.upload(), scene.folder.path().join("beside"));
    make(&beside.join("copied.bin"), 1, 32 * MIB);
    make(&beside.join("deep/er/still.bin"), 2, 3 * MIB);
    make(&beside.join("synced.bin"), 3, 16 * MIB);

    let copy = |args: &[&Path]| run(Command::new("cp").arg("-r").args(args), secs(60)).expect_success();
    copy(&[&beside.join("copied.bin"), &upload]);
    copy(&[&beside.join("deep"), &upload]);
    run(Command::new("rsync").arg(beside.join("synced.bin")).arg(&upload), secs(60)).expect_success();
    let partial = upload.join("film.mkv.crdownload");
    write_slowly(&partial, 4, 8 * MIB, secs(5), secs(4));
    assert!(!scene.names().iter().any(|name| name.contains("film")), "{:?}", scene.names());
    fs::rename(partial, upload.join("film.mkv")).expect("rename");

    for name in ["copied.bin", "synced.bin", "film.mkv"] {
        scene.expect_right(name);
    }
    scene.fetcher.fetch("still.bin", secs(60));
    assert_same(&upload.join("deep/er/still.bin"), &scene.fetcher.downloads().join("still.bin"));
    let mut names = scene.names();
    names.sort();
    assert_eq!(names, ["copied.bin", "film.mkv", "still.bin", "synced.bin"]);
}

#[test]
fn nothing_is_missed_when_the_queue_of_events_overflows() {
    const FILES: usize = 20_000;
    let _turn = gate::alone();
    let scene = scene();
    let upload = scene.sharer.upload();
    // The kernel's queue holds 16,384 events; a stopped process empties it of none.
    let pid = scene.sharer.process.pid();
    signal(pid, "STOP");
    for folder in 0..20 {
        make_folder(&upload.join(format!("folder {folder}")));
    }
    for file in 0..FILES {
        let path = upload.join(format!("folder {}/file {file}.txt", file % 20));
        fs::write(path, format!("this is file {file}\n")).expect("write a file");
    }
    signal(pid, "CONT");
    // Counted in the tracker's folder: fetching the list all the time would keep both cores busy.
    let list = scene.tracker.home.join("tracker/search_content.txt");
    wait_until(secs(100), "every file is on the tracker", || {
        fs::read(&list).is_ok_and(|text| text.iter().filter(|byte| **byte == b'\n').count() >= FILES)
    });
    assert_eq!(scene.names().len(), FILES);
}

#[test]
fn an_idle_peer_reads_no_directory() {
    let _turn = gate::heavy();
    let scene = scene();
    let (files, idle) = if full_size() { (100_000, secs(60)) } else { (2_000, secs(10)) };
    let beside = scene.folder.path().join("many");
    make_folder(&beside);
    for file in 0..files {
        fs::write(beside.join(format!("file {file}.txt")), format!("file {file}\n")).expect("write a file");
    }
    fs::rename(beside, scene.sharer.upload().join("many")).expect("move a folder in");
    wait_until(secs(if full_size() { 900 } else { 60 }), "every file is on the tracker", || {
        scene.names().len() == files
    });
    std::thread::sleep(secs(2));

    let trace = scene.folder.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-q", "-e", "trace=getdents64,getdents", "-o"]).arg(&trace);
    strace.args(["-p", &scene.sharer.process.pid().to_string()]);
    let mut strace = Process::start("strace", &mut strace, &scene.folder.path().join("strace.log"));
    let start = Instant::now();
    while start.elapsed() < idle {
        assert!(strace.ended().is_none(), "strace has ended: {}", strace.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let reads = |trace: &str| trace.lines().filter(|line| line.contains("getdents")).count();
    let read = |path: &Path| fs::read_to_string(path).expect("the trace");
    assert_eq!(reads(&read(&trace)), 0, "{}", read(&trace));
    // The trace would have shown it: a new folder is read.
    make_folder(&scene.sharer.upload().join("new"));
    let mut file = File::create(scene.sharer.upload().join("new/file.txt")).expect("create a file");
    file.write_all(b"new").expect("write a file");
    drop(file);
    wait_until(secs(10), "strace sees a directory read", || reads(&read(&trace)) > 0);
    strace.terminate();
    strace.wait(secs(10));
}

#[test]
fn a_folder_that_changed_behind_our_back_is_not_served() {
    let _turn = gate::heavy();
    let mut scene = scene();
    let shared = scene.folder.path().join("a set");
    fs::create_dir(&shared).expect("a folder");
    make(&shared.join("one.bin"), 1, MIB);
    make(&shared.join("two.bin"), 2, MIB);
    scene.sharer.ctl(&[Path::new("share"), &shared]).expect_success();
    scene.sharer.restart();
    // The same length: only the time of change tells.
    make(&shared.join("two.bin"), 3, MIB);
    scene.fetcher.ctl(&["get", "--detach", "a set"]).expect_success();
    let row = scene.sharer.wait_state("a set", "error", secs(30));
    assert!(row["error"].as_str().is_some_and(|error| error.contains("is not what it was")), "{row}");
    let row = scene.fetcher.row("a set").expect("a row");
    assert!(row["have_bytes"].as_u64().is_some_and(|have| have <= MIB), "{row}");
}
