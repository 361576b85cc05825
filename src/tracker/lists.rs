//! Which torrents are tracked: an allow list, a deny list, read from files again when told to.
//!
//! A file has an info-hash (40 hex digits) on each line; empty lines and what follows a `#` are not looked at. Where there
//! is an allow list nothing else is tracked; what is on the deny list never is.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use super::keyed_hash::BuildKeyedHasher;
use crate::wire::id::InfoHash;

/// Entries of one list: as many as there are swarms.
const MAX_LISTED: usize = super::swarms::MAX_SWARMS;
/// A line is a hash and a remark.
const MAX_LINE_BYTES: u64 = 4_096;

/// Where the lists lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFiles {
    pub allow: Option<PathBuf>,
    pub deny: Option<PathBuf>,
}

/// Why a list is not used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: a line holds an info-hash of 40 hex digits, or begins with #", path.display())]
    Line { path: PathBuf, line: usize },
    #[error("{}: more than {MAX_LISTED} entries", path.display())]
    TooLong { path: PathBuf },
}

type Keys = HashSet<InfoHash, BuildKeyedHasher>;

#[derive(Default)]
struct Lists {
    allow: Option<Keys>,
    deny: Keys,
}

/// The lists in force.
#[derive(Default)]
pub struct Gate {
    files: ListFiles,
    lists: RwLock<Lists>,
    /// Whether there is any list: without one an announce does not take the lock.
    any: AtomicBool,
}

impl Gate {
    /// Blocking.
    ///
    /// # Errors
    /// When a file cannot be read, or a line is no info-hash.
    pub fn load(files: ListFiles) -> Result<Gate, ListError> {
        let gate = Gate { files, ..Gate::default() };
        gate.reload()?;
        Ok(gate)
    }

    /// Reads the files again. Blocking. How many are allowed, if not all, and how many denied.
    ///
    /// # Errors
    /// As [`Gate::load`]; the lists of before stay in force then.
    pub fn reload(&self) -> Result<(Option<usize>, usize), ListError> {
        let allow = self.files.allow.as_deref().map(read).transpose()?;
        let deny = self.files.deny.as_deref().map(read).transpose()?.unwrap_or_default();
        let counts = (allow.as_ref().map(HashSet::len), deny.len());
        let any = allow.is_some() || !deny.is_empty();
        *self.lists.write().unwrap_or_else(PoisonError::into_inner) = Lists { allow, deny };
        self.any.store(any, Ordering::Release);
        Ok(counts)
    }

    /// Whether this torrent is tracked.
    pub fn permits(&self, key: &InfoHash) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return true;
        }
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        lists.allow.as_ref().is_none_or(|allow| allow.contains(key)) && !lists.deny.contains(key)
    }
}

fn read(path: &Path) -> Result<Keys, ListError> {
    let failed = |source| ListError::Read { path: path.to_path_buf(), source };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(failed)?);
    let mut keys = Keys::default();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if io::Read::take(&mut file, MAX_LINE_BYTES).read_until(b'\n', &mut bytes).map_err(failed)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&bytes);
        let hash = text.split('#').next().unwrap_or_default().trim();
        if hash.is_empty() {
            continue;
        }
        let key = hash.parse().map_err(|_| ListError::Line { path: path.to_path_buf(), line })?;
        keys.insert(key);
        if keys.len() > MAX_LISTED {
            return Err(ListError::TooLong { path: path.to_path_buf() });
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> InfoHash {
        InfoHash::new([n; 20])
    }

    #[test]
    fn allowed_denied_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (allow, deny) = (dir.path().join("allow"), dir.path().join("deny"));
        std::fs::write(&allow, format!("# ours\n{} # the first\r\n\n{}\n{}", key(1), key(2), key(3))).unwrap();
        std::fs::write(&deny, format!("{}\n", key(2))).unwrap();
        let permitted = |gate: &Gate| (1..6).filter(|n| gate.permits(&key(*n))).collect::<Vec<u8>>();
        let only_deny = Gate::load(ListFiles { allow: None, deny: Some(deny.clone()) }).unwrap();
        assert_eq!(permitted(&only_deny), [1, 3, 4, 5]);
        let both = Gate::load(ListFiles { allow: Some(allow.clone()), deny: Some(deny.clone()) }).unwrap();
        assert_eq!(permitted(&both), [1, 3]);
        assert_eq!(permitted(&Gate::default()), [1, 2, 3, 4, 5]);

        std::fs::write(&deny, "").unwrap();
        assert_eq!(both.reload().unwrap(), (Some(3), 0));
        assert_eq!(permitted(&both), [1, 2, 3]);
        std::fs::write(&allow, format!("{}\nxyz\n", key(5))).unwrap();
        let refused = both.reload().unwrap_err().to_string();
        assert!(refused.contains("allow, line 2"), "{refused}");
        assert_eq!(permitted(&both), [1, 2, 3], "the lists of before stay");
        std::fs::remove_file(&deny).unwrap();
        assert!(matches!(Gate::load(ListFiles { allow: None, deny: Some(deny) }), Err(ListError::Read { .. })));
    }
}
