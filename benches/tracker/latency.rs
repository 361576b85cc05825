//! How long UDP announces take at a fifth of the greatest rate, with and without searches beside them.

use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use peerd::wire::catalogue::SearchQuery;
use peerd::wire::id::InfoHash;
use peerd::wire::tracker_udp::{Family, Response};

use crate::million::quantile_ms;
use crate::names::Names;
use crate::server::{Http, Trackerd, Udp, announce, local_ip};

const PART: Duration = Duration::from_secs(6);
/// Without, with, without, with ...
const PAIRS: usize = 9;
const SEARCHES_PER_S: u32 = 20;
/// Under way at once when the greatest rate is sought.
const WINDOW: usize = 256;
/// Peers that announce again and again.
const PEERS: u32 = 20_000;
const SLOTS: usize = 1 << 16;

pub fn run(trackerd: &Trackerd, names: &Names, torrents: u32, keys: &[InfoHash]) -> Result<()> {
    let udp = Udp::connect(trackerd.address, local_ip(3, 1))?;
    let peers: Vec<(InfoHash, u32)> = (0..PEERS).map(|n| (keys[n as usize % keys.len()], 0x00F0_0000 + n)).collect();
    let most = greatest_rate(&udp, &peers)?;
    let rate = most / 5.0;
    let queries = names.queries(torrents, 2_000);
    let mut p99_ms = [Vec::new(), Vec::new()];
    for part in 0..2 * PAIRS {
        let with = part % 2 == 1;
        let stop = AtomicBool::new(false);
        let p99 = std::thread::scope(|scope| {
            let searcher = with.then(|| scope.spawn(|| search(trackerd, &queries, &stop)));
            let took = paced(&udp, &peers, rate);
            stop.store(true, Ordering::Relaxed);
            if let Some(searcher) = searcher {
                searcher.join().expect("the searcher")?;
            }
            quantile_ms(&mut took?, 990)
        })?;
        p99_ms[usize::from(with)].push(p99);
    }
    let [without, with] = p99_ms.map(|mut values| {
        values.sort_unstable_by(f64::total_cmp);
        values[PAIRS / 2]
    });
    println!(
        "UDP announces at {rate:.0}/s of at most {most:.0}/s: p99 {without:.3} ms, with {SEARCHES_PER_S} searches/s {with:.3} ms: {:.2} times (at most 1.5)",
        with / without
    );
    Ok(())
}

fn greatest_rate(udp: &Udp, peers: &[(InfoHash, u32)]) -> Result<f64> {
    let mut reply = [0; 2_048];
    let (mut answered, mut under_way, mut next) = (0_u32, 0, 0);
    let started = Instant::now();
    while started.elapsed() < PART {
        while under_way < WINDOW {
            let (key, n) = peers[next % peers.len()];
            udp.send(next as u32, announce(key, n, 1))?;
            (next, under_way) = (next + 1, under_way + 1);
        }
        match udp.socket.recv(&mut reply) {
            Ok(_) => (answered, under_way) = (answered + 1, under_way - 1),
            // Some were lost.
            Err(_) => under_way = 0,
        }
    }
    Ok(f64::from(answered) / started.elapsed().as_secs_f64())
}

/// Sends at this rate whatever comes back; how long each answer took.
fn paced(udp: &Udp, peers: &[(InfoHash, u32)], rate: f64) -> Result<Vec<Duration>> {
    let sent_at: Vec<AtomicU64> = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
    let took = Mutex::new(Vec::with_capacity((rate * PART.as_secs_f64()) as usize + 1));
    setsockopt(&udp.socket, ReceiveTimestampns, &true)?;
    let (began, started) = (SystemTime::now().duration_since(UNIX_EPOCH)?, Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut reply, mut took) = ([0; 2_048], took.lock().expect("nobody else holds it"));
            while let Ok((bytes, came)) = receive(udp, &mut reply) {
                let now = came.saturating_sub(began);
                if let Ok(Response::Announce { transaction_id, .. }) = Response::decode(&reply[..bytes], Family::V4) {
                    let sent = Duration::from_nanos(sent_at[transaction_id as usize % SLOTS].load(Ordering::Acquire));
                    took.push(now.saturating_sub(sent));
                }
            }
        });
        let mut sent = 0_u32;
        while started.elapsed() < PART {
            while f64::from(sent) < started.elapsed().as_secs_f64() * rate {
                let (key, n) = peers[sent as usize % peers.len()];
                sent_at[sent as usize % SLOTS].store(started.elapsed().as_nanos() as u64, Ordering::Release);
                udp.send(sent, announce(key, n, 1))?;
                sent += 1;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        anyhow::Ok(())
    })?;
    Ok(took.into_inner().expect("its thread has ended"))
}

/// An answer, and when the kernel got it: how soon this thread is woken is no matter of the tracker's.
fn receive(udp: &Udp, reply: &mut [u8]) -> Result<(usize, Duration)> {
    let (mut slices, mut control) = ([IoSliceMut::new(reply)], cmsg_space!(libc::timespec));
    let message = recvmsg::<()>(udp.socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let came = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    });
    Ok((message.bytes, came.context("the kernel tells no time")?))
}

fn search(trackerd: &Trackerd, queries: &[String], stop: &AtomicBool) -> Result<()> {
    let mut http = Http::connect(trackerd.address, None)?;
    let started = Instant::now();
    for (n, query) in (0..).zip(queries.iter().cycle()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep((Duration::from_secs(1) / SEARCHES_PER_S * n).saturating_sub(started.elapsed()));
        http.search(&SearchQuery::words(query.as_str()))?;
    }
    Ok(())
}
