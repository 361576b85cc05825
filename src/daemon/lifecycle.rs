//! How torrents come, change state and go.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::announcing::What as Announce;
use super::checking::Asked;
use super::core::{ActivateError, Core, part_and_whole};
use super::deleting::{self, DeleteError};
use super::disk::fs::OpenMode;
use super::disk::storage::{FinishError, StorageError};
use super::making::Made;
use super::records::{self, OriginRecord, SettingRecord, TorrentRecord};
use super::torrent::{Active, Origin, Phase, Status, Summary, Torrent};
use crate::db::dirs::make_dirs;
use crate::db::record::{decode_record, encode_record};
use crate::db::segments::SegmentError;
use crate::db::{Batch, Store, StoreError, chunks};
use crate::wire::bitfield::Bitfield;
use crate::wire::layout::Layout;
use crate::wire::metainfo::{Metainfo, MetainfoError};
use crate::wire::name::{FileName, NameError, RelPath};

/// Why a torrent could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error("{0}")]
    Metainfo(#[from] MetainfoError),
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("the state folder: {0}")]
    Store(#[from] StoreError),
    #[error("the state folder: {0}")]
    Segments(#[from] SegmentError),
    #[error("{}: only {} MiB are free, {} MiB are kept in reserve; make room, or fetch to another disk with --to", folder.display(), free_bytes >> 20, RESERVE_BYTES >> 20)]
    NoRoom { folder: PathBuf, free_bytes: u64 },
    #[error("{} is forgotten, but its data could not be deleted: {source}; it is tried again at the next start", path.display())]
    Undeleted { path: PathBuf, source: DeleteError },
    #[error("{}: {source}", folder.display())]
    Folder { folder: PathBuf, source: std::io::Error },
}

/// design.md section 6: the store and other programs need room too, so downloads do not take the last of it.
pub const RESERVE_BYTES: u64 = 256 << 20;

impl Core {
    /// Writes a batch; returns when it is safe from a power cut.
    ///
    /// # Errors
    /// When the store could not keep it.
    pub async fn submit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() { Ok(()) } else { self.store.submit(batch).await }
    }

    /// Writes what the store must know of the torrent.
    ///
    /// # Errors
    /// When the store could not keep it.
    pub async fn save(&self, torrent: &Torrent) -> Result<(), StoreError> {
        if torrent.is_removed() {
            return Ok(());
        }
        let mut batch = Batch::new();
        put_torrent(&mut batch, torrent);
        self.submit(batch).await
    }

    /// Appends a `.torrent` to the segments and syncs them.
    ///
    /// # Errors
    /// When it could not be kept.
    pub async fn keep_metainfo(
        self: &Arc<Self>,
        bytes: Vec<u8>,
    ) -> Result<crate::db::segments::Position, SegmentError> {
        let core = self.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let position = core.segments.append(&bytes)?;
            core.segments.sync()?;
            Ok(position)
        });
        kept.await.unwrap_or_else(|error| {
            Err(SegmentError::Io { path: self.options.state_dir.clone(), source: std::io::Error::other(error) })
        })
    }

    /// Adds a torrent to be fetched into `folder`, or gives back the one of that key which is here. Data that lies there
    /// already is checked first and used.
    ///
    /// # Errors
    /// When the `.torrent` is refused, the folder cannot be used, or the state folder fails.
    pub async fn add_fetched(
        self: &Arc<Self>,
        bytes: Vec<u8>,
        folder: PathBuf,
        ours: bool,
    ) -> Result<Arc<Torrent>, AddError> {
        let meta = Metainfo::parse(&bytes)?;
        if let Some(known) = self.torrent(meta.info_hash()) {
            return Ok(known);
        }
        let (core, to) = (self.clone(), folder.clone());
        let (part, whole) = part_and_whole(meta.info_hash(), meta.name())?;
        let key = meta.info_hash();
        let found = tokio::task::spawn_blocking(move || core.look_into(&to, &part, &whole))
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|source| AddError::Folder { folder: folder.clone(), source })?;
        let Looked { found, free_bytes } = found;
        if found == Found::Nothing && free_bytes < RESERVE_BYTES {
            return Err(AddError::NoRoom { folder, free_bytes });
        }
        let position = self.keep_metainfo(bytes).await?;
        let summary = Summary::of(&meta, position, ours, self.clock.unix_seconds());
        let status = Status {
            phase: Phase::Downloading,
            paused: false,
            // A file that peerd did not make is read where it lies and never written.
            origin: if found == Found::Foreign { Origin::InPlace { folder } } else { Origin::Download { folder } },
            ours,
            complete: false,
            stat: None,
            withdrawn: false,
            publish: false,
        };
        let torrent = Arc::new(Torrent::new(summary, status));
        let standing = self.insert(torrent.clone());
        if !Arc::ptr_eq(&standing, &torrent) {
            return Ok(standing);
        }
        let mut batch = Batch::new();
        put_torrent(&mut batch, &torrent);
        let empty = Bitfield::empty(meta.layout().piece_count());
        chunks::put_chunks(&mut batch, records::BITFIELDS, key.as_bytes(), empty.as_bytes());
        if let Err(error) = self.submit(batch).await {
            self.forget(key);
            return Err(error.into());
        }
        if found == Found::Nothing {
            self.start(&torrent).await;
        } else {
            self.begin_verify(&torrent, Asked::ByUser);
        }
        Ok(torrent)
    }

    fn look_into(&self, folder: &Path, part: &RelPath, whole: &RelPath) -> std::io::Result<Looked> {
        make_dirs(folder, 0o777)?;
        let root = self.files.open_root(folder)?;
        let found = match (root.stat(whole), root.stat(part)) {
            (Ok(_), _) => Found::Foreign,
            (_, Ok(_)) => Found::Part,
            _ => Found::Nothing,
        };
        if found == Found::Nothing {
            // A folder that cannot be written to is said now, and not when the first piece has come.
            root.open(part, OpenMode::Create)?;
            root.remove(part)?;
        }
        Ok(Looked { found, free_bytes: root.free_bytes()? })
    }

    /// Starts what a torrent's state asks for: announces it, and connects it if it is downloading.
    pub async fn start(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        if !torrent.with_status(Status::is_live) {
            return;
        }
        let (complete, origin) = torrent.with_status(|status| (status.complete, status.origin.clone()));
        // What lies in upload/ is looked at by the watcher.
        let is_suspect = !matches!(origin, Origin::Upload { .. }) && torrent.take_suspect();
        if is_suspect || !complete && matches!(origin, Origin::InPlace { .. }) {
            return self.begin_verify(torrent, Asked::ByNobody);
        }
        if torrent.with_status(|status| status.phase == Phase::Downloading) {
            match self.activate(torrent).await {
                Ok(_) if torrent.take_suspect() => return self.begin_verify(torrent, Asked::ByNobody),
                Ok(active) => {
                    // Nothing is missing from a torrent of 0 bytes, or after a stop between the last commit and the rename.
                    let whole = active.lock().committed.is_full();
                    if whole {
                        self.complete(torrent, &active).await;
                        return;
                    }
                }
                Err(ActivateError::Gone(gone)) => return self.wait_for_data(torrent, &gone),
                Err(error) => {
                    self.fail(torrent, format!("{}: {error}", torrent.summary.name));
                    return;
                }
            }
        }
        self.announcer.tell(torrent.key(), Announce::Started);
        self.dialling.notify_one();
    }

    /// All pieces are verified and committed: the data gets its name, and the torrent seeds.
    pub async fn complete(self: &Arc<Self>, torrent: &Arc<Torrent>, active: &Arc<Active>) {
        if torrent.with_status(|status| status.complete) {
            return;
        }
        let of = active.clone();
        let finished = tokio::task::spawn_blocking(move || of.storage.finish()).await;
        match finished
            .unwrap_or_else(|error| Err(FinishError::Storage(StorageError::Root(std::io::Error::other(error)))))
        {
            Ok(_) => self.note_stats(torrent).await,
            Err(FinishError::Clash(_)) => {
                let folder = self.data_path(torrent);
                self.fail(torrent, format!("{} is taken meanwhile by something that peerd did not make: move it away and type peerctl resume {}", folder.display(), torrent.key()));
                return;
            }
            Err(error) => {
                self.fail(
                    torrent,
                    format!("{} is fetched whole but could not be put in its place: {error}", torrent.summary.name),
                );
                return;
            }
        }
        torrent.update(|status| {
            status.complete = true;
            status.phase = Phase::Seeding;
            status.publish |= status.ours;
        });
        if let Err(error) = self.save(torrent).await {
            tracing::error!(torrent = %torrent.summary.name, %error, "its completion could not be recorded; after a restart it is checked again");
        }
        self.announcer.tell(torrent.key(), Announce::Completed);
        if torrent.with_status(|status| status.publish) {
            self.publisher.publish(torrent.key());
        }
        self.choking.notify_one();
        tracing::info!(torrent = %torrent.summary.name, key = %torrent.key(), "complete");
        torrent.touch();
    }

    /// Notes what the files look like now that their content is known to be right: they are served as long as they do.
    pub async fn note_stats(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        let (core, of) = (self.clone(), torrent.clone());
        let noted = tokio::task::spawn_blocking(move || {
            let meta = core.read_metainfo(&of)?;
            let stats = core.open_storage(&meta, &of.status())?.stats()?;
            let mut batch = Batch::new();
            let bytes = records::encode_file_stats(&stats);
            chunks::put_chunks(&mut batch, records::FILE_STATS, of.key().as_bytes(), &bytes);
            Ok::<_, ActivateError>(core.store.commit(batch)?)
        });
        if let Ok(Err(error)) = noted.await {
            tracing::warn!(torrent = %torrent.summary.name, %error, "what its files look like could not be noted");
        }
    }

    /// Our own side failed: sessions end, the user is told, `resume` tries again.
    pub fn fail(&self, torrent: &Arc<Torrent>, message: String) {
        tracing::warn!(torrent = %torrent.summary.name, "{message}");
        torrent.update(|status| status.phase = Phase::Error(message));
        self.disconnect(torrent, "stopped by an error here");
        self.announcer.tell(torrent.key(), Announce::Stopped);
    }

    /// Ends every session of the torrent.
    pub fn disconnect(&self, torrent: &Torrent, why: &str) {
        if let Some(active) = torrent.active() {
            for session in active.lock().sessions.values() {
                session.close(why);
            }
        }
    }

    /// Where the data lies, or will.
    pub fn data_path(&self, torrent: &Torrent) -> PathBuf {
        torrent.with_status(|status| self.path_of(torrent, &status.origin))
    }

    /// The same, of an origin that was read with other things.
    pub fn path_of(&self, torrent: &Torrent, origin: &Origin) -> PathBuf {
        match origin {
            Origin::Upload { path } => self.options.upload_dir.join(path.as_path()),
            Origin::InPlace { folder } | Origin::Download { folder } => folder.join(torrent.summary.name.as_os_str()),
        }
    }

    /// # Errors
    /// When the store could not keep it.
    pub async fn pause(&self, torrent: &Arc<Torrent>) -> Result<(), StoreError> {
        torrent.update(|status| status.paused = true);
        self.disconnect(torrent, "paused");
        self.announcer.tell(torrent.key(), Announce::Stopped);
        self.save(torrent).await
    }

    /// Also after an error: what can be tried again is tried again.
    ///
    /// # Errors
    /// When the store could not keep it.
    pub async fn resume(self: &Arc<Self>, torrent: &Arc<Torrent>) -> Result<(), StoreError> {
        let failed = torrent.update(|status| {
            status.paused = false;
            matches!(status.phase, Phase::Error(_) | Phase::Missing)
        });
        self.save(torrent).await?;
        if failed {
            self.begin_verify(torrent, Asked::ByUser);
        } else {
            self.start(torrent).await;
        }
        Ok(())
    }

    /// Forgets the torrent, and deletes its data if asked.
    ///
    /// # Errors
    /// When the store or the disk fails; the torrent is gone from memory all the same.
    pub async fn remove(self: &Arc<Self>, torrent: &Arc<Torrent>, data: bool) -> Result<(), AddError> {
        torrent.set_removed();
        self.disconnect(torrent, "removed");
        self.announcer.tell(torrent.key(), Announce::Removed);
        if torrent.with_status(|status| status.publish) {
            self.publisher.withdraw(torrent.key());
        }
        self.deactivate(torrent, true).await;
        // What is unfinished is of use to nobody; what is whole goes only if that was said.
        let to_delete = data || torrent.with_status(|s| !s.complete && matches!(s.origin, Origin::Download { .. }));
        let mut batch = Batch::new();
        if to_delete {
            deleting::intend(&mut batch, torrent);
        }
        forgetting(&*self.store, torrent, to_delete, &mut batch)?;
        if torrent.with_status(|status| status.publish) {
            batch.put(records::WITHDRAWALS, torrent.key().as_bytes(), encode_record(&SettingRecord::default()));
        }
        self.submit(batch).await?;
        self.forget(torrent.key());
        // Once more: a check or a commit may have written it back in between.
        let mut batch = Batch::new();
        forgetting(&*self.store, torrent, to_delete, &mut batch)?;
        self.submit(batch).await?;
        torrent.touch();
        if !to_delete {
            return Ok(());
        }
        let (core, of) = (self.clone(), torrent.clone());
        let deleted = tokio::task::spawn_blocking(move || deleting::delete(&core, &of)).await;
        let deleted = deleted.unwrap_or_else(|error| Err(std::io::Error::other(error).into()));
        deleted.map_err(|source| AddError::Undeleted { path: self.data_path(torrent), source })
    }

    /// Adds a file or folder that is shared where it lies.
    ///
    /// # Errors
    /// When the state folder fails.
    pub async fn add_in_place(self: &Arc<Self>, made: Made, folder: PathBuf) -> Result<Arc<Torrent>, AddError> {
        let position = self.keep_metainfo(made.meta.raw().to_vec()).await?;
        let summary = Summary::of(&made.meta, position, true, self.clock.unix_seconds());
        let status = Status {
            phase: Phase::Seeding,
            paused: false,
            origin: Origin::InPlace { folder },
            ours: true,
            complete: true,
            stat: None,
            withdrawn: false,
            publish: true,
        };
        let torrent = self.insert(Arc::new(Torrent::new(summary, status.clone())));
        let data_path = self.data_path(&torrent);
        let there = tokio::fs::try_exists(&data_path).await.unwrap_or(false);
        let sound = torrent.with_status(|s| s.complete && s.phase == Phase::Seeding && there);
        if !sound {
            // Known before, and not to be had from where it was: from here on it is served from here.
            self.deactivate(&torrent, true).await;
            torrent.update(|old| *old = Status { paused: old.paused, ..status });
        }
        torrent.update(|status| {
            status.publish = true;
            status.withdrawn = false;
        });
        self.note_stats(&torrent).await;
        self.save(&torrent).await?;
        self.publisher.publish(torrent.key());
        self.announcer.tell(torrent.key(), Announce::Started);
        Ok(torrent)
    }
}

/// What lies where a torrent's data is to go, and how much room there is.
struct Looked {
    found: Found,
    free_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Unfinished data of an earlier run whose record is gone.
    Part,
    /// Something of that name that peerd did not make.
    Foreign,
}

/// Takes every record of the torrent out of the store; but for what its files looked like if they are to be deleted, for
/// that says whether they are still the same.
///
/// # Errors
/// When the store cannot be read.
fn forgetting(store: &dyn Store, torrent: &Torrent, to_delete: bool, batch: &mut Batch) -> Result<(), StoreError> {
    let key = torrent.key();
    batch.delete(records::TORRENTS, key.as_bytes());
    batch.delete(records::PEERS, key.as_bytes());
    let stats = (!to_delete).then_some(records::FILE_STATS);
    for table in stats.into_iter().chain([records::BITFIELDS]) {
        store.for_each(table, key.as_bytes(), &mut |chunk, _| {
            batch.delete(table, chunk);
            std::ops::ControlFlow::Continue(())
        })?;
    }
    Ok(())
}

/// Adds the torrent's record to a batch.
pub fn put_torrent(batch: &mut Batch, torrent: &Torrent) {
    batch.put(records::TORRENTS, torrent.key().as_bytes(), encode_record(&record_of(torrent)));
}

/// What the store must know of the torrent.
pub fn record_of(torrent: &Torrent) -> TorrentRecord {
    let status = torrent.status();
    let summary = &torrent.summary;
    let path_bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
    TorrentRecord {
        position: summary.position,
        name: summary.name.as_bytes().to_vec(),
        total_bytes: summary.layout.total_bytes(),
        piece_bytes: summary.layout.piece_bytes(),
        private: summary.private,
        multi_file: summary.multi_file,
        origin: match &status.origin {
            Origin::Upload { path } => OriginRecord::Upload { path: path.as_bytes().to_vec() },
            Origin::InPlace { folder } => OriginRecord::InPlace { folder: path_bytes(folder) },
            Origin::Download { folder } => OriginRecord::Download { folder: path_bytes(folder) },
        },
        ours: status.ours,
        publish: status.publish,
        complete: status.complete,
        paused: status.paused,
        added: summary.added,
        stat: status.stat,
    }
}

/// A torrent from its record; `None` if the record makes no sense.
pub fn torrent_of(key: &[u8], bytes: &[u8]) -> Option<Torrent> {
    use std::os::unix::ffi::OsStringExt;
    let record: TorrentRecord = decode_record(bytes).ok()?;
    let folder = |bytes: Vec<u8>| PathBuf::from(std::ffi::OsString::from_vec(bytes));
    let summary = Summary {
        key: crate::wire::id::InfoHash::from_slice(key)?,
        name: FileName::new(&record.name).ok()?,
        layout: Layout::new(record.total_bytes, u64::from(record.piece_bytes)).ok()?,
        private: record.private,
        multi_file: record.multi_file,
        position: record.position,
        trackers: Vec::new(),
        added: record.added,
    };
    let status = Status {
        phase: if record.complete { Phase::Seeding } else { Phase::Downloading },
        paused: record.paused,
        origin: match record.origin {
            OriginRecord::Upload { path } => Origin::Upload { path: RelPath::parse(&path).ok()? },
            OriginRecord::InPlace { folder: at } => Origin::InPlace { folder: folder(at) },
            OriginRecord::Download { folder: at } => Origin::Download { folder: folder(at) },
        },
        ours: record.ours,
        complete: record.complete,
        stat: record.stat,
        withdrawn: false,
        publish: record.publish,
    };
    Some(Torrent::new(summary, status))
}

/// Reads the torrents of earlier runs. Damaged records are skipped and said.
///
/// # Errors
/// When the store cannot be read.
pub fn load(core: &Arc<Core>) -> Result<(), StoreError> {
    let mut damaged = 0_u32;
    core.store.for_each(records::TORRENTS, &[], &mut |key, bytes| {
        match torrent_of(key, bytes) {
            Some(torrent) => drop(core.insert(Arc::new(with_trackers(core, torrent)))),
            None => damaged += 1,
        }
        std::ops::ControlFlow::Continue(())
    })?;
    if damaged > 0 {
        tracing::warn!(damaged, "records of torrents could not be read and were skipped: get or share them again");
    }
    Ok(())
}

/// A foreign torrent's trackers stand in its `.torrent` alone.
fn with_trackers(core: &Core, mut torrent: Torrent) -> Torrent {
    if !torrent.with_status(|status| status.ours) {
        let meta = core.segments.read(torrent.summary.position).ok().and_then(|bytes| Metainfo::parse(&bytes).ok());
        torrent.summary.trackers = meta.map_or_else(Vec::new, |meta| super::torrent::foreign_trackers(&meta));
    }
    torrent
}
