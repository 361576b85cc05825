//! Reading stops when one commit window is at stake. What the victim fetches comes from a peer of the test's own, which
//! counts what it sends.

use super::victim::Victim;
use crate::support::content::{MIB, drop_in};
use crate::support::disk::{Call, Fault, Rule};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::scripted::{Script, Scripted};
use crate::support::{folder, gate, secs, wait_for, wait_until};

const NAME: &str = "large.bin";
const LEN: u64 = 256 * MIB;
/// docs/reliability.md, *The order of writes*.
const UNCOMMITTED_MAX_BYTES: u64 = 64 * MIB;
/// What the sockets at both ends hold beside that.
const ON_THE_WAY_BYTES: u64 = 12 * MIB;

/// What was sent, once it stays the same for three seconds.
fn settled(from: &Scripted) -> u64 {
    let mut last = (from.payload_bytes(), 0);
    wait_for(secs(120), "reading stops", || {
        let now = from.payload_bytes();
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (now > MIB && last.1 == 60).then_some(now)
    })
}

#[test]
fn reading_stops_at_64_mib_uncommitted() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let publisher = Peer::start(&net.hosts[0], folder.path(), "P", &tracker);
    let content = drop_in(&publisher.upload(), NAME, 1, LEN);
    let script = Script::seed(&tracker.fetch_torrent(&net.hosts[0], NAME, folder.path()), &content);
    drop(publisher);
    let key = script.info_hash;
    let from = Scripted::start(&net.hosts[0], 7_100, script);
    from.announce(&tracker, key);
    let mut victim = Victim::new(&net.hosts[1], folder.path(), &tracker.ip());
    let most = UNCOMMITTED_MAX_BYTES + ON_THE_WAY_BYTES;

    // No sync of its data comes back: nothing can be committed.
    let _process = victim.start();
    victim.disk.order(Rule::all(Call::Sync, "downloads", Fault::Stall));
    victim.ctl(&["get", "--detach", NAME]).expect_success();
    let given = settled(&from);
    println!("with no commit {} MiB were read", given / MIB);
    victim.disk.heal();
    assert!((UNCOMMITTED_MAX_BYTES / 2..most).contains(&given), "{given} bytes were read with no commit");
    wait_until(secs(60), "it goes on", || from.payload_bytes() > given + MIB);
}
