//! Downloads and the room on their disk: they stop before they take the last of it, and go on by themselves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::disk::storage::StorageError;
use super::lifecycle::RESERVE_BYTES;
use super::torrent::{Phase, Torrent};

/// How often is looked whether there is room again: asking costs one system call.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl Core {
    /// A download stops before it takes the last of the disk.
    pub async fn keep_reserve(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        let downloading = torrent.with_status(|status| status.phase == Phase::Downloading);
        if downloading && free_bytes(self, torrent).await.is_some_and(|free_bytes| free_bytes < RESERVE_BYTES) {
            self.no_room(torrent);
        }
    }

    /// Our disk failed while a piece was written. A full disk may have room again later; all else wants a person.
    pub fn disk_failed(self: &Arc<Self>, torrent: &Arc<Torrent>, error: &StorageError) {
        if error.is_full() {
            return self.no_room(torrent);
        }
        let name = &torrent.summary.name;
        let message =
            format!("{name} could not be written: {error}; when that is mended type peerctl resume {}", torrent.key());
        self.fail(torrent, message);
    }

    fn no_room(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        let message = format!(
            "the disk is full: {} stops here with what it has, and goes on by itself once {} MiB are free in {}",
            torrent.summary.name,
            RESERVE_BYTES >> 20,
            folder(self, torrent).display()
        );
        if torrent.with_status(|status| matches!(&status.phase, Phase::Error(known) if *known == message)) {
            return;
        }
        self.fail(torrent, message.clone());
        self.tasks.spawn("wait for room", wait_for_room(self.clone(), torrent.clone(), message));
    }
}

/// Until there is room, or the torrent is in another state than the one with this message.
async fn wait_for_room(core: Arc<Core>, torrent: Arc<Torrent>, message: String) {
    let waiting = Phase::Error(message);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if torrent.is_removed() || torrent.with_status(|status| status.phase != waiting) {
            return;
        }
        if free_bytes(&core, &torrent).await.is_none_or(|free_bytes| free_bytes < RESERVE_BYTES) {
            continue;
        }
        torrent.update(|status| {
            if status.phase == waiting {
                status.phase = Phase::Downloading;
            }
        });
        tracing::info!(torrent = %torrent.summary.name, "there is room again: it goes on");
        return core.start(&torrent).await;
    }
}

fn folder(core: &Core, torrent: &Torrent) -> PathBuf {
    core.folder_of(&torrent.with_status(|status| status.origin.clone()))
}

async fn free_bytes(core: &Arc<Core>, torrent: &Torrent) -> Option<u64> {
    let (files, folder) = (core.files.clone(), folder(core, torrent));
    tokio::task::spawn_blocking(move || files.open_root(&folder)?.free_bytes()).await.ok()?.ok()
}
