//! Which pieces somebody has: one bit each, the first piece the high bit of the first byte (BEP 3, *bitfield*).

use super::layout::{Layout, PieceIndex};

/// A set of pieces of one torrent, in wire order. Spare bits are always zero; the count is kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bitfield {
    bytes: Vec<u8>,
    pieces: u32,
    ones: u32,
}

/// Why received bytes are no bitfield of this torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitfieldError {
    #[error("a bitfield of {got} bytes where {expected} are due")]
    Length { got: usize, expected: usize },
    #[error("a bitfield with spare bits set")]
    SpareBits,
}

impl Bitfield {
    pub fn empty(pieces: u32) -> Bitfield {
        Bitfield { bytes: vec![0; pieces.div_ceil(8) as usize], pieces, ones: 0 }
    }

    pub fn full(pieces: u32) -> Bitfield {
        let mut bytes = vec![0xFF; pieces.div_ceil(8) as usize];
        if let (Some(last), spare @ 1..) = (bytes.last_mut(), pieces.div_ceil(8) * 8 - pieces) {
            *last <<= spare;
        }
        Bitfield { bytes, pieces, ones: pieces }
    }

    /// # Errors
    /// When the length is not that of the torrent's bitfield or a spare bit is set: both end a session (BEP 3).
    pub fn from_wire(bytes: &[u8], pieces: u32) -> Result<Bitfield, BitfieldError> {
        let expected = pieces.div_ceil(8) as usize;
        if bytes.len() != expected {
            return Err(BitfieldError::Length { got: bytes.len(), expected });
        }
        let spare = expected as u32 * 8 - pieces;
        if bytes.last().is_some_and(|last| last.trailing_zeros() < spare) {
            return Err(BitfieldError::SpareBits);
        }
        let ones = bytes.iter().map(|b| b.count_ones()).sum();
        Ok(Bitfield { bytes: bytes.to_vec(), pieces, ones })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub const fn piece_count(&self) -> u32 {
        self.pieces
    }

    /// How many pieces are in the set.
    pub const fn count(&self) -> u32 {
        self.ones
    }

    pub const fn is_full(&self) -> bool {
        self.ones == self.pieces
    }

    pub const fn is_empty(&self) -> bool {
        self.ones == 0
    }

    pub fn get(&self, piece: PieceIndex) -> bool {
        self.bytes.get(piece.as_usize() / 8).is_some_and(|byte| byte & mask(piece) != 0)
    }

    /// Returns whether the piece was new to the set.
    pub fn set(&mut self, piece: PieceIndex) -> bool {
        match self.bytes.get_mut(piece.as_usize() / 8) {
            Some(byte) if piece.get() < self.pieces && *byte & mask(piece) == 0 => {
                *byte |= mask(piece);
                self.ones += 1;
                true
            }
            _ => false,
        }
    }

    /// Returns whether the piece was in the set.
    pub fn clear(&mut self, piece: PieceIndex) -> bool {
        match self.bytes.get_mut(piece.as_usize() / 8) {
            Some(byte) if *byte & mask(piece) != 0 => {
                *byte &= !mask(piece);
                self.ones -= 1;
                true
            }
            _ => false,
        }
    }

    pub fn iter_set(&self, layout: Layout) -> impl Iterator<Item = PieceIndex> + '_ {
        layout.pieces().filter(|&piece| self.get(piece))
    }

    pub fn iter_missing(&self, layout: Layout) -> impl Iterator<Item = PieceIndex> + '_ {
        layout.pieces().filter(|&piece| !self.get(piece))
    }
}

fn mask(piece: PieceIndex) -> u8 {
    0x80 >> (piece.get() % 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_piece_is_the_high_bit_and_spare_bits_are_refused() {
        let layout = Layout::new(10 * 16_384, 16_384).unwrap();
        let set = Bitfield::from_wire(&[0b1000_0001, 0b0100_0000], 10).unwrap();
        let have: Vec<u32> = set.iter_set(layout).map(PieceIndex::get).collect();
        assert_eq!(have, [0, 7, 9]);
        assert_eq!(set.count(), 3);
        assert_eq!(Bitfield::from_wire(&[0, 0b0010_0000], 10), Err(BitfieldError::SpareBits));
        assert_eq!(Bitfield::from_wire(&[0], 10), Err(BitfieldError::Length { got: 1, expected: 2 }));
        assert_eq!(Bitfield::from_wire(&[], 0).map(|b| b.is_full()), Ok(true));
    }

    #[test]
    fn full_is_what_setting_each_gives() {
        for pieces in 0..40 {
            let layout = Layout::new(u64::from(pieces) * 16_384, 16_384).unwrap();
            let mut set = Bitfield::empty(pieces);
            for piece in layout.pieces() {
                assert!(set.set(piece) && !set.set(piece));
            }
            assert_eq!(set, Bitfield::full(pieces));
            assert_eq!(Bitfield::from_wire(set.as_bytes(), pieces), Ok(set.clone()));
            for piece in layout.pieces() {
                assert!(set.clear(piece) && !set.clear(piece));
            }
            assert_eq!(set, Bitfield::empty(pieces));
        }
    }
}
