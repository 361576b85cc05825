//! Limited rates, read off the receiving links: every window of 1 s and of 10 s.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Bench;
use crate::figures::Table;
use crate::support::content::drop_in;
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker};
use crate::support::process::{Process, run};
use crate::support::{secs, wait_until};

const SAMPLE: Duration = Duration::from_millis(100);
const SAMPLES: usize = 220;
const MIB: u64 = 1 << 20;
/// A torrent that lasts for any of the measurements.
const BYTES: u64 = 1 << 30;
const NAMES: [&str; 3] = ["one.bin", "two.bin", "three.bin"];
const RATES: [u64; 6] = [MIB / 8, MIB / 4, MIB / 2, MIB, 4 * MIB, 32 * MIB];

/// What came over some links, in samples.
struct Trace {
    /// Seconds since the first, and bytes received by each host.
    samples: Vec<(f64, Vec<u64>)>,
}

impl Trace {
    fn take(hosts: &[&Host]) -> Trace {
        let began = Instant::now();
        let samples = (0..SAMPLES).map(|n| {
            std::thread::sleep((SAMPLE * n as u32).saturating_sub(began.elapsed()));
            (began.elapsed().as_secs_f64(), hosts.iter().map(|host| host.carried().received).collect())
        });
        Trace { samples: samples.collect() }
    }

    /// Of all windows so long: the furthest from `rate`, all links together, as a share of it.
    fn worst(&self, window: usize, rate: f64) -> f64 {
        let total = |sample: &(f64, Vec<u64>)| sample.1.iter().sum::<u64>() as f64;
        let off = self.samples.windows(window + 1).map(|span| {
            let (first, last) = (&span[0], &span[window]);
            (total(last) - total(first)) / (last.0 - first.0) / rate - 1.0
        });
        off.fold(0.0, |worst, off| if off.abs() > f64::abs(worst) { off } else { worst })
    }

    fn bytes(&self, host: usize) -> f64 {
        (self.samples[SAMPLES - 1].1[host] - self.samples[0].1[host]) as f64
    }
}

pub fn measure(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let net = Net::new(5);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("tracker"));
    let seeder = Peer::start(&net.hosts[1], folder.path(), "seeder", &tracker);
    for (seed, name) in (10..).zip(NAMES) {
        drop_in(&seeder.upload(), name, seed, BYTES);
        tracker.wait_hit(name, secs(60));
    }
    let leechers: Vec<Peer> = net.hosts[2..]
        .iter()
        .zip(["B", "C", "D"])
        .map(|(host, name)| Peer::start(host, folder.path(), name, &tracker))
        .collect();
    let mut table = Table::new(&["limit", "MiB/s", "worst second", "worst 10 s"]);
    let mut row = |what: &str, rate: u64, trace: &Trace| {
        let off = |window: usize| format!("{:+.1} %", 100.0 * trace.worst(window, rate as f64));
        table.row(&[what.into(), format!("{}", rate as f64 / MIB as f64), off(10), off(100)]);
    };
    for rate in RATES {
        leechers[0].ctl(&["limit", "--down", &rate.to_string()]).expect_success();
        let getting = begin(&leechers[0], NAMES[0]);
        row("down, one seeder", rate, &Trace::take(&[&leechers[0].host]));
        end(&leechers[0], NAMES[0], getting);
    }
    leechers[0].ctl(&["limit", "--down", "0"]).expect_success();
    let hosts: Vec<&Host> = leechers.iter().map(|peer| &peer.host).collect();
    let mut fair = String::new();
    for rate in RATES {
        seeder.ctl(&["limit", "--up", &rate.to_string()]).expect_success();
        let getting: Vec<Process> = leechers.iter().zip(NAMES).map(|(peer, name)| begin(peer, name)).collect();
        let trace = Trace::take(&hosts);
        row("up, three torrents, a leecher each", rate, &trace);
        let all: f64 = (0..3).map(|host| trace.bytes(host)).sum();
        let shares: Vec<String> = (0..3).map(|host| format!("{:.0}", 100.0 * trace.bytes(host) / all)).collect();
        fair += &format!("{} MiB/s: {} %; ", rate as f64 / MIB as f64, shares.join(" / "));
        for ((peer, name), getting) in leechers.iter().zip(NAMES).zip(getting) {
            end(peer, name, getting);
        }
    }
    drop((seeder, leechers));
    let (near, far) = exempt(&net, &tracker, folder.path())?;
    Ok(format!(
        "{} s each, every window that begins at a tenth of a second.\n\n{}\nWhat each of the three had: {}.\n\nWith `lan_exempt = true` and `--limit-up 1M`: {near:.0} MiB/s to the local \
         subnet, {far:.2} MiB/s to another.\n",
        SAMPLES / 10,
        table.finish(),
        fair.trim_end_matches("; ")
    ))
}

/// Starts a download and waits until it runs evenly.
fn begin(peer: &Peer, name: &str) -> Process {
    let before = peer.host.carried().received;
    let get = peer.ctl_start(&["get", "--quiet", name]);
    wait_until(secs(60), "payload", || peer.host.carried().received > before + 256 * 1024);
    std::thread::sleep(secs(2));
    get
}

fn end(peer: &Peer, name: &str, mut get: Process) {
    peer.ctl(&["remove", "--data", name]).expect_success();
    get.kill9();
}

/// MiB per second to a leecher of the seeder's subnet, and to one of another, at the same time.
fn exempt(net: &Net, tracker: &Tracker, folder: &std::path::Path) -> Result<(f64, f64)> {
    let [_, seeder, near, far, ..] = &net.hosts[..] else { unreachable!("five hosts") };
    // One cable, two subnets: the tracker, the seeder and B in one, C in the other, each with a route to both.
    for (host, own, other) in [
        (&net.hosts[0], "198.18.0.2/24", "198.19.0.0/24"),
        (seeder, "198.18.0.3/24", "198.19.0.0/24"),
        (near, "198.18.0.4/24", "198.19.0.0/24"),
        (far, "198.19.0.5/24", "198.18.0.0/24"),
    ] {
        let ip = |args: &[&str]| {
            drop(run(Command::new("ip").args(["-n", &host.namespace]).args(args), secs(5)).expect_success())
        };
        ip(&["addr", "flush", "dev", "eth0"]);
        ip(&["addr", "add", own, "dev", "eth0"]);
        ip(&["route", "add", other, "dev", "eth0"]);
    }
    let home = folder.join("exempt");
    std::fs::create_dir_all(&home)?;
    std::fs::write(home.join("peerd.toml"), "lan_exempt = true\nlimit-up = \"1M\"\n")?;
    let seeder = Peer::start(seeder, folder, "exempt", tracker);
    drop_in(&seeder.upload(), "four.bin", 3, BYTES);
    tracker.wait_hit("four.bin", secs(60));
    let near = Peer::start(near, folder, "near", tracker);
    let far = Peer::start(far, folder, "far", tracker);
    let getting = begin(&far, "four.bin");
    let far_before = (far.host.carried().received, Instant::now());
    std::thread::sleep(secs(10));
    let far_rate = (far.host.carried().received - far_before.0) as f64 / far_before.1.elapsed().as_secs_f64();
    end(&far, "four.bin", getting);
    let (before, began) = (near.host.carried().received, Instant::now());
    let mut get = near.ctl_start(&["get", "--quiet", "four.bin"]);
    get.wait(secs(60));
    let near_rate = (near.host.carried().received - before) as f64 / began.elapsed().as_secs_f64();
    Ok((near_rate / MIB as f64, far_rate / MIB as f64))
}
