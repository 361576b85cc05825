//! One torrent's bytes on disk. The torrent is a stream of bytes over its files (BEP 3); this maps spans of it.
//!
//! ```text
//! unfinished            read and written under DIR/.<key>.part: the file itself, or the folder of a multi-file torrent
//!    | finish()         synced, renamed to a name that must be free, folder synced
//! final                 read only; so is everything that is seeded where it lies
//! ```
//!
//! A stop between the rename and its being recorded leaves the final name: [`Storage::recover`] accepts either.
//! All calls block.

mod fd_cache;
mod touched;

pub use fd_cache::FdCache;
pub use touched::Touched;

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::fs::{DiskFile, FileStat, OpenMode, Root};
use crate::wire::metainfo::FileEntry;
use crate::wire::name::{NameError, RelPath};
use touched::TouchedSet;

/// What failed, and at which file.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("{path}: {source}")]
    File { path: RelPath, source: io::Error },
    #[error("the folder downloaded into: {0}")]
    Root(io::Error),
    #[error("bytes from {offset} on, {len} of them, where the torrent has {total}")]
    OutOfRange { offset: u64, len: u64, total: u64 },
}

impl StorageError {
    /// The bytes are not there: the file is missing, shorter, or something that is no file.
    pub fn is_absent(&self) -> bool {
        use io::ErrorKind::{InvalidInput, NotADirectory, NotFound, UnexpectedEof};
        self.io().is_some_and(|error| {
            matches!(error.kind(), NotFound | UnexpectedEof | NotADirectory | InvalidInput)
                || error.raw_os_error() == Some(nix::libc::ELOOP)
        })
    }

    /// There is no room, for this user or at all.
    pub fn is_full(&self) -> bool {
        self.io().is_some_and(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    fn io(&self) -> Option<&io::Error> {
        match self {
            StorageError::File { source, .. } | StorageError::Root(source) => Some(source),
            StorageError::OutOfRange { .. } => None,
        }
    }
}

/// Why files cannot be laid out as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    #[error("unfinished, {0} would lie too deep or have too long a path")]
    Path(RelPath, #[source] NameError),
    #[error("{0} does not lie where the torrent's other files do")]
    Outside(RelPath),
}

/// Why finished data did not get its final name.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    #[error("{0} exists already: move it away, or fetch to another folder")]
    Clash(RelPath),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Where unfinished data lies.
struct Unfinished {
    part: RelPath,
    whole: RelPath,
    /// Of each file, below the root.
    paths: Vec<RelPath>,
}

/// One torrent's files. Threads may share it.
pub struct Storage {
    root: Arc<dyn Root>,
    cache: Arc<FdCache>,
    /// In the cache.
    id: u64,
    /// In the order of their offsets, their paths the final ones.
    files: Vec<FileEntry>,
    unfinished: RwLock<Option<Unfinished>>,
    /// What the files looked like when their content was known to be right; empty when that was never recorded.
    recorded: RwLock<Vec<FileStat>>,
    touched: TouchedSet,
    /// Held while a file is written to. The kernel lets one writer at a time into a file, and others spin for it: a twentieth
    /// of a leecher's processor time.
    writing: Mutex<()>,
}

/// A part of one file.
struct Span {
    index: usize,
    /// From the file's start.
    at: u64,
    /// Bytes.
    len: usize,
}

impl Storage {
    /// A torrent that is to be fetched. `whole` is the final path of the file, or of the folder that holds all files;
    /// `part` is where it lies until then. `files` are the torrent's, their paths final and below the root.
    ///
    /// # Errors
    /// When a file's path below `part` would be too deep or too long, or a file is not below `whole`.
    pub fn unfinished(
        root: Arc<dyn Root>,
        files: Vec<FileEntry>,
        part: RelPath,
        whole: RelPath,
        cache: Arc<FdCache>,
    ) -> Result<Storage, PlaceError> {
        let depth = whole.components().count();
        let below_part = |file: &FileEntry| {
            let path = &file.path;
            if *path != whole && !path.is_below(&whole) {
                return Err(PlaceError::Outside(path.clone()));
            }
            RelPath::from_components(part.components().chain(path.components().skip(depth)))
                .map_err(|why| PlaceError::Path(path.clone(), why))
        };
        let paths = files.iter().map(below_part).collect::<Result<_, _>>()?;
        Ok(Storage::new(root, files, Some(Unfinished { part, whole, paths }), Vec::new(), cache))
    }

    /// Files that are served where they lie, never written. `recorded` has one entry a file, or none at all when nothing
    /// is known of them yet.
    pub fn in_place(
        root: Arc<dyn Root>,
        files: Vec<FileEntry>,
        recorded: Vec<FileStat>,
        cache: Arc<FdCache>,
    ) -> Storage {
        Storage::new(root, files, None, recorded, cache)
    }

    /// What an earlier run left: unfinished, unless only the final name is there.
    ///
    /// # Errors
    /// As [`Storage::unfinished`].
    pub fn recover(
        root: Arc<dyn Root>,
        files: Vec<FileEntry>,
        part: RelPath,
        whole: RelPath,
        cache: Arc<FdCache>,
    ) -> Result<Storage, PlaceError> {
        if root.stat(&part).is_err() && root.stat(&whole).is_ok() {
            return Ok(Storage::in_place(root, files, Vec::new(), cache));
        }
        Storage::unfinished(root, files, part, whole, cache)
    }

    fn new(
        root: Arc<dyn Root>,
        files: Vec<FileEntry>,
        unfinished: Option<Unfinished>,
        recorded: Vec<FileStat>,
        cache: Arc<FdCache>,
    ) -> Storage {
        let id = cache.new_owner();
        let (unfinished, recorded) = (RwLock::new(unfinished), RwLock::new(recorded));
        Storage {
            root,
            cache,
            id,
            files,
            unfinished,
            recorded,
            touched: TouchedSet::default(),
            writing: Mutex::new(()),
        }
    }

    /// Whether it is still written to.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub fn root(&self) -> &Arc<dyn Root> {
        &self.root
    }

    /// Fills `buf` from `offset` of the torrent's stream. Padding reads as zeros, wherever it says it lies.
    ///
    /// # Errors
    /// When the disk fails or the bytes are not there ([`StorageError::is_absent`]).
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let mut rest = buf;
        for span in self.spans(offset, rest.len() as u64)? {
            let (now, later) = rest.split_at_mut(span.len);
            rest = later;
            if self.files[span.index].padding {
                now.fill(0);
                continue;
            }
            let file = self.file(span.index, OpenMode::Read)?;
            let read = file.read_at(now, span.at).map_err(self.at(span.index))?;
            if read < now.len() {
                return Err(self.at(span.index)(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }

    /// Hands the files under a span of the torrent's stream to `visit`, in order: each with where the span lies in it, from
    /// its start, and for how many bytes. No copy is made; [`Storage::read`] takes what cannot be had so.
    ///
    /// # Errors
    /// When a file cannot be opened or `visit` fails; `Unsupported` where there is padding.
    pub fn visit(
        &self,
        offset: u64,
        len: u64,
        mut visit: impl FnMut(&dyn DiskFile, u64, usize) -> io::Result<()>,
    ) -> Result<(), StorageError> {
        for span in self.spans(offset, len)? {
            if self.files[span.index].padding {
                return Err(self.at(span.index)(io::ErrorKind::Unsupported.into()));
            }
            let file = self.file(span.index, OpenMode::Read)?;
            visit(&*file, span.at, span.len).map_err(self.at(span.index))?;
        }
        Ok(())
    }

    /// Writes the slices, one behind the other, from `offset` of the torrent's stream; they last once what
    /// [`Storage::take_touched`] gives has been synced. Files and folders are made as needed, at full length and sparse.
    ///
    /// # Errors
    /// When the disk fails, or the files are not ours to write.
    pub fn write_vectored(&self, offset: u64, slices: &[IoSlice<'_>]) -> Result<(), StorageError> {
        let len: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let mut rest = slices.iter().map(|slice| &**slice);
        let mut head: &[u8] = &[];
        for span in self.spans(offset, len)? {
            let mut part = Vec::with_capacity(slices.len());
            let mut wanted = span.len;
            while wanted > 0 {
                if head.is_empty() {
                    // The spans add up to the slices' length, so there is a next one.
                    let Some(next) = rest.next() else { break };
                    head = next;
                    continue;
                }
                let (now, later) = head.split_at(wanted.min(head.len()));
                part.push(IoSlice::new(now));
                (head, wanted) = (later, wanted - now.len());
            }
            if self.files[span.index].padding {
                continue;
            }
            let file = self.file(span.index, OpenMode::ReadWrite)?;
            {
                let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
                file.write_vectored_all_at(&part, span.at).map_err(self.at(span.index))?;
            }
            // After the write: who takes the set in between must not take the file before its bytes.
            self.touched.add_file(span.index, self.path(span.index), file);
        }
        Ok(())
    }

    /// Has the files under this span, written by an earlier run and right, synced with what this run writes. Finished files
    /// have been.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn touch(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        if !self.is_unfinished() {
            return Ok(());
        }
        for span in self.spans(offset, len)?.filter(|span| !self.files[span.index].padding) {
            let (path, file) = (self.path(span.index), self.file(span.index, OpenMode::ReadWrite)?);
            self.touched.add_folders(with_parents(&path));
            self.touched.add_file(span.index, path, file);
        }
        Ok(())
    }

    /// What was written or made since the last call. Take it after choosing the pieces to commit, sync it, then record
    /// them: every write that had returned before is in it.
    pub fn take_touched(&self) -> Touched {
        self.touched.take(&self.root)
    }

    /// Whether the files under this span of the stream still look as recorded. Compare before serving a run of blocks.
    /// With nothing recorded, always. A file that cannot be looked at has changed.
    pub fn unchanged(&self, offset: u64, len: u64) -> bool {
        let recorded = self.recorded.read().unwrap_or_else(PoisonError::into_inner);
        if recorded.is_empty() {
            return true;
        }
        self.spans(offset, len).is_ok_and(|mut spans| {
            spans.all(|span| {
                let now = || self.root.stat(&self.path(span.index)).ok().map(|stat| stat.file_stat());
                self.files[span.index].padding || now() == recorded.get(span.index).copied()
            })
        })
    }

    /// What the files look like now, one entry a file (zeros for padding): to be recorded with their pieces.
    ///
    /// # Errors
    /// When one is not there.
    pub fn stats(&self) -> Result<Vec<FileStat>, StorageError> {
        let stat = |index: usize| match self.files[index].padding {
            true => Ok(FileStat { len: 0, modified_ns: 0 }),
            false => self.root.stat(&self.path(index)).map(|stat| stat.file_stat()).map_err(self.at(index)),
        };
        (0..self.files.len()).map(stat).collect()
    }

    /// All pieces are there: makes the empty files, syncs, gives the data its final name. Returns what the files look like
    /// from now on, for [`Storage::unchanged`] and for the record; `None` if it was final before.
    ///
    /// # Errors
    /// When the name is taken, in which case nothing has changed, or the disk fails.
    pub fn finish(&self) -> Result<Option<Vec<FileStat>>, FinishError> {
        if !self.is_unfinished() {
            // An earlier run gave it its name, and may have ended before that was synced.
            self.root.sync_dir(None).map_err(StorageError::Root)?;
            return Ok(None);
        }
        for (index, _) in self.files.iter().enumerate().filter(|(_, file)| file.len == 0 && !file.padding) {
            drop(self.file(index, OpenMode::ReadWrite)?);
        }
        self.take_touched().sync()?;
        let mut unfinished = self.unfinished.write().unwrap_or_else(PoisonError::into_inner);
        let Some(Unfinished { part, whole, .. }) = &*unfinished else { return Ok(None) };
        let at_whole = |source| StorageError::File { path: whole.clone(), source };
        if let Some(folder) = whole.parent() {
            self.root.create_dirs(&folder).map_err(at_whole)?;
        }
        self.root.rename_noreplace(part, whole).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => FinishError::Clash(whole.clone()),
            _ => FinishError::Storage(at_whole(error)),
        })?;
        for folder in with_parents(whole).chain([part.parent()]) {
            self.root.sync_dir(folder.as_ref()).map_err(at_whole)?;
        }
        *unfinished = None;
        drop(unfinished);
        self.cache.forget(self.id);
        let stats = self.stats()?;
        self.recorded.write().unwrap_or_else(PoisonError::into_inner).clone_from(&stats);
        Ok(Some(stats))
    }

    /// Where the file lies now, below the root.
    pub fn path(&self, index: usize) -> RelPath {
        let unfinished = self.unfinished.read().unwrap_or_else(PoisonError::into_inner);
        unfinished.as_ref().map_or(&self.files[index].path, |unfinished| &unfinished.paths[index]).clone()
    }

    fn at(&self, index: usize) -> impl Fn(io::Error) -> StorageError {
        move |source| StorageError::File { path: self.path(index), source }
    }

    /// The files under a span of the stream; files of no bytes are under none.
    fn spans(&self, offset: u64, len: u64) -> Result<impl Iterator<Item = Span> + '_, StorageError> {
        let total = self.files.last().map_or(0, |file| file.offset + file.len);
        let end = offset.checked_add(len).filter(|&end| end <= total);
        let end = end.ok_or(StorageError::OutOfRange { offset, len, total })?;
        let first = self.files.partition_point(|file| file.offset + file.len <= offset);
        let under = self.files.iter().enumerate().skip(first).take_while(move |(_, file)| file.offset < end);
        Ok(under.filter(|(_, file)| file.len > 0).map(move |(index, file)| {
            let start = offset.max(file.offset);
            let stop = end.min(file.offset + file.len);
            Span { index, at: start - file.offset, len: (stop - start) as usize }
        }))
    }

    /// `mode` is Read or ReadWrite; the latter makes the file where it is missing.
    fn file(&self, index: usize, mode: OpenMode) -> Result<Arc<dyn DiskFile>, StorageError> {
        let writable = mode != OpenMode::Read;
        if let Some(file) = self.cache.get(self.id, index, writable) {
            return Ok(file);
        }
        if writable && !self.is_unfinished() {
            let ours_to_read = io::Error::new(io::ErrorKind::PermissionDenied, "a finished file is never written");
            return Err(self.at(index)(ours_to_read));
        }
        let path = self.path(index);
        let open = || match self.root.open(&path, mode) {
            Err(error) if writable && error.kind() == io::ErrorKind::NotFound => self.create(index, &path),
            opened => opened,
        };
        let file = match open() {
            // Descriptors have run out: close those that only wait to be used again.
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) => {
                self.cache.shed();
                open()
            }
            opened => opened,
        };
        let file = file.map_err(self.at(index))?;
        if writable {
            // Also of a file that was there: the run that made it may have ended before its name was synced.
            self.touched.add_folders(with_parents(&path));
        }
        self.cache.insert(self.id, index, writable, file.clone());
        Ok(file)
    }

    fn create(&self, index: usize, path: &RelPath) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(folder) = path.parent() {
            self.root.create_dirs(&folder)?;
        }
        let file = match self.root.open(path, OpenMode::Create) {
            // Another thread was first; its length is the same.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.root.open(path, OpenMode::ReadWrite)?,
            created => created?,
        };
        file.set_len(self.files[index].len)?;
        Ok(file)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.cache.forget(self.id);
    }
}

/// The folders above a path, the root (`None`) last.
fn with_parents(path: &RelPath) -> impl Iterator<Item = Option<RelPath>> + use<> {
    let mut next = Some(path.parent());
    std::iter::from_fn(move || {
        let folder = next.take()?;
        next = folder.as_ref().map(RelPath::parent);
        Some(folder)
    })
}

#[cfg(test)]
pub(super) mod test_storage {
    use super::super::fs::{FileSystem, NativeFs};
    use super::*;
    use std::path::PathBuf;

    pub(crate) fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    /// Bytes of which no two neighbourhoods are alike.
    pub(crate) fn content(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    /// Storage in a folder that goes with it; unfinished under `.k.part`.
    pub(crate) struct TestStorage {
        pub(crate) dir: tempfile::TempDir,
        pub(crate) storage: Storage,
    }

    impl TestStorage {
        pub(crate) fn single(len: u64) -> TestStorage {
            TestStorage::with("file", &[("file", len)])
        }

        /// A file whose name ends in `.pad` is padding.
        pub(crate) fn with(whole: &str, files: &[(&str, u64)]) -> TestStorage {
            let dir = tempfile::tempdir().unwrap();
            let root = NativeFs.open_root(dir.path()).unwrap();
            let files = entries(files);
            let storage = Storage::unfinished(root, files, path(".k.part"), path(whole), Arc::default()).unwrap();
            TestStorage { dir, storage }
        }

        pub(crate) fn part(&self) -> PathBuf {
            self.dir.path().join(".k.part")
        }

        pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
            self.storage.write_vectored(offset, &[IoSlice::new(bytes)]).unwrap();
        }

        pub(crate) fn cut_part(&self, len: u64) {
            std::fs::OpenOptions::new().write(true).open(self.part()).unwrap().set_len(len).unwrap();
        }
    }

    pub(crate) fn entries(files: &[(&str, u64)]) -> Vec<FileEntry> {
        let mut offset = 0;
        let entry = |&(name, len): &(&str, u64)| {
            let entry = FileEntry { path: path(name), offset, len, padding: name.ends_with(".pad") };
            offset += len;
            entry
        };
        files.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fs::{FileSystem, NativeFs};
    use super::test_storage::{TestStorage, content, entries, path};
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    const TREE: &[(&str, u64)] =
        &[("t/a", 10), ("t/empty", 0), ("t/sub/b", 7), ("t/x.pad", 9), ("t/sub/deep/c", 25), ("t/last", 0)];

    fn tree_content() -> Vec<u8> {
        let mut content = content(51);
        content[17..26].fill(0);
        content
    }

    #[test]
    fn a_tree_is_written_unfinished_and_then_gets_its_name() {
        let test = TestStorage::with("t", TREE);
        let content = tree_content();
        test.write(0, &content);
        assert_eq!(fs::read(test.part().join("sub/b")).unwrap(), content[10..17]);
        assert!(!test.part().join("x.pad").exists() && !test.part().join("empty").exists());
        let stats = test.storage.finish().unwrap().unwrap();
        assert_eq!(stats.iter().map(|stat| stat.len).collect::<Vec<_>>(), [10, 0, 7, 0, 25, 0]);
        assert!(!test.part().exists());
        assert_eq!(fs::read(test.dir.path().join("t/sub/deep/c")).unwrap(), content[26..]);
        assert_eq!(fs::metadata(test.dir.path().join("t/empty")).unwrap().len(), 0);
        assert!(!test.dir.path().join("t/x.pad").exists());
        let mut read = vec![1; 51];
        test.storage.read(0, &mut read).unwrap();
        assert_eq!(read, content);
        assert!(test.storage.finish().unwrap().is_none());
        let refused = test.storage.write_vectored(0, &[IoSlice::new(b"x")]).unwrap_err();
        assert!(refused.to_string().contains("never written"), "{refused}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_spans_in_any_slices_read_back(from in 0usize..51, to in 0usize..51, cut in 0usize..51) {
            let (from, to) = (from.min(to), from.max(to));
            let test = TestStorage::with("t", TREE);
            let content = tree_content();
            let (one, two) = content[from..to].split_at(cut.min(to - from));
            let slices = [IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(two)];
            test.storage.write_vectored(from as u64, &slices).unwrap();
            let mut read = vec![1; to - from];
            test.storage.read(from as u64, &mut read).unwrap();
            prop_assert_eq!(&read, &content[from..to]);
        }
    }

    #[test]
    fn spans_past_the_end_and_missing_bytes_are_told_apart() {
        let test = TestStorage::single(100);
        let read = |offset, len| test.storage.read(offset, &mut vec![0; len]).unwrap_err();
        assert!(matches!(read(99, 2), StorageError::OutOfRange { .. }));
        assert!(matches!(read(u64::MAX, 2), StorageError::OutOfRange { .. }));
        assert!(read(0, 100).is_absent(), "no file yet");
        test.write(0, &[1]);
        assert_eq!(fs::metadata(test.part()).unwrap().len(), 100, "full length at once");
        test.storage.read(0, &mut [0; 100]).unwrap();
        test.cut_part(50);
        let short = read(0, 100);
        assert!(short.is_absent() && short.to_string().starts_with(".k.part: "), "{short}");
    }

    #[test]
    fn a_name_taken_meanwhile_is_a_clash_and_nothing_is_lost() {
        let test = TestStorage::single(3);
        test.write(0, b"new");
        fs::write(test.dir.path().join("file"), b"theirs").unwrap();
        let clash = test.storage.finish().unwrap_err();
        assert!(matches!(clash, FinishError::Clash(_)), "{clash}");
        assert_eq!(fs::read(test.dir.path().join("file")).unwrap(), b"theirs");
        fs::remove_file(test.dir.path().join("file")).unwrap();
        test.storage.finish().unwrap();
        assert_eq!(fs::read(test.dir.path().join("file")).unwrap(), b"new");
    }

    #[test]
    fn recovery_accepts_either_name() {
        let test = TestStorage::single(3);
        let recover = || {
            let root = test.storage.root().clone();
            Storage::recover(root, entries(&[("file", 3)]), path(".k.part"), path("file"), Arc::default()).unwrap()
        };
        assert!(recover().is_unfinished(), "nothing there: to be fetched");
        test.write(0, b"abc");
        assert!(recover().is_unfinished());
        test.storage.finish().unwrap();
        let found = recover();
        assert!(!found.is_unfinished());
        let mut read = [0; 3];
        found.read(0, &mut read).unwrap();
        assert_eq!(&read, b"abc");
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let root = TestStorage::single(1).storage.root().clone();
        let place = |whole| {
            let files = entries(&[("t/a", 1), ("tt/b", 1)]);
            Storage::unfinished(root.clone(), files, path(".k.part"), path(whole), Arc::default()).err()
        };
        assert_eq!(place("t"), Some(PlaceError::Outside(path("tt/b"))));
        assert_eq!(place("t/a"), Some(PlaceError::Outside(path("tt/b"))));
    }

    #[test]
    fn an_empty_torrent_is_files_without_bytes() {
        let test = TestStorage::with("t", &[("t/a", 0), ("t/sub/b", 0)]);
        test.storage.finish().unwrap();
        assert!(test.dir.path().join("t/sub/b").exists() && test.dir.path().join("t/a").exists());
    }

    #[test]
    fn touched_holds_what_was_written_since_and_nothing_twice() {
        let test = TestStorage::with("t", TREE);
        assert!(test.storage.take_touched().is_empty());
        test.write(5, &[1; 10]);
        test.write(5, &[2; 2]);
        let touched = test.storage.take_touched();
        assert_eq!(touched.files(), [&path(".k.part/a"), &path(".k.part/sub/b")]);
        touched.sync().unwrap();
        assert!(test.storage.take_touched().is_empty());
        test.write(0, &[3]);
        assert_eq!(test.storage.take_touched().files(), [&path(".k.part/a")]);
    }

    #[test]
    fn a_change_is_seen_under_the_span_it_concerns() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), b"0123456789").unwrap();
        fs::write(dir.path().join("b"), b"0123456789").unwrap();
        let root = NativeFs.open_root(dir.path()).unwrap();
        let files = entries(&[("a", 10), ("b", 10)]);
        let cache = Arc::new(FdCache::default());
        let unknown = Storage::in_place(root.clone(), files.clone(), Vec::new(), cache.clone());
        assert!(unknown.unchanged(0, 20));
        let storage = Storage::in_place(root, files, unknown.stats().unwrap(), cache);
        storage.read(0, &mut [0; 20]).unwrap();
        assert!(storage.unchanged(0, 20));
        fs::write(dir.path().join("b"), b"0123456789+").unwrap();
        assert!(storage.unchanged(0, 10) && !storage.unchanged(5, 10));
        fs::remove_file(dir.path().join("a")).unwrap();
        assert!(!storage.unchanged(0, 1));
        assert!(!storage.unchanged(20, 1), "past the end");
    }

    #[test]
    fn a_part_that_is_a_symlink_is_not_written_through() {
        let test = TestStorage::single(3);
        fs::write(test.dir.path().join("victim"), b"theirs").unwrap();
        std::os::unix::fs::symlink("victim", test.part()).unwrap();
        assert!(test.storage.write_vectored(0, &[IoSlice::new(b"abc")]).is_err());
        assert_eq!(fs::read(test.dir.path().join("victim")).unwrap(), b"theirs");
    }
}
