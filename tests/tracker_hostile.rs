//! trackerd among strangers who send what no client sends, all at once, while honest clients go on.

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::support::content::MIB;
use crate::support::{gate, secs};
use crate::tracker::{metric, request, start, udp, udp_announce, udp_connect};

const SEED: u64 = 196;
/// How long it goes on.
const STORM: Duration = Duration::from_secs(4);
/// An honest client waits no longer for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections that say nothing, or one byte a second.
const SILENT: usize = 300;

/// Any address of this host: 127.9.x.y, a neighbourhood of strangers.
fn stranger(rng: &mut SmallRng) -> Ipv4Addr {
    Ipv4Addr::new(127, 9, rng.random(), rng.random_range(1..255))
}

fn random_bytes(rng: &mut SmallRng, most: usize) -> Vec<u8> {
    let len = rng.random_range(0..most);
    (0..len).map(|_| rng.random()).collect()
}

/// A datagram that no client sends; whether it carries a connection id that is good.
fn datagram(rng: &mut SmallRng, good: [u8; 8]) -> (Vec<u8>, bool) {
    let proven = rng.random_ratio(1, 2);
    let id = if proven { good } else { rng.random() };
    let mut announce = udp_announce(id, rng.random());
    let bytes = match rng.random_range(0..9) {
        0 => return (random_bytes(rng, 2_000), false),
        // Cut off anywhere.
        1 => announce[..rng.random_range(0..announce.len())].to_vec(),
        // Longer than it needs to be, with options that are none.
        2 => [&announce[..], &random_bytes(rng, 1_000)].concat(),
        // Port 0, any numbers, any event.
        3 => {
            announce[96..98].fill(0);
            announce.to_vec()
        }
        4 => {
            rng.fill(&mut announce[56..96]);
            announce.to_vec()
        }
        // Another action.
        5 => [&id[..], &rng.random_range(2_u32..9).to_be_bytes(), &[0; 4], &random_bytes(rng, 100)].concat(),
        // Scrapes of nothing, of half a hash, of more than fit.
        6 => [&id[..], &2_u32.to_be_bytes(), &[0; 4], &vec![7; rng.random_range(0..100) * 10]].concat(),
        // Half a connect.
        7 => return (0x0417_2710_1980_u64.to_be_bytes()[..rng.random_range(0..8)].to_vec(), false),
        // A torrent that nobody has heard of, again and again.
        _ => {
            rng.fill(&mut announce[16..36]);
            announce.to_vec()
        }
    };
    (bytes, proven)
}

/// Sends such datagrams from many addresses. Nobody who has proved nothing gets more bytes than he has sent.
fn storm_by_udp(address: SocketAddr, seed: u64, stop: &AtomicBool) -> u64 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut sent, mut reply) = (0, [0; 4_096]);
    while !stop.load(Ordering::Relaxed) {
        let socket = UdpSocket::bind((stranger(&mut rng), 0)).expect("a socket");
        socket.connect(address).expect("connect a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
        let good = udp_connect(&socket);
        for _ in 0..50 {
            let (bytes, proven) = datagram(&mut rng, good);
            socket.send(&bytes).expect("send");
            sent += 1;
            if proven {
                continue;
            }
            socket.set_nonblocking(true).expect("no waiting");
            while let Ok(len) = socket.recv(&mut reply) {
                // What answers an earlier, proven one may be longer: it is an announce's or a scrape's.
                let of_proven = matches!(reply[..4], [0, 0, 0, 1..=3]);
                assert!(len <= bytes.len() || of_proven, "seed {seed}: {len} bytes for {}", bytes.len());
            }
            socket.set_nonblocking(false).expect("wait again");
        }
    }
    sent
}

/// Draws a request.
type Form<'a> = &'a dyn Fn(&mut SmallRng) -> Vec<u8>;

/// Requests that are none, or ask for too much.
fn requests(rng: &mut SmallRng) -> Vec<u8> {
    let post = |path: &str, headers: &str, body: &[u8]| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    let hash = "%41".repeat(20);
    let announce = |rest: &str| get(&format!("/announce?info_hash={hash}&peer_id={hash}&{rest}"));
    let forms: [Form<'_>; 24] = [
        &|rng| random_bytes(rng, 3_000),
        &|_| b"\x13BitTorrent protocol\0\0\0\0\0\0\0\0".to_vec(),
        &|_| get(&format!("/{}", "a".repeat(100_000))),
        &|_| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(5_000)).into_bytes(),
        &|_| get("/torrents/../../../../etc/passwd"),
        &|_| get("/torrents/%2e%2e%2f%2e%2e%2fetc%2fpasswd.torrent"),
        &|_| get(&format!("/search?q={}", "a".repeat(1 << 20))),
        &|_| get(&format!("/search?q={}", "a+".repeat(500))),
        &|_| get("/search?q=*"),
        &|_| get("/search?q=%28a%2B%29%2B%24&limit=4294967295&offset=4294967295"),
        &|_| get("/search?q=%E2%80%AE%E2%80%8F%00%0A%1B%5B31m"),
        &|_| get("/search?q=%ff%fe%zz&limit=-1"),
        &|_| get("/announce?info_hash=short&port=1"),
        &|_| announce("port=0&left=1&uploaded=0&downloaded=0"),
        &|_| announce("port=70000&left=-1&uploaded=99999999999999999999&downloaded=-9223372036854775808"),
        &|_| {
            announce("port=1&left=9223372036854775808&uploaded=18446744073709551615&numwant=-2147483648&event=nonsense")
        },
        &|_| announce(&format!("port=7&left=1&uploaded=0&downloaded=0&ip=169.254.169.254&numwant={}", u64::MAX)),
        &|_| get(&format!("/scrape?{}", format!("info_hash={hash}&").repeat(200))),
        &|_| post("/torrents", "", &b"l".repeat(200_000)),
        &|_| post("/torrents", "", b"d4:infod6:lengthi99999999999999999999999e4:name1:a12:piece lengthi1e6:pieces0:ee"),
        &|_| post("/torrents", "Authorization: Peerd x.y.z\r\n", b"d4:infodee"),
        &|rng| post("/torrents/unknown", "", &random_bytes(rng, 999)),
        &|_| b"POST /torrents HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\nx".to_vec(),
        &|_| b"POST /torrents HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\nx".to_vec(),
    ];
    forms[rng.random_range(0..forms.len())](rng)
}

fn storm_by_http(address: SocketAddr, seed: u64, stop: &AtomicBool) -> u64 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut sent, mut answer) = (0, [0; 8_192]);
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("set a timeout");
        // The tracker may have closed it in the middle.
        let written = stream.write_all(&requests(&mut rng));
        if written.is_ok() && rng.random_ratio(2, 3) {
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut answer);
        }
        sent += 1;
    }
    sent
}

/// Connections that are opened and say next to nothing.
fn dawdle(address: SocketAddr, stop: &AtomicBool) {
    let mut streams: Vec<TcpStream> = (0..SILENT).map(|_| TcpStream::connect(address).expect("a connection")).collect();
    let head = b"GET /health HTTP/1.1\r\nX-Slow: ";
    for byte in head.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        streams.iter_mut().skip(SILENT / 2).for_each(|stream| drop(stream.write(&[*byte])));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What a client does: it announces both ways, searches, and is answered, always, and soon. How often, and the slowest.
fn go_on(address: SocketAddr, stop: &AtomicBool) -> (u64, Duration) {
    let socket = udp(address);
    let connection = udp_connect(&socket);
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(secs(10))).expect("set a timeout");
    let mut stream = BufReader::new(stream);
    let (mut rounds, mut slowest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let hash = "%42".repeat(20);
        let query = format!("info_hash={hash}&peer_id=-XX0000-000000000000&port=6881&uploaded=0&downloaded=0&left=1");
        for path in [&format!("/announce?{query}"), "/search?q=some+words", "/health"] {
            assert_eq!(request(&mut stream, path), "HTTP/1.1 200 OK", "{path}");
        }
        let number = 1_000_000 + rounds as u32;
        let mut reply = [0; 2_048];
        // A datagram may be lost on the way.
        let answered = (0..10).any(|_| {
            socket.send(&udp_announce(connection, number)).expect("send");
            socket.recv(&mut reply).is_ok_and(|len| len >= 20 && reply[4..8] == number.to_be_bytes())
        });
        assert!(answered, "an honest announce is not answered");
        slowest = slowest.max(asked.elapsed());
        rounds += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    (rounds, slowest)
}

#[test]
fn whatever_strangers_send_honest_clients_are_served() {
    let _turn = gate::alone();
    let folder = crate::support::folder();
    let (mut process, address) = start(folder.path());
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let (rounds, slowest) = std::thread::scope(|scope| {
        let (stop, sent) = (&stop, &sent);
        for seed in SEED..SEED + 2 {
            scope.spawn(move || sent.fetch_add(storm_by_udp(address, seed, stop), Ordering::Relaxed));
            scope.spawn(move || sent.fetch_add(storm_by_http(address, seed, stop), Ordering::Relaxed));
        }
        scope.spawn(move || dawdle(address, stop));
        let honest = scope.spawn(move || go_on(address, stop));
        std::thread::sleep(STORM);
        stop.store(true, Ordering::Relaxed);
        honest.join().expect("an honest client")
    });
    let sent = sent.into_inner();
    eprintln!("{sent} requests of strangers; {rounds} honest rounds, the slowest took {slowest:?}");
    assert!(sent > 1_000, "only {sent} requests were sent");
    assert!(rounds > 50, "only {rounds} honest rounds");
    assert!(slowest < PATIENCE, "{slowest:?}");
    // As the kernel counts it.
    let resident = process.peak_resident_bytes();
    assert!(resident <= 256 * MIB, "{resident}");
    assert!(metric(address, "trackerd_swarms") <= sent + rounds, "nothing is entered for what was refused");
    for reason in
        ["udp_malformed", "udp_connection_id", "port_zero", "bad_announce", "bad_query", "bad_torrent", "no_such_path"]
    {
        let name = format!("trackerd_refusals_total{{reason=\"{reason}\"}}");
        assert!(metric(address, &name) > 0, "{reason} is not counted");
    }
    assert_eq!(metric(address, "trackerd_torrents"), 0, "nothing was published");
    process.terminate();
    assert!(process.wait(secs(20)).success());
}
