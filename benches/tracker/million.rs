//! A million torrents and two million peers in one trackerd: published, announced, searched, killed, started again.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ed25519_dalek::SigningKey;
use peerd::wire::catalogue::SearchQuery;
use peerd::wire::id::InfoHash;
use peerd::wire::tracker_udp::{Family, Response};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::latency;
use crate::names::Names;
use crate::server::{Http, Trackerd, Udp, announce, free_address, local_ip};
use crate::torrent::torrent;

const PUBLISHERS: u16 = 8;
const QUERIES: usize = 10_000;
/// Announces under way at once.
const WINDOW: u32 = 64;
/// Peers that announce from one address: within its burst.
const PEERS_PER_ADDRESS: u32 = 20_000;
/// The writing behind is waited for so long.
const WRITTEN_WITHIN: Duration = Duration::from_secs(900);

pub fn run(folder: &Path, torrents: u32, peers: u32) -> Result<()> {
    let names = Names::new();
    let address = free_address()?;
    let (mut trackerd, _) = Trackerd::start(folder, address)?;

    let keys = publish(&trackerd, &names, torrents)?;
    println!("memory with {torrents} torrents: {} MiB", trackerd.peak_mib()?);
    enter_peers(&trackerd, &keys, peers)?;
    println!("memory with {peers} peers: {} MiB", trackerd.peak_mib()?);
    search(&trackerd, &names, torrents)?;
    wait_until_written(&trackerd)?;
    latency::run(&trackerd, &names, torrents, &keys)?;
    wait_until_written(&trackerd)?;
    println!("memory, the most of all: {} MiB (at most 1536)", trackerd.peak_mib()?);

    let known = trackerd.metric("trackerd_peers")?;
    trackerd.kill9()?;
    let (trackerd, took) = Trackerd::start(folder, address)?;
    println!("start after kill -9: {:.1} s (at most 10)", took.as_secs_f64());
    let asked = Instant::now();
    let last = names.name(torrents - 1);
    let found = Http::connect(address, None)?.search(&SearchQuery::words(last.as_str()))?;
    println!("first search: {:.1} ms", asked.elapsed().as_secs_f64() * 1e3);
    ensure!(found.hits.first().is_some_and(|hit| hit.name == last), "{last} is not found");
    ensure!(trackerd.metric("trackerd_torrents")? == u64::from(torrents), "torrents are missing");
    println!("peers after it: {} of {known} (at least 95 %)", trackerd.metric("trackerd_peers")?);
    println!("memory after it: {} MiB (at most 1536)", trackerd.peak_mib()?);
    Ok(())
}

/// Everything through `POST /torrents`, signed, by eight publishers at addresses of their own; the keys by number.
fn publish(trackerd: &Trackerd, names: &Names, torrents: u32) -> Result<Vec<InfoHash>> {
    let next = AtomicU32::new(0);
    let publisher = |number: u16| -> Result<Vec<(u32, InfoHash)>> {
        let mut http = Http::connect(trackerd.address, Some(local_ip(1, number + 1)))?;
        let signer = SigningKey::from_bytes(&[number as u8; 32]);
        let mut published = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= torrents {
                return Ok(published);
            }
            let (key, bytes) = torrent(&names.name(n), n)?;
            while match http.signed(&signer, "POST", "/torrents", &key, &bytes)? {
                201 => false,
                429 | 503 => true,
                status => anyhow::bail!("a publication is answered {status}"),
            } {
                std::thread::sleep(Duration::from_millis(100));
            }
            published.push((n, key));
        }
    };
    let started = Instant::now();
    let mut keys: Vec<(u32, InfoHash)> = Vec::with_capacity(torrents as usize);
    let mut seconds = vec![0];
    std::thread::scope(|scope| -> Result<()> {
        let publishers: Vec<_> = (0..PUBLISHERS).map(|n| scope.spawn(move || publisher(n))).collect();
        while !publishers.iter().all(|publisher| publisher.is_finished()) {
            std::thread::sleep(Duration::from_secs(1));
            seconds.push(next.load(Ordering::Relaxed).min(torrents));
        }
        for publisher in publishers {
            keys.extend(publisher.join().expect("a publisher")?);
        }
        Ok(())
    })?;
    let in_10_s = seconds.windows(11).map(|window| (window[10] - window[0]) / 10);
    let slowest = in_10_s.min().map_or_else(|| "?".to_owned(), |slowest| slowest.to_string());
    let rate = f64::from(torrents) / started.elapsed().as_secs_f64();
    println!("published: {rate:.0}/s, {slowest}/s in the slowest 10 s (at least 2000)");
    keys.sort_unstable_by_key(|(n, _)| *n);
    Ok(keys.into_iter().map(|(_, key)| key).collect())
}

/// A seeder for each torrent, then leechers, most of them where most are.
fn enter_peers(trackerd: &Trackerd, keys: &[InfoHash], peers: u32) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(9);
    let mut swarm_of = |n: u32| match keys.get(n as usize) {
        Some(key) => (*key, 0),
        None => (keys[((keys.len() as f64).powf(rng.random::<f64>()) as usize).min(keys.len() - 1)], 1),
    };
    let started = Instant::now();
    for from in (0..peers).step_by(PEERS_PER_ADDRESS as usize) {
        let udp = Udp::connect(trackerd.address, local_ip(2, (from / PEERS_PER_ADDRESS + 1) as u16))?;
        let until = (from + PEERS_PER_ADDRESS).min(peers);
        let all: Vec<(u32, InfoHash, u64)> =
            (from..until).map(|n| (n, swarm_of(n))).map(|(n, (key, left))| (n, key, left)).collect();
        for window in all.chunks(WINDOW as usize) {
            exchange(&udp, window)?;
        }
    }
    let rate = f64::from(peers) / started.elapsed().as_secs_f64();
    println!(
        "entered: {rate:.0} peers/s; {} in {} swarms",
        trackerd.metric("trackerd_peers")?,
        trackerd.metric("trackerd_swarms")?
    );
    Ok(())
}

/// Announces these peers, `n` deciding which, until each is answered.
pub fn exchange(udp: &Udp, window: &[(u32, InfoHash, u64)]) -> Result<()> {
    let mut waiting: Vec<u32> = window.iter().map(|(n, ..)| *n).collect();
    let mut reply = [0; 2_048];
    for _ in 0..20 {
        for (n, key, left) in window.iter().filter(|(n, ..)| waiting.contains(n)) {
            udp.send(*n, announce(*key, *n, *left))?;
        }
        while !waiting.is_empty() {
            let Ok(bytes) = udp.socket.recv(&mut reply) else { break };
            match Response::decode(&reply[..bytes], Family::V4)? {
                Response::Announce { transaction_id, .. } => waiting.retain(|n| *n != transaction_id),
                other => anyhow::bail!("an announce is answered {other:?}"),
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
    }
    anyhow::bail!("announces are not answered")
}

fn search(trackerd: &Trackerd, names: &Names, torrents: u32) -> Result<()> {
    let queries = names.queries(torrents, QUERIES);
    let mut http = Http::connect(trackerd.address, None)?;
    let (mut took, mut empty) = (Vec::with_capacity(QUERIES), 0);
    for query in &queries {
        let asked = Instant::now();
        let reply = http.search(&SearchQuery::words(query.as_str()))?;
        took.push((asked.elapsed(), query));
        empty += usize::from(reply.hits.is_empty());
    }
    took.sort_unstable();
    let ms = |per_mille: usize| took[(QUERIES - 1) * per_mille / 1_000].0.as_secs_f64() * 1e3;
    println!(
        "search: median {:.2} ms, p99 {:.2} ms (at most 5), slowest {:.2} ms; {empty} of {QUERIES} found nothing",
        ms(500),
        ms(990),
        ms(1_000)
    );
    for (took, query) in took.iter().rev().step_by(10).take(5) {
        println!("  {:.2} ms: {query}", took.as_secs_f64() * 1e3);
    }
    Ok(())
}

fn wait_until_written(trackerd: &Trackerd) -> Result<()> {
    let started = Instant::now();
    let waiting = trackerd.metric("trackerd_unwritten_swarms")?;
    while trackerd.metric("trackerd_unwritten_swarms")? > 0 || trackerd.metric("trackerd_unwritten_changes")? > 0 {
        ensure!(started.elapsed() < WRITTEN_WITHIN, "the swarms are not written");
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("{waiting} swarms were still to be written: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// The value below which so many of a thousand lie, in milliseconds.
pub fn quantile_ms(took: &mut [Duration], per_mille: usize) -> Result<f64> {
    took.sort_unstable();
    let place = took.len().saturating_sub(1) * per_mille / 1_000;
    Ok(took.get(place).context("nothing was answered")?.as_secs_f64() * 1e3)
}
