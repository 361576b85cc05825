//! A whole tracker on loopback, spoken to by raw sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer, SigningKey};

use super::announcer::fixture::request;
use super::*;
use crate::clock::SystemClock;
use crate::wire::announce::{AnnounceRequest, Event};
use crate::wire::auth::{Authorization, signing_text};
use crate::wire::catalogue::{Match, PeersReply, SearchReply};
use crate::wire::id::{InfoHash, PeerId, PieceCheck};
use crate::wire::metainfo::{InfoSpec, Metainfo, SpecFiles, build};
use crate::wire::name::{FileName, RelPath};
use crate::wire::tracker_http::{decode_announce_response, decode_scrape_response, scrape_query};
use crate::wire::tracker_udp::{Family, Request, Response};

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    runtime: tokio::runtime::Runtime,
    tracker: Tracker,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Running {
    fn start(options: TrackerOptions) -> Running {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let tracker = runtime.block_on(Tracker::start(options)).unwrap();
        Running { runtime, tracker }
    }

    fn on_loopback(state_dir: &std::path::Path) -> Running {
        let listen = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        Running::start(TrackerOptions { listen, ..TrackerOptions::new(state_dir) })
    }

    fn v4(&self) -> SocketAddr {
        self.tracker.local_addrs()[0]
    }

    fn v6(&self) -> SocketAddr {
        self.tracker.local_addrs()[1]
    }

    fn stop(self) {
        self.runtime.block_on(self.tracker.stop()).unwrap();
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        http(self.v4(), method, path, headers, body)
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", &[])
    }

    fn search(&self, query: &str) -> SearchReply {
        let answer = self.get(&format!("/search?{query}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        SearchReply::from_json(&answer.body).unwrap()
    }

    /// How often it was refused for this reason.
    fn refusals(&self, reason: &str) -> u64 {
        let start = format!("trackerd_refusals_total{{reason=\"{reason}\"}} ");
        let metrics = self.get("/metrics").text();
        metrics.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
    }

    fn names(&self, query: &str) -> Vec<String> {
        self.search(query).hits.into_iter().map(|hit| hit.name).collect()
    }

    fn signed(&self, signer: &SigningKey, method: &str, path: &str, metainfo: &Metainfo, at: u64) -> Answer {
        let host = format!("tracker.lan:{}", self.v4().port());
        let signature = signer.sign(&signing_text(method, &host, &metainfo.info_hash(), at)).to_bytes();
        let authorization = Authorization { key: signer.verifying_key().to_bytes(), unix_seconds: at, signature };
        let body = if method == "POST" { metainfo.raw() } else { &[] };
        self.send(method, path, &format!("Host: {host}\r\nAuthorization: {authorization}\r\n"), body)
    }

    fn eventually(&self, what: &str, holds: impl Fn(&Running) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn http(to: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {to}\r\n") };
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    Answer { status: head[9..12].parse().unwrap(), head: head.to_lowercase(), body: answer[end + 4..].to_vec() }
}

fn udp(to: SocketAddr, ask: impl Fn(u64) -> Request) -> Response {
    let family = Family::of(to.ip());
    let socket = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(to).unwrap();
    let exchange = |request: Request| {
        let (mut datagram, mut reply) = (Vec::new(), [0; 4_096]);
        request.encode(&mut datagram);
        socket.send(&datagram).unwrap();
        let bytes = socket.recv(&mut reply).unwrap();
        Response::decode(&reply[..bytes], family).unwrap()
    };
    match exchange(Request::Connect { transaction_id: 7 }) {
        Response::Connect { connection_id, transaction_id: 7 } => exchange(ask(connection_id)),
        other => panic!("{other:?}"),
    }
}

/// Announces by UDP; the ports of the peers that come back.
fn udp_announce(to: SocketAddr, announce: &AnnounceRequest) -> Vec<u16> {
    let announce = |connection_id| Request::Announce { connection_id, transaction_id: 9, announce: announce.clone() };
    match udp(to, announce) {
        Response::Announce { transaction_id: 9, announce } => sorted_ports(&announce.peers, to),
        other => panic!("{other:?}"),
    }
}

fn http_announce(to: SocketAddr, announce: &AnnounceRequest) -> Vec<u16> {
    let answer = http(to, "GET", &format!("/announce?{}", announce.to_query()), "", &[]);
    let response = decode_announce_response(&answer.body).unwrap();
    assert!((54..=66).contains(&response.interval_s) && response.min_interval_s.is_some());
    sorted_ports(&response.peers, to)
}

fn sorted_ports(peers: &[SocketAddr], reached: SocketAddr) -> Vec<u16> {
    assert!(peers.iter().all(|peer| peer.ip() == reached.ip()), "as the asker reached the tracker: {peers:?}");
    let mut ports: Vec<u16> = peers.iter().map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports
}

fn torrent(name: &str, files: &[&str]) -> Metainfo {
    let paths = files.iter().map(|file| (RelPath::parse(file.as_bytes()).unwrap(), 5));
    let files = if files.is_empty() { SpecFiles::Single(10) } else { SpecFiles::Multi(paths.collect()) };
    let (name, pieces) = (FileName::new(name.as_bytes()).unwrap(), vec![PieceCheck::Sha1([7; 20])]);
    let spec = InfoSpec { name, files, piece_bytes: 65_536, pieces, private: true };
    Metainfo::parse(&build(&spec, Some("http://elsewhere/announce"), None).unwrap()).unwrap()
}

fn now() -> u64 {
    SystemClock::new().unix_seconds()
}

#[test]
fn announces_by_both_transports_and_families() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    for to in [running.v4(), running.v6()] {
        assert_eq!(udp_announce(to, &request(1, 0, Event::Started)), [0; 0]);
        assert_eq!(http_announce(to, &request(2, 9, Event::Started)), [1]);
        assert_eq!(udp_announce(to, &request(3, 9, Event::Started)), [1, 2]);
        let loose = AnnounceRequest { compact: false, ..request(4, 0, Event::Started) };
        assert_eq!(http_announce(to, &loose), [2, 3], "no seeders for a seeder");
        assert_eq!(http_announce(to, &request(2, 0, Event::Completed)), [3]);
        assert_eq!(udp_announce(to, &request(1, 0, Event::Stopped)), [0; 0]);
        assert_eq!(http_announce(to, &request(3, 5, Event::None)), [2, 4]);
    }
    // The same peer ids in both families: each counts once.
    let keys = [InfoHash::new([1; 20]), InfoHash::new([2; 20])];
    let scraped = running.get(&format!("/scrape?{}", scrape_query(&keys)));
    let scraped = decode_scrape_response(&scraped.body).unwrap();
    let info_hashes = keys.to_vec();
    let by_udp = udp(running.v6(), |connection_id| Request::Scrape {
        connection_id,
        transaction_id: 1,
        info_hashes: info_hashes.clone(),
    });
    let Response::Scrape { entries, .. } = by_udp else { panic!("{by_udp:?}") };
    assert_eq!(scraped.iter().map(|(_, entry)| *entry).collect::<Vec<_>>(), entries);
    assert_eq!(entries[0].completed, 2);
    assert_eq!(entries[1], Default::default());
    running.stop();
}

#[test]
fn one_client_in_both_families_is_one_seeder() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    for (port, id) in [(5, b"-TR4060-aaaaaaaaaaaa"), (6, b"-TR4060-bbbbbbbbbbbb")] {
        let hello = AnnounceRequest { peer_id: PeerId(*id), ..request(port, 0, Event::Started) };
        udp_announce(running.v4(), &hello);
        http_announce(running.v6(), &hello);
    }
    let key = InfoHash::new([1; 20]);
    let scraped = running.get(&format!("/scrape?{}", scrape_query(&[key])));
    assert_eq!(decode_scrape_response(&scraped.body).unwrap()[0].1.seeders, 2);
    let peers = running.get(&format!("/torrents/{key}/peers"));
    let peers = PeersReply::from_json(&peers.body).unwrap();
    // Of the two families' addresses an IPv4 asker can be told IPv4's alone: all of them are of this host.
    assert_eq!((peers.total, peers.peers.len()), (4, 2));
    assert!(peers.peers.iter().all(|peer| peer.seeder && peer.ip == running.v4().ip()));
    running.stop();
}

#[test]
fn publish_find_fetch_withdraw() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    let (mine, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let metainfo = torrent("Some Film (2020).mkv", &[]);
    let key = metainfo.info_hash();
    let published = running.signed(&mine, "POST", "/torrents", &metainfo, now());
    assert_eq!((published.status, published.text()), (201, format!("{key}\n")));
    assert_eq!(running.signed(&other, "POST", "/torrents", &metainfo, now()).status, 200);
    let unowned = torrent("Nobody's.txt", &[]);
    let typed = "Content-Type: application/x-bittorrent\r\n";
    assert_eq!(running.send("POST", "/torrents", typed, unowned.raw()).status, 201);

    udp_announce(running.v4(), &AnnounceRequest { info_hash: key, ..request(1, 0, Event::Started) });
    let reply = running.search("q=film+2020");
    let [hit] = &reply.hits[..] else { panic!("{reply:?}") };
    assert_eq!((hit.name.as_str(), hit.file_type.as_str(), hit.key), ("Some Film (2020).mkv", "mkv", key));
    assert_eq!((hit.size, hit.n_parts, hit.seeders, hit.leechers, hit.matched), (10, 1, 1, 0, Match::Words));
    assert_eq!(hit.torrent, format!("{key}.torrent"));
    assert_eq!(running.names("q=&limit=1"), ["Nobody's.txt"]);

    let fetched = running.send("GET", &format!("/torrents/{key}.torrent"), "Host: tracker.lan:6969\r\n", &[]);
    let fetched = Metainfo::parse(&fetched.body).unwrap();
    assert_eq!((fetched.info_hash(), fetched.announce()), (key, Some("http://tracker.lan:6969/announce")));
    let unknown = running.send("POST", "/torrents/unknown", "", &[key.as_bytes(), &[9; 20]].concat());
    assert_eq!(unknown.body, [9; 20]);

    let path = format!("/torrents/{key}");
    let stranger = SigningKey::from_bytes(&[3; 32]);
    assert_eq!(running.signed(&stranger, "DELETE", &path, &metainfo, now()).status, 403);
    assert_eq!(running.refusals("not_publisher"), 1);
    assert_eq!(running.send("DELETE", &path, "", &[]).status, 401);
    assert_eq!(running.signed(&mine, "DELETE", &path, &metainfo, now()).status, 200);
    assert_eq!(running.names("q=film"), ["Some Film (2020).mkv"], "the other one still publishes it");
    assert_eq!(running.signed(&other, "DELETE", &path, &metainfo, now()).status, 200);
    assert!(running.names("q=film").is_empty());
    assert_eq!(running.signed(&other, "DELETE", &path, &metainfo, now() + 1).status, 404);
    assert_eq!(running.get(&format!("/torrents/{key}.torrent")).status, 200, "for those in the middle of it");
    running.stop();
}

#[test]
fn what_is_not_published_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    let signer = SigningKey::from_bytes(&[1; 32]);
    let metainfo = torrent("a.txt", &[]);
    let garbage = running.send("POST", "/torrents", "", b"<html>");
    assert_eq!(garbage.status, 400);
    assert!(garbage.text().contains("not a .torrent"), "{}", garbage.text());
    let late = running.signed(&signer, "POST", "/torrents", &metainfo, now() - 700);
    assert_eq!(late.status, 401);
    assert!(late.head.contains("\r\ndate: "), "{}", late.head);
    let malformed = running.send("POST", "/torrents", "Authorization: Peerd x\r\n", metainfo.raw());
    assert_eq!(malformed.status, 401);
    let at = now();
    assert_eq!(running.signed(&signer, "POST", "/torrents", &metainfo, at).status, 201);
    let path = format!("/torrents/{}", metainfo.info_hash());
    assert_eq!(running.signed(&signer, "DELETE", &path, &metainfo, at).status, 200);
    assert_eq!(running.signed(&signer, "DELETE", &path, &metainfo, at).status, 200, "it has happened");
    assert_eq!(running.signed(&signer, "POST", "/torrents", &metainfo, at).status, 401, "counted once");
    assert!(running.names("q=a").is_empty());
    let large = vec![b'x'; MAX_BODY + 1];
    assert_eq!(running.send("POST", "/torrents", "", &large).status, 413);
    let keys = vec![0; 20 * 10_001];
    assert_eq!(running.send("POST", "/torrents/unknown", "", &keys).status, 413);
    assert_eq!(running.send("POST", "/torrents/unknown", "", &keys[..21]).status, 400);
    let metrics = running.get("/metrics").text();
    for (reason, count) in
        [("bad_torrent", 1), ("clock_off", 1), ("bad_authorization", 1), ("replayed", 1), ("too_large", 2)]
    {
        let line = format!("trackerd_refusals_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    running.stop();
}

const MAX_BODY: usize = crate::wire::metainfo::MAX_TORRENT_BYTES;

#[test]
fn requests_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/torrents/xyz.torrent", 404),
        ("GET", "/torrents/%2e%2e/secret", 404),
        ("GET", &format!("/torrents/{}.torrent", "0".repeat(40)), 404),
        ("GET", &format!("/torrents/{}/peers", "0".repeat(40)), 404),
        ("POST", "/announce", 405),
        ("GET", "/torrents", 405),
        ("PUT", &format!("/torrents/{}", "0".repeat(40)), 405),
        ("GET", &format!("/search?q={}", "a+".repeat(40)), 400),
        ("GET", &format!("/search?q={}", "a".repeat(1_025)), 400),
        ("GET", "/search?q=%ff", 400),
        ("HEAD", "/health", 200),
        ("GET", "/health", 200),
        // Refused in bencode, as clients expect it.
        ("GET", "/announce?info_hash=short", 200),
        ("GET", "/scrape", 200),
    ] {
        assert_eq!(running.send(method, path, "", &[]).status, status, "{method} {path}");
    }
    let refused = decode_announce_response(&running.get("/announce").body).unwrap_err();
    assert_eq!(refused.to_string(), "info_hash is missing");
    for bytes in [&b"\x13BitTorrent protocol"[..], b"\0\0\0\0", b"GET / HTTP/9\r\n\r\n", &[b'a'; 100_000]] {
        let mut stream = TcpStream::connect(running.v4()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    assert_eq!(running.get("/health").text(), "ok\n");
    let metrics = running.get("/metrics").text();
    for (reason, count) in [
        ("no_such_path", 3),
        ("no_such_torrent", 2),
        ("bad_method", 3),
        ("bad_query", 3),
        ("bad_announce", 2),
        ("bad_scrape", 1),
    ] {
        let line = format!("trackerd_refusals_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    running.stop();
}

#[test]
fn behind_a_proxy_its_header_says_who_asks() {
    let dir = tempfile::tempdir().unwrap();
    let announce = |running: &Running, header: &str| {
        let query = "/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-TR4060-abcdefghijkl&port=7&left=0&uploaded=0&downloaded=0";
        let answer = running.send("GET", query, &format!("{header}\r\n"), &[]);
        decode_announce_response(&answer.body).unwrap().external_ip.unwrap().to_string()
    };
    let options = |state: &str| TrackerOptions {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        ..TrackerOptions::new(dir.path().join(state))
    };
    let believing = TrackerOptions {
        trusted_proxies: vec!["127.0.0.1".parse().unwrap()],
        proxy_header: "X-Real-IP".into(),
        ..options("a")
    };
    let running = Running::start(believing);
    assert_eq!(announce(&running, "X-Real-IP: 203.0.113.9, 203.0.113.5"), "203.0.113.5", "what the proxy added");
    assert_eq!(announce(&running, "X-Forwarded-For: 203.0.113.5"), "127.0.0.1");
    running.stop();
    let running = Running::start(options("b"));
    assert_eq!(announce(&running, "X-Forwarded-For: 203.0.113.5"), "127.0.0.1", "nobody is believed by default");
    running.stop();
    let wrong = TrackerOptions { proxy_header: "no header".into(), ..options("c") };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let refused = runtime.block_on(Tracker::start(wrong)).err().unwrap().to_string();
    assert!(refused.contains("proxy_header"), "{refused}");
}

#[test]
fn refusals_by_configuration_and_by_rate_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let running = Running::start(TrackerOptions { listen, list_peers: false, ..TrackerOptions::new(dir.path()) });
    assert_eq!(running.get(&format!("/torrents/{}/peers", "0".repeat(40))).status, 403);
    let malformed = |socket: &UdpSocket, id: u64| {
        let mut datagram = id.to_be_bytes().to_vec();
        datagram.extend([0, 0, 0, 9, 1, 1, 1, 1]);
        socket.send_to(&datagram, running.v4()).unwrap();
    };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    malformed(&socket, 1);
    running.eventually("a datagram was refused", |running| {
        running.get("/metrics").text().contains("{reason=\"udp_malformed\"} 1\n")
    });
    // Emptied in a future from which the tracker's clock is far: nothing flows in meanwhile.
    let later = crate::clock::Time::from_secs(1_000_000_000);
    while running.tracker.announcer.limits.charge(later, "127.0.0.1".parse().unwrap()) {}
    assert_eq!(running.send("POST", "/torrents", "", torrent("a.txt", &[]).raw()).status, 429);
    let metrics = running.get("/metrics").text();
    for reason in ["peers_not_listed", "publish_rate"] {
        assert!(!metrics.contains(&format!("{{reason=\"{reason}\"}} 0\n")), "{reason}");
    }
    running.stop();
}

#[test]
fn a_restart_keeps_registry_search_content_file_and_connection_ids() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    let signer = SigningKey::from_bytes(&[1; 32]);
    let (film, album) = (torrent("Film.mkv", &[]), torrent("Album", &["one.flac", "two.flac"]));
    for metainfo in [&film, &album] {
        assert_eq!(running.signed(&signer, "POST", "/torrents", metainfo, now()).status, 201);
    }
    let line = |name: &str, file_type: &str, metainfo: &Metainfo| {
        format!("Name : {name} type: {file_type} tor : {}.torrent\n", metainfo.info_hash())
    };
    let expected = line("Film", "mkv", &film) + &line("one", "flac", &album) + &line("two", "flac", &album);
    running.eventually("the content file is current", |running| running.get("/search_content.txt").text() == expected);
    running.stop();

    let running = Running::on_loopback(dir.path());
    assert_eq!(running.get("/search_content.txt").text(), expected);
    assert_eq!(std::fs::read_to_string(dir.path().join("search_content.txt")).unwrap(), expected);
    assert_eq!(running.names("q="), ["Album", "Film.mkv"]);
    assert_eq!(running.names("q=two"), ["Album"]);
    let path = format!("/torrents/{}", film.info_hash());
    assert_eq!(running.signed(&signer, "DELETE", &path, &film, now() + 1).status, 200);
    let rest = line("one", "flac", &album) + &line("two", "flac", &album);
    running.eventually("the withdrawn leaves it", |running| running.get("/search_content.txt").text() == rest);
    running.stop();
}

#[test]
fn seeders_order_hits_as_they_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    let (one, two) = (torrent("tale one", &[]), torrent("tale two", &[]));
    for metainfo in [&one, &two] {
        assert_eq!(running.send("POST", "/torrents", "", metainfo.raw()).status, 201);
    }
    assert_eq!(running.names("q=tale"), ["tale two", "tale one"]);
    udp_announce(running.v4(), &AnnounceRequest { info_hash: one.info_hash(), ..request(1, 0, Event::Started) });
    running.eventually("a seeder came", |running| running.names("q=tale") == ["tale one", "tale two"]);
    udp_announce(running.v4(), &AnnounceRequest { info_hash: one.info_hash(), ..request(1, 0, Event::Stopped) });
    running.eventually("and went", |running| running.names("q=tale") == ["tale two", "tale one"]);
    running.stop();
}

/// Before anything has looked after the tables.
#[test]
fn the_first_search_after_a_start_knows_the_seeders() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    let (one, two) = (torrent("tale one", &[]), torrent("tale two", &[]));
    for metainfo in [&one, &two] {
        assert_eq!(running.send("POST", "/torrents", "", metainfo.raw()).status, 201);
    }
    udp_announce(running.v4(), &AnnounceRequest { info_hash: one.info_hash(), ..request(1, 0, Event::Started) });
    running.stop();
    let options = TrackerOptions { listen: vec!["127.0.0.1:0".parse().unwrap()], ..TrackerOptions::new(dir.path()) };
    let prepared = Prepared::new(options, Arc::new(SystemClock::new())).unwrap();
    assert_eq!(super::catalogue::tests::found(&prepared.catalogue, "tale"), ["tale one", "tale two"]);
}

#[test]
fn a_second_tracker_is_told_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(&dir.path().join("one"));
    let taken = running.v4();
    let start = |listen, state: &str| {
        let options = TrackerOptions { listen: vec![listen], ..TrackerOptions::new(dir.path().join(state)) };
        running.runtime.block_on(Tracker::start(options)).err().unwrap().to_string()
    };
    assert_eq!(start(taken, "two"), format!("a tracker runs here already: peerd 127.0.0.1 {}", taken.port()));
    let same_state = start("127.0.0.1:0".parse().unwrap(), "one");
    assert!(same_state.contains(&std::process::id().to_string()), "{same_state}");
    running.stop();
}

/// The HTTP half alone, with its own places and time-outs.
struct Serving {
    address: SocketAddr,
    announcer: Arc<Announcer>,
    stop: watch::Sender<bool>,
    ended: tokio::task::JoinHandle<()>,
    runtime: tokio::runtime::Runtime,
}

impl Serving {
    fn start(state_dir: &std::path::Path, places: usize, timeouts: Timeouts) -> Serving {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = TrackerOptions { listen: vec!["127.0.0.1:0".parse().unwrap()], ..TrackerOptions::new(state_dir) };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let prepared = Prepared::new(options, clock.clone()).unwrap();
        let (address, site) = (prepared.bound[0].address, prepared.site(clock).unwrap());
        let announcer = site.announcer.clone();
        let (stop, stopped) = watch::channel(false);
        let ended = runtime.spawn(async move {
            let listeners = prepared.bound.into_iter().map(|bound| TcpListener::from_std(bound.tcp).unwrap()).collect();
            serve(site, listeners, places, timeouts, stopped).await;
        });
        Serving { address, announcer, stop, ended, runtime }
    }

    fn stop(self) {
        self.stop.send(true).unwrap();
        self.runtime.block_on(self.ended).unwrap();
    }
}

/// A request on a connection that stays open.
fn ask_health(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let mut rest = [0; 1_024];
    let _ = stream.read(&mut rest).unwrap();
}

#[test]
fn silent_connections_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), 4, Timeouts::default());
    let mut keep_alive = TcpStream::connect(serving.address).unwrap();
    ask_health(&mut keep_alive);
    let silent: Vec<TcpStream> = (0..40)
        .map(|_| {
            // Whoever speaks stays: the silent ones displace each other.
            ask_health(&mut keep_alive);
            TcpStream::connect(serving.address).unwrap()
        })
        .collect();
    let mut newcomer = TcpStream::connect(serving.address).unwrap();
    ask_health(&mut newcomer);
    ask_health(&mut keep_alive);
    assert!(serving.announcer.metrics.refusals(metrics::Refused::ConnectionDisplaced) >= 37);
    drop(silent);
    serving.stop();
}

#[test]
fn the_silent_lose_their_connections_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let [head, idle, watch_every] = [50, 100, 10].map(Duration::from_millis);
    let serving = Serving::start(dir.path(), 4, Timeouts { head, idle, watch_every });
    let mut mute = TcpStream::connect(serving.address).unwrap();
    let mut idle = TcpStream::connect(serving.address).unwrap();
    ask_health(&mut idle);
    for stream in [&mut mute, &mut idle] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "closed by the tracker");
    }
    let refusals = |reason| serving.announcer.metrics.refusals(reason);
    assert_eq!((refusals(metrics::Refused::HeaderTimeout), refusals(metrics::Refused::IdleTimeout)), (1, 1));
    serving.stop();
}

#[test]
fn what_the_catalogue_cannot_take_is_refused_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (torrent("first.txt", &[]), torrent("second.txt", &[]));
    let signer = SigningKey::from_bytes(&[1; 32]);
    let list = dir.path().join("publishers");
    std::fs::write(&list, "* 1\n").unwrap();
    let all = Caps::default();
    for (reason, status, caps, publishers) in [
        ("catalogue_full", 503, Caps { torrents: 1, ..all }, None),
        ("store_behind", 503, Caps { unwritten: 0, ..all }, None),
        ("disk_full", 507, Caps { reserve_bytes: u64::MAX, ..all }, None),
        ("publisher_full", 403, all, Some(list)),
    ] {
        let running = Running::start(TrackerOptions {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            lists: ListFiles { publishers, ..ListFiles::default() },
            caps,
            ..TrackerOptions::new(dir.path().join(reason))
        });
        running.signed(&signer, "POST", "/torrents", &first, now());
        // The second time too: a signature that has done nothing is not used up.
        for at in [now(); 2] {
            assert_eq!(running.signed(&signer, "POST", "/torrents", &second, at).status, status, "{reason}");
        }
        assert!(running.refusals(reason) > 0, "{reason}");
        assert!(running.names("q=second").is_empty());
        running.stop();
    }
}

#[test]
fn a_body_that_breaks_off_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::on_loopback(dir.path());
    let mut stream = TcpStream::connect(running.v4()).unwrap();
    stream.write_all(b"POST /torrents HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nd4:info").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    running.eventually("it is refused", |running| running.refusals("body_timeout") == 1);
    running.stop();
}

#[test]
fn what_the_lists_rule_out_is_not_tracked_until_they_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let deny = dir.path().join("deny");
    let (good, bad) = (torrent("good.txt", &[]), torrent("bad.txt", &[]));
    std::fs::write(&deny, format!("{} # asked for by nobody we know\n", bad.info_hash())).unwrap();
    let running = Running::start(TrackerOptions {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        lists: ListFiles { deny: Some(deny.clone()), ..ListFiles::default() },
        ..TrackerOptions::new(dir.path().join("state"))
    });
    let announce = |metainfo: &Metainfo| {
        let announce = AnnounceRequest { info_hash: metainfo.info_hash(), ..request(1, 0, Event::Started) };
        udp(running.v4(), |connection_id| Request::Announce {
            connection_id,
            transaction_id: 1,
            announce: announce.clone(),
        })
    };
    assert!(matches!(announce(&good), Response::Announce { .. }));
    let Response::Error { message, .. } = announce(&bad) else { panic!("it is tracked") };
    assert_eq!(message, "this torrent is not tracked here");
    assert_eq!(running.send("POST", "/torrents", "", bad.raw()).status, 403);
    assert_eq!(running.get(&format!("/torrents/{}.torrent", bad.info_hash())).status, 403);
    let refusals = "trackerd_refusals_total{reason=\"not_tracked\"} 3\n";
    assert!(running.get("/metrics").text().contains(refusals));

    std::fs::write(&deny, format!("{}\n", good.info_hash())).unwrap();
    assert_eq!(running.send("POST", "/torrents", "", good.raw()).status, 201);
    assert_eq!(running.runtime.block_on(running.tracker.reload_lists()).unwrap().denied, 1);
    assert_eq!(running.send("POST", "/torrents", "", bad.raw()).status, 201);
    assert_eq!(running.names("q=txt"), ["bad.txt"], "what was published before is not shown");
    running.stop();
}
