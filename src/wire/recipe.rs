//! How a shared file is cut into pieces. Fixed for ever: two people who share the same file form one swarm only because
//! both cut it alike, and a change here would change the key of everything.

/// The most pieces a file is cut into, as long as [`MAX_PIECE_BYTES`] allows: the `.torrent` stays near 40 KiB.
const MAX_PIECES: u64 = 2048;
const MIN_PIECE_BYTES: u32 = 64 * 1024;
const MAX_PIECE_BYTES: u32 = 16 * 1024 * 1024;

/// The piece length, in bytes, of what is shared from `upload/` or as a folder: the smallest power of two from 64 KiB to
/// 16 MiB that gives at most 2,048 pieces; above 32 GiB 16 MiB.
pub fn piece_bytes_for(total_bytes: u64) -> u32 {
    let mut piece_bytes = MIN_PIECE_BYTES;
    while piece_bytes < MAX_PIECE_BYTES && total_bytes.div_ceil(u64::from(piece_bytes)) > MAX_PIECES {
        piece_bytes *= 2;
    }
    piece_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_at_its_boundaries() {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        for (total_bytes, piece_bytes) in [
            (0, 64 * KIB),
            (1, 64 * KIB),
            (128 * MIB, 64 * KIB),
            (128 * MIB + 1, 128 * KIB),
            (256 * MIB, 128 * KIB),
            (256 * MIB + 1, 256 * KIB),
            (GIB, 512 * KIB),
            (16 * GIB, 8 * MIB),
            (16 * GIB + 1, 16 * MIB),
            (32 * GIB, 16 * MIB),
            (32 * GIB + 1, 16 * MIB),
            (1024 * GIB, 16 * MIB),
            (u64::MAX, 16 * MIB),
        ] {
            assert_eq!(u64::from(piece_bytes_for(total_bytes)), piece_bytes, "{total_bytes}");
        }
    }
}
