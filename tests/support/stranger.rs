//! A peer made by hand: what it says, and in which order, is the test's.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use peerd::wire::extension::ExtensionHandshake;
use peerd::wire::framing::{Frame, Framer};
use peerd::wire::handshake::{self, Handshake, Reserved};
use peerd::wire::id::{InfoHash, PeerId};
use peerd::wire::message::Message;

use super::net::Host;
use super::peer::Peer;
use super::secs;

/// Carries bytes between a connection in a host's namespace and our pipes.
const RELAY: &str = "
import os, socket, sys, threading
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
s.settimeout(None)
def up():
    while data := os.read(0, 65536):
        s.sendall(data)
threading.Thread(target=up, daemon=True).start()
while data := s.recv(65536):
    os.write(1, data)
";

/// Longest bitfield of the torrents that strangers ask for.
const MAX_BITFIELD_BYTES: u32 = 1_024;

/// What came within the time that was given.
#[derive(Debug)]
pub enum Heard {
    Message(Message),
    Nothing,
    /// The peer hung up.
    End,
}

/// A connection on which both handshakes have passed.
pub struct Stranger {
    pub ours: Handshake,
    pub theirs: Handshake,
    relay: Child,
    pipe: ChildStdin,
    chunks: Receiver<Vec<u8>>,
    framer: Framer,
}

impl Stranger {
    /// Dials `to` from `host` and asks for `key`; `letter` makes the peer id.
    #[track_caller]
    pub fn dial(host: &Host, to: &Peer, key: InfoHash, letter: u8) -> Stranger {
        let mut command = host.command("python3");
        command.args(["-c", RELAY, &to.host.ip.to_string(), "6881"]);
        let mut relay =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start python3");
        let mut pipe = relay.stdin.take().expect("a pipe");
        let mut out = relay.stdout.take().expect("a pipe");
        let (sender, chunks) = sync_channel(64);
        thread::spawn(move || {
            let mut bytes = [0; 65_536];
            while let Ok(count @ 1..) = out.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut peer_id = *b"-XX0001-............";
        peer_id[8..].fill(letter);
        let ours = Handshake { reserved: Reserved::ours(), info_hash: key, peer_id: PeerId(peer_id) };
        pipe.write_all(&ours.encode()).expect("a connection");
        let mut first = Vec::new();
        while first.len() < handshake::LEN {
            first.extend(chunks.recv_timeout(secs(10)).expect("a handshake"));
        }
        let (greeting, rest) = first.split_at(handshake::LEN);
        let theirs = Handshake::decode(greeting.try_into().expect("68 bytes")).expect("a handshake");
        let mut framer = Framer::new(MAX_BITFIELD_BYTES);
        framer.push(rest);
        Stranger { ours, theirs, relay, pipe, chunks, framer }
    }

    /// Says it; a peer that has hung up does not hear it.
    pub fn say(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let _ = self.pipe.write_all(&bytes);
    }

    pub fn hear(&mut self, within: Duration) -> Heard {
        let start = Instant::now();
        loop {
            if let Some(frame) = self.framer.next().expect("frames") {
                match frame {
                    Frame::Message(message) => return Heard::Message(message),
                    Frame::Piece(raw) => panic!("a block that nobody asked for: {raw:?}"),
                }
            }
            match self.chunks.recv_timeout(within.saturating_sub(start.elapsed())) {
                Ok(bytes) => self.framer.push(&bytes),
                Err(RecvTimeoutError::Timeout) => return Heard::Nothing,
                Err(RecvTimeoutError::Disconnected) => return Heard::End,
            }
        }
    }

    /// The payload of the next extended message of this id.
    #[track_caller]
    pub fn hear_extended(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            match self.hear(secs(10)) {
                Heard::Message(Message::Extended { id, payload }) if id == wanted => return payload,
                Heard::Message(_) => {}
                other => panic!("{other:?} in place of an extended message of id {wanted}"),
            }
        }
    }

    /// What the peer says of itself.
    #[track_caller]
    pub fn hear_introduction(&mut self) -> ExtensionHandshake {
        ExtensionHandshake::decode(&self.hear_extended(0)).expect("an extension handshake")
    }

    /// Whether the peer hangs up within `limit`, whatever it says before.
    pub fn is_cut_within(&mut self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            match self.hear(limit.saturating_sub(start.elapsed())) {
                Heard::End => return true,
                Heard::Nothing => return false,
                Heard::Message(_) => {}
            }
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.relay.kill();
        let _ = self.relay.wait();
    }
}
