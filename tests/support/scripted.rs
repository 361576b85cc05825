//! A peer that does what a test says: it speaks the wire by hand, from a socket on a host.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use peerd::wire::extension::ExtensionHandshake;
use peerd::wire::framing::{Frame, Framer};
use peerd::wire::handshake::{self, Handshake, Reserved};
use peerd::wire::id::{InfoHash, PeerId};
use peerd::wire::layout::{Layout, RawBlock};
use peerd::wire::message::{Message, encode_piece_header};
use peerd::wire::metainfo::Metainfo;

use super::net::Host;

/// How often whoever waits looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What it has, and how it lies.
pub struct Script {
    /// What it says that it serves.
    pub info_hash: InfoHash,
    pub layout: Layout,
    pub content: Vec<u8>,
    /// Every so manieth block that it sends is wrong; 0: none.
    pub spoils_every: usize,
    /// How long it rests after each block.
    pub rest: Duration,
    /// It says things between its blocks that nobody needs, of all lengths, and nothing goes out whole.
    pub chatters: bool,
}

impl Script {
    /// A seed of what this `.torrent` names.
    pub fn seed(torrent: &Path, content: &Path) -> Script {
        let meta = Metainfo::parse(&fs::read(torrent).expect("a torrent")).expect("a torrent");
        let content = fs::read(content).expect("its content");
        let (info_hash, layout) = (meta.info_hash(), meta.layout());
        Script { info_hash, layout, content, spoils_every: 0, rest: Duration::ZERO, chatters: false }
    }
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    payload_bytes: AtomicU64,
    stop: AtomicBool,
}

/// It listens until it is dropped.
pub struct Scripted {
    pub addr: SocketAddr,
    host: Host,
    script: Arc<Script>,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    #[track_caller]
    pub fn start(host: &Host, port: u16, script: Script) -> Scripted {
        let (addr, script, seen) = (SocketAddr::new(host.ip, port), Arc::new(script), Arc::new(Seen::default()));
        let (on, says, sees) = (host.clone(), script.clone(), seen.clone());
        let listener = on_host(host, move || TcpListener::bind(addr)).join().expect("a thread").expect("listen");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let thread = on_host(&on, move || {
            let mut sessions = Vec::new();
            while !sees.stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let (says, sees) = (says.clone(), sees.clone());
                        sessions.push(thread::spawn(move || session(stream, false, addr.port(), &says, &sees)));
                    }
                    Err(_) => thread::sleep(LOOK_EVERY),
                }
            }
            sessions.into_iter().for_each(|session| drop(session.join()));
        });
        Scripted { addr, host: host.clone(), script, seen, thread: Some(thread) }
    }

    /// Tells the tracker, by its URL, that it is a seed of this. One that says so once and is no peerd is forgotten after 660 s
    /// (design.md *Leave*): what takes longer says it again.
    #[track_caller]
    pub fn announce(&self, tracker: &str, info_hash: InfoHash) {
        let hash: String = info_hash.as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
        let query = format!("info_hash={hash}&peer_id=-XX0000-scriptedpeer&port={}&left=0", self.addr.port());
        let url = format!("{tracker}/announce?{query}&uploaded=0&downloaded=0&compact=1");
        self.host.curl(&[&url]).expect_success();
    }

    /// What it serves.
    pub fn info_hash(&self) -> InfoHash {
        self.script.info_hash
    }

    /// Connections so far, either way.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// Blocks that it was asked for so far.
    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::Relaxed)
    }

    /// Payload that it has put on the wire so far, to anybody.
    pub fn payload_bytes(&self) -> u64 {
        self.seen.payload_bytes.load(Ordering::Relaxed)
    }

    /// Dials a peer and speaks with it until the peer hangs up.
    pub fn dial(&self, to: SocketAddr) -> JoinHandle<()> {
        let (port, script, seen) = (self.addr.port(), self.script.clone(), self.seen.clone());
        on_host(&self.host, move || session(TcpStream::connect(to).expect("connect"), true, port, &script, &seen))
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs `f` on a thread whose sockets are the host's.
pub fn on_host<T: Send + 'static>(host: &Host, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let namespace = File::open(Path::new("/run/netns").join(&host.namespace)).expect("the host's namespace");
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the host's namespace");
        f()
    })
}

/// Speaks until the other end hangs up.
fn session(mut stream: TcpStream, dialled: bool, port: u16, script: &Script, seen: &Seen) {
    seen.connections.fetch_add(1, Ordering::Relaxed);
    stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(LOOK_EVERY))).expect("a socket");
    let ours = Handshake {
        info_hash: script.info_hash,
        peer_id: PeerId(*b"-XX0000-scriptedpeer"),
        reserved: Reserved::ours(),
    };
    if dialled && stream.write_all(&ours.encode()).is_err() {
        return;
    }
    let mut framer = Framer::new(script.layout.piece_count().div_ceil(8));
    let (mut theirs, mut chunk, mut sent) = (0, [0; 16 * 1024], 0);
    loop {
        let got = match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(got) => got,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if seen.stop.load(Ordering::Relaxed) {
                    return;
                }
                continue;
            }
            Err(_) => return,
        };
        let before = got.min(handshake::LEN - theirs);
        theirs += before;
        framer.push(&chunk[before..got]);
        let mut out = Vec::new();
        if before > 0 && theirs == handshake::LEN {
            out.extend((!dialled).then(|| ours.encode()).into_iter().flatten());
            let payload = ExtensionHandshake { port: Some(port), ..ExtensionHandshake::default() }.encode();
            for message in [Message::HaveAll, Message::Extended { id: 0, payload }, Message::Unchoke] {
                message.encode(&mut out);
            }
        }
        while let Ok(Some(frame)) = framer.next() {
            if let Frame::Message(Message::Request(raw)) = frame {
                sent += 1;
                seen.requests.fetch_add(1, Ordering::Relaxed);
                block(script, raw, script.spoils_every > 0 && sent % script.spoils_every == 0, &mut out);
                seen.payload_bytes.fetch_add(u64::from(raw.len), Ordering::Relaxed);
                if script.chatters {
                    chatter(sent, &mut out);
                }
                if !script.rest.is_zero() {
                    thread::sleep(script.rest);
                    if stream.write_all(&std::mem::take(&mut out)).is_err() {
                        return;
                    }
                }
            }
        }
        // Cut wherever it may be, the stream is the same.
        let most = if script.chatters { 1 + (sent * 7_919) % 50_000 } else { usize::MAX };
        if out.chunks(most).any(|part| stream.write_all(part).is_err()) {
            return;
        }
    }
}

/// After some blocks nothing, after others messages of 4 to 16,000 bytes.
fn chatter(nth: usize, out: &mut Vec<u8>) {
    match nth % 7 {
        0 => Message::KeepAlive.encode(out),
        2 => Message::Have(0).encode(out),
        4 => Message::Unchoke.encode(out),
        5 => Message::Extended { id: 77, payload: vec![7; (nth * 613) % 16_000] }.encode(out),
        _ => {}
    }
}

fn block(script: &Script, raw: RawBlock, spoilt: bool, out: &mut Vec<u8>) {
    let piece = script.layout.piece(raw.piece).expect("a piece of the torrent");
    let start = script.layout.piece_start(piece) as usize + raw.begin as usize;
    out.extend(encode_piece_header(raw));
    let from = out.len();
    out.extend(&script.content[start..start + raw.len as usize]);
    if spoilt {
        out[from] ^= 1;
    }
}
