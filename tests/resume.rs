//! A download goes on where it was left, whatever ended the process.

use crate::support::content::{MIB, assert_same, drop_in};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::{full_size, gate, secs};

/// Bytes on a shaped cable for each byte of payload.
const ON_THE_CABLE: f64 = 1.046;

/// How much payload C fetched twice when `end` ended it at 40 %.
fn fetched_again(end: impl Fn(&mut Peer)) -> f64 {
    let folder = crate::support::folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let seeder = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let mut leecher = Peer::start(&net.hosts[2], folder.path(), "C", &tracker);
    let len = if full_size() { 1024 * MIB } else { 256 * MIB };
    let original = drop_in(&seeder.upload(), "large.bin", 1, len);
    tracker.wait_hit("large.bin", secs(60));
    leecher.host.shape(None, Some(if full_size() { 400 } else { 200 }));
    let before = leecher.host.carried().received;
    leecher.ctl(&["get", "--detach", "large.bin"]).expect_success();
    leecher.wait_progress("large.bin", 0.4, secs(120));
    end(&mut leecher);
    leecher.restart();
    leecher.fetch("large.bin", secs(180));
    let payload = (leecher.host.carried().received - before) as f64 / ON_THE_CABLE;
    assert_same(&original, &leecher.downloads().join("large.bin"));
    payload - len as f64
}

#[test]
fn after_kill_9_little_is_fetched_again() {
    let _turn = gate::heavy();
    let again = fetched_again(|peer| peer.process.kill9());
    // What lay uncommitted (64 MiB at most), and what the cable carries beside the payload.
    let limit = (64 * MIB + 4 * MIB) as f64;
    assert!(again <= limit, "{:.1} MiB were fetched again", again / MIB as f64);
}

#[test]
fn after_sigterm_nothing_is_fetched_again() {
    let _turn = gate::heavy();
    let again = fetched_again(|peer| {
        peer.process.terminate();
        let status = peer.process.wait(secs(15));
        assert!(status.success(), "{status}");
    });
    // Blocks of pieces that were not complete, what was on its way, and what TCP sent twice.
    let limit = (16 * MIB) as f64;
    assert!(again <= limit, "{:.1} MiB were fetched again", again / MIB as f64);
}
