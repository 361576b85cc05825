//! Takes a torrent's files off the disk: those alone, and the folders that are empty then.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::core::{Core, part_and_whole};
use super::disk::fs::Root;
use super::torrent::{Origin, Torrent};
use crate::wire::metainfo::Metainfo;
use crate::wire::name::RelPath;

/// Deletes what the torrent's status says is its data. Blocking.
///
/// # Errors
/// When something is there and cannot be deleted.
pub fn delete(core: &Core, torrent: &Torrent) -> io::Result<()> {
    let bytes = core.segments.read(torrent.summary.position).map_err(io::Error::other)?;
    let meta = Metainfo::parse(&bytes).map_err(io::Error::other)?;
    let status = torrent.status();
    let root = core.files.open_root(&core.folder_of(&status.origin))?;
    let (part, whole) = part_and_whole(meta.info_hash(), meta.name()).map_err(io::Error::other)?;
    let files: Vec<RelPath> = meta.files().iter().filter(|file| !file.padding).map(|file| file.path.clone()).collect();
    match &status.origin {
        Origin::Upload { path } => return remove(&root, path),
        Origin::Download { .. } if !status.complete => delete_below(&root, &part, &whole, &files)?,
        _ => delete_below(&root, &whole, &whole, &files)?,
    }
    root.sync_dir(None)
}

/// Deletes what was fetched so far of a torrent into this folder. Blocking.
///
/// # Errors
/// When something is there and cannot be deleted.
pub fn delete_unfinished(core: &Core, torrent: &Torrent, folder: &Path) -> io::Result<()> {
    let bytes = core.segments.read(torrent.summary.position).map_err(io::Error::other)?;
    let meta = Metainfo::parse(&bytes).map_err(io::Error::other)?;
    let (part, whole) = part_and_whole(meta.info_hash(), meta.name()).map_err(io::Error::other)?;
    let files: Vec<RelPath> = meta.files().iter().filter(|file| !file.padding).map(|file| file.path.clone()).collect();
    let root = core.files.open_root(folder)?;
    delete_below(&root, &part, &whole, &files)?;
    root.sync_dir(None)
}

/// `files` lie below `whole` by their names, and below `at` on the disk.
fn delete_below(root: &Arc<dyn Root>, at: &RelPath, whole: &RelPath, files: &[RelPath]) -> io::Result<()> {
    let depth = whole.components().count();
    let mut folders: BTreeSet<RelPath> = BTreeSet::new();
    for file in files {
        let below = at.components().chain(file.components().skip(depth));
        let path = RelPath::from_components(below).map_err(io::Error::other)?;
        remove(root, &path)?;
        folders.extend(std::iter::successors(path.parent(), RelPath::parent).filter(|p| p == at || p.is_below(at)));
    }
    // Children come after their parents in this order. A folder that holds something else stays.
    for folder in folders.iter().rev() {
        match root.remove_dir(folder) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove(root: &Arc<dyn Root>, path: &RelPath) -> io::Result<()> {
    match root.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
