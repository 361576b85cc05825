//! Many peers, many downloads.

use std::time::Instant;

use crate::support::clients::Kind;
use crate::support::content::{MIB, assert_same, drop_in, make};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::process::run;
use crate::support::scripted::{Script, Scripted};
use crate::support::{gate, secs, wait_until};

#[test]
fn three_downloads_from_two_sources_while_one_goes_out() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let [b, c, d] = ["B", "C", "D"].map(|name| {
        let index = usize::from(name.as_bytes()[0] - b'A');
        Peer::start(&net.hosts[index], folder.path(), name, &tracker)
    });
    let names = ["one.bin", "two.bin", "three.bin"];
    for (seed, name) in names.into_iter().enumerate() {
        drop_in(&b.upload(), name, seed as u64, 8 * MIB);
        tracker.wait_hit(name, secs(20));
        d.fetch(name, secs(60));
    }
    drop_in(&c.upload(), "back.bin", 9, 8 * MIB);
    tracker.wait_hit("back.bin", secs(20));
    for peer in [&b, &c, &d] {
        peer.host.shape(Some(40), None);
    }
    let before = [&b, &d].map(|peer| peer.host.carried().sent);
    let mut gets: Vec<_> = names.iter().map(|name| c.ctl_start(&["get", "--quiet", name])).collect();
    gets.push(d.ctl_start(&["get", "--quiet", "back.bin"]));
    for get in &mut gets {
        let status = get.wait(secs(60));
        assert!(status.success(), "{}: {status}", get.name);
    }
    for name in names {
        assert_same(&b.upload().join(name), &c.downloads().join(name));
    }
    assert_same(&c.upload().join("back.bin"), &d.downloads().join("back.bin"));
    for (peer, before) in [&b, &d].into_iter().zip(before) {
        let sent = peer.host.carried().sent - before;
        assert!(sent > 4 * MIB, "{} sent {sent} bytes of 24 MiB", peer.name);
    }
}

#[test]
fn everything_goes_over_ipv6_too() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    for host in &net.hosts[1..] {
        let address = format!("{}/15", host.ip);
        let mut ip = host.command("ip");
        run(ip.args(["addr", "del", &address, "dev", "eth0"]), secs(10)).expect_success();
    }
    let args = [&*net.hosts[0].ip6.to_string(), "6969"];
    let [b, c] = ["B", "C"]
        .map(|name| Peer::start_with(&net.hosts[usize::from(name.as_bytes()[0] - b'A')], folder.path(), name, &args));
    let original = drop_in(&b.upload(), "six.bin", 6, 4 * MIB);
    let hit = tracker.wait_hit("six.bin", secs(20));
    c.fetch("six.bin", secs(30));
    assert_same(&original, &c.downloads().join("six.bin"));
    let key = hit["key"].as_str().expect("a key");
    wait_until(secs(10), "both are listed", || tracker.peers_of(key) == 2);
    c.ctl(&["leave"]).expect_success();
    assert_eq!(tracker.peers_of(key), 1);
}

#[test]
fn the_same_file_on_two_machines_is_one_torrent() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let keys = ["B", "C"].map(|name| {
        let host = &net.hosts[usize::from(name.as_bytes()[0] - b'A')];
        let peer = Peer::start(host, folder.path(), name, &tracker);
        drop_in(&peer.upload(), "common.bin", 1, 3 * MIB + 1);
        let row = peer.wait_state("common.bin", "seeding", secs(20));
        (row["key"].as_str().expect("a key").to_string(), peer)
    });
    assert_eq!(keys[0].0, keys[1].0);
    wait_until(secs(10), "both are listed", || tracker.peers_of(&keys[0].0) == 2);
    assert_eq!(tracker.search("common").len(), 1);
}

#[test]
fn nothing_is_lost_or_fetched_twice_from_a_peer_that_says_other_things_between_its_blocks() {
    const LEN: u64 = 96 * MIB + 12_345;
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let (content, torrent) = (folder.path().join("talk.bin"), folder.path().join("talk.torrent"));
    make(&content, 1, LEN);
    Kind::Aria2.make_torrent(&content, &torrent, &format!("{}/announce", tracker.url()));
    let script = Script { chatters: true, ..Script::seed(&torrent, &content) };
    let seed = Scripted::start(&net.hosts[1], 7_001, script);
    seed.announce(&tracker.url(), seed.info_hash());
    let leecher = Peer::start(&net.hosts[2], folder.path(), "B", &tracker);
    leecher.fetch(&torrent, secs(120));
    assert_same(&content, &leecher.downloads().join("talk.bin"));
    assert_eq!((seed.payload_bytes(), seed.connections()), (LEN, 1));
}

#[test]
fn fifty_leechers_on_one_peer() {
    // Five on each host: in a full mesh of 52 hosts the kernel's one table of neighbours (1,024 entries) would overflow.
    const LEECHERS: usize = 50;
    const HOSTS: usize = 10;
    let _turn = gate::alone();
    let folder = crate::support::folder();
    let net = Net::new(2 + HOSTS);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let seeder = Peer::start(&net.hosts[1], folder.path(), "seeder", &tracker);
    let original = drop_in(&seeder.upload(), "popular.bin", 1, 4 * MIB);
    let ip = tracker.ip();
    let mut leechers: Vec<Peer> = (0..LEECHERS)
        .map(|i| Peer::launch(&net.hosts[2 + i % HOSTS], folder.path(), &format!("leecher {i}"), &[&ip, "6969"]))
        .collect();
    leechers.iter_mut().for_each(Peer::wait_ready);
    tracker.wait_hit("popular.bin", secs(20));
    let mut gets: Vec<_> =
        leechers.iter().map(|leecher| leecher.ctl_start(&["get", "--quiet", "popular.bin"])).collect();
    for get in &mut gets {
        let status = get.wait(secs(90));
        assert!(status.success(), "{}: {status}\n{}", get.name, get.log());
    }
    for leecher in &leechers {
        assert_same(&original, &leecher.downloads().join("popular.bin"));
    }
    let resident = seeder.process.peak_resident_bytes();
    assert!(resident <= 256 * MIB, "the seeder had {} MiB resident", resident / MIB);
}

#[test]
fn two_hundred_torrents_at_once() {
    let _turn = gate::alone();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let seeder = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let leecher = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    for i in 0..200 {
        drop_in(&seeder.upload(), &format!("part {i:03}.bin"), i, MIB);
    }
    wait_until(secs(60), "200 files on the tracker", || {
        let text = tracker.get("/search_content.txt").unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count() == 200
    });
    for row in seeder.list() {
        leecher.ctl(&["get", "--detach", row["key"].as_str().expect("a key")]).expect_success();
    }
    wait_until(secs(120), "200 downloads complete", || {
        leecher.list().iter().filter(|row| row["state"] == "seeding").count() == 200
    });
    for i in 0..200 {
        let name = format!("part {i:03}.bin");
        assert_same(&seeder.upload().join(&name), &leecher.downloads().join(&name));
    }
    for peer in [&seeder, &leecher] {
        let resident = peer.process.peak_resident_bytes();
        assert!(resident <= 256 * MIB, "{} had {} MiB resident", peer.name, resident / MIB);
    }
}

#[test]
fn the_only_seeders_cable_is_pulled() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let seeder = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let slow = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    let fast = Peer::start(&net.hosts[3], folder.path(), "D", &tracker);
    let original = drop_in(&seeder.upload(), "large.bin", 1, 48 * MIB);
    tracker.wait_hit("large.bin", secs(20));
    seeder.host.shape(Some(80), None);
    slow.host.shape(None, Some(16));
    for peer in [&slow, &fast] {
        peer.ctl(&["get", "--detach", "large.bin"]).expect_success();
    }
    // The other leecher holds what C lacks by the time it has nearly all.
    fast.wait_progress("large.bin", 0.97, secs(60));
    wait_until(secs(20), "D holds the rest", || fast.progress("large.bin") >= 1.0);
    seeder.host.cut();
    let (cut, had) = (Instant::now(), slow.progress("large.bin"));
    assert!(had < 0.9, "C has {had} already");
    // What is on its way may still arrive: more than that must come from D.
    wait_until(secs(20), "C goes on", || slow.progress("large.bin") > had + 0.1);
    eprintln!("C went on within {:.1} s", cut.elapsed().as_secs_f64());
    slow.wait_progress("large.bin", 1.0, secs(90));
    slow.wait_state("large.bin", "seeding", secs(20));
    assert_same(&original, &slow.downloads().join("large.bin"));
}

#[test]
fn no_more_sessions_are_served_than_slots_and_one_optimistic() {
    const SLOTS: usize = 3;
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(10);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let args = [&*tracker.ip(), "6969", "--upload-slots", &SLOTS.to_string()];
    let mut peers: Vec<Peer> =
        (1..10).map(|index| Peer::launch(&net.hosts[index], folder.path(), &format!("peer {index}"), &args)).collect();
    peers.iter_mut().for_each(Peer::wait_ready);
    let (seeder, leechers) = peers.split_first().expect("a seeder");
    drop_in(&seeder.upload(), "wanted.bin", 1, 16 * MIB);
    tracker.wait_hit("wanted.bin", secs(20));
    for peer in &peers {
        peer.host.shape(Some(40), Some(200));
    }
    for leecher in leechers {
        leecher.ctl(&["get", "--detach", "wanted.bin"]).expect_success();
    }
    let mut most = 0;
    wait_until(secs(120), "all eight have it", || {
        for peer in &peers {
            let served = peer.served();
            assert!(served <= SLOTS + 1, "{} serves {served} sessions", peer.name);
            most = most.max(served);
        }
        leechers.iter().all(|leecher| leecher.progress("wanted.bin") >= 1.0)
    });
    assert!(most >= SLOTS, "never more than {most} sessions were served");
}
