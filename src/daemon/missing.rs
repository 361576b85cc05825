//! Data that is not where it was, as if its disk were not mounted: what is recorded of it stays, nothing is made in its
//! place, and it goes on by itself when it is there again.

use std::path::PathBuf;
use std::sync::Arc;

use super::core::{Core, part_and_whole};
use super::disk::fs::Root;
use super::records;
use super::torrent::{Origin, Torrent};
use crate::db::{Batch, StoreError, chunks};
use crate::wire::bitfield::Bitfield;

/// The data of a torrent is not where it was.
#[derive(Debug, thiserror::Error)]
#[error("its data is not in {}", folder.display())]
pub struct Gone {
    folder: PathBuf,
}

impl Core {
    /// # Errors
    /// When neither the unfinished data of this torrent nor the finished lies below `root`.
    pub fn expect_data(&self, torrent: &Torrent, root: &dyn Root) -> Result<(), Gone> {
        let is_there = part_and_whole(torrent.key(), &torrent.summary.name)
            .is_ok_and(|(part, whole)| root.stat(&part).is_ok() || root.stat(&whole).is_ok());
        let folder = || self.folder_of(&torrent.with_status(|status| status.origin.clone()));
        if is_there { Ok(()) } else { Err(Gone { folder: folder() }) }
    }

    /// The torrent stops until its data is there again.
    pub fn wait_for_data(self: &Arc<Self>, torrent: &Arc<Torrent>, gone: &Gone) {
        let fetched = torrent.with_status(|status| matches!(status.origin, Origin::Download { .. }));
        let otherwise = if fetched { "fetches it anew" } else { "looks again" };
        let message = format!(
            "{}: {gone}: is its disk mounted? It goes on by itself when the data is there again; peerctl verify {} {otherwise}",
            torrent.summary.name,
            torrent.key(),
        );
        self.fail_until(torrent, message, |core, torrent| core.is_data_there(torrent));
    }

    fn is_data_there(&self, torrent: &Torrent) -> bool {
        let folder = self.folder_of(&torrent.with_status(|status| status.origin.clone()));
        self.files.open_root(&folder).is_ok_and(|root| self.expect_data(torrent, &*root).is_ok())
    }

    /// The user wants unfinished data that is gone fetched anew: what is recorded of it is given up. Blocking.
    ///
    /// # Errors
    /// When the store could not keep that.
    pub fn give_up_missing(&self, torrent: &Torrent) -> Result<(), StoreError> {
        let unfinished =
            torrent.with_status(|status| !status.complete && matches!(status.origin, Origin::Download { .. }));
        if !unfinished || self.is_data_there(torrent) {
            return Ok(());
        }
        let mut batch = Batch::new();
        let empty = Bitfield::empty(torrent.summary.layout.piece_count());
        chunks::put_chunks(&mut batch, records::BITFIELDS, torrent.key().as_bytes(), empty.as_bytes());
        self.store.commit(batch)
    }
}
