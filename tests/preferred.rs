//! Who was generous is served first, and it is said why.

use serde_json::Value;

use crate::support::content::{MIB, drop_in};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::{gate, secs, wait_for, wait_until};

/// The row of the session with this peer.
fn session_with(sessions: &[Value], peer: &Peer) -> Option<Value> {
    let address = peer.host.ip.to_string();
    sessions
        .iter()
        .find(|row| row["addr"].as_str().is_some_and(|addr| addr.starts_with(&format!("{address}:"))))
        .cloned()
}

#[test]
fn of_two_that_wait_the_one_that_gave_before_the_restart_starts_first_and_the_other_follows() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(5);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let ip = tracker.ip();
    let one_slot = [&*ip, "6969", "--upload-slots", "1"];
    let mut seed = Peer::start_with(&net.hosts[1], folder.path(), "seed", &one_slot);
    let mut generous = Peer::start(&net.hosts[2], folder.path(), "generous", &tracker);

    // Credit is earned by a real transfer, and outlives both daemons.
    drop_in(&generous.upload(), "gift.bin", 1, 2 * MIB);
    tracker.wait_hit("gift.bin", secs(20));
    seed.fetch("gift.bin", secs(30));
    for peer in [&mut seed, &mut generous] {
        peer.process.terminate();
        peer.process.wait(secs(20));
    }
    let seed = Peer::start_with(&net.hosts[1], folder.path(), "seed", &one_slot);
    let generous = Peer::start(&net.hosts[2], folder.path(), "generous", &tracker);
    let ledger = seed.ctl(&["ledger"]).expect_success().text();
    assert!(ledger.contains("gift.bin") && ledger.contains("served first"), "{ledger}");

    // Somebody has the only slot while two others come, the stranger first.
    seed.host.shape(Some(80), None);
    drop_in(&seed.upload(), "wanted.bin", 2, 160 * MIB);
    tracker.wait_hit("wanted.bin", secs(30));
    let [first, stranger] =
        [(3, "first"), (4, "stranger")].map(|(at, name)| Peer::start(&net.hosts[at], folder.path(), name, &tracker));
    let mut gets = Vec::new();
    for peer in [&first, &stranger, &generous] {
        gets.push(peer.ctl_start(&["get", "--quiet", "wanted.bin"]));
        wait_until(secs(20), &format!("{} is connected to the seed and wants something", peer.name), || {
            session_with(&seed.sessions(), peer).is_some_and(|row| row["peer_interested"] == true)
        });
    }
    let sessions = seed.sessions();
    let why = |peer: &Peer| session_with(&sessions, peer).map(|row| row["why"].as_str().unwrap_or_default().to_owned());
    assert_eq!(why(&first).as_deref(), Some("turn"));
    assert_eq!(why(&generous).as_deref(), Some("generous: 1st in line"));
    assert_eq!(why(&stranger).as_deref(), Some("2nd in line"));

    let mut order: Vec<&str> = Vec::new();
    wait_for(secs(60), "all three have had a turn", || {
        let sessions = seed.sessions();
        let served: Vec<&Peer> = [&first, &stranger, &generous]
            .into_iter()
            .filter(|peer| session_with(&sessions, peer).is_some_and(|row| row["am_choking"] == false))
            .collect();
        assert!(served.len() <= 1, "one slot, and {} are served", served.len());
        if let [one] = served[..]
            && order.last() != Some(&one.name.as_str())
        {
            order.push(&one.name);
        }
        (order.len() == 3).then_some(())
    });
    assert_eq!(order, ["first", "generous", "stranger"]);
    drop(gets);
}
