//! Crash loops: the real daemons on the failing disk, killed or cut off in the middle of a write or a sync, started again,
//! and looked at in between. What the victim fetches comes from peers of the tests' own, and goes to such: they count what
//! passes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use peerd::wire::layout::Layout;
use peerd::wire::recipe::piece_bytes_for;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::minute;
use super::victim::{START_LIMIT, Victim, crash, look, persisted_ledger};
use crate::support::content::{MIB, Noise, assert_same, drop_in, make_folder};
use crate::support::disk::{Disk, Leaves, Moment};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker, at_home, rows};
use crate::support::process::Process;
use crate::support::scripted::{Script, Scripted};
use crate::support::taker::Taker;
use crate::support::{TRACKERD, folder, gate, secs, wait_until};

/// What there is to fetch.
const FILES: u64 = 6;
const FILE_BYTES: u64 = 12 * MIB;
/// The ports of those who have it.
const PORTS: u16 = 7_100;
/// After each block of 16 KiB of which the victim gives somebody: most of it is still to come when the lights go out.
const TAKER_REST: Duration = Duration::from_millis(60);

/// 25 in the test command; `make soak` asks for more.
fn loops() -> u64 {
    std::env::var("PEERD_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

pub fn seed() -> u64 {
    let seed = std::env::var("PEERD_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| getrandom::u64().expect("a seed"));
    println!("seed {seed}: PEERD_SEED={seed} repeats the orders, if not the moments");
    seed
}

/// What a loop does before the lights go out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Start,
    Get,
    Share,
    /// It gives somebody a file of its own, and shares another meanwhile.
    Seed,
    Leave,
    Remove,
}

/// What is done, when the lights go out, and which file it is about.
#[derive(Debug)]
struct Order {
    act: Act,
    moment: Option<Moment>,
    name: String,
}

fn draw(rng: &mut SmallRng, listed: &[Value]) -> Order {
    let is_had = |name: &str| listed.iter().any(|row| row["name"] == name && row["state"] == "seeding");
    let (there, missing): (Vec<_>, Vec<_>) = (0..FILES).map(film).partition(|name| is_had(name));
    let own = listed.iter().filter_map(|row| row["name"].as_str()).filter(|name| name.starts_with("own-"));
    let own: Vec<String> = own.filter(|name| is_had(name)).map(str::to_string).collect();
    let act = match rng.random_range(0..12) {
        0 | 1 => Act::Share,
        2 => Act::Leave,
        3 | 4 if !there.is_empty() => Act::Remove,
        5 | 6 if !own.is_empty() => Act::Seed,
        _ if missing.is_empty() => Act::Remove,
        _ => Act::Get,
    };
    let of = match act {
        Act::Remove => there,
        Act::Seed => own,
        _ => missing,
    };
    let name = of.get(rng.random_range(0..of.len().max(1))).cloned().unwrap_or_default();
    let moment = match (act, rng.random_range(0..3)) {
        (Act::Get, 0 | 1) => Moment::Byte(rng.random_range(0..FILE_BYTES)),
        (Act::Get, _) => Moment::Sync(rng.random_range(0..8)),
        (Act::Leave, _) => Moment::Sync(rng.random_range(0..2)),
        (_, 0) => Moment::Call(rng.random_range(0..8)),
        (_, _) => Moment::Sync(rng.random_range(0..4)),
    };
    Order { act, moment: Some(moment), name }
}

fn film(n: u64) -> String {
    format!("film-{n}.bin")
}

fn leaves(rng: &mut SmallRng) -> Leaves {
    match rng.random_range(0..3) {
        0 => Leaves::Everything,
        1 => Leaves::Nothing,
        _ => Leaves::Some(rng.random()),
    }
}

/// A tracker, peers of the tests' own that have the films, somebody who fetches what the victim shares, and the victim.
struct Scene {
    victim: Victim,
    fetcher: Peer,
    seeds: Vec<Scripted>,
    takers: Vec<Taker>,
    /// What takers that are gone had asked for.
    asked_bytes: u64,
    /// Files of the victim's own that were taken.
    given: BTreeSet<String>,
    tracker: Tracker,
    net: Net,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let folder = folder();
        let net = Net::new(3);
        let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
        // Whoever publishes is gone before the first is fetched: what comes is what the tests' own peers count.
        let publisher = Peer::start(&net.hosts[0], folder.path(), "P", &tracker);
        let names: Vec<String> = (0..FILES).map(film).chain([minute::NAME.to_string()]).collect();
        let len = |n: usize| if n as u64 == FILES { minute::LEN } else { FILE_BYTES };
        let contents: Vec<_> =
            names.iter().enumerate().map(|(n, name)| drop_in(&publisher.upload(), name, n as u64, len(n))).collect();
        let torrents: Vec<_> =
            names.iter().map(|name| tracker.fetch_torrent(&net.hosts[0], name, folder.path())).collect();
        drop(publisher);
        let start = |((torrent, content), port): ((&PathBuf, &PathBuf), u16)| {
            let script = Script::seed(torrent, content);
            let (key, rest) = (script.info_hash, if port == PORTS + FILES as u16 { minute::REST } else { script.rest });
            let seed = Scripted::start(&net.hosts[0], port, Script { rest, ..script });
            seed.announce(&tracker.url(), key);
            seed
        };
        let seeds = torrents.iter().zip(&contents).zip(PORTS..).map(start).collect();
        let fetcher = Peer::start(&net.hosts[0], folder.path(), "F", &tracker);
        let victim = Victim::new(&net.hosts[1], folder.path(), &tracker.ip());
        let (takers, asked_bytes, given) = (Vec::new(), 0, BTreeSet::new());
        Scene { victim, fetcher, seeds, takers, asked_bytes, given, tracker, net, folder }
    }

    /// Payload of the films that was put on the wire so far.
    fn given_bytes(&self) -> u64 {
        self.seeds.iter().map(Scripted::payload_bytes).sum()
    }

    /// Takes a file of the victim's own.
    fn take(&self, name: &str, rest: Duration) -> Taker {
        let row = self.victim.list().into_iter().find(|row| row["name"] == *name).expect("a file of its own");
        let key = row["key"].as_str().and_then(|key| key.parse().ok()).expect("a key");
        let bytes = row["size"].as_u64().expect("a size");
        let layout = Layout::new(bytes, piece_bytes_for(bytes).into()).expect("a layout");
        Taker::start(&self.net.hosts[0], (self.net.hosts[1].ip, 6881).into(), key, layout, rest)
    }

    /// The victim is gone: nothing more is asked of it.
    fn end_takers(&mut self) {
        self.asked_bytes += std::mem::take(&mut self.takers).into_iter().map(Taker::end).sum::<u64>();
    }

    fn perform(&mut self, order: &Order, n: u64) -> Option<Process> {
        match order.act {
            Act::Start => return None,
            Act::Share => self.share(n),
            Act::Seed => {
                let taker = self.take(&order.name, TAKER_REST);
                self.takers.push(taker);
                self.given.insert(order.name.clone());
                self.share(n);
            }
            Act::Get | Act::Leave | Act::Remove => {}
        }
        order.moment.into_iter().for_each(|moment| self.victim.disk.cut_at(moment));
        match order.act {
            Act::Get => Some(self.victim.order(&["get", "--detach", &order.name])),
            Act::Leave => Some(self.victim.order(&["leave"])),
            Act::Remove => Some(self.victim.order(&["remove", "--data", &order.name])),
            Act::Start | Act::Share | Act::Seed => None,
        }
    }

    fn share(&self, n: u64) {
        let beside = self.victim.disk.path().join(format!("beside-{n}"));
        let mut file = std::fs::File::create(&beside).expect("create a file");
        std::io::copy(&mut Noise::new(n, MIB + n % 1_000), &mut file).expect("write a file");
        file.sync_all().expect("sync a file");
        std::fs::rename(&beside, self.victim.disk.path().join(format!("upload/own-{n}.bin"))).expect("move a file in");
    }

    /// One column of the ledger, as the victim has it in memory.
    fn ledger_sum(&self, field: &str) -> u64 {
        let rows = rows(self.victim.ctl(&["--json", "ledger"]).expect_success().json());
        rows.iter().filter_map(|row| row[field].as_u64()).sum()
    }

    /// What one peer takes is in the ledger to the byte, once, and stays there.
    fn takes_what_is_counted(&self, seed: u64, name: &str) {
        let before = self.ledger_sum("sent_bytes");
        assert!(
            before <= self.asked_bytes,
            "seed {seed}: V counted {before} bytes, {} were asked of it",
            self.asked_bytes
        );
        let taker = self.take(name, Duration::ZERO);
        let bytes = std::fs::metadata(self.victim.disk.path().join("upload").join(name)).expect("a file").len();
        wait_until(secs(60), "somebody takes a file", || taker.taken_bytes() >= bytes);
        wait_until(secs(10), "it is counted", || self.ledger_sum("sent_bytes") >= before + bytes);
        let counted = self.ledger_sum("sent_bytes") - before;
        assert_eq!((counted, taker.taken_bytes()), (bytes, bytes), "seed {seed}: counted, and taken, of {name}");
        taker.end();
    }

    /// What is fetched is in the ledger to the byte, once: what crashes took of it would hide what is counted twice.
    fn fetches_what_is_counted(&self, seed: u64, name: &str) {
        self.victim.ctl(&["remove", "--data", name]).expect_success();
        let before = self.ledger_sum("received_bytes");
        self.victim.ctl(&["get", "--quiet", name]).expect_success();
        let counted = self.ledger_sum("received_bytes") - before;
        assert_eq!(counted, FILE_BYTES, "seed {seed}: counted of {name}, which was fetched once");
    }

    /// Everything can still be had, whole, by the victim and of the victim.
    fn finish(&self, seed: u64) {
        for n in 0..FILES {
            let name = film(n);
            self.victim.ctl(&["get", "--quiet", &name]).expect_success();
            let mut expected = Vec::new();
            std::io::copy(&mut Noise::new(n, FILE_BYTES), &mut expected).expect("noise");
            assert!(self.victim.disk.read(&format!("downloads/{name}")) == Some(expected), "seed {seed}: {name}");
        }
        let (received, given) = (self.ledger_sum("received_bytes"), self.given_bytes());
        assert!(received <= given, "seed {seed}: V counted {received} bytes, {given} were sent to it");
        self.fetches_what_is_counted(seed, &film(0));
        self.share(u64::MAX);
        let last = format!("own-{}.bin", u64::MAX);
        self.victim.wait_state(&last, "seeding", secs(60));
        self.takes_what_is_counted(seed, &last);
        for name in &self.given {
            // What the power took from upload/ is nobody's any more.
            let shared = self.victim.disk.path().join("upload").join(name);
            if shared.exists() && self.victim.list().iter().any(|row| row["name"] == *name) {
                self.tracker.wait_hit(name, secs(60));
                self.fetcher.fetch(name, secs(120));
                assert_same(&shared, &self.fetcher.downloads().join(name));
            }
        }
    }
}

/// What must not go back from one crash to the next.
#[derive(Default)]
struct Known {
    identity: Option<Vec<u8>>,
    /// What the store has of payload, received and sent.
    ledger: (u64, u64),
    /// What was removed, and said to be.
    removed: Option<String>,
    /// What was done in the last loop.
    last: String,
}

impl Known {
    /// Held against the disk between two runs.
    fn check(&mut self, scene: &Scene) {
        let (disk, what) = (&scene.victim.disk, &self.last);
        look(disk, scene.folder.path(), what);
        let known = self.identity.is_none() || disk.read("state/identity") == self.identity;
        assert!(known, "{what}: it is somebody else now");
        let (received, sent) = persisted_ledger(scene.folder.path());
        let before = std::mem::replace(&mut self.ledger, (received, sent));
        assert!(
            received >= before.0 && sent >= before.1,
            "{what}: the ledger had {before:?} and has {:?}",
            self.ledger
        );
        let (given, asked) = (scene.given_bytes(), scene.asked_bytes);
        assert!(received <= given, "{what}: {received} bytes are on record, {given} were sent");
        assert!(sent <= asked, "{what}: {sent} bytes are on record as sent, {asked} were asked for");
    }

    /// Held against what it says after a start.
    fn check_listed(&mut self, scene: &Scene, listed: &[Value]) {
        let what = format!("after {}", self.last);
        scene.victim.expect_nothing_left_behind(&what);
        if let Some(name) = self.removed.take() {
            let is_back = listed.iter().any(|row| row["name"] == *name);
            assert!(!is_back, "{what}: {name} was removed, and is back");
        }
        self.identity = self.identity.take().or_else(|| scene.victim.disk.read("state/identity"));
    }
}

#[test]
fn killed_or_cut_off_in_the_middle_of_a_write_peerd_goes_on_with_what_is_right() {
    let _turn = gate::heavy();
    let (seed, mut scene) = (seed(), Scene::new());
    let slow_seed = scene.seeds.pop().expect("the last one");
    let slow = minute::begin(&scene.net.hosts[2], scene.folder.path(), &scene.tracker, slow_seed, loops().div_ceil(50));
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut under_way, count, mut known) = (0, loops(), Known::default());
    for n in 0..count {
        if n % 50 == 49 {
            scene.seeds.iter().for_each(|seed| seed.announce(&scene.tracker.url(), seed.info_hash()));
        }
        let (mut process, order) = if n % 5 == 4 {
            scene.victim.disk.cut_at(Moment::Sync(rng.random_range(0..6)));
            (scene.victim.launch(), Order { act: Act::Start, moment: None, name: String::new() })
        } else {
            let process = scene.victim.start();
            let listed = scene.victim.list();
            known.check_listed(&scene, &listed);
            (process, draw(&mut rng, &listed))
        };
        let mut ordered = scene.perform(&order, n);
        let reached = scene.victim.disk.wait_cut(secs(4));
        if !reached {
            println!("seed {seed}, loop {n}, {order:?}: nothing was under way");
        }
        under_way += u64::from(reached);
        let answered = ordered.as_mut().is_some_and(|ctl| ctl.ended().is_some_and(|status| status.success()));
        if order.act == Act::Remove && answered {
            known.removed = Some(order.name.clone());
        }
        let leaves = leaves(&mut rng);
        crash(&scene.victim.disk, &mut process, leaves);
        scene.end_takers();
        known.last = format!("seed {seed}, loop {n}, {order:?}, {leaves:?}");
        known.check(&scene);
    }
    let mut process = scene.victim.start();
    scene.finish(seed);
    let counted = (scene.ledger_sum("received_bytes"), scene.ledger_sum("sent_bytes"));
    scene.victim.ctl(&["leave"]).expect_success();
    process.wait(secs(60));
    look(&scene.victim.disk, scene.folder.path(), "after it left");
    assert_eq!(persisted_ledger(scene.folder.path()), counted, "seed {seed}: the ledger after it left");
    let slowest = scene.victim.starts.iter().max().expect("a start");
    println!("{count} crashes, a write or sync under way in {under_way}; the slowest start took {slowest:?}");
    assert!(under_way * 10 >= count * 8, "a write or sync was under way in {under_way} of {count} loops only");
    slow.end();
}

#[test]
fn killed_or_cut_off_while_it_is_told_of_files_trackerd_knows_them_all_again() {
    let _turn = gate::heavy();
    let (seed, folder) = (seed(), folder());
    let mut rng = SmallRng::seed_from_u64(seed);
    let net = Net::new(2);
    let home = folder.path().join("T");
    make_folder(&home);
    let disk = Disk::mount(&folder.path().join("disk"));
    let start = || {
        let mut command = net.hosts[0].command(TRACKERD);
        at_home(&mut command, &home);
        command.args(["--foreground", "--state-dir"]).arg(disk.path().join("tracker"));
        Process::start("trackerd", &mut command, &home.join("trackerd.log"))
    };
    let url = format!("http://{}:6969", net.hosts[0].ip);
    let answers = || net.hosts[0].get(&format!("{url}/health")).is_some();
    let mut process = start();
    wait_until(START_LIMIT, "trackerd answers", answers);
    let seeder = Peer::start_with(&net.hosts[1], folder.path(), "S", &[&net.hosts[0].ip.to_string(), "6969"]);
    let (mut under_way, count) = (0, loops() / 4);
    for n in 0..count {
        disk.cut_at(Moment::Sync(rng.random_range(0..2)));
        drop_in(&seeder.upload(), &format!("paper-{n}.bin"), n, 40_000);
        under_way += u64::from(disk.wait_cut(secs(8)));
        crash(&disk, &mut process, leaves(&mut rng));
        process = start();
        wait_until(START_LIMIT, "trackerd answers", || {
            assert!(process.ended().is_none(), "seed {seed}, loop {n}: trackerd has ended");
            answers()
        });
    }
    wait_until(secs(120), "every file on the tracker", || {
        let Some(body) = net.hosts[0].get(&format!("{url}/search?q=paper&limit=1000")) else { return false };
        let reply: Value = serde_json::from_slice(&body).expect("JSON");
        reply["hits"].as_array().is_some_and(|hits| hits.len() as u64 == count)
    });
    println!("{count} crashes of trackerd, a write or sync under way in {under_way}");
    assert!(under_way * 10 >= count * 8, "a write or sync was under way in {under_way} of {count} loops only");
}
