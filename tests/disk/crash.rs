//! Crash loops: the real daemons on the failing disk, killed or cut off in the middle of a write or a sync, started again,
//! and looked at in between.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::victim::{START_LIMIT, Victim, crash, look};
use crate::support::content::{MIB, Noise, drop_in, make_folder};
use crate::support::disk::{Disk, Leaves, Moment};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker, at_home, rows};
use crate::support::process::Process;
use crate::support::{TRACKERD, folder, gate, secs, wait_until};

/// What there is to fetch.
const FILES: u64 = 6;
const FILE_BYTES: u64 = 12 * MIB;

/// 25 in the test command; `make soak` asks for more.
fn loops() -> u64 {
    std::env::var("PEERD_SOAK").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

fn seed() -> u64 {
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
    Leave,
    Remove,
}

/// What is done, when the lights go out, and which file it is about.
fn draw(rng: &mut SmallRng, listed: &[Value]) -> (Act, Moment, String) {
    let fetched = |name: &String| listed.iter().any(|row| row["name"] == **name && row["state"] == "seeding");
    let (there, missing): (Vec<_>, Vec<_>) = (0..FILES).map(film).partition(fetched);
    let act = match rng.random_range(0..10) {
        0 | 1 => Act::Share,
        2 => Act::Leave,
        3 | 4 if !there.is_empty() => Act::Remove,
        _ if missing.is_empty() => Act::Remove,
        _ => Act::Get,
    };
    let of = if act == Act::Remove { there } else { missing };
    let name = of.get(rng.random_range(0..of.len().max(1))).cloned().unwrap_or_default();
    let moment = match (act, rng.random_range(0..3)) {
        (Act::Get, 0 | 1) => Moment::Byte(rng.random_range(0..FILE_BYTES)),
        (Act::Get, _) => Moment::Sync(rng.random_range(0..8)),
        (Act::Leave, _) => Moment::Sync(rng.random_range(0..2)),
        (_, 0) => Moment::Call(rng.random_range(0..8)),
        (_, _) => Moment::Sync(rng.random_range(0..4)),
    };
    (act, moment, name)
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

#[test]
fn killed_or_cut_off_in_the_middle_of_a_write_peerd_goes_on_with_what_is_right() {
    let _turn = gate::heavy();
    let (seed, folder) = (seed(), folder());
    let mut rng = SmallRng::seed_from_u64(seed);
    let net = Net::new(2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let seeder = Peer::start(&net.hosts[0], folder.path(), "S", &tracker);
    for n in 0..FILES {
        drop_in(&seeder.upload(), &film(n), n, FILE_BYTES);
    }
    for n in 0..FILES {
        tracker.wait_hit(&film(n), secs(60));
    }
    let mut victim = Victim::new(&net.hosts[1], folder.path(), &tracker.ip());
    let (mut under_way, count) = (0, loops());
    let mut identity = None;
    for n in 0..count {
        let early = n % 5 == 4;
        if early {
            victim.disk.cut_at(Moment::Sync(rng.random_range(0..6)));
        }
        let (mut process, act, moment, name) = if early {
            (victim.launch(), Act::Start, None, String::new())
        } else {
            let process = victim.start();
            identity = identity.or_else(|| victim.disk.read("state/identity"));
            let (act, moment, name) = draw(&mut rng, &victim.list());
            (process, act, Some(moment), name)
        };
        let what = format!("seed {seed}, loop {n}, {act:?} {name} {moment:?}");
        let _ordered = perform(&victim, act, moment, n, &name);
        let reached = victim.disk.wait_cut(secs(4));
        if !reached {
            println!("{what}: nothing was under way");
        }
        under_way += u64::from(reached);
        let leaves = leaves(&mut rng);
        crash(&victim.disk, &mut process, leaves);
        look(&victim.disk, folder.path(), &format!("{what}, {leaves:?}"));
        let known = identity.is_none() || victim.disk.read("state/identity") == identity;
        assert!(known, "{what}, {leaves:?}: it is somebody else now");
    }
    let _process = victim.start();
    finish(&victim, &seeder, seed);
    let slowest = victim.starts.iter().max().expect("a start");
    println!("{count} crashes, a write or sync under way in {under_way}; the slowest start took {slowest:?}");
    assert!(under_way * 10 >= count * 8, "a write or sync was under way in {under_way} of {count} loops only");
}

fn perform(victim: &Victim, act: Act, moment: Option<Moment>, n: u64, name: &str) -> Option<Process> {
    let arm = || moment.into_iter().for_each(|moment| victim.disk.cut_at(moment));
    match act {
        Act::Start => None,
        Act::Get => {
            arm();
            Some(victim.order(&["get", "--detach", name]))
        }
        Act::Share => {
            let beside = victim.disk.path().join(format!("beside-{n}"));
            let mut file = std::fs::File::create(&beside).expect("create a file");
            std::io::copy(&mut Noise::new(n, MIB + n), &mut file).expect("write a file");
            file.sync_all().expect("sync a file");
            std::fs::rename(&beside, victim.disk.path().join(format!("upload/own-{n}.bin"))).expect("move a file in");
            arm();
            None
        }
        Act::Leave => {
            arm();
            Some(victim.order(&["leave"]))
        }
        Act::Remove => {
            arm();
            Some(victim.order(&["remove", "--data", name]))
        }
    }
}

/// Everything can still be had, whole; and nobody counted what did not pass.
fn finish(victim: &Victim, seeder: &Peer, seed: u64) {
    for n in 0..FILES {
        let name = film(n);
        victim.ctl(&["get", "--quiet", &name]).expect_success();
        let mut expected = Vec::new();
        std::io::copy(&mut Noise::new(n, FILE_BYTES), &mut expected).expect("noise");
        assert!(victim.disk.read(&format!("downloads/{name}")) == Some(expected), "seed {seed}: {name}");
    }
    let sum = |rows: Vec<Value>, field: &str| rows.iter().filter_map(|row| row[field].as_u64()).sum::<u64>();
    let received = sum(rows(victim.ctl(&["--json", "ledger"]).expect_success().json()), "received_bytes");
    let sent = sum(rows(seeder.ctl(&["--json", "ledger"]).expect_success().json()), "sent_bytes");
    assert!(received <= sent, "seed {seed}: V counted {received} bytes, S sent it {sent}");
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
