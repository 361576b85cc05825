//! Limited rates, read off the links.

use std::thread;

use crate::support::content::{MIB, assert_same, drop_in};
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker};
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
