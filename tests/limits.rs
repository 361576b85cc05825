//! Limited rates, read off the links.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::content::{MIB, assert_same, drop_in};
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker};
use crate::support::process::run;
use crate::support::{gate, secs, wait_until};

/// Bytes per second over `seconds`, by what the link carried to this host.
fn received_per_s(host: &Host, seconds: u64) -> u64 {
    let before = host.carried().received;
    thread::sleep(secs(seconds));
    (host.carried().received - before) / seconds
}

#[test]
fn limits_hold_on_the_link_and_can_be_lifted() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let ip = tracker.ip();
    let b = Peer::start_with(&net.hosts[1], folder.path(), "B", &[&ip, "6969"]);
    let c = Peer::start_with(&net.hosts[2], folder.path(), "C", &[&ip, "6969", "--limit-down", "1M"]);
    let d = Peer::start_with(&net.hosts[3], folder.path(), "D", &[&ip, "6969"]);
    let original = drop_in(&b.upload(), "slow.bin", 1, 24 * MIB);
    tracker.wait_hit("slow.bin", secs(20));

    // What C takes is limited, although B could send a hundred times as much.
    let mut get = c.ctl_start(&["get", "--quiet", "slow.bin"]);
    wait_until(secs(20), "C has begun", || c.host.carried().received > MIB);
    let rate = received_per_s(&c.host, 4);
    assert!((MIB / 2..MIB * 5 / 4).contains(&rate), "{rate} bytes/s came to C, which wants 1 MiB/s at most");

    // What B sends is limited, to all together.
    b.ctl(&["limit", "--up", "512K"]).expect_success();
    let mut other = d.ctl_start(&["get", "--quiet", "slow.bin"]);
    wait_until(secs(20), "D has begun", || d.host.carried().received > MIB / 8);
    let before = b.host.carried().sent;
    thread::sleep(secs(4));
    let rate = (b.host.carried().sent - before) / 4;
    assert!((MIB / 4..MIB * 5 / 8).contains(&rate), "{rate} bytes/s left B, which may send 512 KiB/s");

    b.ctl(&["limit", "--up", "0"]).expect_success();
    let answer = c.ctl(&["--json", "limit", "--down", "0"]).expect_success().json();
    assert_eq!(answer["down_bytes_per_s"], 0);
    for get in [&mut get, &mut other] {
        assert!(get.wait(secs(60)).success(), "{}", get.log());
    }
    for peer in [&c, &d] {
        assert_same(&original, &peer.downloads().join("slow.bin"));
    }
}

/// What all of the hosts had received, ten times a second.
fn trace(hosts: &[&Host], samples: u32) -> Vec<(f64, Vec<u64>)> {
    let began = Instant::now();
    let sample = |n: u32| {
        thread::sleep((Duration::from_millis(100) * n).saturating_sub(began.elapsed()));
        (began.elapsed().as_secs_f64(), hosts.iter().map(|host| host.carried().received).collect())
    };
    (0..=samples).map(sample).collect()
}

#[test]
fn every_second_keeps_to_the_limit_and_torrents_have_even_parts() {
    let _turn = gate::alone();
    let folder = crate::support::folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let rate = 2 * MIB;
    let b = Peer::start_with(&net.hosts[1], folder.path(), "B", &[&tracker.ip(), "6969", "--limit-up", "2M"]);
    for (seed, name) in [(1, "one.bin"), (2, "two.bin")] {
        drop_in(&b.upload(), name, seed, 64 * MIB);
        tracker.wait_hit(name, secs(20));
    }
    let takers: Vec<Peer> = net.hosts[2..]
        .iter()
        .zip(["C", "D"])
        .map(|(host, name)| Peer::start(host, folder.path(), name, &tracker))
        .collect();
    let names = ["one.bin", "two.bin"];
    let _gets: Vec<_> =
        takers.iter().zip(names).map(|(taker, name)| taker.ctl_start(&["get", "--quiet", name])).collect();
    let hosts: Vec<&Host> = takers.iter().map(|taker| &taker.host).collect();
    for host in &hosts {
        wait_until(secs(20), "everybody has begun", || host.carried().received > MIB / 8);
    }
    thread::sleep(secs(1));
    let trace = trace(&hosts, 110);
    let all = |sample: &(f64, Vec<u64>)| sample.1.iter().sum::<u64>() as f64;
    for (window, tolerance) in [(10, 0.15), (100, 0.03)] {
        for span in trace.windows(window + 1) {
            let (first, last) = (&span[0], &span[window]);
            let off = (all(last) - all(first)) / (last.0 - first.0) / rate as f64 - 1.0;
            assert!(
                off.abs() <= tolerance,
                "{off:+.3} of the limit in {window} tenths of a second from {:.1} on",
                first.0
            );
        }
    }
    let (first, last) = (&trace[0], &trace[110]);
    let one = (last.1[0] - first.1[0]) as f64 / (all(last) - all(first));
    assert!((0.45..0.55).contains(&one), "{one} of all went to one of two torrents");
}

#[test]
fn the_local_subnet_can_be_left_out_of_it() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(4);
    // One cable, two subnets: C lies in B's, D does not.
    for (host, own, other) in [
        (0, "198.18.0.2/24", "198.19.0.0/24"),
        (1, "198.18.0.3/24", "198.19.0.0/24"),
        (2, "198.18.0.4/24", "198.19.0.0/24"),
        (3, "198.19.0.5/24", "198.18.0.0/24"),
    ] {
        for args in [
            &["addr", "flush", "dev", "eth0"][..],
            &["addr", "add", own, "dev", "eth0"],
            &["route", "add", other, "dev", "eth0"],
        ] {
            run(Command::new("ip").args(["-n", &net.hosts[host].namespace]).args(args), secs(5)).expect_success();
        }
    }
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let home = folder.path().join("B");
    fs::create_dir_all(&home).expect("a folder");
    fs::write(home.join("peerd.toml"), "lan_exempt = true\nlimit-up = \"512K\"\n").expect("a configuration");
    let b = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let c = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    let d = Peer::start(&net.hosts[3], folder.path(), "D", &tracker);
    drop_in(&b.upload(), "near.bin", 1, 48 * MIB);
    drop_in(&b.upload(), "far.bin", 2, 16 * MIB);
    for name in ["near.bin", "far.bin"] {
        tracker.wait_hit(name, secs(20));
    }
    let _get = d.ctl_start(&["get", "--quiet", "far.bin"]);
    wait_until(secs(20), "D has begun", || d.host.carried().received > MIB / 8);
    let start = Instant::now();
    c.fetch("near.bin", secs(60));
    let near = 48.0 / start.elapsed().as_secs_f64();
    let far = received_per_s(&d.host, 4);
    assert!(near > 8.0, "{near} MiB/s to B's own subnet");
    assert!((MIB * 3 / 8..MIB * 5 / 8).contains(&far), "{far} bytes/s to another, which are to be 512 KiB/s");
}
