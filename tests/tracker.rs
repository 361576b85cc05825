//! trackerd under load, from many clients at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBuf;

use peerd::wire::id::PieceCheck;
use peerd::wire::metainfo::{InfoSpec, SpecFiles, build};
use peerd::wire::name::FileName;

use crate::support::content::MIB;
use crate::support::process::Process;
use crate::support::{TRACKERD, gate, secs, wait_until};

/// UDP announces a second (BEP 15).
const ANNOUNCES_PER_S: u32 = 10_000;
/// HTTP connections that stay open.
const CONNECTIONS: usize = 1_000;

/// A free port of the loopback.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

/// A trackerd on a free port of the loopback.
pub fn start(folder: &std::path::Path) -> (Process, SocketAddr) {
    let address = free_address();
    (start_at(folder, address), address)
}

fn start_at(folder: &std::path::Path, address: SocketAddr) -> Process {
    let mut command = Command::new(TRACKERD);
    command.args(["--foreground", "--listen", &address.to_string(), "--state-dir"]).arg(folder.join("tracker"));
    let process = Process::start("trackerd", command.current_dir(folder), &folder.join("log"));
    wait_until(secs(20), "trackerd listens", || TcpStream::connect(address).is_ok());
    process
}

pub fn udp(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(address).expect("connect a socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    // Answers that come while this thread has to wait for a processor are not the tracker's loss.
    let _ = setsockopt(&socket, RcvBuf, &(4 << 20));
    socket
}

/// BEP 15, connect: the magic, action 0, a transaction id; answered with action 0, the id, and a connection id.
pub fn udp_connect(socket: &UdpSocket) -> [u8; 8] {
    let mut request = 0x0417_2710_1980_u64.to_be_bytes().to_vec();
    request.extend([0, 0, 0, 0, 1, 2, 3, 4]);
    let mut reply = [0; 64];
    for _ in 0..20 {
        socket.send(&request).expect("send");
        if let Ok(16) = socket.recv(&mut reply) {
            assert_eq!(reply[..8], [0, 0, 0, 0, 1, 2, 3, 4]);
            return reply[8..16].try_into().expect("eight bytes");
        }
    }
    panic!("the tracker answers no connect");
}

/// BEP 15, announce: 98 bytes.
pub fn udp_announce(connection: [u8; 8], number: u32) -> [u8; 98] {
    let mut packet = [0; 98];
    packet[..8].copy_from_slice(&connection);
    packet[11] = 1;
    packet[12..16].copy_from_slice(&number.to_be_bytes());
    // 500 torrents, and peers enough that the swarms have many members.
    packet[16..20].copy_from_slice(&(number % 500).to_be_bytes());
    packet[36..40].copy_from_slice(b"-XX-");
    packet[40..44].copy_from_slice(&(number % 20_000).to_be_bytes());
    packet[71] = 1;
    packet[92..96].copy_from_slice(&50_u32.to_be_bytes());
    packet[96..98].copy_from_slice(&6881_u16.to_be_bytes());
    packet
}

/// Sends announces at the rate until `stop`, and counts the answers.
fn flood(address: SocketAddr, stop: &AtomicBool) -> (u32, u64) {
    let socket = udp(address);
    let connection = udp_connect(&socket);
    let answers = AtomicU64::new(0);
    let sent = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reply = [0; 2048];
            loop {
                match socket.recv(&mut reply) {
                    Ok(len) if len >= 20 && reply[..4] == [0, 0, 0, 1] => {
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(_) => {}
                    Err(_) if stop.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        });
        let start = Instant::now();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let due = (start.elapsed().as_secs_f64() * f64::from(ANNOUNCES_PER_S)) as u32;
            while sent < due {
                socket.send(&udp_announce(connection, sent)).expect("send");
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        sent
    });
    (sent, answers.into_inner())
}

/// One request on an open connection; the answer's status line, with its body read.
pub fn request(stream: &mut BufReader<TcpStream>, path: &str) -> String {
    stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: tracker\r\n\r\n").as_bytes()).expect("send");
    answer(stream).0
}

/// Status line and body of the answer.
fn answer(stream: &mut BufReader<TcpStream>) -> (String, Vec<u8>) {
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).expect("an answer");
        line.trim_end().to_string()
    };
    let status = line();
    let mut length = 0;
    loop {
        let header = line().to_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    (status, body)
}

#[test]
fn a_thousand_http_connections_and_ten_thousand_udp_announces_a_second() {
    let _turn = gate::alone();
    let folder = crate::support::folder();
    let (process, address) = start(folder.path());
    // Ours alone: trackerd has been started and raises its own.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raise the limit of open files");
    let stop = AtomicBool::new(false);
    let ((sent, answered), slowest) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(address, &stop));
        let mut connections: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let stream = TcpStream::connect(address).expect("a connection");
                stream.set_read_timeout(Some(secs(10))).expect("set a timeout");
                BufReader::new(stream)
            })
            .collect();
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        let mut round = 0;
        while start.elapsed() < secs(5) || round < 2 {
            for (i, stream) in connections.iter_mut().enumerate() {
                let hash = format!("%{:02x}%{:02x}", i / 256, i % 256) + &"%41".repeat(18);
                let query = format!("info_hash={hash}&peer_id=-XX0000-{i:012}&port=6881&uploaded=0&downloaded=0");
                let asked = Instant::now();
                let status = request(stream, &format!("/announce?{query}&left=1&compact=1"));
                assert_eq!(status, "HTTP/1.1 200 OK");
                slowest = slowest.max(asked.elapsed());
            }
            round += 1;
        }
        stop.store(true, Ordering::Relaxed);
        (flood.join().expect("the flood"), slowest)
    });
    eprintln!("{answered} of {sent} UDP announces answered; the slowest HTTP answer took {slowest:?}");
    assert!(sent >= 5 * ANNOUNCES_PER_S * 9 / 10, "only {sent} announces were sent");
    assert!(answered * 100 >= u64::from(sent) * 99, "{answered} of {sent} answered");
    assert!(slowest < secs(2), "{slowest:?}");
    assert!(process.peak_resident_bytes() <= 256 * MIB);
}

/// The value of a line of `/metrics`.
pub fn metric(address: SocketAddr, name: &str) -> u64 {
    let mut stream = BufReader::new(TcpStream::connect(address).expect("a connection"));
    stream.get_ref().set_read_timeout(Some(secs(10))).expect("set a timeout");
    stream.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nHost: tracker\r\nConnection: close\r\n\r\n").expect("send");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect("the metric");
    line.trim().parse().expect("a number")
}

/// The `.torrent` of a file of one piece.
fn torrent(name: &str) -> Vec<u8> {
    let name = FileName::new(name.as_bytes()).expect("a name");
    let pieces = vec![PieceCheck::Sha1([7; 20])];
    let spec = InfoSpec { name, files: SpecFiles::Single(10), piece_bytes: 65_536, pieces, private: true };
    build(&spec, None, None).expect("a .torrent")
}

/// Publishes on an open connection; the answer's status line.
fn publish(stream: &mut BufReader<TcpStream>, torrent: &[u8]) -> String {
    let head = format!("POST /torrents HTTP/1.1\r\nHost: tracker\r\nContent-Length: {}\r\n\r\n", torrent.len());
    stream.get_mut().write_all(&[head.as_bytes(), torrent].concat()).expect("send");
    answer(stream).0
}

#[test]
fn what_was_answered_before_kill_9_is_there_after_it() {
    const TORRENTS: usize = 60;
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let (mut process, address) = start(folder.path());
    for round in 0..3 {
        let mut stream = BufReader::new(TcpStream::connect(address).expect("a connection"));
        stream.get_ref().set_read_timeout(Some(secs(10))).expect("set a timeout");
        for n in 0..TORRENTS {
            let status = publish(&mut stream, &torrent(&format!("round{round} number{n}.txt")));
            assert_eq!(status, "HTTP/1.1 201 Created");
        }
        // At this very moment: nothing was given the time to be written.
        process.kill9();
        process = start_at(folder.path(), address);
        let mut stream = BufReader::new(TcpStream::connect(address).expect("a connection"));
        stream.get_mut().write_all(b"GET /search?q=txt HTTP/1.1\r\nHost: tracker\r\n\r\n").expect("send");
        let total = format!("\"total\":{}", (round + 1) * TORRENTS);
        let (_, found) = answer(&mut stream);
        assert!(String::from_utf8_lossy(&found).contains(&total), "{total} after round {round}");
        stream.get_mut().write_all(b"GET /search_content.txt HTTP/1.1\r\nHost: tracker\r\n\r\n").expect("send");
        assert_eq!(answer(&mut stream).1.split(|byte| *byte == b'\n').count() - 1, (round + 1) * TORRENTS);
    }
}

/// An announce of the peer that listens on `port`, answered; how many seeders and leechers there are, and who was named.
fn announce_udp(socket: &UdpSocket, connection: [u8; 8], torrent: u32, port: u16, event: u8) -> (u32, u32, Vec<u16>) {
    let mut packet = udp_announce(connection, torrent);
    packet[83] = event;
    // Seeds hear of no seeds: leechers alone hear of all.
    packet[56..72].fill(0);
    packet[71] = u8::from(event != 2 || port % 2 == 1);
    packet[92..96].copy_from_slice(&200_u32.to_be_bytes());
    packet[96..98].copy_from_slice(&port.to_be_bytes());
    let mut reply = [0; 2_048];
    for _ in 0..20 {
        socket.send(&packet).expect("send");
        let Ok(bytes) = socket.recv(&mut reply) else { continue };
        if bytes < 20 || reply[..8] != packet[8..16] {
            continue;
        }
        let number = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().expect("four bytes"));
        let mut ports: Vec<u16> =
            reply[20..bytes].chunks_exact(6).map(|peer| u16::from_be_bytes([peer[4], peer[5]])).collect();
        ports.sort_unstable();
        return (number(16), number(12), ports);
    }
    panic!("the tracker answers no announce");
}

#[test]
fn after_kill_9_the_peers_are_handed_out_again() {
    const TORRENTS: u32 = 40;
    const PEERS: u16 = 60;
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let (mut process, address) = start(folder.path());
    let socket = udp(address);
    let connection = udp_connect(&socket);
    let (started, stopped) = (2, 3);
    for torrent in 0..TORRENTS {
        (1..=PEERS).for_each(|port| drop(announce_udp(&socket, connection, torrent, port, started)));
        announce_udp(&socket, connection, torrent, 7, stopped);
    }
    wait_until(secs(15), "the swarms are written", || metric(address, "trackerd_unwritten_swarms") == 0);
    process.kill9();

    let mut process = start_at(folder.path(), address);
    // The connection id of before is good still; a newcomer hears of everybody.
    let expected: Vec<u16> = (1..=PEERS).filter(|port| *port != 7).collect();
    for torrent in 0..TORRENTS {
        let (seeders, leechers, ports) = announce_udp(&socket, connection, torrent, 1_001, started);
        assert_eq!((seeders, leechers), (30, 30), "torrent {torrent}");
        assert_eq!(ports, expected, "torrent {torrent}");
    }
    // A clean stop has nothing to wait for.
    process.terminate();
    assert!(process.wait(secs(20)).success());
    let _process = start_at(folder.path(), address);
    for torrent in 0..TORRENTS {
        let (_, _, ports) = announce_udp(&socket, connection, torrent, 1_003, started);
        assert_eq!((ports.len(), ports.contains(&1_001)), (60, true), "torrent {torrent}");
    }
}
