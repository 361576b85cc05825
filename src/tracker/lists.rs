//! Which torrents are tracked, and how many a key may publish: lists read from files, and again when told to.
//!
//! An allow list and a deny list have an info-hash (40 hex digits) on each line. Where there is an allow list nothing else
//! is tracked; what is on the deny list never is. The list of publishers has a public key (64 hex digits) and a number of
//! torrents on each line, `*` in place of a key for those who are not listed. Empty lines and what follows a `#` are not
//! looked at.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use super::auth::Publisher;
use super::keyed_hash::BuildKeyedHasher;
use crate::wire::id::{InfoHash, from_hex};

/// Entries of one list: as many as there are swarms.
const MAX_LISTED: usize = super::swarms::MAX_SWARMS;
/// A line is a hash or a key, and a remark.
const MAX_LINE_BYTES: u64 = 4_096;
/// Torrents of one key, unless the list says otherwise: more than libraries have, and no key alone fills the catalogue.
pub const TORRENTS_PER_PUBLISHER: usize = 200_000;

/// Where the lists lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFiles {
    pub allow: Option<PathBuf>,
    pub deny: Option<PathBuf>,
    pub publishers: Option<PathBuf>,
}

/// Entries of the lists in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    /// None if all are allowed.
    pub allowed: Option<usize>,
    pub denied: usize,
    pub publishers: usize,
}

/// Why a list is not used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {expected} is expected, or a remark that begins with #", path.display())]
    Line { path: PathBuf, line: usize, expected: &'static str },
    #[error("{}: more than {MAX_LISTED} entries", path.display())]
    TooLong { path: PathBuf },
}

type Keys = HashSet<InfoHash, BuildKeyedHasher>;
/// Torrents of each publisher; under none of those who are not listed.
type Most = HashMap<Option<Publisher>, usize, BuildKeyedHasher>;

#[derive(Default)]
struct Lists {
    allow: Option<Keys>,
    deny: Keys,
    most: Most,
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

    /// Reads the files again. Blocking.
    ///
    /// # Errors
    /// As [`Gate::load`]; the lists of before stay in force then.
    pub fn reload(&self) -> Result<Listed, ListError> {
        let hashes = |path| read(path, "an info-hash of 40 hex digits", |line| line.parse::<InfoHash>().ok());
        let allow: Option<Keys> = self.files.allow.as_deref().map(hashes).transpose()?;
        let deny: Keys = self.files.deny.as_deref().map(hashes).transpose()?.unwrap_or_default();
        let rows = |path| read(path, "a public key of 64 hex digits or *, and a number of torrents,", publisher);
        let most: Most = self.files.publishers.as_deref().map(rows).transpose()?.unwrap_or_default();
        let listed = Listed { allowed: allow.as_ref().map(HashSet::len), denied: deny.len(), publishers: most.len() };
        let any = allow.is_some() || !deny.is_empty();
        *self.lists.write().unwrap_or_else(PoisonError::into_inner) = Lists { allow, deny, most };
        self.any.store(any, Ordering::Release);
        Ok(listed)
    }

    /// Torrents that this key may publish.
    pub fn torrents_of(&self, publisher: &Publisher) -> usize {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        let most = lists.most.get(&Some(*publisher)).or_else(|| lists.most.get(&None));
        most.copied().unwrap_or(TORRENTS_PER_PUBLISHER)
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

/// The entries of a file, a line each; `expected` is what `parse` understands.
fn read<Entry, Entries: Default + Extend<Entry>>(
    path: &Path,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<Entry>,
) -> Result<Entries, ListError> {
    let failed = |source| ListError::Read { path: path.to_path_buf(), source };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(failed)?);
    let (mut entries, mut count) = (Entries::default(), 0);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if io::Read::take(&mut file, MAX_LINE_BYTES).read_until(b'\n', &mut bytes).map_err(failed)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let entry = parse(text).ok_or_else(|| ListError::Line { path: path.to_path_buf(), line, expected })?;
        entries.extend([entry]);
        count += 1;
        if count > MAX_LISTED {
            return Err(ListError::TooLong { path: path.to_path_buf() });
        }
    }
    Ok(entries)
}

fn publisher(line: &str) -> Option<(Option<Publisher>, usize)> {
    let (key, most) = line.split_once(char::is_whitespace)?;
    let key = if key == "*" { None } else { Some(from_hex(key)?) };
    Some((key, most.trim().parse().ok()?))
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
        let only_deny = Gate::load(ListFiles { deny: Some(deny.clone()), ..ListFiles::default() }).unwrap();
        assert_eq!(permitted(&only_deny), [1, 3, 4, 5]);
        let both =
            Gate::load(ListFiles { allow: Some(allow.clone()), deny: Some(deny.clone()), publishers: None }).unwrap();
        assert_eq!(permitted(&both), [1, 3]);
        assert_eq!(permitted(&Gate::default()), [1, 2, 3, 4, 5]);

        std::fs::write(&deny, "").unwrap();
        assert_eq!(both.reload().unwrap(), Listed { allowed: Some(3), denied: 0, publishers: 0 });
        assert_eq!(permitted(&both), [1, 2, 3]);
        std::fs::write(&allow, format!("{}\nxyz\n", key(5))).unwrap();
        let refused = both.reload().unwrap_err().to_string();
        assert!(refused.contains("allow, line 2"), "{refused}");
        assert_eq!(permitted(&both), [1, 2, 3], "the lists of before stay");
        std::fs::remove_file(&deny).unwrap();
        assert!(matches!(
            Gate::load(ListFiles { deny: Some(deny), ..ListFiles::default() }),
            Err(ListError::Read { .. })
        ));
    }

    #[test]
    fn publishers_have_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("publishers");
        let [robot, spammer, other] = [[1; 32], [2; 32], [3; 32]];
        let lines = |rest: &str| {
            let [robot, spammer] = [robot, spammer].map(|key: Publisher| crate::wire::id::to_hex(&key));
            std::fs::write(&list, format!("{robot} 1000000 # our archive\n{spammer}\t0\n{rest}")).unwrap();
        };
        lines("");
        let gate = Gate::load(ListFiles { publishers: Some(list.clone()), ..ListFiles::default() }).unwrap();
        let most = || [robot, spammer, other].map(|key| gate.torrents_of(&key));
        assert_eq!(most(), [1_000_000, 0, TORRENTS_PER_PUBLISHER]);
        lines("* 50");
        assert_eq!(gate.reload().unwrap().publishers, 3);
        assert_eq!(most(), [1_000_000, 0, 50]);
        for wrong in ["* many", "xyz 5", "*"] {
            lines(wrong);
            assert!(gate.reload().unwrap_err().to_string().contains("publishers, line 3"), "{wrong}");
        }
        assert_eq!(most(), [1_000_000, 0, 50], "the list of before stays");
    }
}
