//! Content and its `.torrent`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use peerd::wire::id::{InfoHash, PieceCheck};
use peerd::wire::layout::Layout;
use peerd::wire::metainfo::{InfoSpec, Metainfo, SpecFiles, build};
use peerd::wire::name::FileName;
use sha1::{Digest, Sha1};

use crate::support::content::make;

/// Every race's tracker is the first host.
pub const ANNOUNCE: &str = "http://198.18.0.2:6969/announce";

/// One file and its `.torrent`.
pub struct Content {
    pub file: PathBuf,
    pub torrent: PathBuf,
    pub key: InfoHash,
    pub layout: Layout,
}

impl Content {
    /// `len` bytes that no program can compress, in `folder`; the same for the same seed.
    pub fn make(folder: &Path, seed: u64, len: u64, piece_bytes: u32) -> Result<Content> {
        let file = folder.join(format!("content-{seed}-{len}.bin"));
        if !file.exists() {
            make(&file, seed, len);
            File::open(&file)?.sync_all()?;
        }
        Content::of(file, piece_bytes, Some(ANNOUNCE))
    }

    /// The `.torrent` of a file, beside it. Without `announce` nobody is told who has it.
    pub fn of(file: PathBuf, piece_bytes: u32, announce: Option<&str>) -> Result<Content> {
        let (mut open, len) = (File::open(&file)?, fs::metadata(&file)?.len());
        let (mut pieces, mut left) = (Vec::new(), len);
        let mut piece = vec![0; piece_bytes as usize];
        while left > 0 {
            piece.truncate(usize::try_from(left)?);
            open.read_exact(&mut piece)?;
            pieces.push(PieceCheck::Sha1(Sha1::digest(&piece).into()));
            left -= piece.len() as u64;
        }
        let name = FileName::new(file.file_name().unwrap_or_default().as_encoded_bytes())?;
        let spec = InfoSpec { name, files: SpecFiles::Single(len), piece_bytes, pieces, private: true };
        let bytes = build(&spec, announce, None)?;
        let meta = Metainfo::parse(&bytes)?;
        let torrent = file
            .with_extension(format!("{piece_bytes}{}", if announce.is_some() { ".torrent" } else { ".quiet.torrent" }));
        fs::write(&torrent, bytes)?;
        Ok(Content { file, torrent, key: meta.info_hash(), layout: meta.layout() })
    }

    pub fn name(&self) -> &std::ffi::OsStr {
        self.file.file_name().unwrap_or_default()
    }
}
