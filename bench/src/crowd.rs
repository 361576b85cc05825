//! Made-up peers, many to a host: they cost little, so that what is measured is the peerd that they speak with.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, bail};
use peerd::wire::bitfield::Bitfield;
use peerd::wire::framing::{Frame, Framer};
use peerd::wire::handshake::{self, Handshake, Reserved};
use peerd::wire::id::{InfoHash, PeerId};
use peerd::wire::layout::{BLOCK_BYTES, Layout, RawBlock};
use peerd::wire::message::{Message, encode_piece_header};

use crate::content::Content;
use crate::on_host;
use crate::support::net::Host;

/// Requests of a leecher that are under way.
const WINDOW: usize = 64;

static PEERS: AtomicU32 = AtomicU32::new(0);

fn hello(info_hash: InfoHash) -> Handshake {
    let mut id = *b"-XX0000-crowd-------";
    id[14..18].copy_from_slice(&PEERS.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    Handshake { reserved: Reserved::default(), info_hash, peer_id: PeerId(id) }
}

/// A connection after the handshakes.
struct Peer {
    stream: TcpStream,
    framer: Framer,
    chunk: Vec<u8>,
    /// The part of the chunk that has not been looked at.
    at: usize,
    end: usize,
}

impl Peer {
    fn greet(mut stream: TcpStream, info_hash: InfoHash, layout: Layout) -> Result<Peer> {
        stream.set_nodelay(true)?;
        stream.write_all(&hello(info_hash).encode())?;
        stream.read_exact(&mut [0; handshake::LEN])?;
        let framer = Framer::new(layout.piece_count().div_ceil(8));
        Ok(Peer { stream, framer, chunk: vec![0; 256 << 10], at: 0, end: 0 })
    }

    /// The next frame; `None` while the stream has to be read first. Payload is passed over.
    fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            self.framer.discard_payload();
            let passed = (self.framer.payload_left() as usize).min(self.end - self.at);
            self.framer.payload_read(passed);
            self.at += passed;
            if self.framer.payload_left() > 0 {
                return Ok(None);
            }
            if let Some(frame) = self.framer.next()? {
                return Ok(Some(frame));
            }
            if self.at == self.end {
                return Ok(None);
            }
            // No more than one header at a time, so that no payload is copied.
            let step = (self.end - self.at).min(17);
            self.framer.push(&self.chunk[self.at..self.at + step]);
            self.at += step;
        }
    }

    /// Waits for bytes; false when there will be none.
    fn read(&mut self) -> Result<bool> {
        (self.at, self.end) = (0, self.stream.read(&mut self.chunk)?);
        Ok(self.end > 0)
    }

    fn send(&mut self, message: &Message) -> Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        Ok(self.stream.write_all(&bytes)?)
    }
}

/// What leechers take together.
pub struct Taking {
    pub taken_bytes: AtomicU64,
    pub enough_bytes: u64,
}

/// A leecher on `host`: takes blocks from `from`, beginning with piece `first`, again and again until all leechers have
/// taken enough.
pub fn take(
    host: &Host,
    from: SocketAddr,
    content: &Content,
    first: u32,
    taking: &Arc<Taking>,
) -> JoinHandle<Result<()>> {
    let (info_hash, layout, taking) = (content.key, content.layout, taking.clone());
    on_host(host, move || {
        let mut peer = Peer::greet(TcpStream::connect(from)?, info_hash, layout)?;
        peer.send(&Message::Interested)?;
        let blocks = |piece: u32| (0..layout.piece_bytes() / BLOCK_BYTES).map(move |n| (piece, n));
        let mut wanted =
            (0..layout.piece_count()).cycle().skip(first as usize).flat_map(blocks).filter_map(|(piece, n)| {
                let block = layout.nth_block(layout.piece(piece)?, n, BLOCK_BYTES)?;
                Some(RawBlock::from(block))
            });
        let (mut choked, mut under_way) = (true, 0);
        while taking.taken_bytes.load(Ordering::Relaxed) < taking.enough_bytes {
            let mut requests = Vec::new();
            while !choked && under_way < WINDOW {
                let Some(block) = wanted.next() else { bail!("an empty torrent") };
                Message::Request(block).encode(&mut requests);
                under_way += 1;
            }
            peer.stream.write_all(&requests)?;
            if !peer.read()? {
                bail!("peerd hung up");
            }
            while let Some(frame) = peer.next()? {
                match frame {
                    Frame::Message(Message::Choke) => (choked, under_way) = (true, 0),
                    Frame::Message(Message::Unchoke) => choked = false,
                    Frame::Message(_) => {}
                    Frame::Piece(raw) => {
                        under_way = under_way.saturating_sub(1);
                        taking.taken_bytes.fetch_add(u64::from(raw.len), Ordering::Relaxed);
                    }
                }
            }
        }
        Ok(())
    })
}

/// A seed on `host` that answers one peer after the other, until the process ends or `stop` is set.
pub fn give(host: &Host, listen: SocketAddr, content: &Content, bytes: &Arc<Vec<u8>>, stop: &Arc<AtomicBool>) {
    let (info_hash, layout, bytes, stop) = (content.key, content.layout, bytes.clone(), stop.clone());
    let listener = on_host(host, move || TcpListener::bind(listen)).join().expect("a thread").expect("listen");
    on_host(host, move || {
        for stream in listener.incoming().flatten() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // Whoever hangs up may come again.
            let _ = Peer::greet(stream, info_hash, layout).and_then(|peer| serve(peer, layout, &bytes));
        }
    });
}

fn serve(mut peer: Peer, layout: Layout, bytes: &[u8]) -> Result<()> {
    peer.send(&Message::Bitfield(Bitfield::full(layout.piece_count()).as_bytes().to_vec()))?;
    peer.send(&Message::Unchoke)?;
    while peer.read()? {
        while let Some(frame) = peer.next()? {
            let Frame::Message(Message::Request(raw)) = frame else { continue };
            let Some(piece) = layout.piece(raw.piece) else { bail!("a piece that is not there") };
            let start = layout.piece_start(piece) as usize + raw.begin as usize;
            peer.stream.write_all(&encode_piece_header(raw))?;
            peer.stream.write_all(&bytes[start..start + raw.len as usize])?;
        }
    }
    Ok(())
}
