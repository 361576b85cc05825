//! trackerd is killed in the midst of publications, withdrawals, announces and searches, again and again. What was
//! answered must hold afterwards, however busy the machine is, and registry, search and `search_content.txt` must say the same.
//! In the end who has joined ten seconds before must be known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ed25519_dalek::SigningKey;
use peerd::wire::announce::MAX_SCRAPE_HASHES;
use peerd::wire::catalogue::SearchQuery;
use peerd::wire::id::InfoHash;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::million::exchange;
use crate::names::Names;
use crate::server::{Http, Trackerd, Udp, announce, free_address, local_ip};
use crate::torrent::torrent;

const PUBLISHERS: u32 = 3;
/// Keys in one question.
const KEYS_AT_ONCE: usize = 10_000;
/// While no more swarms change within [`KEPT_AFTER`], a kill costs nothing that is older.
const SWARMS_AT_ONCE: u32 = 20_000;
const KEPT_AFTER: Duration = Duration::from_secs(10);
/// Announces under way at once.
const WINDOW: usize = 64;

/// What became of one torrent of a round.
struct Told {
    key: InfoHash,
    name: String,
    published: bool,
    withdrawing: bool,
    withdrawn: bool,
}

impl Told {
    /// Whether it must be there, or must not; none if the end came before the answer.
    fn expected(&self) -> Option<bool> {
        match self.withdrawing {
            true => self.withdrawn.then_some(false),
            false => self.published.then_some(true),
        }
    }
}

pub fn run(folder: &Path, rounds: u32) -> Result<()> {
    let names = Names::new();
    let address = free_address()?;
    let mut rng = SmallRng::seed_from_u64(20);
    // Whether each torrent is there, of all rounds.
    let mut all: BTreeMap<InfoHash, (String, bool)> = BTreeMap::new();
    let (mut trackerd, _) = Trackerd::start(folder, address)?;
    for round in 0..rounds {
        let stop = AtomicBool::new(false);
        let load_for = Duration::from_millis(rng.random_range(1_500..5_000));
        let told = std::thread::scope(|scope| {
            let (names, stop) = (&names, &stop);
            let publishers: Vec<_> =
                (0..PUBLISHERS).map(|n| scope.spawn(move || publish(address, names, n, round, stop))).collect();
            scope.spawn(|| announce_on(address, round, stop));
            scope.spawn(|| search_on(address, names, stop));
            std::thread::sleep(load_for);
            let dead = trackerd.kill9();
            stop.store(true, Ordering::Relaxed);
            let told: Vec<Told> = publishers.into_iter().flat_map(|it| it.join().expect("a publisher")).collect();
            dead.map(|()| told)
        })?;
        let took;
        (trackerd, took) = Trackerd::start(folder, address)?;
        for told in &told {
            all.insert(told.key, (told.name.clone(), told.expected().unwrap_or_default()));
        }
        let there = known(address, all.keys())?;
        let certain = told.iter().filter(|told| told.expected().is_some()).count();
        let open: BTreeSet<&InfoHash> =
            told.iter().filter(|told| told.expected().is_none()).map(|told| &told.key).collect();
        for (key, (name, expected)) in &mut all {
            if open.contains(key) {
                *expected = there.contains(key);
            }
            ensure!(*expected == there.contains(key), "round {round}: {name} should be there: {expected}");
        }
        content_file_is_right(address, &all)?;
        search_is_right(address, &all, &told)?;
        println!(
            "round {round}: {} changes, {certain} of them certain; {} torrents; started in {:.2} s",
            told.len(),
            there.len(),
            took.as_secs_f64()
        );
    }
    println!("killed {rounds} times: registry, search and search_content.txt are right");
    swarms_are_kept(folder, trackerd, &names, rounds)
}

/// Joins as many swarms at once as the tracker promises to keep up with, beside publications and searches. Killed ten
/// seconds after the last join, it knows every one of them.
fn swarms_are_kept(folder: &Path, mut trackerd: Trackerd, names: &Names, round: u32) -> Result<()> {
    let address = trackerd.address;
    let joins: Vec<(u32, InfoHash, u64)> = (0..SWARMS_AT_ONCE).map(|n| (n, swarm(n), 1)).collect();
    let stop = AtomicBool::new(false);
    let lag_s = std::thread::scope(|scope| {
        let stop = &stop;
        for n in 0..PUBLISHERS {
            scope.spawn(move || publish(address, names, n, round, stop));
        }
        scope.spawn(|| search_on(address, names, stop));
        let lag_s = join_and_watch(&trackerd, &joins);
        let dead = trackerd.kill9();
        stop.store(true, Ordering::Relaxed);
        dead.and(lag_s)
    })?;
    let _trackerd = Trackerd::start(folder, address)?;
    let udp = Udp::connect(address, local_ip(6, 2))?;
    let mut kept = 0;
    for part in joins.chunks(MAX_SCRAPE_HASHES) {
        kept += udp.scrape(part.iter().map(|(_, key, _)| *key).collect())?.iter().filter(|it| it.leechers == 1).count();
    }
    ensure!(kept == joins.len(), "{kept} of {SWARMS_AT_ONCE} swarms are there that had changed 10 s before the kill");
    println!(
        "killed 10 s after {SWARMS_AT_ONCE} swarms had changed: all are there; the most that the lag was is {lag_s} s"
    );
    Ok(())
}

/// Until ten seconds have passed since the last join; the most seconds that `/metrics` said the disk is behind.
fn join_and_watch(trackerd: &Trackerd, joins: &[(u32, InfoHash, u64)]) -> Result<u64> {
    let udp = Udp::connect(trackerd.address, local_ip(6, 1))?;
    for window in joins.chunks(WINDOW) {
        exchange(&udp, window)?;
    }
    let joined = Instant::now();
    ensure!(trackerd.metric("trackerd_unwritten_swarms")? > 0, "nothing waits to be written, says /metrics");
    let mut most_s = 0;
    while joined.elapsed() < KEPT_AFTER {
        most_s = most_s.max(trackerd.metric("trackerd_unwritten_swarms_oldest_seconds")?);
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(most_s > 0, "the lag does not show in /metrics");
    Ok(most_s)
}

/// A swarm of this part alone.
fn swarm(n: u32) -> InfoHash {
    let mut key = [0x5A; InfoHash::LEN];
    key[..4].copy_from_slice(&n.to_be_bytes());
    InfoHash::new(key)
}

/// Publishes, and withdraws every fifth again, until the tracker is gone.
fn publish(address: SocketAddr, names: &Names, publisher: u32, round: u32, stop: &AtomicBool) -> Vec<Told> {
    let signer = SigningKey::from_bytes(&[publisher as u8 + 1; 32]);
    let mut told: Vec<Told> = Vec::new();
    let Ok(mut http) = Http::connect(address, Some(local_ip(4, publisher as u16 + 1))) else { return told };
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let number = (round * 1_000_000 + n) * PUBLISHERS + publisher;
        let name = names.name(number);
        let (key, bytes) = torrent(&name, number).expect("a .torrent can be made");
        told.push(Told { key, name, published: false, withdrawing: false, withdrawn: false });
        match http.signed(&signer, "POST", "/torrents", &key, &bytes) {
            Ok(201) => told.last_mut().expect("the one just told").published = true,
            Ok(429) => std::thread::sleep(Duration::from_millis(20)),
            _ => break,
        }
        if n % 5 == 4 {
            let withdrawn = &mut told[n as usize / 2];
            if !withdrawn.published || withdrawn.withdrawing {
                continue;
            }
            withdrawn.withdrawing = true;
            let (key, path) = (withdrawn.key, format!("/torrents/{}", withdrawn.key));
            match http.signed(&signer, "DELETE", &path, &key, &[]) {
                Ok(200) => withdrawn.withdrawn = true,
                _ => break,
            }
        }
    }
    told
}

fn announce_on(address: SocketAddr, round: u32, stop: &AtomicBool) -> Result<()> {
    let udp = Udp::connect(address, local_ip(5, round as u16 + 1))?;
    let mut reply = [0; 2_048];
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut key = [0; InfoHash::LEN];
        key[..4].copy_from_slice(&(n % 10_000_u32).to_be_bytes());
        udp.send(n, announce(InfoHash::new(key), n, 1))?;
        udp.socket.recv(&mut reply)?;
    }
    Ok(())
}

fn search_on(address: SocketAddr, names: &Names, stop: &AtomicBool) -> Result<()> {
    let mut http = Http::connect(address, None)?;
    for query in names.queries(100_000, 1_000).iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        http.search(&SearchQuery::words(query.as_str()))?;
    }
    Ok(())
}

/// Which of the keys the registry has.
fn known<'a>(address: SocketAddr, keys: impl Iterator<Item = &'a InfoHash>) -> Result<BTreeSet<InfoHash>> {
    let mut http = Http::connect(address, None)?;
    let mut known: BTreeSet<InfoHash> = keys.copied().collect();
    let all: Vec<InfoHash> = known.iter().copied().collect();
    for keys in all.chunks(KEYS_AT_ONCE) {
        let body = keys.iter().map(InfoHash::as_bytes).collect::<Vec<&[u8]>>().concat();
        let (status, unknown) = http.ask("POST", "/torrents/unknown", "", &body)?;
        ensure!(status == 200, "/torrents/unknown is answered {status}");
        for key in unknown.chunks_exact(InfoHash::LEN).filter_map(InfoHash::from_slice) {
            known.remove(&key);
        }
    }
    Ok(known)
}

fn content_file_is_right(address: SocketAddr, all: &BTreeMap<InfoHash, (String, bool)>) -> Result<()> {
    let (_, body) = Http::connect(address, None)?.get("/search_content.txt")?;
    let text = String::from_utf8(body)?;
    let mut lines: Vec<&str> = text.lines().collect();
    let line = |(key, (name, _)): (&InfoHash, &(String, bool))| {
        let (stem, file_type) = name.rsplit_once('.').context("a name without a type")?;
        anyhow::Ok(format!("Name : {stem} type: {file_type} tor : {key}.torrent"))
    };
    let mut expected = all.iter().filter(|(_, (_, there))| *there).map(line).collect::<Result<Vec<String>>>()?;
    lines.sort_unstable();
    expected.sort_unstable();
    ensure!(lines == expected, "search_content.txt has {} lines, {} are right", lines.len(), expected.len());
    Ok(())
}

/// The torrents of the last round: each is found by its name, or is not.
fn search_is_right(address: SocketAddr, all: &BTreeMap<InfoHash, (String, bool)>, last: &[Told]) -> Result<()> {
    let mut http = Http::connect(address, None)?;
    for told in last {
        let found = http.search(&SearchQuery::words(told.name.as_str()))?;
        let (name, there) = &all[&told.key];
        let found = found.hits.iter().any(|hit| hit.key == told.key && hit.name == *name);
        ensure!(found == *there, "{name} should be found: {there}");
    }
    Ok(())
}
