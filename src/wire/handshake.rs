//! The 68 bytes that open a session (BEP 3, *peer protocol*), both ways.

use super::id::{InfoHash, PeerId};

/// Bytes of a handshake.
pub const LEN: usize = 68;
/// The first byte of every handshake: the length of the protocol's name. A connection that begins otherwise (encryption,
/// another protocol) can be closed before the rest has come.
pub const FIRST_BYTE: u8 = 19;
const PROTOCOL: &[u8; 19] = b"BitTorrent protocol";

/// The eight reserved bytes: which extensions the sender speaks. Bits that mean nothing to us are kept as they came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Reserved(pub [u8; 8]);

impl Reserved {
    /// What we speak: the extension protocol and the fast extension.
    pub const fn ours() -> Reserved {
        Reserved([0, 0, 0, 0, 0, 0x10, 0, 0x04])
    }

    /// The extension protocol (BEP 10).
    pub const fn extension(self) -> bool {
        self.0[5] & 0x10 != 0
    }

    /// The fast extension (BEP 6).
    pub const fn fast(self) -> bool {
        self.0[7] & 0x04 != 0
    }
}

/// What both ends send first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handshake {
    pub reserved: Reserved,
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
}

/// Why bytes are no handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Maybe an encrypted handshake: such clients fall back to the plain one when they are hung up on.
    #[error("the first byte is {0}, not {FIRST_BYTE}")]
    FirstByte(u8),
    #[error("another protocol's name")]
    Protocol,
}

impl Handshake {
    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = FIRST_BYTE;
        bytes[1..20].copy_from_slice(PROTOCOL);
        bytes[20..28].copy_from_slice(&self.reserved.0);
        bytes[28..48].copy_from_slice(&self.info_hash.array());
        bytes[48..68].copy_from_slice(&self.peer_id.0);
        bytes
    }

    /// # Errors
    /// When it is another protocol.
    pub fn decode(bytes: &[u8; LEN]) -> Result<Handshake, HandshakeError> {
        let (first, rest) = (bytes[0], &bytes[1..]);
        if first != FIRST_BYTE {
            return Err(HandshakeError::FirstByte(first));
        }
        if !rest.starts_with(PROTOCOL) {
            return Err(HandshakeError::Protocol);
        }
        let field = |at: usize| -> [u8; 20] { std::array::from_fn(|i| bytes[at + i]) };
        Ok(Handshake {
            reserved: Reserved(std::array::from_fn(|i| bytes[20 + i])),
            info_hash: InfoHash::new(field(28)),
            peer_id: PeerId(field(48)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_bep_3() {
        let ours = Handshake {
            reserved: Reserved::ours(),
            info_hash: InfoHash::new(*b"aaaaaaaaaaaaaaaaaaaa"),
            peer_id: PeerId(*b"-PY0100-bbbbbbbbbbbb"),
        };
        let mut expected = Vec::new();
        expected.push(19);
        expected.extend(b"BitTorrent protocol");
        expected.extend([0, 0, 0, 0, 0, 0x10, 0, 0x04]);
        expected.extend(b"aaaaaaaaaaaaaaaaaaaa-PY0100-bbbbbbbbbbbb");
        assert_eq!(ours.encode().as_slice(), expected);
        assert!(ours.reserved.fast() && ours.reserved.extension());
    }

    #[test]
    fn a_dht_bit_is_neither_extension() {
        let reserved = Reserved([0, 0, 0, 0, 0, 0, 0, 0x01]);
        assert!(!reserved.fast() && !reserved.extension());
    }

    #[test]
    fn other_protocols_are_told_apart() {
        let mut bytes = [0; LEN];
        bytes[0] = b'G';
        assert_eq!(Handshake::decode(&bytes), Err(HandshakeError::FirstByte(b'G')));
        bytes[0] = 19;
        assert_eq!(Handshake::decode(&bytes), Err(HandshakeError::Protocol));
        bytes[1..20].copy_from_slice(b"BitTorrent Protocol");
        assert_eq!(Handshake::decode(&bytes), Err(HandshakeError::Protocol));
    }

    proptest! {
        #[test]
        fn round_trip(reserved: [u8; 8], key: [u8; 20], id: [u8; 20]) {
            let sent =
                Handshake { reserved: Reserved(reserved), info_hash: InfoHash::new(key), peer_id: PeerId(id) };
            prop_assert_eq!(Handshake::decode(&sent.encode()), Ok(sent));
        }
    }
}
