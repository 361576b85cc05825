//! The `.torrent`s that are published.

use anyhow::Result;
use peerd::wire::id::{InfoHash, PieceCheck};
use peerd::wire::metainfo::{InfoSpec, Metainfo, SpecFiles, build};
use peerd::wire::name::{FileName, RelPath};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const PIECES: usize = 20;
const PIECE_BYTES: u32 = 65_536;

/// One file of 20 pieces, with the root keys of ours; `n` decides its content.
pub fn torrent(name: &str, n: u32) -> Result<(InfoHash, Vec<u8>)> {
    let mut rng = SmallRng::seed_from_u64(u64::from(n));
    let pieces = (0..PIECES).map(|_| PieceCheck::Sha1(rng.random())).collect();
    let size = (PIECES as u64 - 1) * u64::from(PIECE_BYTES) + rng.random_range(1..=u64::from(PIECE_BYTES));
    let (name, files) = (FileName::new(name.as_bytes())?, SpecFiles::Single(size));
    let spec = InfoSpec { name, files, piece_bytes: PIECE_BYTES, pieces, private: true };
    let path = RelPath::parse(format!("shared/{}", n % 1_000).as_bytes())?;
    let bytes = build(&spec, None, Some(&path))?;
    Ok((Metainfo::parse(&bytes)?.info_hash(), bytes))
}
