//! Who the others are, and how they are found again.

use serde_json::Value;

use crate::support::content::{MIB, assert_same, drop_in};
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker, rows};
use crate::support::process::run;
use crate::support::{gate, secs, wait_until};

/// Its public key as the others' ledgers name it.
fn identity(peer: &Peer) -> String {
    let status = peer.ctl(&["--json", "status"]).expect_success().json();
    format!("key {}", status["identity"].as_str().expect("an identity"))
}

/// The rows of `peerctl --json ledger`.
fn ledger(peer: &Peer) -> Vec<Value> {
    rows(peer.ctl(&["--json", "ledger"]).expect_success().json())
}

/// Says hello to `to` as a peer that offers an identity, and sends `proof` (in hex) under id 1. Prints `open` if the
/// session is still there two seconds later, else `closed`.
const LIAR: &str = r#"
import socket, sys
host, port, key, offer, proof = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]), sys.argv[4], bytes.fromhex(sys.argv[5])
s = socket.create_connection((host, port), timeout=10)
s.sendall(b"\x13BitTorrent protocol" + bytes([0, 0, 0, 0, 0, 0x10, 0, 4]) + key + b"-XX0001-" + b"z" * 12)
send = lambda id, payload: s.sendall((2 + len(payload)).to_bytes(4, "big") + bytes([20, id]) + payload)
if offer == "offer":
    send(0, b"d1:md8:peerd_idi9ee9:peerd_key32:" + b"k" * 32 + b"11:peerd_nonce32:" + b"n" * 32 + b"e")
if proof:
    send(1, proof)
s.settimeout(2)
try:
    while s.recv(65536): pass
    print("closed")
except ConnectionError: print("closed")
except socket.timeout: print("open")
"#;

fn liar(from: &Host, to: &Peer, key: &str, offer: &str, proof: &str) -> String {
    let mut command = from.command("python3");
    let ip = to.host.ip.to_string();
    let output = run(command.args(["-c", LIAR, &ip, "6881", key, offer, proof]), secs(30)).expect_success();
    output.text().trim().to_owned()
}

#[test]
fn peers_prove_their_keys_and_are_remembered_by_them() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let b = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let c = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    drop_in(&b.upload(), "known.bin", 1, 4 * MIB);
    let hit = tracker.wait_hit("known.bin", secs(20));
    let key = hit["key"].as_str().expect("a key");
    c.host.shape(None, Some(20));
    c.ctl(&["get", "--detach", "known.bin"]).expect_success();
    wait_until(secs(10), "C names B by its key", || c.sessions().iter().any(|row| row["identity"] == identity(&b)));
    c.host.shape(None, None);
    c.wait_state("known.bin", "seeding", secs(30));
    let [row] = &ledger(&c)[..] else { panic!("one account: {:?}", ledger(&c)) };
    assert_eq!((row["identity"].as_str(), row["received_bytes"].as_u64()), (Some(&*identity(&b)), Some(4 * MIB)));
    wait_until(secs(10), "B has counted what it sent to C's key", || {
        let rows = ledger(&b);
        rows.len() == 1 && rows[0]["identity"] == identity(&c) && rows[0]["sent_bytes"].as_u64() >= Some(4 * MIB)
    });
    // Strangers prove nothing, and are served all the same; liars are not.
    let wrong = "ab".repeat(64);
    for (offer, proof, expected) in
        [("offer", "", "open"), ("none", "", "open"), ("offer", &*wrong, "closed"), ("none", &*wrong, "closed")]
    {
        assert_eq!(liar(&net.hosts[3], &b, key, offer, proof), expected, "{offer}, proof {proof}");
    }
}

#[test]
fn a_download_goes_on_from_remembered_peers_when_there_is_no_tracker() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let mut tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let mut seeder = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let mut leecher = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    let original = drop_in(&seeder.upload(), "large.bin", 1, 64 * MIB);
    tracker.wait_hit("large.bin", secs(20));
    leecher.host.shape(None, Some(40));
    leecher.ctl(&["get", "--detach", "large.bin"]).expect_success();
    // A third takes some 5 s: by then the peers, too, have been written down.
    leecher.wait_progress("large.bin", 0.5, secs(60));
    tracker.process.kill9();
    [&mut seeder, &mut leecher].into_iter().for_each(Peer::restart);
    assert!(leecher.progress("large.bin") < 0.9, "it was done already");
    leecher.host.shape(None, None);
    leecher.wait_state("large.bin", "seeding", secs(60));
    assert_same(&original, &leecher.downloads().join("large.bin"));
}
