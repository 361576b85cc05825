//! What has been written and not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::fs::{DiskFile, Root};
use super::StorageError;
use crate::wire::name::RelPath;

/// Files held for syncing; each is a descriptor. A torrent of many small files that writes to more of them between two
/// commits has the surplus synced as it goes.
const MAX_TOUCHED: usize = 256;
/// Syncs under way at once: enough to let the disk order them.
const SYNC_THREADS: usize = 8;

#[derive(Default)]
pub(super) struct TouchedSet {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<usize, (RelPath, Arc<dyn DiskFile>)>,
    folders: BTreeSet<Option<RelPath>>,
    /// A surplus file's sync: it fails the commit that the file would have been part of.
    failed: Option<StorageError>,
}

impl TouchedSet {
    pub(super) fn add_file(&self, index: usize, path: RelPath, file: Arc<dyn DiskFile>) {
        let surplus = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.files.insert(index, (path, file));
            if inner.files.len() > MAX_TOUCHED { inner.files.pop_first() } else { None }
        };
        if let Some((_, (path, file))) = surplus
            && let Err(error) = sync_file(&path, &*file)
        {
            self.inner.lock().unwrap_or_else(PoisonError::into_inner).failed.get_or_insert(error);
        }
    }

    pub(super) fn add_folders(&self, folders: impl Iterator<Item = Option<RelPath>>) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).folders.extend(folders);
    }

    pub(super) fn take(&self, root: &Arc<dyn Root>) -> Touched {
        let inner = std::mem::take(&mut *self.inner.lock().unwrap_or_else(PoisonError::into_inner));
        Touched {
            root: root.clone(),
            files: inner.files.into_values().collect(),
            folders: inner.folders.into_iter().collect(),
            failed: inner.failed,
        }
    }
}

/// Files and folders to be synced before the pieces in them may be recorded as had.
#[must_use = "what is not synced is not safe"]
pub struct Touched {
    root: Arc<dyn Root>,
    files: Vec<(RelPath, Arc<dyn DiskFile>)>,
    folders: Vec<Option<RelPath>>,
    failed: Option<StorageError>,
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.folders.is_empty() && self.failed.is_none()
    }

    /// Paths below the root.
    pub fn files(&self) -> Vec<&RelPath> {
        self.files.iter().map(|(path, _)| path).collect()
    }

    /// Syncs the files, several at once, then the folders in which some were made. Blocking.
    ///
    /// # Errors
    /// One that failed. No second try: the kernel may have dropped the data and would then say yes. Hash the pieces
    /// concerned from the disk again.
    pub fn sync(mut self) -> Result<(), StorageError> {
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(self.failed.take());
        let work = || {
            while let Some((path, file)) = self.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = sync_file(path, &**file) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.files.len().min(SYNC_THREADS) {
                // Where no further thread can be had, those that run do its share.
                let _ = std::thread::Builder::new().name("sync".into()).spawn_scoped(scope, work);
            }
            work();
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        for folder in &self.folders {
            self.root.sync_dir(folder.as_ref()).map_err(|source| match folder {
                Some(path) => StorageError::File { path: path.clone(), source },
                None => StorageError::Root(source),
            })?;
        }
        Ok(())
    }
}

fn sync_file(path: &RelPath, file: &dyn DiskFile) -> Result<(), StorageError> {
    file.sync_data().map_err(|source| {
        file.forget_cached();
        StorageError::File { path: path.clone(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::fs::{FileSystem, NativeFs, Stat};
    use super::super::test_storage::path;
    use super::*;
    use std::io::{self, IoSlice};

    /// Counts its syncs and fails them when told to.
    #[derive(Debug, Default)]
    struct Counted {
        syncs: AtomicUsize,
        fails: bool,
    }

    impl DiskFile for Counted {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_vectored_all_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn sync_data(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            if self.fails { Err(io::Error::other("a failing disk")) } else { Ok(()) }
        }
        fn forget_cached(&self) {}
        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn stat(&self) -> io::Result<Stat> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn add(set: &TouchedSet, index: usize, file: &Arc<Counted>) {
        set.add_file(index, path(&format!("f{index}")), file.clone());
    }

    #[test]
    fn each_file_is_synced_once_and_the_surplus_as_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let root = NativeFs.open_root(dir.path()).unwrap();
        let set = TouchedSet::default();
        let file = Arc::new(Counted::default());
        for index in 0..MAX_TOUCHED + 3 {
            add(&set, index, &file);
            add(&set, index, &file);
        }
        assert_eq!(file.syncs.load(Ordering::Relaxed), 3);
        set.take(&root).sync().unwrap();
        assert_eq!(file.syncs.load(Ordering::Relaxed), MAX_TOUCHED + 3);
    }

    #[test]
    fn a_failed_sync_fails_its_commit_also_when_it_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let root = NativeFs.open_root(dir.path()).unwrap();
        let (good, bad) = (Arc::new(Counted::default()), Arc::new(Counted { fails: true, ..Counted::default() }));
        let set = TouchedSet::default();
        add(&set, 0, &bad);
        add(&set, 1, &good);
        assert!(set.take(&root).sync().unwrap_err().to_string().starts_with("f0: "));
        assert!(set.take(&root).is_empty());

        add(&set, 0, &bad);
        for index in 1..=MAX_TOUCHED {
            add(&set, index, &good);
        }
        assert!(set.take(&root).sync().unwrap_err().to_string().starts_with("f0: "));
    }
}
