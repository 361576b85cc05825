//! The messages of a session as values: BEP 3, the fast extension (BEP 6), the extension protocol's envelope (BEP 10).
//! Bytes become messages in [`super::framing`]; a block's payload is in neither place.

use super::layout::RawBlock;

/// Length, id, piece, begin: what precedes a block's payload.
pub const PIECE_HEADER_BYTES: usize = 13;

/// Message ids.
pub(in crate::wire) mod id {
    pub const CHOKE: u8 = 0;
    pub const UNCHOKE: u8 = 1;
    pub const INTERESTED: u8 = 2;
    pub const NOT_INTERESTED: u8 = 3;
    pub const HAVE: u8 = 4;
    pub const BITFIELD: u8 = 5;
    pub const REQUEST: u8 = 6;
    pub const PIECE: u8 = 7;
    pub const CANCEL: u8 = 8;
    pub const PORT: u8 = 9;
    pub const SUGGEST: u8 = 13;
    pub const HAVE_ALL: u8 = 14;
    pub const HAVE_NONE: u8 = 15;
    pub const REJECT: u8 = 16;
    pub const ALLOWED_FAST: u8 = 17;
    pub const EXTENDED: u8 = 20;
}

/// Everything a peer says but blocks. Piece numbers and spans are as the peer named them, held against no torrent yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// No id, no payload: the connection lives.
    KeepAlive,
    Choke,
    Unchoke,
    Interested,
    NotInterested,
    Have(u32),
    /// The raw bytes: [`super::bitfield::Bitfield::from_wire`] judges them.
    Bitfield(Vec<u8>),
    Request(RawBlock),
    Cancel(RawBlock),
    /// The sender's DHT port (BEP 5).
    Port(u16),
    /// BEP 6.
    HaveAll,
    /// BEP 6.
    HaveNone,
    /// BEP 6.
    Suggest(u32),
    /// BEP 6: this request will not be answered.
    Reject(RawBlock),
    /// BEP 6: this piece is served even while choked.
    AllowedFast(u32),
    /// BEP 10. Id 0 is the extension handshake, others are as the receiver named them in its own.
    Extended {
        id: u8,
        payload: Vec<u8>,
    },
    /// An id that we do not know; its payload is dropped, the session goes on.
    Unknown(u8),
}

impl Message {
    /// Appends the message with its length prefix. [`Message::Unknown`] appends nothing: what is not understood cannot
    /// be said.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Message::KeepAlive => out.extend(0u32.to_be_bytes()),
            Message::Choke => head(id::CHOKE, 0, out),
            Message::Unchoke => head(id::UNCHOKE, 0, out),
            Message::Interested => head(id::INTERESTED, 0, out),
            Message::NotInterested => head(id::NOT_INTERESTED, 0, out),
            Message::Have(piece) => number(id::HAVE, *piece, out),
            Message::Bitfield(bytes) => {
                head(id::BITFIELD, bytes.len(), out);
                out.extend(bytes);
            }
            Message::Request(span) => block(id::REQUEST, *span, out),
            Message::Cancel(span) => block(id::CANCEL, *span, out),
            Message::Port(port) => {
                head(id::PORT, 2, out);
                out.extend(port.to_be_bytes());
            }
            Message::HaveAll => head(id::HAVE_ALL, 0, out),
            Message::HaveNone => head(id::HAVE_NONE, 0, out),
            Message::Suggest(piece) => number(id::SUGGEST, *piece, out),
            Message::Reject(span) => block(id::REJECT, *span, out),
            Message::AllowedFast(piece) => number(id::ALLOWED_FAST, *piece, out),
            Message::Extended { id: extended_id, payload } => {
                head(id::EXTENDED, 1 + payload.len(), out);
                out.push(*extended_id);
                out.extend(payload);
            }
            Message::Unknown(_) => {}
        }
    }
}

/// The 13 bytes that precede a block's payload of `block.len` bytes.
pub fn encode_piece_header(block: RawBlock) -> [u8; PIECE_HEADER_BYTES] {
    let mut bytes = [0; PIECE_HEADER_BYTES];
    bytes[..4].copy_from_slice(&block.len.saturating_add(9).to_be_bytes());
    bytes[4] = id::PIECE;
    bytes[5..9].copy_from_slice(&block.piece.to_be_bytes());
    bytes[9..].copy_from_slice(&block.begin.to_be_bytes());
    bytes
}

fn head(id: u8, payload_bytes: usize, out: &mut Vec<u8>) {
    let length = u32::try_from(payload_bytes + 1).expect("nothing of ours is 4 GiB long");
    out.extend(length.to_be_bytes());
    out.push(id);
}

fn number(id: u8, number: u32, out: &mut Vec<u8>) {
    head(id, 4, out);
    out.extend(number.to_be_bytes());
}

fn block(id: u8, block: RawBlock, out: &mut Vec<u8>) {
    head(id, 12, out);
    for field in [block.piece, block.begin, block.len] {
        out.extend(field.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(message: &Message) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(&mut out);
        out
    }

    #[test]
    fn the_bytes_of_the_beps() {
        let span = RawBlock { piece: 1, begin: 0x4000, len: 0x4000 };
        let span_bytes = [0, 0, 0, 1, 0, 0, 0x40, 0, 0, 0, 0x40, 0];
        let with = |head: [u8; 5], tail: &[u8]| [head.as_slice(), tail].concat();
        assert_eq!(bytes(&Message::KeepAlive), [0, 0, 0, 0]);
        assert_eq!(bytes(&Message::Choke), [0, 0, 0, 1, 0]);
        assert_eq!(bytes(&Message::Unchoke), [0, 0, 0, 1, 1]);
        assert_eq!(bytes(&Message::Interested), [0, 0, 0, 1, 2]);
        assert_eq!(bytes(&Message::NotInterested), [0, 0, 0, 1, 3]);
        assert_eq!(bytes(&Message::Have(0x0102_0304)), [0, 0, 0, 5, 4, 1, 2, 3, 4]);
        assert_eq!(bytes(&Message::Bitfield(vec![0xF0, 0x80])), [0, 0, 0, 3, 5, 0xF0, 0x80]);
        assert_eq!(bytes(&Message::Request(span)), with([0, 0, 0, 13, 6], &span_bytes));
        assert_eq!(bytes(&Message::Cancel(span)), with([0, 0, 0, 13, 8], &span_bytes));
        assert_eq!(bytes(&Message::Port(6881)), [0, 0, 0, 3, 9, 0x1A, 0xE1]);
        assert_eq!(bytes(&Message::Suggest(7)), [0, 0, 0, 5, 0x0D, 0, 0, 0, 7]);
        assert_eq!(bytes(&Message::HaveAll), [0, 0, 0, 1, 0x0E]);
        assert_eq!(bytes(&Message::HaveNone), [0, 0, 0, 1, 0x0F]);
        assert_eq!(bytes(&Message::Reject(span)), with([0, 0, 0, 13, 0x10], &span_bytes));
        assert_eq!(bytes(&Message::AllowedFast(7)), [0, 0, 0, 5, 0x11, 0, 0, 0, 7]);
        let extended = Message::Extended { id: 0, payload: b"de".to_vec() };
        assert_eq!(bytes(&extended), [0, 0, 0, 4, 20, 0, b'd', b'e']);
        assert_eq!(encode_piece_header(span), [0, 0, 0x40, 9, 7, 0, 0, 0, 1, 0, 0, 0x40, 0]);
    }
}
