//! What a peer sends: the handshake, the stream behind it, the extension handshake within.

use peerd::wire::bitfield::{Bitfield, BitfieldError};
use peerd::wire::extension::{ExtensionError, ExtensionHandshake, MAX_CLIENT_BYTES, MAX_MESSAGES};
use peerd::wire::framing::{Frame, FrameError, Framer, MAX_FRAME_BYTES};
use peerd::wire::handshake::{self, Handshake, HandshakeError};
use peerd::wire::id::{InfoHash, NotAnInfoHash, PeerId};
use peerd::wire::layout::{Layout, LayoutError, MAX_BLOCK_BYTES, MAX_PIECES, RawBlock};
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
        identities(handshake.info_hash, handshake.peer_id);
    }
}

/// A key is what its text says, in either case and with no digit more or less. Whatever a peer calls itself is shown in
/// ASCII.
fn identities(key: InfoHash, peer_id: PeerId) {
    let text = key.to_hex();
    assert_eq!((text.parse(), text.to_uppercase().parse()), (Ok(key), Ok(key)));
    assert_eq!((key.to_string(), format!("{key:?}")), (text.clone(), text.clone()));
    for other in [&text[1..], &text.replace(|digit: char| digit.is_ascii_digit(), "g")] {
        let has_digit = text.contains(|digit: char| digit.is_ascii_digit());
        assert!(other.parse::<InfoHash>() == Err(NotAnInfoHash) || other.len() == text.len() && !has_digit);
    }
    assert_eq!(InfoHash::from_slice(key.as_bytes()), Some(key));
    assert!(format!("{peer_id:?}").bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
    assert_eq!(peer_id.is_peerd(), peer_id.0.starts_with(b"-PY"));
    let ours = PeerId::ours(*peer_id.0.last_chunk().expect("twelve bytes"));
    assert!(ours.is_peerd() && ours.0[8..].iter().all(u8::is_ascii_alphanumeric));
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
            let more = bytes.len() as u32 * 8 + 1;
            let lengths = BitfieldError::Length { got: bytes.len(), expected: bytes.len() + 1 };
            assert_eq!(Bitfield::from_wire(bytes, more), Err(lengths));
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
        assert!(block.end() <= layout.piece_len(block.piece()) && !block.is_empty() && RawBlock::from(block) == raw);
        assert_eq!(format!("{:?}", block.piece()), format!("#{}", raw.piece));
        let nth = layout.nth_block(block.piece(), raw.begin / raw.len, raw.len);
        assert!(nth.is_some_and(|nth| nth.begin() <= block.begin() && nth.end() <= block.end()));
    }
    // Sizes of a torrent, out of the same numbers.
    let (total_bytes, piece_bytes) = (u64::from(raw.begin) << (raw.piece % 32), u64::from(raw.len));
    match Layout::new(total_bytes, piece_bytes) {
        Ok(layout) => {
            let last = layout.piece(layout.piece_count().wrapping_sub(1));
            let end = last.map_or(0, |last| layout.piece_start(last) + u64::from(layout.piece_len(last)));
            assert_eq!((end, u64::from(layout.piece_bytes())), (layout.total_bytes(), piece_bytes));
            assert_eq!((layout.total_bytes(), layout.piece(layout.piece_count())), (total_bytes, None));
        }
        Err(LayoutError::PieceLength(bytes)) => assert_eq!(bytes, piece_bytes),
        Err(LayoutError::TooManyPieces(pieces)) => assert!(pieces > u64::from(MAX_PIECES)),
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
