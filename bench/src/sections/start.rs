//! From `peerctl get` of a `.torrent` to the first payload, both daemons up and the tracker answering.

use std::time::Instant;

use anyhow::Result;

use super::Bench;
use crate::content::Content;
use crate::figures::median;
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::{secs, wait_for, wait_until};

const TORRENTS: u64 = 10;
const BYTES: u64 = 8 << 20;
/// More than announces and handshakes are: payload has come.
const FIRST_BYTES: u64 = 48 << 10;

pub fn measure(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("tracker"));
    let seeder = Peer::start(&net.hosts[1], folder.path(), "seeder", &tracker);
    let leecher = Peer::start(&net.hosts[2], folder.path(), "leecher", &tracker);
    let mut took = Vec::new();
    for seed in 0..TORRENTS {
        let content = Content::make(folder.path(), seed, BYTES, 256 << 10)?;
        let torrent = content.torrent.to_str().expect("a path of ours");
        seeder
            .ctl(&["get", "--quiet", "--to", folder.path().to_str().expect("a path of ours"), torrent])
            .expect_success();
        wait_until(secs(20), "the tracker counts the seeder", || tracker.peers_of(&content.key.to_hex()) == 1);
        let (before, started) = (leecher.host.carried().received, Instant::now());
        let mut get = leecher.ctl_start(&["get", "--quiet", torrent]);
        took.push(wait_for(secs(20), "the first payload", || {
            (leecher.host.carried().received > before + FIRST_BYTES).then(|| started.elapsed().as_secs_f64())
        }));
        get.wait(secs(20));
    }
    let worst = took.iter().copied().fold(0.0, f64::max);
    Ok(format!("Of {TORRENTS} torrents: median {:.3} s, at most {worst:.3} s.\n", median(took)))
}
