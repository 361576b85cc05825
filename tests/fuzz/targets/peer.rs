//! What a peer sends: the handshake, the stream behind it, the extension handshake within.

use peerd::wire::bitfield::Bitfield;
use peerd::wire::extension::{ExtensionError, ExtensionHandshake, MAX_CLIENT_BYTES, MAX_MESSAGES};
use peerd::wire::framing::{Frame, FrameError, Framer, MAX_FRAME_BYTES};
use peerd::wire::handshake::{self, Handshake, HandshakeError};
use peerd::wire::layout::{Layout, MAX_BLOCK_BYTES, RawBlock};
use peerd::wire::message::{Message, PIECE_HEADER_BYTES, encode_piece_header};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::bounds::bounded;

/// Length and no more: a keep-alive.
const SHORTEST_FRAME_BYTES: usize = 4;
/// The longest piece of the stream that is pushed at once when it comes cut.
const LONGEST_CUT_BYTES: usize = 40;

/// Strict.
pub fn handshake(input: &[u8]) {
    check_handshake(input, Handshake::decode);
}

pub fn check_handshake(input: &[u8], decode: impl Fn(&[u8; handshake::LEN]) -> Result<Handshake, HandshakeError>) {
    let Some(bytes) = input.first_chunk::<{ handshake::LEN }>() else { return };
    if let Ok(handshake) = bounded(input, || decode(bytes)) {
        assert_eq!(&handshake.encode(), bytes);
        let spoken = (handshake.reserved.extension(), handshake.reserved.fast());
        assert_eq!(spoken, (bytes[25] & 0x10 != 0, bytes[27] & 0x04 != 0));
    }
}

/// Lenient: fields of the wrong kind, unknown fields and bytes behind the dictionary are passed over; names beyond the
/// cap and the end of a long client name are dropped.
pub fn extension_handshake(input: &[u8]) {
    check_extension(input, ExtensionHandshake::decode);
}

pub fn check_extension(input: &[u8], decode: impl Fn(&[u8]) -> Result<ExtensionHandshake, ExtensionError>) {
    let Ok(heard) = bounded(input, || decode(input)) else { return };
    assert!(heard.messages.len() <= MAX_MESSAGES);
    assert!(heard.client.as_ref().is_none_or(|client| client.len() <= MAX_CLIENT_BYTES));
    let again = heard.encode();
    assert_eq!(ExtensionHandshake::decode(&again), Ok(heard));
}

/// The first four bytes say how the rest, the stream, is read: a seed for where it is cut, and the length of the
/// torrent's bitfield.
///
/// Strict but for messages that are not known: they are passed over, and cannot be written.
pub fn stream(input: &[u8]) {
    check_stream(input, Framer::new);
}

pub fn check_stream(input: &[u8], open: impl Fn(u32) -> Framer) {
    let Some(([s0, s1, b0, b1], stream)) = input.split_first_chunk::<4>() else { return };
    let seed = u64::from(u16::from_be_bytes([*s0, *s1]));
    let max_bitfield_bytes = u32::from(u16::from_be_bytes([*b0, *b1]));
    let frames = bounded(stream, || {
        let mut framer = open(max_bitfield_bytes);
        framer.push(stream);
        std::iter::from_fn(|| {
            framer.discard_payload();
            framer.next().ok().flatten()
        })
        .count()
    });
    assert!(frames <= stream.len() / SHORTEST_FRAME_BYTES);

    let mut rng = SmallRng::seed_from_u64(seed);
    let whole = Reader::new(open(max_bitfield_bytes)).read(stream, || usize::MAX);
    let cut = Reader::new(open(max_bitfield_bytes)).read(stream, || rng.random_range(1..=LONGEST_CUT_BYTES));
    assert_eq!(whole, cut, "cut by seed {seed}");
    for (frame, _) in &whole.0 {
        within_caps(frame, max_bitfield_bytes);
    }
    same_bytes(&whole.0, stream);
}

/// Frames, each block with as much of its payload as came; and how the stream ended.
type Read = (Vec<(Frame, Vec<u8>)>, Option<FrameError>);

/// Does as a session does: pushes what is not known to be payload, and lets a block's bytes go past the framer.
struct Reader {
    framer: Framer,
    frames: Vec<(Frame, Vec<u8>)>,
}

impl Reader {
    fn new(framer: Framer) -> Reader {
        Reader { framer, frames: Vec::new() }
    }

    fn read(mut self, mut stream: &[u8], mut cut: impl FnMut() -> usize) -> Read {
        while !stream.is_empty() {
            let past = stream.len().min(self.framer.payload_left() as usize).min(cut());
            if past > 0 && self.framer.is_empty() {
                self.payload(&stream[..past]);
                self.framer.payload_read(past);
                stream = &stream[past..];
                continue;
            }
            let pushed = stream.len().min(cut());
            self.framer.push(&stream[..pushed]);
            stream = &stream[pushed..];
            if let Err(error) = self.drain() {
                assert_eq!(self.framer.next(), Err(error), "an error stays");
                return (self.frames, Some(error));
            }
            assert!(self.framer.buffered() < MAX_FRAME_BYTES);
        }
        (self.frames, None)
    }

    fn drain(&mut self) -> Result<(), FrameError> {
        loop {
            let mut part = [0; 7];
            while let taken @ 1.. = self.framer.take_payload(&mut part) {
                self.payload(&part[..taken]);
            }
            match self.framer.next()? {
                Some(frame) => self.frames.push((frame, Vec::new())),
                None => return Ok(()),
            }
        }
    }

    fn payload(&mut self, bytes: &[u8]) {
        self.frames.last_mut().expect("a block is open").1.extend_from_slice(bytes);
    }
}

fn within_caps(frame: &Frame, max_bitfield_bytes: u32) {
    match frame {
        Frame::Message(Message::Bitfield(bytes)) => {
            assert!(bytes.len() <= max_bitfield_bytes as usize, "a bitfield of {} bytes", bytes.len());
            for spare in 0..8 {
                let pieces = (bytes.len() as u32 * 8).saturating_sub(spare);
                if let Ok(bitfield) = Bitfield::from_wire(bytes, pieces) {
                    assert_eq!(bitfield.as_bytes(), bytes);
                    same_set(bitfield);
                }
            }
        }
        Frame::Message(Message::Request(raw) | Message::Cancel(raw) | Message::Reject(raw)) => inside(*raw),
        Frame::Piece(raw) => {
            assert!((1..=MAX_BLOCK_BYTES).contains(&raw.len));
            inside(*raw);
        }
        Frame::Message(_) => {}
    }
}

/// Taken apart piece by piece, and put together again.
fn same_set(bitfield: Bitfield) {
    let pieces = bitfield.piece_count();
    let Ok(layout) = Layout::new(u64::from(pieces) * 16_384, 16_384) else { return };
    let (mut left, mut made) = (bitfield.clone(), Bitfield::empty(pieces));
    for piece in bitfield.iter_set(layout) {
        assert!(left.clear(piece) && !left.clear(piece) && made.set(piece) && !made.set(piece));
    }
    assert!(left.is_empty() && left.count() == 0 && made == bitfield);
    assert_eq!(bitfield.iter_missing(layout).count() as u32, pieces - bitfield.count());
    assert_eq!(bitfield.is_full(), bitfield == Bitfield::full(pieces));
}

/// What a torrent takes for a block of its own lies within its piece.
fn inside(raw: RawBlock) {
    let layout = Layout::new(100_000, 65_536).expect("a layout");
    if let Some(block) = layout.block(raw) {
        assert_eq!((block.piece().get(), block.begin(), block.len()), (raw.piece, raw.begin, raw.len));
        assert!(block.end() <= layout.piece_len(block.piece()));
    }
}

/// The frames are what the stream says, byte by byte.
fn same_bytes(frames: &[(Frame, Vec<u8>)], stream: &[u8]) {
    let mut rest = stream;
    for (frame, payload) in frames {
        let written = match frame {
            Frame::Message(Message::Unknown(id)) => {
                assert_eq!(rest[4], *id);
                let length = u32::from_be_bytes(*rest.first_chunk().expect("a prefix"));
                rest = &rest[rest.len().min(4 + length as usize)..];
                continue;
            }
            Frame::Message(message) => {
                let mut written = Vec::new();
                message.encode(&mut written);
                written
            }
            Frame::Piece(block) => {
                assert_eq!(payload.len(), (block.len as usize).min(rest.len() - PIECE_HEADER_BYTES));
                [&encode_piece_header(*block)[..], payload.as_slice()].concat()
            }
        };
        rest = rest.strip_prefix(&written[..]).unwrap_or_else(|| panic!("{frame:?} is not what was sent"));
    }
}
