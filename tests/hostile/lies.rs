//! Trackers that lie, over HTTP and UDP, one lie to a port: a `.torrent` from elsewhere names them all.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use peerd::wire::announce::AnnounceResponse;
use peerd::wire::tracker_udp::{Family, Request, Response};

use super::Seen;
use crate::support::content::MIB;
use crate::support::net::Host;
use crate::support::peer::Peer;
use crate::support::scripted::on_host;
use crate::support::{secs, wait_until};

/// The first tracker's port.
const PORTS: u16 = 8_000;
/// Trackers in one `.torrent`: peerd takes 20 of one torrent.
const PER_TORRENT: usize = 12;
/// Where nobody may be led: a service of the victim's own, on its loopback.
const TRAP: u16 = 7_777;
/// No foreign tracker is asked about a torrent more often, whatever it says.
const LEAST_INTERVAL: Duration = secs(60);
/// What a lie without end is read of at most: 1 MiB, and what lies in the sockets by then.
const MOST_READ_BYTES: u64 = 64 * MIB;
/// How often whoever waits looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What an HTTP tracker says, whatever it is asked: this, and then the rest again and again.
struct Page {
    head: Vec<u8>,
    endless: Vec<u8>,
    /// Between two times.
    rest: Duration,
}

enum Lie {
    Http(Page),
    /// The datagrams that answer one.
    Udp(fn(&Request) -> Vec<Vec<u8>>),
}

fn whole(head: impl Into<Vec<u8>>) -> Lie {
    Lie::Http(Page { head: head.into(), endless: Vec::new(), rest: Duration::ZERO })
}

fn endless(head: impl Into<Vec<u8>>, endless: impl Into<Vec<u8>>) -> Lie {
    Lie::Http(Page { head: head.into(), endless: endless.into(), rest: Duration::ZERO })
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn reply(interval: &str, peers: &[u8]) -> Vec<u8> {
    let head = format!("d8:intervali{interval}e5:peers{}:", peers.len());
    ok(&[head.as_bytes(), peers, b"e"].concat())
}

/// As compact lists have it.
fn peer(ip: [u8; 4], port: u16) -> [u8; 6] {
    let [high, low] = port.to_be_bytes();
    [ip[0], ip[1], ip[2], ip[3], high, low]
}

/// Addresses at which there is no peer, and at which none may be looked for.
fn nobodys(victim: IpAddr) -> Vec<u8> {
    let IpAddr::V4(own) = victim else { panic!("an IPv4 address") };
    let lies = [
        (own.octets(), 0),
        (own.octets(), 6881),
        ([127, 0, 0, 1], TRAP),
        ([127, 9, 9, 9], TRAP),
        ([0, 0, 0, 0], TRAP),
        ([224, 0, 0, 1], TRAP),
        ([255, 255, 255, 255], TRAP),
    ];
    lies.iter().flat_map(|(ip, port)| peer(*ip, *port)).collect()
}

/// 100,000 addresses of a network on which nobody answers.
fn far_too_many() -> Vec<u8> {
    (0..100_000_u32)
        .flat_map(|n| peer(Ipv4Addr::from_bits((198 << 24 | 19 << 16) + n % 65_000).octets(), 7_000))
        .collect()
}

/// Zeros, a thousand times as long as what is said, without end. A literal, then copies of it in fixed Huffman codes
/// (RFC 1951, 3.2.6) of 13 bits: eight of them are 13 bytes, and then the same bytes come again.
fn gzip_bomb() -> Lie {
    let mut bits = vec![true, true, false];
    let mut code = |code: u16, length: u32| bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    code(0b0011_0000, 8);
    for _ in 0..24 {
        code(0b1100_0101, 8);
        code(0, 5);
    }
    let byte = |bits: &[bool]| bits.iter().enumerate().fold(0_u8, |byte, (at, bit)| byte | u8::from(*bit) << at);
    let bytes: Vec<u8> = bits.chunks(8).map(byte).collect();
    let mut head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n".to_vec();
    head.extend([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255]);
    head.extend(&bytes[..13]);
    endless(head, bytes[13..26].repeat(1_000))
}

fn connected(request: &Request) -> Option<Vec<u8>> {
    let Request::Connect { transaction_id } = *request else { return None };
    Some(encoded(&Response::Connect { transaction_id, connection_id: 7 }))
}

fn encoded(response: &Response) -> Vec<u8> {
    let mut datagram = Vec::new();
    response.encode(Family::V4, &mut datagram);
    datagram
}

fn announced(request: &Request, other: u32) -> Vec<u8> {
    let (Request::Connect { transaction_id }
    | Request::Announce { transaction_id, .. }
    | Request::Scrape { transaction_id, .. }) = *request;
    let announce = AnnounceResponse { interval_s: 1_800, ..AnnounceResponse::default() };
    encoded(&Response::Announce { transaction_id: transaction_id ^ other, announce })
}

fn lies(victim: IpAddr) -> Vec<(&'static str, Lie)> {
    let drip = Page { head: b"HTTP/1.1 200 OK\r\n\r\n".into(), endless: b"d".into(), rest: LOOK_EVERY };
    let to_the_trap = format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{TRAP}/announce\r\n\r\n");
    vec![
        ("a gzip bomb", gzip_bomb()),
        (
            "a chunk of 2^64-1 bytes",
            endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n", "d".repeat(16_384)),
        ),
        ("a chunk of -1 bytes", whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nde\r\n0\r\n\r\n")),
        ("2^63-1 bytes", endless("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n", "l".repeat(16_384))),
        ("a body without end", endless("HTTP/1.1 200 OK\r\n\r\n", "1:a".repeat(4_096))),
        ("a body a byte at a time", Lie::Http(drip)),
        ("headers without end", endless("HTTP/1.1 200 OK\r\n", "X-Lie: a\r\n".repeat(1_000))),
        ("half a peer", whole(reply("1800", &[7; 25]))),
        ("100,000 peers", whole(reply("1800", &far_too_many()))),
        ("addresses that are no peer's", whole(reply("1800", &nobodys(victim)))),
        ("an interval of 0", whole(reply("0", &[]))),
        ("an interval of -1", whole(reply("-1", &[]))),
        ("an interval of 2^31", whole(reply("2147483648", &[]))),
        ("redirects in a circle", whole("HTTP/1.1 302 Found\r\nLocation: /announce\r\nContent-Length: 0\r\n\r\n")),
        ("a redirect to the victim's own machine", whole(to_the_trap)),
        ("a million lists", whole(ok(&vec![b'l'; 1_000_000]))),
        ("no HTTP", whole("220 smtp.example ESMTP\r\n")),
        ("short datagrams", Lie::Udp(|_| (0..16).map(|len| vec![0; len]).collect())),
        (
            "other transactions",
            Lie::Udp(|request| {
                connected(request).map_or_else(|| vec![announced(request, 1)], |datagram| vec![datagram])
            }),
        ),
        (
            "half a peer by UDP",
            Lie::Udp(|request| {
                let cut = || [announced(request, 0), vec![7; 13]].concat();
                vec![connected(request).unwrap_or_else(cut)]
            }),
        ),
        (
            "10,000 peers by UDP",
            Lie::Udp(|request| {
                let many = || [announced(request, 0), peer([198, 19, 0, 1], 7_000).repeat(10_000)].concat();
                vec![connected(request).unwrap_or_else(many)]
            }),
        ),
        (
            "a thousand answers",
            Lie::Udp(|request| {
                let answer = connected(request).unwrap_or_else(|| announced(request, 0));
                vec![answer; 1_000]
            }),
        ),
    ]
}

struct Liar {
    name: &'static str,
    is_endless: bool,
    seen: Arc<Seen>,
    thread: JoinHandle<()>,
}

/// The trackers, and who would be hit by what they say.
pub struct Liars {
    liars: Vec<Liar>,
    trap: (Arc<AtomicU64>, Arc<Seen>, JoinHandle<()>),
    begun: Instant,
}

/// Starts them on `host`, has `victim` fetch what only they know of, and waits until each was asked.
pub fn begin(host: &Host, victim: &Peer) -> Liars {
    let trap = trap(&victim.host);
    let begun = Instant::now();
    let mut urls = Vec::new();
    let mut liars = Vec::new();
    for ((name, lie), port) in lies(victim.host.ip).into_iter().zip(PORTS..) {
        let addr = SocketAddr::new(host.ip, port);
        let seen = Arc::new(Seen::default());
        let sees = seen.clone();
        // What comes a byte at a time is given half a minute, which may outlast the test.
        let is_endless = matches!(&lie, Lie::Http(page) if !page.endless.is_empty() && page.rest.is_zero());
        urls.push(match lie {
            Lie::Http(_) => format!("http://{addr}/announce"),
            Lie::Udp(_) => format!("udp://{addr}/announce"),
        });
        let bound = on_host(host, move || match lie {
            Lie::Http(page) => {
                let listener = TcpListener::bind(addr).expect("listen");
                listener.set_nonblocking(true).expect("a socket that does not block");
                thread::spawn(move || serve(&listener, &Arc::new(page), &sees))
            }
            Lie::Udp(answers) => {
                let socket = UdpSocket::bind(addr).expect("a socket");
                socket.set_read_timeout(Some(LOOK_EVERY)).expect("a socket");
                thread::spawn(move || answer(&socket, answers, &sees))
            }
        });
        liars.push(Liar { name, is_endless, seen, thread: bound.join().expect("a thread") });
    }
    for (n, urls) in urls.chunks(PER_TORRENT).enumerate() {
        let name = format!("lies-{n}.torrent");
        fs::write(victim.home.join(&name), torrent(&format!("lies-{n}"), urls)).expect("write a torrent");
        victim.ctl(&["get", "--detach", &name]).expect_success();
    }
    for liar in &liars {
        let what = format!("somebody asks the tracker of {}", liar.name);
        wait_until(secs(60), &what, || liar.seen.tries.load(Ordering::Relaxed) > 0);
    }
    Liars { liars, trap, begun }
}

impl Liars {
    /// Ends them, prints what came of each, and holds it against what may.
    pub fn end(self) {
        let most_asked = 1 + self.begun.elapsed().as_secs() / LEAST_INTERVAL.as_secs();
        let all = self.liars.iter().map(|liar| &liar.seen).chain([&self.trap.1]);
        all.for_each(|seen| seen.stop.store(true, Ordering::Relaxed));
        for Liar { name, is_endless, seen, thread } in self.liars {
            thread.join().unwrap_or_else(|_| panic!("{name}"));
            let [tries, sent, cut] =
                [&seen.tries, &seen.sent_bytes, &seen.hung_up_on].map(|counter| counter.load(Ordering::Relaxed));
            println!("tracker with {name}: asked {tries} times, {sent} bytes said, hung up on {cut} times");
            assert!(!is_endless || cut > 0, "{name}: it was never hung up on");
            assert!(sent < MOST_READ_BYTES, "{name}: {sent} bytes were taken");
            let is_interval = name.starts_with("an interval");
            assert!(!is_interval || tries <= most_asked, "{name}: asked {tries} times");
        }
        let (caught, _, thread) = self.trap;
        thread.join().expect("the trap");
        assert_eq!(caught.load(Ordering::Relaxed), 0, "the victim was led to a service of its own");
    }
}

/// A torrent that nobody has.
fn torrent(name: &str, urls: &[String]) -> Vec<u8> {
    let tiers: String = urls.iter().map(|url| format!("l{}:{url}e", url.len())).collect();
    let first = &urls[0];
    let head = format!("d8:announce{}:{first}13:announce-listl{tiers}e4:infod6:lengthi65536e4:name", first.len());
    let tail = format!("{}:{name}12:piece lengthi65536e6:pieces20:", name.len());
    [head.as_bytes(), tail.as_bytes(), &[7; 20], b"ee"].concat()
}

/// Counts who comes to the victim's loopback.
fn trap(victim: &Host) -> (Arc<AtomicU64>, Arc<Seen>, JoinHandle<()>) {
    let (caught, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(Seen::default()));
    let (count, sees) = (caught.clone(), seen.clone());
    let bound = on_host(victim, move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, TRAP)).expect("listen");
        listener.set_nonblocking(true).expect("a socket that does not block");
        thread::spawn(move || {
            while !sees.stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok(_) => {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => thread::sleep(LOOK_EVERY),
                }
            }
        })
    });
    (caught, seen, bound.join().expect("a thread"))
}

fn serve(listener: &TcpListener, page: &Arc<Page>, seen: &Arc<Seen>) {
    let mut under_way = Vec::new();
    while !seen.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                seen.tries.fetch_add(1, Ordering::Relaxed);
                let (page, sees) = (page.clone(), seen.clone());
                under_way.push(thread::spawn(move || say(stream, &page, &sees)));
            }
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    }
    under_way.into_iter().for_each(|session| session.join().expect("a session"));
}

fn say(mut stream: TcpStream, page: &Page, seen: &Seen) {
    let ready = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(secs(1))));
    ready.and_then(|()| stream.set_write_timeout(Some(secs(1)))).expect("a socket");
    let mut request: Vec<u8> = Vec::new();
    let mut chunk = [0; 4096];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => request.extend(&chunk[..count]),
            _ => return,
        }
    }
    let mut goes_on = seen.write(&mut stream, &page.head);
    if page.endless.is_empty() {
        return;
    }
    while goes_on && !seen.stop.load(Ordering::Relaxed) {
        thread::sleep(page.rest);
        goes_on = seen.write(&mut stream, &page.endless);
    }
}

fn answer(socket: &UdpSocket, answers: fn(&Request) -> Vec<Vec<u8>>, seen: &Seen) {
    let mut datagram = [0; 2048];
    while !seen.stop.load(Ordering::Relaxed) {
        let (len, from) = match socket.recv_from(&mut datagram) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => panic!("{error}"),
        };
        seen.tries.fetch_add(1, Ordering::Relaxed);
        let request = Request::decode(&datagram[..len]).expect("peerd asks as it should");
        for answer in answers(&request) {
            seen.sent_bytes.fetch_add(socket.send_to(&answer, from).unwrap_or(0) as u64, Ordering::Relaxed);
        }
    }
}
