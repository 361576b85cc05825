//! The identities that travel: torrents, peers, the digests of pieces.

use std::fmt;
use std::str::FromStr;

/// Names a torrent: the *info-hash*, or *key*. Today the SHA-1 of the info dictionary as it stands (BEP 3); a version 2
/// torrent's 32 bytes (BEP 52) will be another shape of this same type, which is why nothing outside `wire` sees an array.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InfoHash([u8; 20]);

impl InfoHash {
    /// Bytes on today's wire.
    pub const LEN: usize = 20;

    pub const fn new(bytes: [u8; 20]) -> InfoHash {
        InfoHash(bytes)
    }

    /// From a slice of exactly [`InfoHash::LEN`] bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<InfoHash> {
        bytes.try_into().ok().map(InfoHash)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(in crate::wire) const fn array(&self) -> [u8; 20] {
        self.0
    }

    /// Lower-case hex, 40 digits: the form users see, and the `Key` of a `.torrent`.
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }
}

/// Not 40 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an info-hash is 40 hex digits")]
pub struct NotAnInfoHash;

impl FromStr for InfoHash {
    type Err = NotAnInfoHash;
    fn from_str(text: &str) -> Result<InfoHash, NotAnInfoHash> {
        from_hex(text).map(InfoHash).ok_or(NotAnInfoHash)
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// What a client calls itself for one run (BEP 3, BEP 20). Ours begins with `-PY`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId(pub [u8; 20]);

impl PeerId {
    /// `-PYxyz0-` and twelve random characters (BEP 20): letters and digits, so that logs stay readable.
    pub fn ours(random: [u8; 12]) -> PeerId {
        const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut id = *b"-PY0100-............";
        for (to, from) in id[8..].iter_mut().zip(random) {
            *to = ALPHABET[usize::from(from) % ALPHABET.len()];
        }
        PeerId(id)
    }

    /// Whether the bearer says that it is peerd.
    pub fn is_peerd(&self) -> bool {
        self.0.starts_with(b"-PY")
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// How a piece is known to be right. Version 2's Merkle roots will be another variant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PieceCheck {
    /// SHA-1 of the whole piece (BEP 3).
    Sha1([u8; 20]),
}

/// Lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Exactly `N` bytes from hex of either case.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_refuses_other_lengths() {
        let key = InfoHash::new([0xA5; 20]);
        assert_eq!(key.to_hex(), "a5".repeat(20));
        assert_eq!(key.to_hex().to_uppercase().parse(), Ok(key));
        assert_eq!("a5".repeat(19).parse::<InfoHash>(), Err(NotAnInfoHash));
        assert_eq!("g5".repeat(20).parse::<InfoHash>(), Err(NotAnInfoHash));
        assert_eq!("é".repeat(20).parse::<InfoHash>(), Err(NotAnInfoHash));
    }

    #[test]
    fn our_peer_id_is_printable_and_says_who_we_are() {
        let id = PeerId::ours([255; 12]);
        assert!(id.is_peerd() && id.0.iter().all(u8::is_ascii_graphic));
    }
}
