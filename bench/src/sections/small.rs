//! Many small files, dropped at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Bench;
use crate::figures::{MIB, cpu_s};
use crate::support::content::make;
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::process::run;
use crate::support::secs;

const FILES: usize = 20_000;
/// Sizes between, evenly on a logarithmic scale.
const BYTES: std::ops::Range<f64> = 4096.0..1_048_576.0;

pub fn measure(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let beside = folder.path().join("beside");
    let mut rng = SmallRng::seed_from_u64(20);
    for n in 0..FILES {
        let len = rng.random_range(BYTES.start.ln()..BYTES.end.ln()).exp() as u64;
        make(&beside.join(format!("{}/file {n}.bin", n % 100)), n as u64, len);
    }
    let net = Net::new(2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("tracker"));
    let peer = Peer::start(&net.hosts[1], folder.path(), "peer", &tracker);
    let started = Instant::now();
    std::fs::rename(&beside, peer.upload().join("dropped"))?;
    let (mut answers, mut searchable_s) = (Vec::new(), None);
    let all_s = loop {
        for words in [&["status"][..], &["search", "file 7"], &["show", "file 7.bin"]] {
            let asked = Instant::now();
            run(&mut peer.ctl_command(words), secs(10));
            answers.push(asked.elapsed());
        }
        let now_s = started.elapsed().as_secs_f64();
        if metric(&tracker, "trackerd_torrents") >= FILES {
            searchable_s.get_or_insert(now_s);
            if metric(&tracker, "trackerd_peers") >= FILES {
                break now_s;
            }
        }
        ensure!(now_s < 600.0, "{} of {FILES} are searchable", metric(&tracker, "trackerd_torrents"));
        std::thread::sleep(Duration::from_millis(300));
    };
    answers.sort();
    let slow = answers.iter().filter(|took| **took > Duration::from_millis(100)).count();
    Ok(format!(
        "4 KiB to 1 MiB each, moved into the upload folder at once: all searchable after {:.1} s, all announced after \
         {all_s:.1} s, with {:.1} CPU s and {:.0} MiB. Meanwhile peerctl was asked {} times: median {:.0} ms, at most \
         {:.0} ms, {slow} times over 100 ms.\n",
        searchable_s.unwrap_or(all_s),
        cpu_s(peer.process.pid()),
        peer.process.peak_resident_bytes() as f64 / MIB,
        answers.len(),
        answers[answers.len() / 2].as_secs_f64() * 1e3,
        answers[answers.len() - 1].as_secs_f64() * 1e3,
    ))
}

/// A gauge of the tracker's.
pub fn metric(tracker: &Tracker, name: &str) -> usize {
    let text = tracker.get("/metrics").map(|body| String::from_utf8_lossy(&body).into_owned()).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}
