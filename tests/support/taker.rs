//! A peer of the tests' own that takes: what it asked for, and what came of it, is known to the byte.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use peerd::wire::extension::ExtensionHandshake;
use peerd::wire::framing::{Frame, Framer};
use peerd::wire::handshake::{self, Handshake, Reserved};
use peerd::wire::id::{InfoHash, PeerId};
use peerd::wire::layout::{BLOCK_BYTES, Layout, RawBlock};
use peerd::wire::message::Message;

use super::net::Host;
use super::scripted::on_host;

/// Blocks asked for ahead.
const PIPELINE: usize = 16;
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Seen {
    asked_bytes: AtomicU64,
    taken_bytes: AtomicU64,
    stop: AtomicBool,
}

/// It takes a torrent once, from one peer, until it has all or the peer is gone.
pub struct Taker {
    seen: Arc<Seen>,
    thread: JoinHandle<()>,
}

impl Taker {
    /// With a rest after each block.
    pub fn start(host: &Host, from: SocketAddr, key: InfoHash, layout: Layout, rest: Duration) -> Taker {
        let seen = Arc::new(Seen::default());
        let sees = seen.clone();
        let thread = on_host(host, move || {
            if let Ok(stream) = TcpStream::connect_timeout(&from, Duration::from_secs(5)) {
                take(stream, key, layout, rest, &sees);
            }
        });
        Taker { seen, thread }
    }

    /// Payload of the blocks that came.
    pub fn taken_bytes(&self) -> u64 {
        self.seen.taken_bytes.load(Ordering::Relaxed)
    }

    /// Lets it end, and returns the payload that it asked for and that was not refused: more was not sent to it.
    pub fn end(self) -> u64 {
        self.seen.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a session");
        self.seen.asked_bytes.load(Ordering::Relaxed)
    }
}

fn take(mut stream: TcpStream, key: InfoHash, layout: Layout, rest: Duration, seen: &Seen) {
    stream.set_read_timeout(Some(LOOK_EVERY)).expect("a socket");
    let ours = Handshake { info_hash: key, peer_id: PeerId(*b"-XX0002-takes......."), reserved: Reserved::ours() };
    let mut out = ours.encode().to_vec();
    let payload = ExtensionHandshake::default().encode();
    for message in [Message::HaveNone, Message::Extended { id: 0, payload }, Message::Interested] {
        message.encode(&mut out);
    }
    let per_piece = |piece| (0..).map_while(move |nth| layout.nth_block(piece, nth, BLOCK_BYTES));
    let mut wanted: VecDeque<RawBlock> = layout.pieces().flat_map(per_piece).map(RawBlock::from).collect();
    let mut framer = Framer::new(layout.piece_count().div_ceil(8));
    let (mut head, mut under_way, mut may_ask, mut chunk) = (0, 0, false, [0; 16 * 1024]);
    while !seen.stop.load(Ordering::Relaxed) {
        while may_ask && under_way < PIPELINE {
            let Some(block) = wanted.pop_front() else { break };
            seen.asked_bytes.fetch_add(block.len.into(), Ordering::Relaxed);
            Message::Request(block).encode(&mut out);
            under_way += 1;
        }
        if stream.write_all(&std::mem::take(&mut out)).is_err() {
            return;
        }
        let got = match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(got) => got,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        let before = got.min(handshake::LEN - head);
        head += before;
        framer.push(&chunk[before..got]);
        loop {
            framer.discard_payload();
            match framer.next().expect("frames") {
                Some(Frame::Piece(block)) => {
                    seen.taken_bytes.fetch_add(block.len.into(), Ordering::Relaxed);
                    under_way -= 1;
                    std::thread::sleep(rest);
                }
                Some(Frame::Message(Message::Unchoke)) => may_ask = true,
                Some(Frame::Message(Message::Choke)) => may_ask = false,
                Some(Frame::Message(Message::Reject(block))) => {
                    seen.asked_bytes.fetch_sub(block.len.into(), Ordering::Relaxed);
                    wanted.push_front(block);
                    under_way -= 1;
                }
                Some(Frame::Message(_)) => {}
                None => break,
            }
        }
    }
}
