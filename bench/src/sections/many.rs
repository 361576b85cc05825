//! One peerd with up to 10,000 torrents: a restart, at rest, and a transfer among them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peerd::wire::framing::{Frame, Framer};
use peerd::wire::handshake::{self, Handshake, Reserved};
use peerd::wire::id::{InfoHash, PeerId, from_hex};
use peerd::wire::message::Message;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::Bench;
use super::small::metric;
use crate::figures::{MIB, Table, cpu_s, resident_mib};
use crate::on_host;
use crate::report::keep_curve;
use crate::support::content::{drop_in, make_folder};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::process::run;
use crate::support::{secs, wait_until};

const TORRENTS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
/// Sizes between, evenly on a logarithmic scale.
const BYTES: std::ops::Range<f64> = 4096.0..67_108_864.0;
/// Keys that are asked for after a restart.
const SAMPLED: usize = 100;
const WORDS: [&str; 10] =
    ["kestrel", "naïve", "Straße", "東京", "ёлка", "smørrebrød", "été", "ångström", "한국", "día"];
/// It is looked at for so long at rest, with most torrents for the longer time.
const REST: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(60)];
/// After a restart so long passes before that.
const SETTLES: Duration = Duration::from_secs(10);
/// The torrent that is moved.
const MOVED_BYTES: u64 = 512 << 20;

pub fn measure(bench: &Bench) -> Result<String> {
    // Sparse files take no room on a disk, and the state folder belongs on one.
    let folder = tempfile::tempdir_in(&bench.disk)?;
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("tracker"));
    let mut peer = Peer::start(&net.hosts[1], folder.path(), "peer", &tracker);
    drop_in(&peer.upload(), "moved.bin", 7, MOVED_BYTES);
    let mut rng = SmallRng::seed_from_u64(10);
    let mut table = Table::new(&[
        "torrents",
        "s from exec until 100 sampled keys answered",
        "of them with a full bitfield",
        "s until all are announced",
        "read meanwhile, MiB",
        "RSS at rest, MiB",
        "CPU at rest, %",
        "CPU s for serving 512 MiB",
    ]);
    let (mut made, mut rest_curve, mut move_curve) = (1, Vec::new(), Vec::new());
    for torrents in TORRENTS {
        while made < torrents {
            make_sparse(&peer.upload(), made, &mut rng)?;
            made += 1;
        }
        wait_until(secs(600), "all are searchable and announced", || {
            std::thread::sleep(secs(1));
            metric(&tracker, "trackerd_torrents") >= torrents && metric(&tracker, "trackerd_peers") >= torrents
        });
        let restarted = restart(&mut peer, &tracker, &net, torrents, &mut rng)?;
        std::thread::sleep(SETTLES);
        let (cpu_before, began) = (cpu_s(peer.process.pid()), Instant::now());
        std::thread::sleep(REST[usize::from(torrents == TORRENTS[TORRENTS.len() - 1])]);
        let idle = 100.0 * (cpu_s(peer.process.pid()) - cpu_before) / began.elapsed().as_secs_f64();
        let resident = resident_mib(peer.process.pid());
        let moved_s = moved(&peer, &tracker, &net, folder.path())?;
        rest_curve.push((torrents as f64, resident));
        move_curve.push((torrents as f64, moved_s));
        table.row(&[
            torrents.to_string(),
            format!("{:.2}", restarted.answered_s),
            format!("{} of {}", restarted.full, restarted.sampled),
            format!("{:.1}", restarted.announced_s),
            format!("{:.0}", restarted.read_mib),
            format!("{resident:.0}"),
            format!("{idle:.2}"),
            format!("{moved_s:.2}"),
        ]);
        eprintln!(
            "{torrents} torrents: answered after {:.2} s, announced after {:.1} s, {resident:.0} MiB, idle {idle:.2} %, moved with {moved_s:.2} CPU s",
            restarted.answered_s, restarted.announced_s
        );
    }
    keep_curve("memory at rest, by torrents", &rest_curve)?;
    keep_curve("CPU for serving 512 MiB, by torrents", &move_curve)?;
    let listed = list_under_load(&peer, &tracker, &net, folder.path())?;
    Ok(format!("4 KiB to 64 MiB, sparse, eight folders deep.\n\n{}\n{listed}", table.finish()))
}

/// An empty file of some length, eight folders deep.
fn make_sparse(upload: &Path, n: usize, rng: &mut SmallRng) -> Result<()> {
    let word = |rng: &mut SmallRng| WORDS.choose(rng).copied().unwrap_or_default();
    let folders: Vec<String> = (0..8).map(|depth| format!("{} {}", WORDS[depth], n >> (depth + 4))).collect();
    let folder = upload.join(folders.join("/"));
    make_folder(&folder);
    let len = rng.random_range(BYTES.start.ln()..BYTES.end.ln()).exp() as u64;
    let file = File::create(folder.join(format!("{} {} {n}.bin", word(rng), word(rng))))?;
    Ok(file.set_len(len)?)
}

struct Restarted {
    answered_s: f64,
    full: usize,
    sampled: usize,
    announced_s: f64,
    read_mib: f64,
}

fn restart(peer: &mut Peer, tracker: &Tracker, net: &Net, torrents: usize, rng: &mut SmallRng) -> Result<Restarted> {
    let mut keys: Vec<String> = peer.list().iter().filter_map(|row| row["key"].as_str().map(str::to_string)).collect();
    ensure!(keys.len() == torrents, "{} of {torrents} are listed", keys.len());
    keys.shuffle(rng);
    let sample: Vec<InfoHash> = keys.iter().take(SAMPLED).filter_map(|key| from_hex(key)).map(InfoHash::new).collect();
    peer.ctl(&["leave"]).expect_success();
    peer.process.wait(secs(60));
    let (began, to) = (Instant::now(), SocketAddr::new(peer.host.ip, 6881));
    let asked = sample.clone();
    let asking = on_host(&net.hosts[2], move || -> Result<(usize, f64)> {
        // Beside the restart: from its exec on.
        let full = asked.iter().filter(|key| answers_full(to, **key)).count();
        Ok((full, began.elapsed().as_secs_f64()))
    });
    peer.restart();
    let (full, answered_s) = asking.join().expect("a thread")?;
    wait_until(secs(300), "all are announced", || metric(tracker, "trackerd_peers") >= torrents);
    let announced_s = began.elapsed().as_secs_f64();
    let io = std::fs::read_to_string(format!("/proc/{}/io", peer.process.pid()))?;
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<f64>().ok()).context("rchar")?;
    Ok(Restarted { answered_s, full, sampled: sample.len(), announced_s, read_mib: read / MIB })
}

/// Asks again until there is an answer; whether it has everything.
fn answers_full(to: SocketAddr, key: InfoHash) -> bool {
    let until = Instant::now() + secs(60);
    while Instant::now() < until {
        if let Ok(full) = ask(to, key) {
            return full;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

fn ask(to: SocketAddr, key: InfoHash) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&to, secs(1))?;
    stream.set_read_timeout(Some(secs(5)))?;
    // With the fast extension it says at once what it has.
    let reserved = Reserved([0, 0, 0, 0, 0, 0, 0, 4]);
    let hello = Handshake { reserved, info_hash: key, peer_id: PeerId(*b"-XX0000-who-has-this") };
    stream.write_all(&hello.encode())?;
    let mut answer = [0; handshake::LEN];
    stream.read_exact(&mut answer)?;
    ensure!(Handshake::decode(&answer)?.info_hash == key, "another torrent");
    let (mut framer, mut chunk) = (Framer::new(1 << 16), [0; 4096]);
    loop {
        let got = stream.read(&mut chunk)?;
        ensure!(got > 0, "hung up");
        framer.push(&chunk[..got]);
        while let Some(frame) = framer.next()? {
            match frame {
                // Ones, and zeros only after the last piece.
                Frame::Message(Message::Bitfield(bits)) => {
                    let (last, rest) = bits.split_last().context("an empty bitfield")?;
                    return Ok(
                        rest.iter().all(|byte| *byte == 0xFF) && last.leading_ones() + last.trailing_zeros() >= 8
                    );
                }
                Frame::Message(Message::HaveAll) => return Ok(true),
                Frame::Message(Message::HaveNone | Message::Have(_)) => return Ok(false),
                _ => {}
            }
        }
    }
}

/// CPU seconds that serving the one real torrent costs.
fn moved(peer: &Peer, tracker: &Tracker, net: &Net, folder: &Path) -> Result<f64> {
    let leecher = Peer::start(&net.hosts[2], folder, "leecher", tracker);
    let before = cpu_s(peer.process.pid());
    leecher.fetch("moved.bin", secs(120));
    let cpu = cpu_s(peer.process.pid()) - before;
    leecher.ctl(&["leave"]).expect_success();
    std::fs::remove_dir_all(&leecher.home)?;
    Ok(cpu)
}

/// How long `peerctl list` takes while a file is hashed and another one moved.
fn list_under_load(peer: &Peer, tracker: &Tracker, net: &Net, folder: &Path) -> Result<String> {
    let leecher = Peer::start(&net.hosts[2], folder, "leecher", tracker);
    drop_in(&peer.upload(), "hashed.bin", 8, 1 << 30);
    wait_until(secs(60), "it is hashed", || {
        // It has no key yet, by which one could ask for it alone.
        peer.list().iter().any(|row| row["name"] == "hashed.bin" && row["state"] == "hashing")
    });
    let mut get = leecher.ctl_start(&["get", "--quiet", "moved.bin"]);
    let mut answers: Vec<f64> = (0..10)
        .map(|_| {
            let asked = Instant::now();
            run(&mut peer.ctl_command(&["list"]), secs(20)).expect_success();
            asked.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    get.wait(secs(60));
    answers.sort_by(f64::total_cmp);
    Ok(format!(
        "`peerctl list` of {} torrents while 1 GiB is hashed and 512 MiB moved: median {:.0} ms, at most {:.0} ms.\n",
        TORRENTS[TORRENTS.len() - 1],
        answers[answers.len() / 2],
        answers[answers.len() - 1]
    ))
}
