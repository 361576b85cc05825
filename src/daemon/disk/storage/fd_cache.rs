//! Open files of all torrents, the least recently used closed first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::fs::DiskFile;

/// Files kept open by default: well under the usual limit of 1,024 descriptors, which sockets share.
const DEFAULT_OPEN_FILES: usize = 512;

/// One for the process. A file that is in use while it falls out stays open until that use ends.
pub struct FdCache {
    open: Mutex<Open>,
    most: usize,
}

#[derive(Default)]
struct Open {
    /// By owner and the file's number there.
    files: HashMap<(u64, usize), Cached>,
    uses: u64,
    owners: u64,
}

struct Cached {
    file: Arc<dyn DiskFile>,
    writable: bool,
    last_use: u64,
}

impl Default for FdCache {
    fn default() -> FdCache {
        FdCache::new(DEFAULT_OPEN_FILES)
    }
}

impl FdCache {
    /// Keeps at most `most` files open; at least one.
    pub fn new(most: usize) -> FdCache {
        FdCache { open: Mutex::default(), most: most.max(1) }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new_owner(&self) -> u64 {
        let mut open = self.open();
        open.owners += 1;
        open.owners
    }

    pub(super) fn get(&self, owner: u64, index: usize, writable: bool) -> Option<Arc<dyn DiskFile>> {
        let mut open = self.open();
        open.uses += 1;
        let now = open.uses;
        let cached = open.files.get_mut(&(owner, index)).filter(|cached| cached.writable || !writable)?;
        cached.last_use = now;
        Some(cached.file.clone())
    }

    pub(super) fn insert(&self, owner: u64, index: usize, writable: bool, file: Arc<dyn DiskFile>) {
        let mut open = self.open();
        open.uses += 1;
        let last_use = open.uses;
        open.files.insert((owner, index), Cached { file, writable, last_use });
        if open.files.len() > self.most {
            let oldest = open.files.iter().min_by_key(|(_, cached)| cached.last_use).map(|(&key, _)| key);
            oldest.map(|key| open.files.remove(&key));
        }
    }

    pub(super) fn forget(&self, owner: u64) {
        self.open().files.retain(|key, _| key.0 != owner);
    }

    /// Closes the older half: descriptors have run out.
    pub(super) fn shed(&self) {
        let mut open = self.open();
        let mut uses: Vec<u64> = open.files.values().map(|cached| cached.last_use).collect();
        uses.sort_unstable();
        if let Some(&middle) = uses.get(uses.len() / 2) {
            open.files.retain(|_, cached| cached.last_use > middle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fs::{FileSystem, NativeFs, OpenMode};
    use super::super::test_storage::path;
    use super::*;

    #[test]
    fn the_least_recently_used_goes_and_a_read_only_file_is_no_writable_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = NativeFs.open_root(dir.path()).unwrap();
        let file = root.open(&path("x"), OpenMode::Create).unwrap();
        let cache = FdCache::new(2);
        let owner = cache.new_owner();
        cache.insert(owner, 0, false, file.clone());
        cache.insert(owner, 1, true, file.clone());
        assert!(cache.get(owner, 0, false).is_some() && cache.get(owner, 0, true).is_none());
        assert!(cache.get(owner, 0, false).is_some());
        cache.insert(owner, 2, true, file.clone());
        let kept = |index| cache.get(owner, index, false).is_some();
        assert_eq!([kept(0), kept(1), kept(2)], [true, false, true]);
        cache.shed();
        assert!(cache.open().files.is_empty() || Arc::strong_count(&file) == 2);
        cache.forget(owner);
        assert_eq!(Arc::strong_count(&file), 1, "nothing is held open");
    }
}
