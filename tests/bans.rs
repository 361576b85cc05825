//! Peers that lie: found, shut out, and nobody beside them.

use std::net::SocketAddr;

use peerd::wire::id::InfoHash;

use crate::support::content::{MIB, assert_same, drop_in};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::scripted::{Script, Scripted};
use crate::support::{gate, secs, wait_until};

#[test]
fn a_poisoner_is_banned_and_the_honest_peer_on_its_address_is_not() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let honest = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let names = ["first.bin", "second.bin"];
    let [first, second] = [1, 2].map(|seed| drop_in(&honest.upload(), names[seed - 1], seed as u64, 12 * MIB));
    let scripts = [(names[0], &first), (names[1], &second)].map(|(name, content)| {
        let torrent = tracker.fetch_torrent(&honest.host, name, folder.path());
        Script { spoils_every: 10, ..Script::seed(&torrent, content) }
    });
    let keys = scripts.each_ref().map(|script| script.info_hash);
    let [script, script_of_second] = scripts;
    let poisoner = Scripted::start(&honest.host, 7_001, script);
    keys.iter().for_each(|key| poisoner.announce(&tracker.url(), *key));
    let leecher = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    honest.host.shape(Some(40), None);
    leecher.fetch(names[0], secs(60));
    assert_same(&first, &leecher.downloads().join(names[0]));
    assert!(poisoner.requests() >= 10, "it was hardly asked: {}", poisoner.requests());
    let bans = |text: &str| leecher.process.log().lines().filter(|line| line.contains(text)).count();
    assert_eq!(
        bans("gave wrong data and is banned"),
        bans(&format!("peer={}", poisoner.addr)),
        "{}",
        leecher.process.log()
    );
    assert!(bans("gave wrong data and is banned") > 0, "{}", leecher.process.log());

    // In another torrent, and whoever dials: it is not talked to.
    drop(poisoner);
    let poisoner = Scripted::start(&honest.host, 7_001, script_of_second);
    honest.host.shape(Some(20), None);
    leecher.ctl(&["get", "--detach", names[1]]).expect_success();
    wait_until(secs(20), "the other download goes on", || leecher.progress(names[1]) > 0.1);
    let dialled = poisoner.dial(SocketAddr::new(leecher.host.ip, 6_881));
    wait_until(secs(3), "it is hung up on", || dialled.is_finished());
    leecher.wait_state(names[1], "seeding", secs(60));
    assert_same(&second, &leecher.downloads().join(names[1]));
    assert_eq!((poisoner.requests(), poisoner.connections()), (0, 1), "it was dialled");
}

#[test]
fn a_peer_that_answers_for_another_torrent_is_refused() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let honest = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let original = drop_in(&honest.upload(), "asked for.bin", 1, 4 * MIB);
    let torrent = tracker.fetch_torrent(&honest.host, "asked for.bin", folder.path());
    let script = Script::seed(&torrent, &original);
    let key = script.info_hash;
    let other = Scripted::start(&net.hosts[2], 7_001, Script { info_hash: InfoHash::new([7; 20]), ..script });
    other.announce(&tracker.url(), key);
    let leecher = Peer::start(&net.hosts[3], folder.path(), "C", &tracker);
    honest.host.shape(Some(16), None);
    leecher.ctl(&["get", "--detach", "asked for.bin"]).expect_success();
    wait_until(secs(20), "both are dialled", || other.connections() > 0 && !leecher.sessions().is_empty());
    leecher.wait_state("asked for.bin", "seeding", secs(60));
    assert_same(&original, &leecher.downloads().join("asked for.bin"));
    assert_eq!(other.requests(), 0);
    leecher.ctl(&["peers"]).expect_success();
}
