//! Programs that mean harm, at every socket there is, beside an honest transfer: it ends in time, nobody grows, nobody
//! honest is banned.

mod lies;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use peerd::wire::handshake::{Handshake, Reserved};
use peerd::wire::id::{InfoHash, PeerId};
use peerd::wire::layout::RawBlock;
use peerd::wire::message::Message;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::support::content::{MIB, assert_same, drop_in};
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker};
use crate::support::process::peak_resident_bytes;
use crate::support::scripted::on_host;
use crate::support::{folder, gate, secs};

const FILE_BYTES: u64 = 256 * MIB;
const LINK_MBIT: u32 = 200;
/// What attacks may make a daemon grow by: the pool's budget, the greetings' and sessions' own memory.
const MOST_GROWTH_BYTES: u64 = 96 * MIB;
const SILENT_SOCKETS: usize = 10_000;
const REQUESTS: u32 = 1_000_000;
/// Between two tries of one attacker: it is to trouble the daemons, not this machine's two cores.
const PAUSE: Duration = Duration::from_millis(20);

/// Whom it goes for.
struct Target {
    peer: SocketAddr,
    tracker: SocketAddr,
    control: PathBuf,
    key: InfoHash,
}

/// What an attacker has done, and when it is to end.
#[derive(Default)]
struct Seen {
    tries: AtomicU64,
    sent_bytes: AtomicU64,
    hung_up_on: AtomicU64,
    stop: AtomicBool,
}

impl Seen {
    fn goes_on(&self) -> bool {
        self.tries.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PAUSE);
        !self.stop.load(Ordering::Relaxed)
    }

    /// Writes until it is all written, the other end hangs up, or does not read for a second.
    fn write(&self, stream: &mut impl Write, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() && !self.stop.load(Ordering::Relaxed) {
            match stream.write(rest) {
                Ok(0) => break,
                Ok(count) => {
                    self.sent_bytes.fetch_add(count as u64, Ordering::Relaxed);
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => {
                    self.hung_up_on.fetch_add(1, Ordering::Relaxed);
                    return false;
                }
            }
        }
        rest.is_empty()
    }

    /// Reads until the other end hangs up, or says nothing for a second.
    fn drain(&self, stream: &mut impl Read) {
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk) {
                Ok(1..) if !self.stop.load(Ordering::Relaxed) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => break,
            }
        }
        self.hung_up_on.fetch_add(1, Ordering::Relaxed);
    }
}

fn connect(to: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, secs(2)).ok()?;
    stream.set_write_timeout(Some(secs(1))).and_then(|()| stream.set_read_timeout(Some(secs(1)))).ok()?;
    Some(stream)
}

fn handshake(target: &Target, letter: u8) -> Vec<u8> {
    let peer_id = PeerId([letter; 20]);
    Handshake { info_hash: target.key, peer_id, reserved: Reserved::ours() }.encode().to_vec()
}

/// Opens thousands of connections and says nothing on any.
fn silence(target: &Target, seen: &Seen) {
    let mut held = Vec::new();
    while !seen.stop.load(Ordering::Relaxed) {
        match TcpStream::connect_timeout(&target.peer, secs(1)) {
            Ok(stream) if held.len() < SILENT_SOCKETS => {
                seen.tries.fetch_add(1, Ordering::Relaxed);
                held.push(stream);
            }
            _ => thread::sleep(PAUSE),
        }
    }
}

/// Asks for a million blocks and reads none.
fn gluttony(target: &Target, seen: &Seen) {
    let block = RawBlock { piece: 0, begin: 0, len: 16_384 };
    let mut requests = Vec::new();
    for _ in 0..REQUESTS / 100 {
        Message::Request(block).encode(&mut requests);
    }
    let mut held = Vec::new();
    while seen.goes_on() {
        let Some(mut stream) = connect(target.peer) else { continue };
        let mut hello = handshake(target, b'g');
        Message::HaveNone.encode(&mut hello);
        Message::Interested.encode(&mut hello);
        if seen.write(&mut stream, &hello) {
            let _ = (0..100).all(|_| seen.write(&mut stream, &requests));
        }
        held.push(stream);
        held.truncate(32);
    }
}

/// Says what may not be said.
fn nonsense(target: &Target, seen: &Seen) {
    let mut rng = SmallRng::seed_from_u64(1);
    let far = RawBlock { piece: 0, begin: u32::MAX - 16_383, len: 16_384 };
    let words = [
        Message::Have(u32::MAX),
        Message::Bitfield(vec![0xFF; 3]),
        Message::Request(far),
        Message::Request(RawBlock { len: 0, ..far }),
        Message::Request(RawBlock { begin: 0, len: 1 << 31, ..far }),
        Message::Extended { id: 0, payload: vec![b'd'; 100_000] },
        Message::Extended { id: 0, payload: b"d1:md11:ut_metadatai1ee13:metadata_sizei99999999999ee".to_vec() },
    ];
    while seen.goes_on() {
        let Some(mut stream) = connect(target.peer) else { continue };
        let mut bytes = handshake(target, b'n');
        match rng.random_range(0..words.len() + 3) {
            n if n < words.len() => words[n].encode(&mut bytes),
            n if n == words.len() => bytes.extend(u32::MAX.to_be_bytes()),
            n if n == words.len() + 1 => bytes.extend([0; 4].repeat(50_000)),
            _ => {
                bytes.resize(2_000, 0);
                rng.fill_bytes(&mut bytes[1..]);
            }
        }
        if seen.write(&mut stream, &bytes) {
            seen.drain(&mut stream);
        }
    }
}

/// Half requests that never end, whole ones that ask too much, bytes that are none.
fn bad_http(target: &Target, seen: &Seen) {
    let mut held = Vec::new();
    let long = format!("GET /search?q={} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20)).into_bytes();
    let tales: [&[u8]; 5] = [
        b"POST /torrents HTTP/1.1\r\nHost: x\r\nContent-Length: 9223372036854775807\r\n\r\nd",
        b"POST /torrents HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-bittorrent\r\nContent-Length: 3\r\n\r\nd4:",
        b"GET /torrents/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0",
        &long,
    ];
    for n in 0.. {
        if !seen.goes_on() {
            return;
        }
        let Some(mut stream) = connect(target.tracker) else { continue };
        if seen.write(&mut stream, tales[n % tales.len()]) {
            seen.drain(&mut stream);
        }
        if let Some(mut slow) = connect(target.tracker).filter(|_| held.len() < 300) {
            seen.write(&mut slow, b"GET / HTTP/1.1\r\nHost: ");
            held.push(slow);
        }
        held.retain_mut(|slow| seen.write(slow, b"x"));
    }
}

/// Datagrams of all lengths, of which some begin like an announce.
fn bad_datagrams(target: &Target, seen: &Seen) {
    let socket = UdpSocket::bind((if target.tracker.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).expect("a socket");
    let mut rng = SmallRng::seed_from_u64(2);
    while seen.goes_on() {
        for _ in 0..100 {
            let mut bytes = vec![0; rng.random_range(0..200)];
            rng.fill_bytes(&mut bytes);
            if rng.random() && bytes.len() > 16 {
                bytes[8..12].copy_from_slice(&[0, 0, 0, 1]);
            }
            seen.sent_bytes.fetch_add(socket.send_to(&bytes, target.tracker).unwrap_or(0) as u64, Ordering::Relaxed);
        }
    }
}

/// Too many clients, frames that lie or stop, and a browser, at the control socket.
fn bad_control(target: &Target, seen: &Seen) {
    let tales: [&[u8]; 4] = [
        &[0xFF; 64],
        b"POST /leave HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        &[0, 0, 0, 20, 0, 1],
        &[0, 0, 0, 8, 0, 1, 0, 0, 0, 1, 0xFF, 0xFF],
    ];
    let mut held = Vec::new();
    for n in 0.. {
        if !seen.goes_on() {
            return;
        }
        let Ok(mut stream) = UnixStream::connect(&target.control) else { continue };
        stream.set_read_timeout(Some(PAUSE)).and_then(|()| stream.set_write_timeout(Some(PAUSE))).expect("a socket");
        if seen.write(&mut stream, tales[n % tales.len()]) {
            seen.drain(&mut stream);
        }
        held.push(stream);
        held.truncate(100);
    }
}

type Attack = fn(&Target, &Seen);

const ATTACKS: [(&str, Attack); 6] = [
    ("10,000 silent connections", silence),
    ("a million requests, nothing read", gluttony),
    ("messages that may not be", nonsense),
    ("HTTP without end", bad_http),
    ("datagrams of noise", bad_datagrams),
    ("a hostile client of the control socket", bad_control),
];

struct UnderWay {
    name: &'static str,
    seen: Arc<Seen>,
    thread: JoinHandle<()>,
}

fn begin(host: &Host, target: &Arc<Target>) -> Vec<UnderWay> {
    let start = |(name, attack): (&'static str, Attack)| {
        let (seen, target) = (Arc::new(Seen::default()), target.clone());
        let sees = seen.clone();
        UnderWay { name, seen, thread: on_host(host, move || attack(&target, &sees)) }
    };
    ATTACKS.into_iter().map(start).collect()
}

fn end(attacks: Vec<UnderWay>) {
    attacks.iter().for_each(|attack| attack.seen.stop.store(true, Ordering::Relaxed));
    for UnderWay { name, seen, thread } in attacks {
        thread.join().unwrap_or_else(|_| panic!("{name}"));
        let [tries, sent, cut] =
            [&seen.tries, &seen.sent_bytes, &seen.hung_up_on].map(|counter| counter.load(Ordering::Relaxed));
        println!("{name}: {tries} tries, {:.1} MiB said, hung up on {cut} times", sent as f64 / MIB as f64);
        assert!(tries > 10, "{name}: only {tries} tries");
    }
}

/// How long one honest fetch takes.
fn fetch(leecher: &Peer) -> Duration {
    let begun = Instant::now();
    leecher.fetch("honest.bin", secs(200));
    begun.elapsed()
}

fn forget(leecher: &Peer) {
    leecher.ctl(&["remove", "--data", "honest.bin"]).expect_success();
}

#[test]
fn beside_every_attack_an_honest_transfer_takes_at_most_twice_its_time() {
    let _turn = gate::alone();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("more descriptors for the attackers");
    let folder = folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let seeder = Peer::start(&net.hosts[1], folder.path(), "S", &tracker);
    let leecher = Peer::start(&net.hosts[2], folder.path(), "L", &tracker);
    let original = drop_in(&seeder.upload(), "honest.bin", 1, FILE_BYTES);
    let hit = tracker.wait_hit("honest.bin", secs(120));
    leecher.host.shape(None, Some(LINK_MBIT));
    let undisturbed = (0..3).map(|_| {
        let took = fetch(&leecher);
        forget(&leecher);
        took
    });
    let undisturbed = undisturbed.min().expect("three fetches");

    let key = hit["key"].as_str().and_then(|key| key.parse().ok()).expect("a key");
    let target = Arc::new(Target {
        peer: (seeder.host.ip, 6881).into(),
        tracker: (tracker.host.ip, 6969).into(),
        control: seeder.home.join("state/peerd.sock"),
        key,
    });
    let daemons = [("S", &seeder.process), ("L", &leecher.process), ("the tracker", &tracker.process)];
    let before = daemons.map(|(_, process)| peak_resident_bytes(process.pid()));
    let attacks = begin(&net.hosts[3], &target);
    let liars = lies::begin(&net.hosts[3], &leecher);
    thread::sleep(secs(3));
    let mut disturbed = fetch(&leecher);
    for _ in 0..2 {
        if disturbed > undisturbed * 2 {
            forget(&leecher);
            disturbed = disturbed.min(fetch(&leecher));
        }
    }
    end(attacks);
    liars.end();
    println!("undisturbed {undisturbed:.1?}, disturbed {disturbed:.1?}");
    assert_same(&original, &leecher.downloads().join("honest.bin"));
    for ((name, process), before) in daemons.into_iter().zip(before) {
        let after = peak_resident_bytes(process.pid());
        println!("{name}: at most {} MiB before, {} MiB after", before / MIB, after / MIB);
        assert!(after < before + MOST_GROWTH_BYTES, "{name} grew from {before} to {after} bytes");
        assert!(!process.log().contains("panicked"), "{name}:\n{}", process.log());
    }
    for peer in [&seeder, &leecher] {
        assert!(!peer.process.log().contains("is banned"), "{}", peer.process.log());
    }
    assert!(disturbed <= undisturbed * 2, "{disturbed:?} beside the attacks, {undisturbed:?} without");
}
