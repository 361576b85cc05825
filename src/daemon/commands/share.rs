//! `share`: a file or folder where it lies, something in upload/, or a `.torrent`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{Commands, Found};
use crate::daemon::control::Reply;
use crate::daemon::making::{self, Made};
use crate::daemon::sharing::path_in_upload;
use crate::daemon::torrent::Torrent;
use crate::daemon::watch::refused_name;
use crate::db::Batch;
use crate::wire::control::{Answer, Failure, PathBytes, Progress, Share, Shared, State, What};
use crate::wire::metainfo::MAX_TORRENT_BYTES;
use crate::wire::name::RelPath;

const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// A file in upload/ that is still being written is waited for; a client that stays hears from us meanwhile.
const SETTLE_LIMIT: Duration = Duration::from_secs(3_600);
/// The tracker has so long to take a publication before `share` answers that peerd goes on trying.
const PUBLISH_WITHIN: Duration = Duration::from_secs(5);

impl Commands {
    pub(super) async fn share(&self, share: Share, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let path = share.path.to_path();
        let meta = tokio::fs::symlink_metadata(&path).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Failure::not_found(format!("{}: there is no such file or folder", path.display()))
            }
            _ => Failure::failed(format!("{}: {error}", path.display())),
        })?;
        if !meta.is_file() && !meta.is_dir() {
            return Err(Failure::usage(format!("{} is neither a file nor a folder", path.display())));
        }
        let is_torrent = meta.is_file() && path.extension().is_some_and(|extension| extension == "torrent");
        match path_in_upload(&self.core.options.upload_dir, &path) {
            Some(below) if meta.is_file() && (!share.public || self.core.options.public) => {
                self.share_from_upload(below, reply).await
            }
            None if is_torrent => self.publish_torrent(&path).await,
            _ => self.share_in_place(path, share.public || self.core.options.public, reply).await,
        }
    }

    /// It is shared already, or will be once it has settled; if it was declined, the user wants it after all.
    async fn share_from_upload(&self, path: RelPath, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        if let Some(why) = path.components().find_map(refused_name) {
            return Err(Failure::usage(format!(
                "upload/{path} is not shared from there: {why}; share it from another folder"
            )));
        }
        let mut batch = Batch::new();
        self.core.shares.accept(&path, &mut batch);
        if !batch.is_empty() {
            self.core.submit(batch).await.map_err(|error| Failure::failed(error.to_string()))?;
            self.core.shares.look_again(&path);
        }
        let begun = self.core.clock.now();
        loop {
            if let Some(torrent) = self.core.shares.key_at(&path).and_then(|key| self.core.torrent(key)) {
                return Ok(self.shared(&torrent).await);
            }
            if self.core.clock.now().since(begun) > SETTLE_LIMIT {
                return Err(Failure::failed(format!("upload/{path} has not stopped changing")));
            }
            reply.send(&Answer::Progress(hashing(&path.file_name().to_string_lossy(), 0, 0))).await?;
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
    }

    async fn share_in_place(&self, path: PathBuf, public: bool, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let progress = Arc::new(AtomicU64::new(0));
        let cancel = Arc::new(AtomicBool::new(false));
        let (core, of, seen, stop) = (self.core.clone(), path.clone(), progress.clone(), cancel.clone());
        let mut making = tokio::task::spawn_blocking(move || making::make_in_place(&core, &of, !public, &stop, &seen));
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let made = loop {
            tokio::select! {
                made = &mut making => break made,
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    let so_far = progress.load(Ordering::Relaxed);
                    if let Err(gone) = reply.send(&Answer::Progress(hashing(&name, so_far, 0))).await {
                        cancel.store(true, Ordering::Relaxed);
                        return Err(gone.into());
                    }
                }
            }
        };
        let made: Made = made
            .map_err(|error| Failure::failed(error.to_string()))?
            .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        let folder = path.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
        let torrent = self.core.add_in_place(made, folder).await.map_err(|error| Failure::failed(error.to_string()))?;
        Ok(self.shared(&torrent).await)
    }

    async fn publish_torrent(&self, path: &Path) -> Result<Answer, Failure> {
        let too_large = || Failure::failed(format!("{} is larger than any .torrent", path.display()));
        let size =
            tokio::fs::metadata(path).await.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?.len();
        if size > MAX_TORRENT_BYTES as u64 {
            return Err(too_large());
        }
        let bytes = tokio::fs::read(path).await.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        let found = self.find(&What::Torrent(bytes.clone()));
        match found {
            Ok(Found::One(torrent)) => {
                torrent.update(|status| status.publish = true);
                self.core.save(&torrent).await.map_err(|error| Failure::failed(error.to_string()))?;
                self.core.publisher.publish(torrent.key());
                Ok(self.shared(&torrent).await)
            }
            Ok(Found::Answer(answer)) => Ok(*answer),
            Err(failure) if failure.class == crate::wire::control::FailureClass::NotFound => {
                Err(Failure::failed(format!(
                    "{}: this peer does not have what it names, so there would be nobody to fetch it from: peerctl get it first",
                    path.display()
                )))
            }
            Err(failure) => Err(Failure::failed(format!("{}: {}", path.display(), failure.message))),
        }
    }

    async fn shared(&self, torrent: &Arc<Torrent>) -> Answer {
        let published = self.core.publisher.wait_published(torrent.key(), PUBLISH_WITHIN).await;
        let summary = &torrent.summary;
        Answer::Shared(Shared {
            name: summary.name.to_string_lossy().into_owned(),
            key: summary.key,
            size: summary.layout.total_bytes(),
            n_parts: summary.layout.piece_count(),
            path: PathBytes::from(self.core.data_path(torrent)),
            private: summary.private,
            published,
        })
    }
}

fn hashing(name: &str, have_bytes: u64, total_bytes: u64) -> Progress {
    Progress {
        state: State::Hashing,
        name: name.to_owned(),
        key: None,
        have_bytes,
        total_bytes,
        rate_bytes_per_s: 0,
        peers: 0,
        pieces_have: 0,
        pieces_total: 0,
        eta_s: None,
    }
}
