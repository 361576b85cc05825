//! `remove --data`, interrupted: nothing comes back, and nothing is left behind.

use std::fs::File;
use std::io::copy;

use super::victim::{Victim, crash};
use crate::support::content::{Noise, make_folder};
use crate::support::disk::{Call, Disk, Fault, Leaves, Rule};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::process::Process;
use crate::support::{folder, gate, secs, wait_until};

const SET: &str = "a set";
const FILES: u64 = 8;
const FILE_BYTES: u64 = 40_000;

struct Scene {
    victim: Victim,
    process: Process,
    _seeder: Peer,
    _tracker: Tracker,
    _net: Net,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// Somebody shares a folder of several files.
    fn new() -> Scene {
        let folder = folder();
        let net = Net::new(2);
        let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
        let seeder = Peer::start(&net.hosts[0], folder.path(), "S", &tracker);
        let set = folder.path().join(SET);
        make_folder(&set.join("deep"));
        for n in 0..FILES {
            let path = set.join(if n % 2 == 0 { format!("{n}.bin") } else { format!("deep/{n}.bin") });
            copy(&mut Noise::new(n, FILE_BYTES), &mut File::create(path).expect("create a file"))
                .expect("write a file");
        }
        seeder.ctl(&["share".as_ref(), set.as_os_str()]).expect_success();
        tracker.wait_hit(SET, secs(60));
        let mut victim = Victim::new(&net.hosts[1], folder.path(), &tracker.ip());
        let process = victim.start();
        Scene { victim, process, _seeder: seeder, _tracker: tracker, _net: net, _folder: folder }
    }

    fn disk(&self) -> &Disk {
        &self.victim.disk
    }

    /// Orders a removal, and kills peerd as it is about to take the `nth` file off the disk.
    fn kill_in_remove(&mut self, what: &str, place: &'static str, nth: u64, leaves: Leaves) {
        let struck = self.disk().struck();
        self.disk().order(Rule { after: nth, ..Rule::all(Call::Remove, place, Fault::Stall) });
        let _order = self.victim.order(&["remove", "--data", "--yes", what]);
        wait_until(secs(60), "a file is taken off the disk", || self.disk().struck() > struck);
        crash(&self.victim.disk, &mut self.process, leaves);
        self.disk().heal();
    }

    fn start(&mut self) {
        self.process = self.victim.start();
    }
}

#[test]
fn killed_in_the_middle_of_remove_data_it_goes_on_at_the_next_start() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    for (nth, leaves) in [(0, Leaves::Everything), (5, Leaves::Everything), (7, Leaves::Nothing), (3, Leaves::Some(1))]
    {
        scene.victim.ctl(&["get", "--quiet", SET]).expect_success();
        assert_eq!(scene.disk().files("downloads").len() as u64, FILES);
        scene.kill_in_remove(SET, "downloads", nth, leaves);
        assert!(!scene.disk().files("downloads").is_empty(), "nothing was left to do");
        scene.start();
        assert_eq!(scene.victim.list().len(), 0, "{nth} {leaves:?}: it is back");
        assert!(scene.disk().files("downloads").is_empty(), "{nth} {leaves:?}: {:?}", scene.disk().files("downloads"));
    }

    // What lies in upload/ would be shared again if it were still there.
    let beside = scene.disk().path().join("beside");
    copy(&mut Noise::new(9, FILE_BYTES), &mut File::create(&beside).expect("create a file")).expect("write a file");
    std::fs::rename(&beside, scene.disk().path().join("upload/own.bin")).expect("move a file in");
    scene.victim.wait_state("own.bin", "seeding", secs(60));
    scene.kill_in_remove("own.bin", "upload", 0, Leaves::Everything);
    scene.start();
    assert!(scene.disk().files("upload").is_empty(), "{:?}", scene.disk().files("upload"));
    assert_eq!(scene.victim.list().len(), 0);
}

#[test]
fn what_changed_after_the_kill_is_somebodys_work_and_stays() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    scene.victim.ctl(&["get", "--quiet", SET]).expect_success();
    scene.kill_in_remove(SET, "downloads", 0, Leaves::Everything);
    let path = scene.disk().path().join(format!("downloads/{SET}/2.bin"));
    std::fs::write(path, "a letter").expect("write a file");
    scene.start();
    assert_eq!(scene.victim.list().len(), 0);
    assert_eq!(scene.disk().files("downloads").len(), 1);
    assert_eq!(scene.disk().read(&format!("downloads/{SET}/2.bin")).as_deref(), Some(&b"a letter"[..]));

    // Fetched again, it is nobody's to delete.
    std::fs::remove_dir_all(scene.disk().path().join(format!("downloads/{SET}"))).expect("a folder");
    scene.victim.ctl(&["get", "--quiet", SET]).expect_success();
    scene.process.terminate();
    assert!(scene.process.wait(secs(60)).success());
    scene.start();
    scene.victim.wait_state(SET, "seeding", secs(60));
    assert_eq!(scene.disk().files("downloads").len() as u64, FILES);
}

#[test]
fn a_deletion_whose_folder_was_not_synced_comes_back_with_a_power_cut() {
    let _turn = gate::heavy();
    let mut scene = Scene::new();
    for swallow in [false, true] {
        scene.victim.ctl(&["get", "--quiet", SET]).expect_success();
        if swallow {
            scene.disk().order(Rule::all(Call::SyncFolder, "=downloads", Fault::Swallow));
        }
        scene.victim.ctl(&["remove", "--data", SET]).expect_success();
        crash(&scene.victim.disk, &mut scene.process, Leaves::Nothing);
        scene.disk().heal();
        scene.start();
        assert_eq!(scene.victim.list().len(), 0);
        let back = !scene.disk().files("downloads").is_empty();
        assert_eq!(back, swallow, "{:?}", scene.disk().files("downloads"));
    }
}
