//! How the cost of a transfer grows with the piece's length and with the number of sessions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use anyhow::{Result, ensure};

use super::Bench;
use crate::content::Content;
use crate::crowd::{self, Taking};
use crate::figures::{MIB, Table, cpu_s};
use crate::race::{Race, in_turn};
use crate::report::keep_curve;
use crate::rivals::Client;
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::{secs, wait_until};

const PIECE_BYTES: [u32; 5] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];
const SESSIONS: [usize; 6] = [1, 4, 16, 50, 100, 200];
/// design.md: no torrent has more.
const SESSIONS_PER_TORRENT: usize = 50;
const SEEDS: usize = 50;

pub fn pieces(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let contents = PIECE_BYTES.map(|piece_bytes| Content::make(folder.path(), 1, 1 << 30, piece_bytes));
    let contents = contents.into_iter().collect::<Result<Vec<_>>>()?;
    let race =
        |content| Race { seeds: vec![Client::Peerd], leeches: vec![Client::Peerd], content, folder: folder.path() };
    let figures = in_turn(&contents.iter().map(race).collect::<Vec<_>>(), bench.runs)?;
    let mut table = Table::new(&[
        "piece, KiB",
        "s from the first MiB",
        "CPU s, both ends",
        "RSS leeching, MiB",
        "RSS seeding, MiB",
    ]);
    let mut curve = Vec::new();
    for (piece_bytes, run) in PIECE_BYTES.iter().zip(&figures) {
        curve.push((f64::from(*piece_bytes), run.cpu_s()));
        table.row(&[
            (piece_bytes >> 10).to_string(),
            format!("{:.2}", run.transfer_s),
            format!("{:.2}", run.cpu_s()),
            format!("{:.0}", run.leech_mib),
            format!("{:.0}", run.seed_mib),
        ]);
    }
    keep_curve("CPU for 1 GiB, by piece length", &curve)?;
    Ok(format!("1 GiB one to one, medians of {} runs.\n\n{}", bench.runs, table.finish()))
}

/// One peerd serves 1 GiB to made-up leechers, and takes 1 GiB from made-up seeds.
pub fn sessions(bench: &Bench) -> Result<String> {
    let folder = tempfile::tempdir_in(&bench.memory)?;
    let contents = (0..SESSIONS.iter().max().unwrap_or(&1).div_ceil(SESSIONS_PER_TORRENT) as u64)
        .map(|seed| Content::make(folder.path(), seed, 256 << 20, 1 << 20))
        .collect::<Result<Vec<_>>>()?;
    let mut table = Table::new(&["sessions served", "s for 1 GiB", "CPU s", "RSS, MiB"]);
    let mut curve = Vec::new();
    for sessions in SESSIONS {
        let (took_s, cpu, resident_mib) = serve(&contents, sessions, folder.path())?;
        curve.push((sessions as f64, cpu));
        table.row(&[sessions.to_string(), format!("{took_s:.2}"), format!("{cpu:.2}"), format!("{resident_mib:.0}")]);
    }
    keep_curve("CPU for serving 1 GiB, by sessions", &curve)?;
    let mut taking = Table::new(&["seeds", "s for 1 GiB", "CPU s", "RSS, MiB"]);
    for seeds in [1, 8, SEEDS] {
        let (took_s, cpu, resident_mib) = fetch(seeds, folder.path())?;
        taking.row(&[seeds.to_string(), format!("{took_s:.2}"), format!("{cpu:.2}"), format!("{resident_mib:.0}")]);
    }
    Ok(format!(
        "Made-up peers that ask for 16 KiB at a time; CPU and memory of the peerd alone, which shares the machine with \
         them.\n\n{}\n{}",
        table.finish(),
        taking.finish()
    ))
}

fn serve(contents: &[Content], sessions: usize, folder: &std::path::Path) -> Result<(f64, f64, f64)> {
    let home = tempfile::tempdir_in(folder)?;
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &home.path().join("tracker"));
    let peer = Peer::start(&net.hosts[1], home.path(), "peer", &tracker);
    for content in contents {
        let torrent = content.torrent.to_str().expect("a path of ours");
        peer.ctl(&["get", "--quiet", "--to", folder.to_str().expect("a path of ours"), torrent]).expect_success();
    }
    let taking = Arc::new(Taking { taken_bytes: AtomicU64::new(0), enough_bytes: 1 << 30 });
    let to = SocketAddr::new(peer.host.ip, 6881);
    let (cpu_before, began) = (cpu_s(peer.process.pid()), Instant::now());
    let leechers: Vec<_> = (0..sessions)
        .map(|n| {
            let content = &contents[n / SESSIONS_PER_TORRENT];
            crowd::take(&net.hosts[2], to, content, n as u32 * 5 % content.layout.piece_count(), &taking)
        })
        .collect();
    let ended: Result<Vec<()>> = leechers.into_iter().map(|leecher| leecher.join().expect("a leecher")).collect();
    ended?;
    let took_s = began.elapsed().as_secs_f64();
    Ok((took_s, cpu_s(peer.process.pid()) - cpu_before, peer.process.peak_resident_bytes() as f64 / MIB))
}

fn fetch(seeds: usize, folder: &std::path::Path) -> Result<(f64, f64, f64)> {
    let home = tempfile::tempdir_in(folder)?;
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &home.path().join("tracker"));
    let content = Content::make(folder, 9, 1 << 30, 1 << 20)?;
    let bytes = Arc::new(std::fs::read(&content.file)?);
    let stop = Arc::new(AtomicBool::new(false));
    let hash: String = content.key.as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
    for port in (20_000..).take(seeds) {
        crowd::give(&net.hosts[2], SocketAddr::new(net.hosts[2].ip, port), &content, &bytes, &stop);
        let query =
            format!("info_hash={hash}&peer_id=-XX0000-seed---{port}&port={port}&left=0&uploaded=0&downloaded=0");
        net.hosts[2].curl(&[&format!("{}/announce?{query}&compact=1", tracker.url())]).expect_success();
    }
    let peer = Peer::start(&net.hosts[1], home.path(), "peer", &tracker);
    let cpu_before = cpu_s(peer.process.pid());
    let before = peer.host.carried().received;
    let mut get = peer.ctl_start(&["get", "--quiet", content.torrent.to_str().expect("a path of ours")]);
    wait_until(secs(20), "the first MiB", || peer.host.carried().received > before + (1 << 20));
    let began = Instant::now();
    ensure!(get.wait(secs(120)).success(), "{}", get.log());
    let took_s = began.elapsed().as_secs_f64();
    let cpu = cpu_s(peer.process.pid()) - cpu_before;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    Ok((took_s, cpu, peer.process.peak_resident_bytes() as f64 / MIB))
}
