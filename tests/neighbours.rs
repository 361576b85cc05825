//! Who the others are, and how they are found again.

use std::collections::BTreeMap;

use peerd::daemon::identity::{Signer, is_signed_by};
use peerd::swarm::proving::Proving;
use peerd::wire::extension::ExtensionHandshake;
use peerd::wire::id::{InfoHash, from_hex, to_hex};
use peerd::wire::identity::{EXTENSION, End, Offer, Role};
use peerd::wire::message::Message;
use serde_json::Value;

use crate::support::content::{MIB, assert_same, drop_in};
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker, rows};
use crate::support::stranger::Stranger;
use crate::support::{gate, secs, wait_until};

/// The id under which the strangers want to hear proofs.
const THEIR_PROOF_ID: u8 = 9;

/// Its public key in hex.
fn public_key(peer: &Peer) -> String {
    let status = peer.ctl(&["--json", "status"]).expect_success().json();
    status["identity"].as_str().expect("an identity").to_owned()
}

/// As the others' ledgers name it.
fn identity(peer: &Peer) -> String {
    format!("key {}", public_key(peer))
}

/// The rows of `peerctl --json ledger`.
fn ledger(peer: &Peer) -> Vec<Value> {
    rows(peer.ctl(&["--json", "ledger"]).expect_success().json())
}

/// A stranger that offers this key, and our half of the proof to be.
fn offering(host: &Host, to: &Peer, torrent: InfoHash, letter: u8, key: [u8; 32]) -> (Stranger, Proving) {
    let mut stranger = Stranger::dial(host, to, torrent, letter);
    let offer = Offer { key, nonce: [letter; 32] };
    let proving = Proving::new(Role::Dialler, End { handshake: stranger.ours, offer }, stranger.theirs);
    let introduction = ExtensionHandshake {
        identity: Some(offer),
        messages: BTreeMap::from([(EXTENSION.to_owned(), THEIR_PROOF_ID)]),
        ..ExtensionHandshake::default()
    };
    stranger.say(&Message::Extended { id: 0, payload: introduction.encode() });
    (stranger, proving)
}

/// Proves it with the key of `signer`, and hears the peer's proof.
fn prove(stranger: &mut Stranger, proving: &mut Proving, signer: &Signer) -> [u8; 32] {
    let theirs = stranger.hear_introduction();
    let to_sign = proving.introduced(theirs.identity, theirs.proof_id()).expect("a first offer").expect("an offer");
    stranger.say(&Message::Extended { id: to_sign.proof_id, payload: signer.prove(&to_sign.text).encode() });
    proving.proof(&stranger.hear_extended(THEIR_PROOF_ID), is_signed_by).expect("a proof")
}

#[test]
fn peers_prove_their_keys_and_are_remembered_by_them() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let b = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let c = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    drop_in(&b.upload(), "known.bin", 1, 4 * MIB);
    tracker.wait_hit("known.bin", secs(20));
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
}

#[test]
fn who_lies_about_its_key_is_cut_off_and_who_says_nothing_is_not() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let b = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    drop_in(&b.upload(), "asked for.bin", 1, MIB);
    let hit = tracker.wait_hit("asked for.bin", secs(20));
    let torrent: InfoHash = hit["key"].as_str().expect("a key").parse().expect("a key");
    let host = &net.hosts[2];
    let proven = || b.sessions().iter().filter(|row| row["identity"].to_string().starts_with("\"key ")).count();
    // Ordinary: an extension handshake without an offer, and none at all.
    let mut silent = Stranger::dial(host, &b, torrent, b'a');
    silent.hear_introduction();
    let mut ordinary = Stranger::dial(host, &b, torrent, b'b');
    ordinary.say(&Message::Extended { id: 0, payload: b"de".to_vec() });
    // Liars.
    let (mut wrong, _) = offering(host, &b, torrent, b'c', [0x33; 32]);
    wrong.say(&Message::Extended { id: 1, payload: vec![0xAB; 64] });
    assert!(wrong.is_cut_within(secs(5)), "a wrong signature");
    let mut unasked = Stranger::dial(host, &b, torrent, b'd');
    unasked.say(&Message::Extended { id: 1, payload: vec![0xAB; 64] });
    assert!(unasked.is_cut_within(secs(5)), "a proof of nothing");
    // Our own key sent back: nothing is signed for it.
    let own = from_hex(&public_key(&b)).expect("32 bytes");
    let (mut mirror, _) = offering(host, &b, torrent, b'e', own);
    assert!(!mirror.is_cut_within(secs(2)) && !silent.is_cut_within(secs(0)) && !ordinary.is_cut_within(secs(0)));
    assert_eq!(proven(), 0, "nobody has proved anything");
    // The truth; and a second session of the same key, as after a restart, takes the place of the first.
    let signer = Signer::from_seed(&[7; 32]);
    let key = signer.public_key();
    let (mut first, mut proving) = offering(host, &b, torrent, b'f', key);
    assert_eq!(to_hex(&prove(&mut first, &mut proving, &signer)), public_key(&b));
    wait_until(secs(5), "the proven key is shown", || {
        b.sessions().iter().any(|row| row["identity"] == format!("key {}", to_hex(&key)))
    });
    let (mut second, mut proving) = offering(host, &b, torrent, b'g', key);
    prove(&mut second, &mut proving, &signer);
    assert!(first.is_cut_within(secs(5)), "one session per key");
    assert!(!second.is_cut_within(secs(1)) && proven() == 1);
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
    // Half takes some 7 s: by then the peers, too, have been written down.
    leecher.wait_progress("large.bin", 0.5, secs(60));
    tracker.process.kill9();
    [&mut seeder, &mut leecher].into_iter().for_each(Peer::restart);
    assert!(leecher.progress("large.bin") < 0.9, "it was done already");
    leecher.host.shape(None, None);
    leecher.wait_state("large.bin", "seeding", secs(60));
    assert_same(&original, &leecher.downloads().join("large.bin"));
}
