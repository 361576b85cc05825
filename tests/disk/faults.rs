//! Single faults of the disk below a real peerd, and what it makes of them.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::victim::{Victim, crash, look};
use crate::support::content::{MIB, Noise, drop_in};
use crate::support::disk::{Call, Disk, EIO, ENOSPC, EROFS, Leaves, Moment, Rule};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::process::run;
use crate::support::{folder, gate, secs, wait_for, wait_until};

const NAME: &str = "film.bin";
const LEN: u64 = 24 * MIB;

/// A tracker and a seeder of one file on one host, and a victim on another.
struct Scene {
    seeder: Peer,
    victim: Victim,
    tracker: Tracker,
    net: Net,
    folder: tempfile::TempDir,
}

impl Scene {
    #[track_caller]
    fn new() -> Scene {
        let folder = folder();
        let net = Net::new(2);
        let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
        let seeder = Peer::start(&net.hosts[0], folder.path(), "S", &tracker);
        drop_in(&seeder.upload(), NAME, 1, LEN);
        tracker.wait_hit(NAME, secs(60));
        let victim = Victim::new(&net.hosts[1], folder.path(), &tracker.ip());
        Scene { seeder, victim, tracker, net, folder }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn disk(&self) -> &Disk {
        &self.victim.disk
    }

    /// A file of noise, moved into the victim's upload/.
    fn drop_in(&self, name: &str, seed: u64, len: u64) {
        let beside = self.disk().path().join(name);
        let mut file = std::fs::File::create(&beside).expect("create a file");
        std::io::copy(&mut Noise::new(seed, len), &mut file).expect("write a file");
        std::fs::rename(&beside, self.disk().path().join("upload").join(name)).expect("move a file in");
    }

    #[track_caller]
    fn assert_whole(&self) {
        let mut expected = Vec::new();
        std::io::copy(&mut Noise::new(1, LEN), &mut expected).expect("noise");
        assert!(self.disk().read(&format!("downloads/{NAME}")) == Some(expected), "{NAME} is not what it should be");
    }
}

#[test]
fn pieces_that_were_written_and_not_committed_are_kept_after_kill_9() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    let mut process = scene.victim.start();
    scene.disk().cut_at(Moment::Byte(16 * MIB));
    let _get = scene.victim.order(&["get", "--detach", NAME]);
    assert!(scene.disk().wait_cut(secs(30)));
    crash(scene.disk(), &mut process, Leaves::Everything);
    let found = look(scene.disk(), scene.folder(), "after the kill").remove(0);
    assert_eq!(found.name, NAME);
    assert!(found.right > found.recorded, "the kill came between a commit and the next piece");
    // What is had from now on comes from this disk alone.
    scene.seeder.process.kill9();
    let _process = scene.victim.start();
    // Some were written and not yet named when the kill came.
    let least = u64::from(found.right) * found.piece_bytes * 3 / 4;
    let row = wait_for(secs(30), "the written pieces to count as had", || {
        scene.victim.list().into_iter().find(|row| row["have_bytes"].as_u64().is_some_and(|had| had >= least))
    });
    println!("{} of {} right pieces had been recorded; kept: {}", found.recorded, found.right, row["have_bytes"]);
}

#[test]
fn what_could_not_be_synced_is_fetched_again() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    let mut process = scene.victim.start();
    scene.disk().order(Rule::nth(Call::Sync, "downloads", 0, EIO));
    scene.victim.ctl(&["get", "--detach", NAME]).expect_success();
    let row = scene.victim.wait_state(NAME, "error", secs(60));
    let shown = scene.victim.ctl(&["list"]).expect_success().text();
    assert!(shown.contains("peerctl resume"), "{row}\n{shown}");
    assert_eq!(look(scene.disk(), scene.folder(), "after the failed sync")[0].recorded, 0);
    scene.victim.ctl(&["resume", NAME]).expect_success();
    scene.victim.wait_state(NAME, "seeding", secs(120));
    crash(scene.disk(), &mut process, Leaves::Nothing);
    look(scene.disk(), scene.folder(), "after the power cut");
    scene.assert_whole();
}

#[test]
fn a_download_waits_for_room_on_a_full_disk_and_goes_on_by_itself() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    let _process = scene.victim.start();
    scene.disk().order(Rule { after: 3, ..Rule::all(Call::Write, "downloads", ENOSPC) });
    scene.disk().set_free_bytes(0);
    scene.victim.ctl(&["get", "--detach", NAME]).expect_code(1);
    scene.disk().set_free_bytes(1 << 40);
    scene.victim.ctl(&["get", "--detach", NAME]).expect_success();
    scene.disk().set_free_bytes(0);
    scene.victim.wait_state(NAME, "error", secs(60));
    let shown = scene.victim.ctl(&["list"]).expect_success().text();
    assert!(shown.contains("goes on by itself"), "{shown}");
    scene.disk().heal();
    scene.victim.wait_state(NAME, "seeding", secs(120));
    scene.assert_whole();
}

#[test]
fn a_damaged_database_is_put_aside_and_nothing_of_it_is_missed() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    let mut process = scene.victim.start();
    scene.victim.ctl(&["get", "--quiet", NAME]).expect_success();
    let facts = |scene: &Scene| -> (Value, Value) {
        let ledger: Value = scene.victim.ctl(&["--json", "ledger"]).expect_success().json();
        (ledger["peers"][0]["received_bytes"].clone(), scene.victim.list()[0]["key"].clone())
    };
    let before = facts(&scene);
    let identity = scene.disk().read("state/identity");
    process.terminate();
    assert!(process.wait(secs(60)).success());
    let bits = scene.disk().read("state/db/db").expect("a database").len() as u64 * 8;
    // In the head of its first segment, which no open can do without.
    for bit in [100, bits / 2] {
        scene.disk().flip("state/db/db", bit % bits);
    }
    let _process = scene.victim.start();
    wait_until(secs(60), "the file to be checked and seeded again", || {
        scene.victim.list().iter().any(|row| row["name"] == NAME && row["state"] == "seeding")
    });
    assert_eq!(facts(&scene), before);
    assert_eq!(scene.disk().read("state/identity"), identity);
    let status = scene.victim.ctl(&["status"]).expect_success().text();
    assert!(status.contains("the database was damaged"), "{status}");
    assert!(!scene.disk().files("state/db.damaged-1").is_empty(), "the damaged database was kept");
    scene.assert_whole();
}

#[test]
fn a_download_whose_disk_is_not_mounted_waits_for_it_and_fetches_nothing_twice() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    // downloads/ is the mount point of a disk of its own.
    let other = Disk::mount(&scene.folder().join("other"));
    let downloads = scene.disk().path().join("downloads");
    std::fs::create_dir(&downloads).expect("a mount point");
    let bind = ["--bind".as_ref(), other.path().as_os_str(), downloads.as_os_str()];
    run(Command::new("mount").args(bind), secs(10)).expect_success();
    let mut process = scene.victim.start();
    scene.net.hosts[0].shape(Some(60), None);
    scene.victim.ctl(&["get", "--detach", NAME]).expect_success();
    let had = wait_for(secs(60), "a part of it", || {
        scene.victim.list()[0]["have_bytes"].as_u64().filter(|had| *had > LEN / 3)
    });
    process.terminate();
    assert!(process.wait(secs(60)).success());
    run(Command::new("umount").arg(&downloads), secs(10)).expect_success();
    let before = scene.net.hosts[1].carried().received;
    let process = scene.victim.start();
    let row = scene.victim.wait_state(NAME, "error", secs(60));
    assert!(row["error"].as_str().is_some_and(|error| error.contains("is its disk mounted?")), "{row}");
    let made = scene.disk().files("downloads");
    assert!(made.is_empty(), "{made:?}");
    // Where the daemon sees it: `ip netns exec` has given it mounts of its own.
    let mut mount = Command::new("nsenter");
    mount.args(["--mount", "--target", &process.pid().to_string(), "mount"]).args(bind);
    run(&mut mount, secs(10)).expect_success();
    scene.victim.wait_state(NAME, "seeding", secs(120));
    let fetched = scene.net.hosts[1].carried().received - before;
    let most = (LEN - had) * 5 / 4 + 2 * MIB;
    assert!(fetched < most, "{fetched} bytes came after {had} of {LEN} had been there");
    let mut expected = Vec::new();
    std::io::copy(&mut Noise::new(1, LEN), &mut expected).expect("noise");
    assert!(other.read(NAME) == Some(expected), "{NAME} is not what it should be");
}

#[test]
fn a_clean_stop_hashes_nothing_again() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    let mut process = scene.victim.start();
    scene.drop_in("own.bin", 2, 4 * MIB);
    scene.tracker.wait_hit("own.bin", secs(60));
    scene.victim.ctl(&["get", "--quiet", NAME]).expect_success();
    drop_in(&scene.seeder.upload(), "half.bin", 3, LEN);
    scene.tracker.wait_hit("half.bin", secs(60));
    scene.net.hosts[0].shape(Some(60), None);
    scene.victim.ctl(&["get", "--detach", "half.bin"]).expect_success();
    let had = |scene: &Scene| {
        let rows = scene.victim.list();
        rows.iter().find(|row| row["name"] == "half.bin").and_then(|row| row["have_bytes"].as_u64()).unwrap_or(0)
    };
    wait_until(secs(60), "a part of it", || had(&scene) > LEN / 3);
    let before = had(&scene);
    process.terminate();
    assert!(process.wait(secs(60)).success());
    scene.net.hosts[0].cut();
    for folder in ["downloads", "upload"] {
        scene.disk().order(Rule::all(Call::Read, folder, EIO));
    }
    let _process = scene.victim.start();
    for (name, state) in [("own.bin", "seeding"), (NAME, "seeding"), ("half.bin", "downloading")] {
        scene.victim.wait_state(name, state, secs(30));
    }
    // What lay in upload/ is looked at within a second of the start, and would be read then.
    wait_until(secs(30), "what was had is had", || had(&scene) >= before);
    std::thread::sleep(secs(2));
    assert_eq!(scene.disk().struck(), 0, "data was read after a clean stop");
}

#[test]
fn with_a_full_disk_under_the_store_it_serves_on_and_says_so() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    let mut process = scene.victim.start();
    scene.drop_in("own.bin", 2, 4 * MIB);
    scene.tracker.wait_hit("own.bin", secs(60));
    scene.disk().order(Rule::all(Call::Write, "state/db", ENOSPC));
    // It is refused, or hangs in the database, which is found out after 30 s.
    scene.victim.ctl(&["get", "--detach", NAME]).expect_refusal(1, &["database"]);
    assert!(process.ended().is_none(), "it has ended");
    scene.seeder.fetch("own.bin", secs(60));
    scene.victim.ctl(&["get", "--detach", NAME]).expect_refusal(1, &["database"]);
    scene.victim.ctl(&["status"]).expect_success();
    scene.disk().heal();
    process.terminate();
    process.wait(secs(60));
    let _process = scene.victim.start();
    look(scene.disk(), scene.folder(), "after the store was full");
    scene.victim.wait_state("own.bin", "seeding", secs(60));
    scene.victim.ctl(&["get", "--quiet", NAME]).expect_success();
    scene.assert_whole();
}

#[test]
fn a_damaged_database_of_the_tracker_is_filled_again_by_who_published() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    scene.tracker.process.kill9();
    let path = scene.tracker.home.join("tracker/registry/db");
    let mut bytes = std::fs::read(&path).expect("a database");
    for at in [12, bytes.len() / 2] {
        bytes[at] ^= 0x10;
    }
    std::fs::write(&path, bytes).expect("damage");
    // Something to say to the tracker while it is gone: it is found out before the next look is due.
    drop_in(&scene.seeder.upload(), "new.bin", 2, MIB);
    std::thread::sleep(secs(3));
    scene.tracker.restart();
    for name in ["new.bin", NAME] {
        scene.tracker.wait_hit(name, secs(90));
    }
}

#[test]
fn a_read_that_fails_is_survived_and_a_file_that_cannot_be_read_is_given_up() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    let process = scene.victim.start();
    for (n, name) in ["once.bin", "ever.bin", "sound.bin"].iter().enumerate() {
        scene.drop_in(name, n as u64, 4 * MIB);
    }
    for name in ["once.bin", "ever.bin", "sound.bin"] {
        scene.tracker.wait_hit(name, secs(120));
    }
    scene.disk().order(Rule::nth(Call::Read, "upload/once", 3, EIO));
    scene.disk().order(Rule::all(Call::Read, "upload/ever", EIO));
    scene.seeder.ctl(&["get", "--detach", "ever.bin"]).expect_success();
    scene.seeder.fetch("once.bin", secs(120));
    let row = scene.victim.wait_state("ever.bin", "error", secs(120));
    assert!(row["error"].as_str().is_some_and(|error| error.contains("ever.bin")), "{row}");
    scene.seeder.fetch("sound.bin", secs(60));
    let failures = process.log().lines().filter(|line| line.contains("could not be read")).count();
    assert!((1..100).contains(&failures), "{failures} reads failed");
    scene.disk().heal();
    scene.victim.ctl(&["resume", "ever.bin"]).expect_success();
    scene.seeder.wait_state("ever.bin", "seeding", secs(120));
}

#[test]
fn what_lies_on_a_read_only_disk_is_served_and_nothing_is_fetched_to_it() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    let _process = scene.victim.start();
    scene.drop_in("fixed.bin", 7, MIB);
    for folder in ["upload", "downloads"] {
        for call in [Call::Write, Call::Create, Call::Truncate, Call::Rename, Call::Remove] {
            scene.disk().order(Rule::all(call, folder, EROFS));
        }
    }
    scene.tracker.wait_hit("fixed.bin", secs(120));
    scene.seeder.fetch("fixed.bin", secs(60));
    let refused = scene.victim.ctl(&["get", NAME]);
    refused.expect_refusal(1, &["downloads", "read-only"]);
    assert_eq!(scene.victim.list().len(), 1, "what cannot be written is not kept");
}
