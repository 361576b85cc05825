//! Makes `.torrent` files from what is to be shared. Blocking: these run on the blocking threads.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::core::Core;
use super::disk::fs::OpenMode;
use super::records::StatRecord;
use super::share::{self, HashError, ListError};
use crate::db::segments::SegmentError;
use crate::wire::id::{InfoHash, PieceCheck};
use crate::wire::layout::LayoutError;
use crate::wire::metainfo::{self, BuildError, InfoSpec, Metainfo, MetainfoError, SpecFiles};
use crate::wire::name::{FileName, NameError, RelPath};
use crate::wire::recipe;

/// Up to this size a file is hashed by one thread, several files at once; above, one file by all.
const ONE_THREAD_BYTES: u64 = 32 << 20;

/// A `.torrent` and what it says.
pub struct Made {
    pub meta: Metainfo,
}

/// Why no `.torrent` was made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it changed while it was hashed")]
    Changed,
    #[error("stopped")]
    Cancelled,
    #[error("{0}")]
    Build(#[from] BuildError),
    #[error("{0}")]
    Metainfo(#[from] MetainfoError),
    #[error("the state folder: {0}")]
    Segments(#[from] SegmentError),
    #[error("{0}")]
    List(#[from] ListError),
    #[error("{0}")]
    Layout(#[from] LayoutError),
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("it is not known any more")]
    Unknown,
}

impl From<HashError> for MakeError {
    fn from(error: HashError) -> MakeError {
        match error {
            HashError::Shrunk { .. } => MakeError::Changed,
            HashError::Cancelled => MakeError::Cancelled,
            HashError::Read { source, .. } => MakeError::Io(source),
            HashError::Layout(error) => MakeError::Layout(error),
        }
    }
}

/// A file of upload/, by the fixed recipe (decision 3).
///
/// # Errors
/// When it cannot be read or is not what it was when it settled.
pub fn make_shared(core: &Core, path: &RelPath, stat: &StatRecord, cancel: &AtomicBool) -> Result<Made, MakeError> {
    let root = core.files.open_root(&core.options.upload_dir)?;
    let file = root.open(path, OpenMode::Read)?;
    if !StatRecord::from(file.stat()?).same_content(stat) {
        return Err(MakeError::Changed);
    }
    let piece_bytes = recipe::piece_bytes_for(stat.bytes);
    let threads = if stat.bytes <= ONE_THREAD_BYTES { 1 } else { threads() };
    let pieces = share::hash_file(&file, stat.bytes, piece_bytes, threads, cancel, &AtomicU64::new(0))?;
    // The name must still lead to these bytes: an open file outlives its deletion.
    let after = root.stat(path)?;
    if !StatRecord::from(after).same_file(stat) {
        return Err(MakeError::Changed);
    }
    single(path, stat.bytes, piece_bytes, pieces, !core.options.public)
}

/// The pieces of a renamed file under its new name.
///
/// # Errors
/// When the old torrent is gone.
pub fn rename(core: &Core, old: InfoHash, path: &RelPath) -> Result<Made, MakeError> {
    let torrent = core.torrent(old).ok_or(MakeError::Unknown)?;
    let meta = Metainfo::parse(&core.segments.read(torrent.summary.position)?)?;
    let layout = meta.layout();
    let pieces = layout.pieces().map(|piece| meta.piece_check(piece)).collect();
    single(path, layout.total_bytes(), layout.piece_bytes(), pieces, meta.is_private())
}

fn single(
    path: &RelPath,
    bytes: u64,
    piece_bytes: u32,
    pieces: Vec<PieceCheck>,
    private: bool,
) -> Result<Made, MakeError> {
    let spec = InfoSpec { name: path.file_name(), files: SpecFiles::Single(bytes), piece_bytes, pieces, private };
    let bytes = metainfo::build(&spec, None, path.parent().as_ref())?;
    Ok(Made { meta: Metainfo::parse(&bytes)? })
}

/// A file or folder anywhere, shared in place.
///
/// # Errors
/// When it cannot be read, has nothing to share, or changes meanwhile.
pub fn make_in_place(
    core: &Core,
    path: &Path,
    private: bool,
    cancel: &AtomicBool,
    progress: &AtomicU64,
) -> Result<Made, MakeError> {
    let no_name = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "it has no name of its own");
    let (folder, name) = (path.parent().ok_or_else(no_name)?, path.file_name().ok_or_else(no_name)?);
    let name = FileName::new(name.as_encoded_bytes())?;
    let own = RelPath::from_components([name.as_bytes()])?;
    let root = core.files.open_root(folder)?;
    let (files, paths) = if path.is_dir() {
        let listed = share::list_folder(path)?.files;
        let below = |path: &RelPath| RelPath::from_components(own.components().chain(path.components()));
        let paths = listed.iter().map(|(path, len)| Ok((below(path)?, *len))).collect::<Result<Vec<_>, NameError>>()?;
        (SpecFiles::Multi(listed), paths)
    } else {
        let bytes = root.stat(&own)?.len;
        (SpecFiles::Single(bytes), vec![(own, bytes)])
    };
    let lens: Vec<u64> = paths.iter().map(|(_, len)| *len).collect();
    let total = lens.iter().sum();
    let piece_bytes = recipe::piece_bytes_for(total);
    let before = paths.iter().map(|(path, _)| root.stat(path)).collect::<Result<Vec<_>, _>>()?;
    let open = |index: usize| root.open(&paths[index].0, OpenMode::Read);
    let pieces = share::hash_opened(&lens, open, piece_bytes, threads(), cancel, progress)?;
    for ((path, _), before) in paths.iter().zip(before) {
        if !StatRecord::from(root.stat(path)?).same_content(&before.into()) {
            return Err(MakeError::Changed);
        }
    }
    progress.store(total, Ordering::Relaxed);
    let spec = InfoSpec { name, files, piece_bytes, pieces, private };
    let bytes = metainfo::build(&spec, None, None)?;
    Ok(Made { meta: Metainfo::parse(&bytes)? })
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
