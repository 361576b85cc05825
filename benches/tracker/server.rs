//! A trackerd of this build on the loopback, and how it is spoken to.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ed25519_dalek::{Signer, SigningKey};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerd::wire::announce::{AnnounceRequest, Event, ScrapeEntry};
use peerd::wire::auth::{Authorization, signing_text};
use peerd::wire::catalogue::{SearchQuery, SearchReply};
use peerd::wire::id::{InfoHash, PeerId};
use peerd::wire::tracker_udp::{Family, Request, Response};

/// Whoever waits longer for an answer has lost the tracker.
const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when dropped.
pub struct Trackerd {
    child: Child,
    pub address: SocketAddr,
}

impl Trackerd {
    /// Starts it; back when it answers, with how long that took.
    pub fn start(folder: &Path, address: SocketAddr) -> Result<(Trackerd, Duration)> {
        std::fs::create_dir_all(folder)?;
        let log = File::options().create(true).append(true).open(folder.join("log"))?;
        let started = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_trackerd"))
            .args(["--foreground", "--listen", &address.to_string(), "--state-dir"])
            .arg(folder.join("state"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut trackerd = Trackerd { child, address };
        loop {
            if let Ok(mut http) = Http::connect(trackerd.address, None)
                && http.get("/health").is_ok_and(|answer| answer.0 == 200)
            {
                return Ok((trackerd, started.elapsed()));
            }
            if trackerd.child.try_wait()?.is_some() || started.elapsed() > PATIENCE {
                bail!("trackerd does not start: {}", std::fs::read_to_string(folder.join("log"))?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn kill9(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// The most memory that it has had.
    pub fn peak_mib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.split_whitespace().next().context("VmHWM without a number")?.parse()?;
        Ok(kib / 1_024)
    }

    /// A line of `/metrics`.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let (_, body) = Http::connect(self.address, None)?.get("/metrics")?;
        let text = String::from_utf8(body)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name} in /metrics"))?.parse()?)
    }
}

impl Drop for Trackerd {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// A free port of the loopback.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// One of many addresses of this host: 127.`net`.x.y. Each has a bucket of its own at the tracker, as people have.
pub fn local_ip(net: u8, n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(127, net, high, low.max(1))
}

/// A connection that stays open.
pub struct Http {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Http {
    /// `from` this host's address, if it matters.
    pub fn connect(to: SocketAddr, from: Option<Ipv4Addr>) -> Result<Http> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        socket.connect(&to.into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Http { stream: BufReader::new(socket.into()), host: to.to_string() })
    }

    pub fn get(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        self.ask("GET", path, "", &[])
    }

    /// The status and the body of the answer.
    pub fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let (host, length) = (&self.host, body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.get(9..12).context("no status line")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the answer broke off");
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, body))
    }

    pub fn search(&mut self, query: &SearchQuery) -> Result<SearchReply> {
        let (status, body) = self.get(&format!("/search?{}", query.to_query_string()))?;
        ensure!(status == 200, "a search is answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(SearchReply::from_json(&body)?)
    }

    /// A request that carries the signature of `signer`; the status.
    pub fn signed(
        &mut self,
        signer: &SigningKey,
        method: &str,
        path: &str,
        key: &InfoHash,
        body: &[u8],
    ) -> Result<u16> {
        let unix_seconds = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let signature = signer.sign(&signing_text(method, &self.host, key, unix_seconds)).to_bytes();
        let authorization = Authorization { key: signer.verifying_key().to_bytes(), unix_seconds, signature };
        let (status, _) = self.ask(method, path, &format!("Authorization: {authorization}\r\n"), body)?;
        Ok(status)
    }
}

/// A UDP client that has its connection id.
pub struct Udp {
    pub socket: UdpSocket,
    connection_id: u64,
}

impl Udp {
    pub fn connect(to: SocketAddr, from: Ipv4Addr) -> Result<Udp> {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let (mut hello, mut reply) = (Vec::new(), [0; 64]);
        Request::Connect { transaction_id: 1 }.encode(&mut hello);
        for _ in 0..20 {
            socket.send(&hello)?;
            let Ok(bytes) = socket.recv(&mut reply) else { continue };
            if let Response::Connect { connection_id, .. } = Response::decode(&reply[..bytes], Family::V4)? {
                return Ok(Udp { socket, connection_id });
            }
        }
        bail!("trackerd answers no UDP");
    }

    pub fn send(&self, transaction_id: u32, announce: AnnounceRequest) -> Result<()> {
        let mut datagram = Vec::with_capacity(98);
        Request::Announce { connection_id: self.connection_id, transaction_id, announce }.encode(&mut datagram);
        self.socket.send(&datagram)?;
        Ok(())
    }

    /// The counts of these swarms, in their order.
    pub fn scrape(&self, info_hashes: Vec<InfoHash>) -> Result<Vec<ScrapeEntry>> {
        let (mut datagram, mut reply) = (Vec::new(), [0; 2_048]);
        Request::Scrape { connection_id: self.connection_id, transaction_id: 1, info_hashes }.encode(&mut datagram);
        for _ in 0..20 {
            self.socket.send(&datagram)?;
            let Ok(bytes) = self.socket.recv(&mut reply) else { continue };
            match Response::decode(&reply[..bytes], Family::V4)? {
                Response::Scrape { entries, .. } => return Ok(entries),
                other => bail!("a scrape is answered {other:?}"),
            }
        }
        bail!("scrapes are not answered");
    }
}

/// The announce of the `n`th peer: an address of its own, which is believed because it comes from the tracker's host.
pub fn announce(key: InfoHash, n: u32, left: u64) -> AnnounceRequest {
    let mut peer_id = *b"-TR4060-............";
    peer_id[12..16].copy_from_slice(&n.to_be_bytes());
    peer_id[16..].copy_from_slice(&n.wrapping_mul(0x9E37_79B1).to_be_bytes());
    AnnounceRequest {
        info_hash: key,
        peer_id: PeerId(peer_id),
        port: 6_881,
        uploaded: 0,
        downloaded: 0,
        left,
        event: Event::Started,
        numwant: None,
        key: None,
        compact: true,
        no_peer_id: false,
        ip: Some(Ipv4Addr::from_bits(0x0B00_0000 + n).into()),
    }
}
