//! The stream of one session, after the handshake, as frames: no IO, no payload.
//!
//! The caller reads from its socket as it likes. Bytes that are not known to be payload go to [`Framer::push`], then
//! [`Framer::next`] is asked until it has no more. A [`Frame::Piece`] is a header alone: the block's bytes follow in the
//! stream. What of them was pushed already is fetched by [`Framer::take_payload`]; the rest the caller reads from the
//! socket straight to where it belongs and says so by [`Framer::payload_read`]. Until the last byte of a payload is
//! accounted for there is no next frame.

use super::layout::{MAX_BLOCK_BYTES, RawBlock};
use super::message::{Message, PIECE_HEADER_BYTES, id};

/// The longest frame but a bitfield, with its prefix: the largest block with its header. It bounds what a peer can make
/// us hold.
pub const MAX_FRAME_BYTES: usize = MAX_BLOCK_BYTES as usize + PIECE_HEADER_BYTES;
/// A buffer that grew beyond this (a long bitfield) is given back once it is empty: most sessions never need it again.
const KEPT_BUFFER_BYTES: usize = 32 * 1024;
const PREFIX_BYTES: usize = 4;

/// One unit of the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    Message(Message),
    /// A block's header; `len` is 1 to [`MAX_BLOCK_BYTES`], and as many bytes of payload follow.
    Piece(RawBlock),
}

/// Why a stream cannot go on: all of these end the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes")]
    TooLong(u32),
    #[error("a bitfield of {got} bytes where at most {max} can be due")]
    BitfieldTooLong { got: u32, max: u32 },
    #[error("message {id} with a payload of {payload_bytes} bytes")]
    WrongLength { id: u8, payload_bytes: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// At a frame's first byte.
    Between,
    /// Inside a block: this many bytes to come.
    Payload(u32),
    /// Inside the payload of a message that nobody understands.
    Skip(u32),
    Failed(FrameError),
}

/// See the module.
#[derive(Debug)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Bytes at the buffer's start that are done with.
    read: usize,
    state: State,
    max_bitfield_bytes: u32,
}

impl Framer {
    /// `max_bitfield_bytes`: the length of the torrent's bitfield, or of the largest that is taken while the torrent is
    /// not known.
    pub fn new(max_bitfield_bytes: u32) -> Framer {
        Framer { buffer: Vec::new(), read: 0, state: State::Between, max_bitfield_bytes }
    }

    /// Takes bytes that came and are not known to be payload. Between calls of [`Framer::next`] that said "no more" at
    /// most one frame is held beside what is pushed.
    pub fn push(&mut self, mut bytes: &[u8]) {
        match self.state {
            State::Failed(_) => return,
            State::Skip(left) if self.is_empty() => {
                let skipped = bytes.len().min(left as usize);
                bytes = &bytes[skipped..];
                self.state = skipping(left - skipped as u32);
            }
            _ => {}
        }
        // Moving what is left to the front costs at most as much as was read since: each byte moves once on average.
        if self.read > 0 && self.read * 2 >= self.buffer.len() {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, if all of it that is needed has come. `None` too while a block's payload is outstanding.
    ///
    /// # Errors
    /// When the peer broke the framing; then for ever.
    #[expect(clippy::should_implement_trait, reason = "no iterator: after `None` more may come")]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        match self.state {
            State::Failed(error) => return Err(error),
            State::Payload(_) => return Ok(None),
            State::Skip(left) => {
                let skipped = self.buffered().min(left as usize);
                self.read += skipped;
                self.state = skipping(left - skipped as u32);
                if self.state != State::Between {
                    return Ok(None);
                }
            }
            State::Between => {}
        }
        self.parse().inspect_err(|&error| {
            self.state = State::Failed(error);
            self.buffer = Vec::new();
            self.read = 0;
        })
    }

    /// Moves payload that was already pushed; returns how many bytes, 0 when there is none or no block is open.
    pub fn take_payload(&mut self, into: &mut [u8]) -> usize {
        let State::Payload(left) = self.state else { return 0 };
        let taken = self.buffered().min(left as usize).min(into.len());
        into[..taken].copy_from_slice(&self.buffer[self.read..self.read + taken]);
        self.read += taken;
        self.payload_read(taken);
        taken
    }

    /// Drops payload that was already pushed, of a block that nobody wants; returns how many bytes.
    pub fn discard_payload(&mut self) -> usize {
        let State::Payload(left) = self.state else { return 0 };
        let dropped = self.buffered().min(left as usize);
        self.read += dropped;
        self.payload_read(dropped);
        dropped
    }

    /// Bytes of the open block that are still to come, from the buffer or from the socket; 0 when no block is open.
    pub fn payload_left(&self) -> u32 {
        if let State::Payload(left) = self.state { left } else { 0 }
    }

    /// Says that `bytes` of the open block were read past this buffer.
    pub fn payload_read(&mut self, bytes: usize) {
        if let State::Payload(left) = self.state {
            let left = left.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
            self.state = if left == 0 { State::Between } else { State::Payload(left) };
        }
    }

    /// Bytes pushed and not yet consumed.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.read
    }

    pub fn is_empty(&self) -> bool {
        self.buffered() == 0
    }

    fn parse(&mut self) -> Result<Option<Frame>, FrameError> {
        let pending = &self.buffer[self.read..];
        let Some((prefix, rest)) = pending.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix);
        if length == 0 {
            self.read += PREFIX_BYTES;
            return Ok(Some(Frame::Message(Message::KeepAlive)));
        }
        let payload_bytes = length - 1;
        let longest = (MAX_FRAME_BYTES - PREFIX_BYTES) as u32;
        if length > longest && payload_bytes > self.max_bitfield_bytes {
            return Err(FrameError::TooLong(length));
        }
        let Some((&id, payload)) = rest.split_first() else { return Ok(None) };
        match (id, expected_payload(id)) {
            (id::BITFIELD, _) if payload_bytes > self.max_bitfield_bytes => {
                return Err(FrameError::BitfieldTooLong { got: payload_bytes, max: self.max_bitfield_bytes });
            }
            (id::BITFIELD, _) => {}
            _ if length > longest => return Err(FrameError::TooLong(length)),
            (id::PIECE, _) => return self.parse_piece(payload_bytes),
            (id::EXTENDED, _) if payload_bytes == 0 => return Err(FrameError::WrongLength { id, payload_bytes }),
            (id::EXTENDED, _) => {}
            (_, Some(expected)) if expected != payload_bytes => {
                return Err(FrameError::WrongLength { id, payload_bytes });
            }
            (_, Some(_)) => {}
            (_, None) => {
                self.read += PREFIX_BYTES + 1;
                self.state = skipping(payload_bytes);
                return Ok(Some(Frame::Message(Message::Unknown(id))));
            }
        }
        // No room is made for what a length merely claims: the buffer grows with what comes.
        let Some(payload) = payload.get(..payload_bytes as usize) else { return Ok(None) };
        let message = decode(id, payload).ok_or(FrameError::WrongLength { id, payload_bytes })?;
        self.read += PREFIX_BYTES + length as usize;
        Ok(Some(Frame::Message(message)))
    }

    fn parse_piece(&mut self, payload_bytes: u32) -> Result<Option<Frame>, FrameError> {
        let Some(len @ 1..=MAX_BLOCK_BYTES) = payload_bytes.checked_sub(8) else {
            return Err(FrameError::WrongLength { id: id::PIECE, payload_bytes });
        };
        let header = &self.buffer[self.read..];
        let (Some(piece), Some(begin)) = (be_u32(header, 5), be_u32(header, 9)) else { return Ok(None) };
        self.read += PIECE_HEADER_BYTES;
        self.state = State::Payload(len);
        Ok(Some(Frame::Piece(RawBlock { piece, begin, len })))
    }
}

fn skipping(left: u32) -> State {
    if left == 0 { State::Between } else { State::Skip(left) }
}

/// The payload bytes of a message whose length is fixed.
fn expected_payload(id: u8) -> Option<u32> {
    Some(match id {
        id::CHOKE | id::UNCHOKE | id::INTERESTED | id::NOT_INTERESTED | id::HAVE_ALL | id::HAVE_NONE => 0,
        id::HAVE | id::SUGGEST | id::ALLOWED_FAST => 4,
        id::REQUEST | id::CANCEL | id::REJECT => 12,
        id::PORT => 2,
        _ => return None,
    })
}

/// `payload` has the length that the id asks for; otherwise `None`.
fn decode(id: u8, payload: &[u8]) -> Option<Message> {
    let number = || be_u32(payload, 0);
    let block = || Some(RawBlock { piece: be_u32(payload, 0)?, begin: be_u32(payload, 4)?, len: be_u32(payload, 8)? });
    Some(match id {
        id::CHOKE => Message::Choke,
        id::UNCHOKE => Message::Unchoke,
        id::INTERESTED => Message::Interested,
        id::NOT_INTERESTED => Message::NotInterested,
        id::HAVE => Message::Have(number()?),
        id::BITFIELD => Message::Bitfield(payload.to_vec()),
        id::REQUEST => Message::Request(block()?),
        id::CANCEL => Message::Cancel(block()?),
        id::PORT => Message::Port(u16::from_be_bytes(*payload.first_chunk()?)),
        id::SUGGEST => Message::Suggest(number()?),
        id::HAVE_ALL => Message::HaveAll,
        id::HAVE_NONE => Message::HaveNone,
        id::REJECT => Message::Reject(block()?),
        id::ALLOWED_FAST => Message::AllowedFast(number()?),
        id::EXTENDED => {
            let (&id, payload) = payload.split_first()?;
            Message::Extended { id, payload: payload.to_vec() }
        }
        _ => return None,
    })
}

fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_be_bytes(*field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::encode_piece_header;
    use super::*;

    const MAX_BITFIELD: u32 = 100;

    /// A frame with its payload, as a test sees it.
    #[derive(Clone, PartialEq, Debug)]
    enum Whole {
        Message(Message),
        Block(RawBlock, Vec<u8>),
    }

    fn drain(framer: &mut Framer, open: &mut Option<(RawBlock, Vec<u8>)>, seen: &mut Vec<Whole>) {
        loop {
            if let Some((block, mut payload)) = open.take() {
                let mut part = [0; 7];
                loop {
                    let taken = framer.take_payload(&mut part);
                    payload.extend(&part[..taken]);
                    if taken == 0 {
                        break;
                    }
                }
                if framer.payload_left() > 0 {
                    *open = Some((block, payload));
                    return;
                }
                seen.push(Whole::Block(block, payload));
            }
            match framer.next().unwrap() {
                None => return,
                Some(Frame::Message(message)) => seen.push(Whole::Message(message)),
                Some(Frame::Piece(block)) => *open = Some((block, Vec::new())),
            }
        }
    }

    fn span() -> impl Strategy<Value = RawBlock> {
        any::<(u32, u32, u32)>().prop_map(|(piece, begin, len)| RawBlock { piece, begin, len })
    }

    fn whole() -> impl Strategy<Value = Whole> {
        let message = prop_oneof![
            Just(Message::KeepAlive),
            Just(Message::Choke),
            Just(Message::Unchoke),
            Just(Message::Interested),
            Just(Message::NotInterested),
            Just(Message::HaveAll),
            Just(Message::HaveNone),
            any::<u32>().prop_map(Message::Have),
            any::<u32>().prop_map(Message::Suggest),
            any::<u32>().prop_map(Message::AllowedFast),
            any::<u16>().prop_map(Message::Port),
            span().prop_map(Message::Request),
            span().prop_map(Message::Cancel),
            span().prop_map(Message::Reject),
            prop::collection::vec(any::<u8>(), 0..=MAX_BITFIELD as usize).prop_map(Message::Bitfield),
            (any::<u8>(), prop::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(id, payload)| Message::Extended { id, payload }),
            (21u8..).prop_map(Message::Unknown),
        ];
        let block = (any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 1..300)).prop_map(
            |(piece, begin, payload)| Whole::Block(RawBlock { piece, begin, len: payload.len() as u32 }, payload),
        );
        prop_oneof![4 => message.prop_map(Whole::Message), 1 => block]
    }

    fn stream(frames: &[Whole]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            match frame {
                Whole::Message(Message::Unknown(id)) => {
                    out.extend([0, 0, 0, 1 + id, *id]);
                    out.extend(vec![0xEE; usize::from(*id)]);
                }
                Whole::Message(message) => message.encode(&mut out),
                Whole::Block(block, payload) => {
                    out.extend(encode_piece_header(*block));
                    out.extend(payload);
                }
            }
        }
        out
    }

    #[test]
    fn a_length_alone_claims_no_memory() {
        for id in [id::EXTENDED, id::BITFIELD] {
            let mut framer = Framer::new(100_000);
            framer.push(&[0, 1, 0x86, 0xA1, id, 1]);
            assert_eq!(framer.next(), Ok(None));
            assert!(framer.buffer.capacity() < 64, "{} bytes", framer.buffer.capacity());
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(
            frames in prop::collection::vec(whole().prop_filter("id fits one byte of length",
                |frame| !matches!(frame, Whole::Message(Message::Unknown(255)))), 0..20),
            cuts in prop::collection::vec(1usize..64, 1..64),
        ) {
            let bytes = stream(&frames);
            let (mut framer, mut open, mut seen) = (Framer::new(MAX_BITFIELD), None, Vec::new());
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                let (part, tail) = rest.split_at((*cut).min(rest.len()));
                framer.push(part);
                drain(&mut framer, &mut open, &mut seen);
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(framer.is_empty() && framer.payload_left() == 0);
        }

        #[test]
        fn noise_never_panics_and_errors_stick(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut framer = Framer::new(MAX_BITFIELD);
            framer.push(&bytes);
            let mut failed = None;
            for _ in 0..bytes.len() + 2 {
                match (framer.next(), failed) {
                    (Err(error), None) => failed = Some(error),
                    (Err(error), Some(first)) => prop_assert_eq!(error, first),
                    (Ok(_), Some(_)) => prop_assert!(false, "the error did not stick"),
                    (Ok(_), None) => {}
                }
                framer.discard_payload();
                framer.push(&[]);
            }
        }
    }

    #[test]
    fn a_payload_read_past_the_buffer_is_accounted_for() {
        let block = RawBlock { piece: 3, begin: 16_384, len: 16_384 };
        let mut framer = Framer::new(MAX_BITFIELD);
        framer.push(&encode_piece_header(block));
        framer.push(&[7; 100]);
        assert_eq!(framer.next(), Ok(Some(Frame::Piece(block))));
        assert_eq!(framer.next(), Ok(None));
        let mut slot = [0; 16_384];
        assert_eq!(framer.take_payload(&mut slot), 100);
        assert_eq!(framer.payload_left(), 16_284);
        framer.payload_read(16_284);
        framer.push(&[0, 0, 0, 0]);
        assert_eq!(framer.next(), Ok(Some(Frame::Message(Message::KeepAlive))));
    }

    #[test]
    fn a_length_bomb_fails_at_once_and_takes_no_memory() {
        for prefix in [u32::MAX, MAX_FRAME_BYTES as u32 - 3] {
            let mut framer = Framer::new(MAX_BITFIELD);
            framer.push(&prefix.to_be_bytes());
            assert_eq!(framer.next(), Err(FrameError::TooLong(prefix)));
            framer.push(&[0; 1000]);
            assert_eq!(framer.next(), Err(FrameError::TooLong(prefix)));
            assert_eq!(framer.buffer.capacity(), 0);
        }
    }

    #[test]
    fn only_a_bitfield_may_pass_the_frame_cap() {
        let max = 256 * 1024;
        for (id, expected) in
            [(5, Ok(None)), (20, Err(FrameError::TooLong(max + 1))), (99, Err(FrameError::TooLong(max + 1)))]
        {
            let mut framer = Framer::new(max);
            framer.push(&(max + 1).to_be_bytes());
            assert_eq!(framer.next(), Ok(None));
            framer.push(&[id]);
            assert_eq!(framer.next(), expected, "id {id}");
        }
        let mut framer = Framer::new(MAX_BITFIELD);
        framer.push(&[0, 0, 0, 102, 5]);
        assert_eq!(framer.next(), Err(FrameError::BitfieldTooLong { got: 101, max: 100 }));
    }

    #[test]
    fn lengths_that_do_not_fit_their_id_are_refused() {
        let wrong = [
            (0u8, 1u32),
            (4, 3),
            (4, 5),
            (6, 11),
            (8, 13),
            (9, 1),
            (13, 0),
            (14, 1),
            (15, 1),
            (16, 8),
            (17, 5),
            (20, 0),
            (7, 0),
            (7, 8),
            (7, 7),
        ];
        for (id, payload_bytes) in wrong {
            let mut framer = Framer::new(MAX_BITFIELD);
            framer.push(&(payload_bytes + 1).to_be_bytes());
            framer.push(&[id]);
            assert_eq!(framer.next(), Err(FrameError::WrongLength { id, payload_bytes }));
        }
    }

    #[test]
    fn the_largest_block_passes_and_one_byte_more_does_not() {
        let largest = RawBlock { piece: 0, begin: 0, len: MAX_BLOCK_BYTES };
        let mut framer = Framer::new(MAX_BITFIELD);
        framer.push(&encode_piece_header(largest));
        assert_eq!(framer.next(), Ok(Some(Frame::Piece(largest))));
        let mut framer = Framer::new(MAX_BITFIELD);
        framer.push(&encode_piece_header(RawBlock { len: MAX_BLOCK_BYTES + 1, ..largest }));
        assert_eq!(framer.next(), Err(FrameError::TooLong(MAX_BLOCK_BYTES + 10)));
    }

    #[test]
    fn an_unknown_payload_is_skipped_without_being_held() {
        let mut framer = Framer::new(MAX_BITFIELD);
        framer.push(&[0, 1, 0, 1, 200]);
        assert_eq!(framer.next(), Ok(Some(Frame::Message(Message::Unknown(200)))));
        for _ in 0..4 {
            framer.push(&[0; 16_384]);
            assert!(framer.is_empty());
        }
        framer.push(&[0, 0, 0, 1, 1]);
        assert_eq!(framer.next(), Ok(Some(Frame::Message(Message::Unchoke))));
    }
}
