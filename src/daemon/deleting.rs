//! Takes a torrent's files off the disk: those alone, and the folders that are empty then.
//!
//! What is to be deleted is on record ([`records::DELETIONS`]) from before its torrent is forgotten until after the last
//! folder is synced: a stop in between neither brings the torrent back nor leaves half of its files.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::core::{ActivateError, Core, part_and_whole};
use super::disk::fs::{FileStat, Root};
use super::lifecycle::{record_of, torrent_of};
use super::records;
use super::torrent::{Origin, Torrent};
use crate::db::record::encode_record;
use crate::db::{Batch, StoreError};
use crate::wire::metainfo::Metainfo;
use crate::wire::name::RelPath;

/// Why files were not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    #[error("{0}")]
    Disk(#[from] io::Error),
    #[error("what they were could not be read back: {0}")]
    Unknown(#[from] ActivateError),
}

/// Puts on record that the torrent's data is to be deleted; it belongs into the batch that forgets the torrent.
pub fn intend(batch: &mut Batch, torrent: &Torrent) {
    batch.put(records::DELETIONS, torrent.key().as_bytes(), encode_record(&record_of(torrent)));
}

/// Deletes what the torrent's status says is its data, and takes the intention off the record. Blocking.
///
/// # Errors
/// When something is there and cannot be deleted; the next start tries again.
pub fn delete(core: &Core, torrent: &Torrent) -> Result<(), DeleteError> {
    delete_if(core, torrent, &[])?;
    settle(core, torrent, true)
}

/// Goes on with what an earlier run was to delete and did not come to. A file that has changed since is somebody's work and
/// stays; a torrent that has been added again keeps what it has. Blocking.
///
/// # Errors
/// When the store cannot be read. What cannot be deleted is said, and tried again at the next start.
pub fn resume(core: &Core) -> Result<(), StoreError> {
    let mut left = Vec::new();
    core.store.for_each(records::DELETIONS, &[], &mut |key, bytes| {
        left.extend(torrent_of(key, bytes));
        ControlFlow::Continue(())
    })?;
    for torrent in left {
        let name = &torrent.summary.name;
        let done = match core.torrent(torrent.key()) {
            Some(_) => settle(core, &torrent, false),
            None => resume_one(core, &torrent),
        };
        match done {
            Ok(()) => tracing::info!(torrent = %name, "its deletion, which a stop had interrupted, is done"),
            Err(error) => core.warn(format!(
                "the data of {name}, which was to be deleted, could not be: {error}; it is tried again at the next start"
            )),
        }
    }
    Ok(())
}

fn resume_one(core: &Core, torrent: &Torrent) -> Result<(), DeleteError> {
    let meta = core.read_metainfo(torrent)?;
    let recorded = core.recorded_stats(&meta, &torrent.status()).map_err(ActivateError::from)?;
    delete_if(core, torrent, &recorded)?;
    settle(core, torrent, true)
}

/// Takes the intention off the record, and what the files looked like if nobody needs that any more.
fn settle(core: &Core, torrent: &Torrent, with_stats: bool) -> Result<(), DeleteError> {
    let key = torrent.key();
    let mut batch = Batch::new();
    batch.delete(records::DELETIONS, key.as_bytes());
    let mut forget = |chunk: &[u8], _: &[u8]| {
        batch.delete(records::FILE_STATS, chunk);
        ControlFlow::Continue(())
    };
    if with_stats {
        core.store.for_each(records::FILE_STATS, key.as_bytes(), &mut forget).map_err(ActivateError::from)?;
    }
    Ok(core.store.commit(batch).map_err(ActivateError::from)?)
}

/// `recorded`: what each file must look like to be deleted; empty if that does not matter.
fn delete_if(core: &Core, torrent: &Torrent, recorded: &[FileStat]) -> Result<(), DeleteError> {
    let meta = core.read_metainfo(torrent)?;
    let status = torrent.status();
    let root = core.files.open_root(&core.folder_of(&status.origin))?;
    let (part, whole) = part_and_whole(meta.info_hash(), meta.name()).map_err(ActivateError::from)?;
    match &status.origin {
        Origin::Upload { path } => {
            remove(&root, path, recorded.first())?;
            Ok(absent_is_well(root.sync_dir(path.parent().as_ref()))?)
        }
        Origin::Download { .. } if !status.complete => delete_below(&root, &part, &whole, &meta, recorded),
        _ => delete_below(&root, &whole, &whole, &meta, recorded),
    }
}

/// Deletes what was fetched so far of a torrent into this folder. Blocking.
///
/// # Errors
/// When something is there and cannot be deleted.
pub fn delete_unfinished(core: &Core, torrent: &Torrent, folder: &Path) -> Result<(), DeleteError> {
    let meta = core.read_metainfo(torrent)?;
    let (part, whole) = part_and_whole(meta.info_hash(), meta.name()).map_err(ActivateError::from)?;
    let root = core.files.open_root(folder)?;
    delete_below(&root, &part, &whole, &meta, &[])
}

/// The files lie below `whole` by their names, and below `at` on the disk.
fn delete_below(
    root: &Arc<dyn Root>,
    at: &RelPath,
    whole: &RelPath,
    meta: &Metainfo,
    recorded: &[FileStat],
) -> Result<(), DeleteError> {
    let depth = whole.components().count();
    let mut folders: BTreeSet<RelPath> = BTreeSet::new();
    for (index, file) in meta.files().iter().enumerate().filter(|(_, file)| !file.padding) {
        let below = at.components().chain(file.path.components().skip(depth));
        let path = RelPath::from_components(below).map_err(io::Error::other)?;
        remove(root, &path, recorded.get(index))?;
        folders.extend(std::iter::successors(path.parent(), RelPath::parent).filter(|p| p == at || p.is_below(at)));
    }
    // Children come after their parents in this order. A folder that holds something else stays.
    for folder in folders.iter().rev() {
        match absent_is_well(root.remove_dir(folder)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => root.sync_dir(Some(folder))?,
            other => other?,
        }
    }
    Ok(root.sync_dir(at.parent().as_ref())?)
}

/// `only_if`: what the file must look like for that, if that matters. A power cut can leave it with an earlier time of change
/// than was recorded, but not with a later one.
fn remove(root: &Arc<dyn Root>, path: &RelPath, only_if: Option<&FileStat>) -> io::Result<()> {
    let changed = |expected: &FileStat| {
        root.stat(path).is_ok_and(|stat| stat.len != expected.len || stat.modified_ns > expected.modified_ns)
    };
    if only_if.is_some_and(changed) { Ok(()) } else { absent_is_well(root.remove(path)) }
}

fn absent_is_well(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
