//! What may be lost: one commit window, and reading stops when that much is at stake. What the victim has read is told by
//! the kernel: what lies in the sockets at either end is nobody's yet, however much they hold.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::crash::seed;
use super::victim::{Victim, crash, look};
use crate::support::content::{MIB, drop_in};
use crate::support::disk::{Call, Fault, Leaves, Moment, Rule};
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker};
use crate::support::process::signal;
use crate::support::scripted::{Script, Scripted};
use crate::support::{folder, gate, secs, wait_for, wait_until};

const NAME: &str = "large.bin";
const LEN: u64 = 256 * MIB;
const PORT: u16 = 7_100;
/// docs/reliability.md, *The order of writes*.
const UNCOMMITTED_MAX_BYTES: u64 = 64 * MIB;
/// What is read beside blocks that are kept: the header of each, at most 13 bytes of 16 KiB, what one read may bring beyond
/// a block, and a block for each thread that asked for memory at the same moment.
const BESIDE_BYTES: u64 = MIB;

/// What the victim has read from the tests' own peer since it was started.
struct Read<'a> {
    host: &'a Host,
    from: &'a Scripted,
    /// Connections of the runs before.
    before: usize,
}

impl<'a> Read<'a> {
    fn begin(host: &'a Host, from: &'a Scripted) -> Read<'a> {
        Read { host, from, before: from.connections() }
    }

    fn bytes(&self) -> u64 {
        let bytes = self.host.read_from(self.from.addr);
        // What a connection that is gone has brought would be missing.
        assert!(self.from.connections() <= self.before + 1, "it has connected twice");
        bytes
    }

    /// Waits until it has read more than this.
    fn goes_on(&self, beyond: u64) {
        wait_until(secs(60), "it goes on", || self.bytes() > beyond);
    }

    /// What it has read, once that stays the same for so many looks, 20 of which take more than a second.
    fn settled(&self, looks: u32) -> u64 {
        let mut last = (0, 0);
        wait_for(secs(120), "reading stops", || {
            let now = self.bytes();
            last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
            (now > MIB && last.1 == looks).then_some(now)
        })
    }
}

#[test]
fn reading_stops_at_64_mib_uncommitted_and_a_power_cut_takes_no_more() {
    let _turn = gate::heavy();
    let seed = seed();
    let mut rng = SmallRng::seed_from_u64(seed);
    let folder = folder();
    let net = Net::new(2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let publisher = Peer::start(&net.hosts[0], folder.path(), "P", &tracker);
    let content = drop_in(&publisher.upload(), NAME, 1, LEN);
    let script = Script::seed(&tracker.fetch_torrent(&net.hosts[0], NAME, folder.path()), &content);
    drop(publisher);
    let key = script.info_hash;
    let from = Scripted::start(&net.hosts[0], PORT, script);
    from.announce(&tracker.url(), key);
    let mut victim = Victim::new(&net.hosts[1], folder.path(), &tracker.ip());
    let most = UNCOMMITTED_MAX_BYTES + BESIDE_BYTES;

    // No sync of its data comes back: nothing can be committed.
    let mut read = Read::begin(&net.hosts[1], &from);
    let mut process = victim.start();
    victim.disk.order(Rule::all(Call::Sync, "downloads", Fault::Stall));
    victim.ctl(&["get", "--detach", NAME]).expect_success();
    let bytes = read.settled(60);
    let on_the_way = from.payload_bytes().saturating_sub(bytes);
    println!("with no commit {bytes} bytes were read, and {on_the_way} wait in the sockets");
    assert!((UNCOMMITTED_MAX_BYTES / 2..most).contains(&bytes), "{bytes} bytes were read with no commit");
    victim.disk.heal();
    read.goes_on(bytes + MIB);

    let mut recorded_before = 0;
    for cut in 0..2 {
        victim.disk.cut_at(Moment::Byte(rng.random_range(MIB..70 * MIB)));
        assert!(victim.disk.wait_cut(secs(60)), "seed {seed}, cut {cut}: nothing was written");
        // The more it still reads, the more there is to lose.
        read.settled(20);
        signal(process.pid(), "STOP");
        let bytes = read.bytes();
        crash(&victim.disk, &mut process, Leaves::Nothing);
        let found = look(&victim.disk, folder.path(), &format!("seed {seed}, cut {cut}")).remove(0);
        let recorded = u64::from(found.recorded) * found.piece_bytes;
        let lost = bytes.saturating_sub(recorded - recorded_before);
        println!("cut {cut}: {lost} bytes lost of {bytes}");
        assert!(lost <= most, "seed {seed}, cut {cut}: {lost} bytes are lost of {bytes}");
        read = Read::begin(&net.hosts[1], &from);
        process = victim.start();
        let row = victim.list().into_iter().find(|row| row["name"] == NAME).expect("the download");
        assert!(row["have_bytes"].as_u64() >= Some(recorded), "seed {seed}, cut {cut}: {recorded} on record, {row}");
        read.goes_on(MIB);
        recorded_before = recorded;
    }
}
