//! Downloads and the room on their disk: they stop before they take the last of it, and go on by themselves.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::core::Core;
use super::disk::storage::StorageError;
use super::lifecycle::RESERVE_BYTES;
use super::torrent::{Phase, Torrent};

impl Core {
    /// A download stops before it takes the last of the disk.
    pub async fn keep_reserve(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        if torrent.with_status(|status| status.phase != Phase::Downloading) {
            return;
        }
        let (core, of) = (self.clone(), torrent.clone());
        let free_bytes = tokio::task::spawn_blocking(move || free_bytes(&core, &of)).await;
        if matches!(free_bytes, Ok(Ok(free_bytes)) if free_bytes < RESERVE_BYTES) {
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
        self.fail_until(torrent, message, |core, torrent| {
            free_bytes(core, torrent).is_ok_and(|free_bytes| free_bytes >= RESERVE_BYTES)
        });
    }
}

fn folder(core: &Core, torrent: &Torrent) -> PathBuf {
    core.folder_of(&torrent.with_status(|status| status.origin.clone()))
}

fn free_bytes(core: &Core, torrent: &Torrent) -> io::Result<u64> {
    core.files.open_root(&folder(core, torrent))?.free_bytes()
}
