//! Digests of the 16 KiB units of a piece, by which `swarm::blame` tells who gave wrong bytes. Made of pieces that came
//! wrong, of those again when they are right, and of blocks that wait on disk for the rest of their piece; never else.

use sha1::{Digest, Sha1};

use super::check::PieceHasher;
use super::storage::Storage;
use crate::swarm::UnitDigest;
use crate::wire::id::PieceCheck;
use crate::wire::layout::{BLOCK_BYTES, Layout, PieceIndex};

/// Read at a time: whole units.
const READ_BYTES: usize = 64 * BLOCK_BYTES as usize;

/// Cuts a stream of bytes into units.
#[derive(Default)]
struct Units {
    done: Vec<UnitDigest>,
    open: Sha1,
    open_bytes: usize,
}

impl Units {
    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES as usize - self.open_bytes));
            self.open.update(part);
            self.open_bytes += part.len();
            if self.open_bytes == BLOCK_BYTES as usize {
                self.close();
            }
            bytes = rest;
        }
    }

    fn close(&mut self) {
        self.done.push(UnitDigest(self.open.finalize_reset().into()));
        self.open_bytes = 0;
    }

    fn finish(mut self) -> Vec<UnitDigest> {
        if self.open_bytes > 0 {
            self.close();
        }
        self.done
    }
}

/// Of a piece that lies in memory, in order.
pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<UnitDigest> {
    let mut units = Units::default();
    parts.into_iter().for_each(|part| units.update(part));
    units.finish()
}

/// Of a piece that lies on disk. `hash` is what all of it hashed to when it came: if it does not now, or cannot be read,
/// the disk gives back something else than what peers gave, and there are no digests.
pub fn of_piece(storage: &Storage, layout: Layout, piece: PieceIndex, hash: &PieceCheck) -> Vec<UnitDigest> {
    let (mut at, mut left) = (layout.piece_start(piece), layout.piece_len(piece) as usize);
    let (mut units, mut hasher) = (Units::default(), PieceHasher::for_check(hash));
    let mut scratch = vec![0; left.min(READ_BYTES)];
    while left > 0 {
        let part = &mut scratch[..left.min(READ_BYTES)];
        if storage.read(at, part).is_err() {
            return Vec::new();
        }
        units.update(part);
        hasher.update(part);
        at += part.len() as u64;
        left -= part.len();
    }
    if hasher.finish() == *hash { units.finish() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::storage::test_storage::{TestStorage, content};
    use super::*;

    #[test]
    fn units_are_cut_alike_however_the_bytes_come_and_only_of_what_came() {
        let content = content(3 * 65_536 + 20_000);
        let layout = Layout::new(content.len() as u64, 65_536).unwrap();
        let test = TestStorage::single(content.len() as u64);
        test.write(0, &content);
        for (piece, bytes) in layout.pieces().zip(content.chunks(65_536)) {
            let expected: Vec<UnitDigest> =
                bytes.chunks(16_384).map(|unit| UnitDigest(Sha1::digest(unit).into())).collect();
            assert_eq!(of_parts([bytes]), expected);
            assert_eq!(of_parts(bytes.chunks(5_000)), expected);
            assert_eq!(of_parts(bytes.chunks(40_000)), expected);
            let hash = PieceCheck::Sha1(Sha1::digest(bytes).into());
            assert_eq!(of_piece(&test.storage, layout, piece, &hash), expected);
            test.write(layout.piece_start(piece) + 7, &[!bytes[7]]);
            assert_eq!(of_piece(&test.storage, layout, piece, &hash), []);
        }
        test.cut_part(100);
        let hash = PieceCheck::Sha1([0; 20]);
        assert_eq!(of_piece(&test.storage, layout, layout.piece(1).unwrap(), &hash), []);
    }
}
