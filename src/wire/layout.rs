//! How a torrent's bytes divide into pieces and blocks, and the indices that remember having been checked.

use std::fmt;

/// The block that every client grants (BEP 3, "All current implementations use 2^14").
pub const BLOCK_BYTES: u32 = 16 * 1024;
/// The largest block that peerd asks for or serves; a peer that takes more than 16 KiB says so by `max_block`.
pub const MAX_BLOCK_BYTES: u32 = 128 * 1024;
/// More pieces than this no torrent of ours has, and no honest one needs: it bounds bitfields to 256 KiB.
pub const MAX_PIECES: u32 = 2 << 20;

/// A piece's number, known to be inside its torrent: only [`Layout`] makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    pub const fn get(self) -> u32 {
        self.0
    }

    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A span inside one piece, known to be inside it: only [`Layout`] makes one. The unit of requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Block {
    piece: PieceIndex,
    begin: u32,
    len: u32,
}

impl Block {
    pub const fn piece(&self) -> PieceIndex {
        self.piece
    }

    /// Bytes from the piece's start.
    pub const fn begin(&self) -> u32 {
        self.begin
    }

    /// Bytes; at least 1, at most [`MAX_BLOCK_BYTES`].
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Never: a block has at least one byte.
    pub const fn is_empty(&self) -> bool {
        false
    }

    pub const fn end(&self) -> u32 {
        self.begin + self.len
    }
}

/// A span as a peer names it, not yet held against any torrent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RawBlock {
    pub piece: u32,
    pub begin: u32,
    pub len: u32,
}

impl From<Block> for RawBlock {
    fn from(block: Block) -> RawBlock {
        RawBlock { piece: block.piece.0, begin: block.begin, len: block.len }
    }
}

/// Why sizes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("a piece length of {0} bytes: it must lie between 16 KiB and 64 MiB")]
    PieceLength(u64),
    #[error("{0} pieces: at most {MAX_PIECES} are taken")]
    TooManyPieces(u64),
}

/// Total length and piece length of a torrent; the only maker of [`PieceIndex`] and [`Block`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    total_bytes: u64,
    piece_bytes: u32,
    pieces: u32,
}

impl Layout {
    pub const MIN_PIECE_BYTES: u64 = 16 * 1024;
    pub const MAX_PIECE_BYTES: u64 = 64 * 1024 * 1024;

    /// A torrent of 0 bytes has no pieces and is complete at once. Piece lengths need not be powers of two (BEP 3 only
    /// says "usually"); they must lie between 16 KiB and 64 MiB.
    ///
    /// # Errors
    /// When the piece length is out of bounds or there are more than [`MAX_PIECES`].
    pub fn new(total_bytes: u64, piece_bytes: u64) -> Result<Layout, LayoutError> {
        if !(Self::MIN_PIECE_BYTES..=Self::MAX_PIECE_BYTES).contains(&piece_bytes) {
            return Err(LayoutError::PieceLength(piece_bytes));
        }
        let pieces = total_bytes.div_ceil(piece_bytes);
        if pieces > u64::from(MAX_PIECES) {
            return Err(LayoutError::TooManyPieces(pieces));
        }
        Ok(Layout { total_bytes, piece_bytes: piece_bytes as u32, pieces: pieces as u32 })
    }

    pub const fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    pub const fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    pub const fn piece_count(&self) -> u32 {
        self.pieces
    }

    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        (index < self.pieces).then_some(PieceIndex(index))
    }

    pub fn pieces(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + ExactSizeIterator + use<> {
        (0..self.pieces).map(PieceIndex)
    }

    /// Bytes of this piece: the last one may be shorter.
    pub fn piece_len(&self, piece: PieceIndex) -> u32 {
        let start = self.piece_start(piece);
        u64::from(self.piece_bytes).min(self.total_bytes.saturating_sub(start)) as u32
    }

    /// Where the piece begins in the torrent's byte stream.
    pub fn piece_start(&self, piece: PieceIndex) -> u64 {
        u64::from(piece.0) * u64::from(self.piece_bytes)
    }

    /// Holds a span that a peer named against the torrent.
    pub fn block(&self, raw: RawBlock) -> Option<Block> {
        let piece = self.piece(raw.piece)?;
        let end = raw.begin.checked_add(raw.len)?;
        let fits = raw.len > 0 && raw.len <= MAX_BLOCK_BYTES && end <= self.piece_len(piece);
        fits.then_some(Block { piece, begin: raw.begin, len: raw.len })
    }

    /// The piece's `index`-th block of `block_bytes`, the last one shorter.
    pub fn nth_block(&self, piece: PieceIndex, index: u32, block_bytes: u32) -> Option<Block> {
        let begin = index.checked_mul(block_bytes)?;
        let left = self.piece_len(piece).checked_sub(begin)?;
        self.block(RawBlock { piece: piece.0, begin, len: left.min(block_bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_piece_and_the_last_block_are_shorter() {
        let layout = Layout::new(100_000, 65_536).unwrap();
        assert_eq!(layout.piece_count(), 2);
        let last = layout.piece(1).unwrap();
        assert_eq!(layout.piece_len(last), 34_464);
        assert_eq!(layout.nth_block(last, 2, BLOCK_BYTES).map(|b| b.len()), Some(34_464 - 32_768));
        assert_eq!(layout.nth_block(last, 3, BLOCK_BYTES), None);
        assert_eq!(layout.piece(2), None);
    }

    #[test]
    fn spans_outside_their_piece_are_refused() {
        let layout = Layout::new(100_000, 65_536).unwrap();
        for (piece, begin, len) in [
            (0, 65_536, 1),
            (0, 65_535, 2),
            (1, 0, 34_465),
            (2, 0, 1),
            (0, 0, 0),
            (0, u32::MAX - 16_383, 16_384),
            (0, 0, 1 << 31),
        ] {
            assert_eq!(layout.block(RawBlock { piece, begin, len }), None, "{piece} {begin} {len}");
        }
        assert!(layout.block(RawBlock { piece: 1, begin: 34_463, len: 1 }).is_some());
    }

    #[test]
    fn extremes() {
        assert_eq!(Layout::new(0, 65_536).map(|l| l.piece_count()), Ok(0));
        assert_eq!(Layout::new(1, 0), Err(LayoutError::PieceLength(0)));
        assert_eq!(Layout::new(1, 1 << 31), Err(LayoutError::PieceLength(1 << 31)));
        assert!(matches!(Layout::new(u64::MAX, 1 << 26), Err(LayoutError::TooManyPieces(_))));
    }
}
