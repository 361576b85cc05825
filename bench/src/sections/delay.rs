//! One seeder behind a relay that makes a long link.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Bench;
use crate::content::Content;
use crate::figures::{MIB, median};
use crate::relay::{self, Link};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::{secs, wait_until};

const LINK: Link = Link { delay: Duration::from_millis(20), bytes_per_s: 125e6 };
const PORT: u16 = 6881;
const BYTES: u64 = 512 << 20;

pub fn measure(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("tracker"));
    let seeder = Peer::start(&net.hosts[1], folder.path(), "seeder", &tracker);
    let relay = &net.hosts[2];
    relay::start(relay, PORT, SocketAddr::new(seeder.host.ip, PORT), LINK);
    let content = Content::make(folder.path(), 3, BYTES, 1 << 20)?;
    // The seeder tells nobody, so that only the relay is known to the leechers.
    let quiet = Content::of(content.file.clone(), 1 << 20, None)?;
    let [torrent, quiet] = [&content, &quiet].map(|content| content.torrent.to_str().expect("a path of ours"));
    seeder.ctl(&["get", "--quiet", "--to", folder.path().to_str().expect("a path of ours"), quiet]).expect_success();
    let hash: String = content.key.as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
    let query = format!("info_hash={hash}&peer_id=-XX0000-a-long-link-&port={PORT}&left=0&uploaded=0&downloaded=0");
    relay.curl(&[&format!("{}/announce?{query}&compact=1", tracker.url())]).expect_success();
    let mut shares = Vec::new();
    for run in 0..bench.runs {
        let leecher = Peer::start(&net.hosts[3], folder.path(), &format!("leecher {run}"), &tracker);
        let before = leecher.host.carried().received;
        let mut get = leecher.ctl_start(&["get", "--quiet", torrent]);
        wait_until(secs(20), "the first MiB", || leecher.host.carried().received > before + (1 << 20));
        let began = Instant::now();
        assert!(get.wait(secs(60)).success(), "{}", get.log());
        shares.push((BYTES - (1 << 20)) as f64 / began.elapsed().as_secs_f64() / LINK.bytes_per_s);
        leecher.ctl(&["leave"]).expect_success();
        std::fs::remove_dir_all(leecher.downloads())?;
    }
    let share = median(shares);
    Ok(format!(
        "One seeder, one leecher, {} MiB, from the first MiB to completion, median of {}: {:.0} MiB/s, {share:.2} of the \
         link.\n",
        BYTES >> 20,
        bench.runs,
        share * LINK.bytes_per_s / MIB
    ))
}
