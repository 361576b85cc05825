//! Hashing what lies on disk, and going on from what is right.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::core::{ActivateError, Core, part_and_whole};
use super::disk::check;
use super::disk::storage::StorageError;
use super::records;
use super::torrent::{Origin, Phase, Torrent};
use crate::db::{Batch, chunks};
use crate::wire::bitfield::Bitfield;
use crate::wire::layout::PieceIndex;

/// A file of upload/ that could not be read is looked at again after so long: descriptors may have run out.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Who wants the check. Finished data is only ever written to again when the user asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    ByUser,
    ByNobody,
}

impl Core {
    /// Hashes what lies on disk and goes on from what is right. Returns at once; the phase is *checking* meanwhile.
    pub fn begin_verify(self: &Arc<Self>, torrent: &Arc<Torrent>, asked: Asked) {
        let was = torrent.update(|status| std::mem::replace(&mut status.phase, Phase::Checking));
        if was != Phase::Checking {
            self.disconnect(torrent, "its data is being checked");
            self.tasks.spawn("verify", verify(self.clone(), torrent.clone(), asked));
        }
    }

    /// Something of a torrent that we serve could not be read, or is not what it was: it is looked at before anything
    /// more is served.
    pub fn data_is_suspect(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        let Origin::Upload { path } = torrent.with_status(|status| status.origin.clone()) else {
            return self.begin_verify(torrent, Asked::ByNobody);
        };
        if torrent.is_in_trouble_again() {
            return self.begin_verify(torrent, Asked::ByNobody);
        }
        // If the file has changed the watcher tells when it has settled, or that it is gone.
        torrent.update(|status| status.phase = Phase::Missing);
        self.disconnect(torrent, "its file has changed");
        let core = self.clone();
        self.tasks.spawn("look again", async move {
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            core.shares.look_again(&path);
        });
    }
}

async fn verify(core: Arc<Core>, torrent: Arc<Torrent>, asked: Asked) {
    // Pieces on their way to disk belong to what was: the check begins with nothing under way.
    core.deactivate(&torrent, true).await;
    if asked == Asked::ByUser {
        let (of_core, of) = (core.clone(), torrent.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || of_core.give_up_missing(&of)).await {
            return core.fail(&torrent, format!("{}: {error}", torrent.summary.name));
        }
    }
    let checked = check_data(&core, &torrent).await;
    if torrent.is_removed() {
        return;
    }
    let path = core.data_path(&torrent);
    let found = match checked {
        Ok(found) => found,
        Err(CheckDataError::Cancelled) => return,
        Err(CheckDataError::Activate(ActivateError::Gone(gone))) => return core.wait_for_data(&torrent, &gone),
        Err(error) => return core.fail(&torrent, format!("{} could not be checked: {error}", path.display())),
    };
    let status = torrent.status();
    let fetched = matches!(status.origin, Origin::Download { .. });
    let whole = found.is_full();
    let in_place = matches!(status.origin, Origin::InPlace { .. });
    if in_place && !status.complete && !whole {
        return core.clash(&torrent).await;
    }
    if status.complete && found.is_empty() && asked == Asked::ByNobody && (fetched || in_place) {
        let looked = core.activate(&torrent).await.map(|active| core.expect_data(&torrent, &**active.storage.root()));
        if let Ok(Err(gone)) = looked {
            return core.wait_for_data(&torrent, &gone);
        }
    }
    if status.complete && !whole && !(fetched && asked == Asked::ByUser) {
        return core.no_longer_right(&torrent, &found, fetched);
    }
    let newly_whole = whole && in_place && !status.complete;
    if newly_whole {
        torrent.update(|status| {
            status.complete = true;
            status.publish |= status.ours;
        });
    }
    if status.complete && !whole {
        if let Err(error) = reopen_unfinished(&core, &torrent, found.is_empty()).await {
            return core.fail(&torrent, format!("{} could not be opened again: {error}", path.display()));
        }
        torrent.update(|status| status.complete = false);
    }
    if let Err(error) = adopt(&core, &torrent, &found).await {
        return core.fail(&torrent, format!("{}: {error}", torrent.summary.name));
    }
    if newly_whole && torrent.with_status(|status| status.publish) {
        core.publisher.publish(torrent.key());
    }
    core.start(&torrent).await;
}

impl Core {
    /// A fetch that cannot begin is not kept: the user types it again with another folder.
    async fn clash(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        let message = format!(
            "{} is there already and is not this torrent's data: it was left as it is. Fetch into another folder: \
             peerctl get --to DIR {}",
            self.data_path(torrent).display(),
            torrent.key()
        );
        self.fail(torrent, message);
        if let Err(error) = self.remove(torrent, false).await {
            tracing::error!(%error, "a torrent that could not begin could not be forgotten");
        }
    }

    /// Data that was whole is not any more, and it is not ours to mend without being asked.
    fn no_longer_right(self: &Arc<Self>, torrent: &Arc<Torrent>, found: &Bitfield, fetched: bool) {
        let (key, path) = (torrent.key(), self.data_path(torrent));
        let what_to_do = if fetched {
            format!("peerctl verify {key} fetches the rest again, peerctl remove {key} forgets it")
        } else {
            format!("put it back and type peerctl verify {key}, or peerctl remove {key}")
        };
        let (right, all) = (found.count(), found.piece_count());
        let message = format!("{} is not what it was: {right} of {all} pieces are right; {what_to_do}", path.display());
        self.fail(torrent, message);
    }
}

/// Takes what a check found as what we have.
async fn adopt(core: &Arc<Core>, torrent: &Arc<Torrent>, found: &Bitfield) -> Result<(), ActivateError> {
    core.deactivate(torrent, true).await;
    torrent.take_suspect();
    let complete = torrent.with_status(|status| status.complete);
    if complete {
        core.note_stats(torrent).await;
    } else if !torrent.is_removed() {
        let mut batch = Batch::new();
        chunks::put_chunks(&mut batch, records::BITFIELDS, torrent.key().as_bytes(), found.as_bytes());
        core.submit(batch).await?;
    }
    torrent.update(|status| status.phase = if status.complete { Phase::Seeding } else { Phase::Downloading });
    Ok(core.save(torrent).await?)
}

/// Turns finished data with holes back into unfinished data; where nothing is left there is nothing to turn.
async fn reopen_unfinished(core: &Arc<Core>, torrent: &Arc<Torrent>, is_empty: bool) -> Result<(), ActivateError> {
    let active = core.activate(torrent).await?;
    let (part, whole) = part_and_whole(active.meta.info_hash(), active.meta.name())?;
    let folder = core.data_path(torrent);
    let renamed = tokio::task::spawn_blocking(move || {
        let root = active.storage.root();
        match root.rename_noreplace(&whole, &part) {
            Err(error) if is_empty && error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => root.sync_dir(None),
        }
    });
    let renamed = renamed.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    renamed.map_err(|source| ActivateError::Folder { folder, source })
}

async fn check_data(core: &Arc<Core>, torrent: &Arc<Torrent>) -> Result<Bitfield, CheckDataError> {
    let active = core.activate(torrent).await?;
    torrent.check.bytes.store(0, Ordering::Relaxed);
    let of = torrent.clone();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let checked = tokio::task::spawn_blocking(move || {
        let layout = active.meta.layout();
        let pieces: Vec<PieceIndex> = layout.pieces().collect();
        let check_of = |piece: PieceIndex| active.meta.piece_check(piece);
        let checked = check::check_pieces(&active.storage, layout, &pieces, &check_of, threads, &of.check)?;
        // What was read may be in memory alone, and will be recorded as had.
        for piece in checked.good.iter_set(layout) {
            active.storage.touch(layout.piece_start(piece), u64::from(layout.piece_len(piece)))?;
        }
        active.storage.take_touched().sync()?;
        Ok(checked)
    });
    let checked = checked.await.unwrap_or_else(|error| Err(StorageError::Root(std::io::Error::other(error))))?;
    if checked.cancelled { Err(CheckDataError::Cancelled) } else { Ok(checked.good) }
}

#[derive(Debug, thiserror::Error)]
enum CheckDataError {
    #[error("{0}")]
    Activate(#[from] ActivateError),
    #[error("{0}")]
    Storage(#[from] StorageError),
    #[error("stopped")]
    Cancelled,
}
