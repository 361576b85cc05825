//! How torrents come, change state and go.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::announcing::What as Announce;
use super::core::{ActivateError, Core, part_and_whole};
use super::deleting;
use super::disk::check;
use super::disk::storage::{FinishError, StorageError};
use super::making::Made;
use super::records::{self, OriginRecord, TorrentRecord};
use super::torrent::{Active, Origin, Phase, Status, Summary, Torrent};
use crate::db::record::{decode_record, encode_record};
use crate::db::segments::SegmentError;
use crate::db::{Batch, StoreError, chunks};
use crate::wire::bitfield::Bitfield;
use crate::wire::layout::{Layout, PieceIndex};
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
        let (part, whole) = part_and_whole(&meta)?;
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
            phase: if found == Found::Nothing { Phase::Downloading } else { Phase::Checking },
            paused: false,
            origin: Origin::Download { folder },
            ours,
            complete: false,
            stat: None,
            withdrawn: false,
            publish: false,
        };
        let torrent = Arc::new(Torrent::new(summary, status));
        let mut batch = Batch::new();
        put_torrent(&mut batch, &torrent);
        let empty = Bitfield::empty(meta.layout().piece_count());
        chunks::put_chunks(&mut batch, records::BITFIELDS, key.as_bytes(), empty.as_bytes());
        self.submit(batch).await?;
        let torrent = self.insert(torrent);
        match found {
            Found::Nothing => self.start(&torrent).await,
            Found::Part => self.tasks.spawn("check", check_part(self.clone(), torrent.clone())),
            Found::Foreign => self.tasks.spawn("check", check_foreign(self.clone(), torrent.clone())),
        }
        Ok(torrent)
    }

    fn look_into(&self, folder: &Path, part: &RelPath, whole: &RelPath) -> std::io::Result<Looked> {
        std::fs::create_dir_all(folder)?;
        let root = self.files.open_root(folder)?;
        let found = match (root.stat(whole), root.stat(part)) {
            (Ok(_), _) => Found::Foreign,
            (_, Ok(_)) => Found::Part,
            _ => Found::Nothing,
        };
        Ok(Looked { found, free_bytes: root.free_bytes()? })
    }

    /// Starts what a torrent's state asks for: announces it, and connects it if it is downloading.
    pub async fn start(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        if !torrent.with_status(Status::is_live) {
            return;
        }
        if torrent.with_status(|status| status.phase == Phase::Downloading) {
            match self.activate(torrent).await {
                Ok(active) => {
                    // Nothing is missing from a torrent of 0 bytes, or after a stop between the last commit and the rename.
                    let whole = active.lock().committed.is_full();
                    if whole {
                        self.complete(torrent, &active).await;
                        return;
                    }
                }
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
            Ok(_) => {}
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
            status.publish = status.ours;
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
        let name = torrent.summary.name.as_os_str();
        match torrent.with_status(|status| status.origin.clone()) {
            Origin::Upload { path } => self.options.upload_dir.join(path.as_path()),
            Origin::InPlace { folder } | Origin::Download { folder } => folder.join(name),
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
            self.begin_verify(torrent);
        } else {
            self.start(torrent).await;
        }
        Ok(())
    }

    /// Hashes what lies on disk and goes on from what is right. Returns at once; the phase is *checking* meanwhile.
    pub fn begin_verify(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        let was = torrent.update(|status| std::mem::replace(&mut status.phase, Phase::Checking));
        if was != Phase::Checking {
            self.disconnect(torrent, "its data is being checked");
            self.tasks.spawn("verify", verify(self.clone(), torrent.clone()));
        }
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
        let mut batch = Batch::new();
        batch.delete(records::TORRENTS, torrent.key().as_bytes());
        let bitfield_bytes = torrent.summary.layout.piece_count().div_ceil(8) as usize;
        chunks::delete_chunks(&mut batch, records::BITFIELDS, torrent.key().as_bytes(), bitfield_bytes);
        self.submit(batch).await?;
        self.forget(torrent.key());
        torrent.touch();
        // What is unfinished is of use to nobody; what is whole goes only if that was said.
        let unfinished = torrent.with_status(|s| !s.complete && matches!(s.origin, Origin::Download { .. }));
        if !data && !unfinished {
            return Ok(());
        }
        let (core, of) = (self.clone(), torrent.clone());
        let folder = self.folder_of(&torrent.with_status(|status| status.origin.clone()));
        tokio::task::spawn_blocking(move || deleting::delete(&core, &of))
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|source| AddError::Folder { folder, source })
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
        let torrent = self.insert(Arc::new(Torrent::new(summary, status)));
        torrent.update(|status| status.publish = true);
        self.save(&torrent).await?;
        self.publisher.publish(torrent.key());
        self.announcer.tell(torrent.key(), Announce::Started);
        Ok(torrent)
    }

    /// Our disk failed while a piece was written. A full disk may have room again later; all else wants a person.
    pub fn disk_failed(self: &Arc<Self>, torrent: &Arc<Torrent>, error: &StorageError) {
        let name = &torrent.summary.name;
        let message = if error.is_full() {
            format!(
                "the disk is full: {name} stops here with what it has; make room and type peerctl resume {}",
                torrent.key()
            )
        } else {
            format!("{name} could not be written: {error}; when that is mended type peerctl resume {}", torrent.key())
        };
        self.fail(torrent, message);
    }

    /// Something of a torrent that we serve could not be read, or is not what it was: it is looked at before anything
    /// more is served.
    pub fn data_is_suspect(self: &Arc<Self>, torrent: &Arc<Torrent>) {
        let in_upload = torrent.with_status(|status| matches!(status.origin, Origin::Upload { .. }));
        if in_upload {
            // The watcher tells when the file has settled, or that it is gone.
            torrent.update(|status| status.phase = Phase::Missing);
            self.disconnect(torrent, "its file has changed");
        } else {
            self.begin_verify(torrent);
        }
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

async fn check_part(core: Arc<Core>, torrent: Arc<Torrent>) {
    verify(core, torrent).await;
}

/// A file that we did not make is read, never written: right as a whole, it is seeded where it lies.
async fn check_foreign(core: Arc<Core>, torrent: Arc<Torrent>) {
    torrent.update(|status| status.complete = true);
    let checked = check_data(&core, &torrent).await;
    match checked {
        Ok(found) if found.is_full() => {
            torrent.update(|status| {
                status.phase = Phase::Seeding;
                status.publish = status.ours;
            });
            if let Err(error) = core.save(&torrent).await {
                tracing::error!(%error, "could not be recorded");
            }
            if torrent.with_status(|status| status.publish) {
                core.publisher.publish(torrent.key());
            }
            core.start(&torrent).await;
        }
        Ok(_) => {
            torrent.update(|status| status.complete = false);
            let path = core.data_path(&torrent);
            let message = format!(
                "{} is there already and is not this torrent's data: it was left as it is. Fetch into another folder: peerctl get --to DIR {}",
                path.display(),
                torrent.key()
            );
            core.deactivate(&torrent, true).await;
            core.clash(&torrent, message).await;
        }
        Err(error) => {
            torrent.update(|status| status.complete = false);
            core.fail(&torrent, format!("{} could not be checked: {error}", core.data_path(&torrent).display()));
        }
    }
}

impl Core {
    /// A fetch that cannot begin is not kept: the user types it again with another folder.
    async fn clash(self: &Arc<Self>, torrent: &Arc<Torrent>, message: String) {
        self.fail(torrent, message);
        if let Err(error) = self.remove(torrent, false).await {
            tracing::error!(%error, "a torrent that could not begin could not be forgotten");
        }
    }
}

async fn verify(core: Arc<Core>, torrent: Arc<Torrent>) {
    let found = match check_data(&core, &torrent).await {
        Ok(found) => found,
        Err(error) => {
            core.fail(&torrent, format!("{} could not be checked: {error}", core.data_path(&torrent).display()));
            return;
        }
    };
    let status = torrent.status();
    if status.complete && !found.is_full() {
        let own = matches!(status.origin, Origin::Download { .. });
        if own && reopen_unfinished(&core, &torrent).await {
            torrent.update(|status| status.complete = false);
        } else {
            let path = core.data_path(&torrent);
            core.fail(
                &torrent,
                format!(
                    "{} is not what it was: {} of {} pieces are right. peerctl remove {} forgets it",
                    path.display(),
                    found.count(),
                    found.piece_count(),
                    torrent.key()
                ),
            );
            torrent
                .update(|status| status.phase = if found.is_empty() { Phase::Missing } else { status.phase.clone() });
            return;
        }
    }
    if let Err(error) = adopt(&core, &torrent, &found).await {
        core.fail(&torrent, format!("{}: {error}", torrent.summary.name));
        return;
    }
    core.start(&torrent).await;
}

/// Takes what a check found as what we have.
async fn adopt(core: &Arc<Core>, torrent: &Arc<Torrent>, found: &Bitfield) -> Result<(), ActivateError> {
    core.deactivate(torrent, true).await;
    let complete = torrent.with_status(|status| status.complete);
    if !complete {
        let mut batch = Batch::new();
        chunks::put_chunks(&mut batch, records::BITFIELDS, torrent.key().as_bytes(), found.as_bytes());
        core.submit(batch).await?;
    }
    torrent.update(|status| status.phase = if status.complete { Phase::Seeding } else { Phase::Downloading });
    Ok(core.save(torrent).await?)
}

/// Turns finished data with holes back into unfinished data.
async fn reopen_unfinished(core: &Arc<Core>, torrent: &Arc<Torrent>) -> bool {
    let Ok(active) = core.activate(torrent).await else { return false };
    let Ok((part, whole)) = part_and_whole(&active.meta) else { return false };
    let renamed = tokio::task::spawn_blocking(move || {
        let root = active.storage.root();
        root.rename_noreplace(&whole, &part)?;
        root.sync_dir(None)
    });
    matches!(renamed.await, Ok(Ok(())))
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
        check::check_pieces(&active.storage, layout, &pieces, &check_of, threads, &of.check)
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

/// Adds the torrent's record to a batch.
pub fn put_torrent(batch: &mut Batch, torrent: &Torrent) {
    let status = torrent.status();
    let summary = &torrent.summary;
    let path_bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
    let record = TorrentRecord {
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
    };
    batch.put(records::TORRENTS, torrent.key().as_bytes(), encode_record(&record));
}

/// A torrent from its record; `None` if the record makes no sense.
fn torrent_of(key: &[u8], bytes: &[u8]) -> Option<Torrent> {
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
