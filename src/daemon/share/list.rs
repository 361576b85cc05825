//! The files of a folder that is shared as one torrent.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::daemon::watch::{Kind, SkipReason, refused_name};
use crate::wire::metainfo::MAX_FILES;
use crate::wire::name::RelPath;

/// What a torrent of a folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderListing {
    /// Paths below the folder and bytes, sorted by the paths' bytes. Empty files are among them.
    pub files: Vec<(RelPath, u64)>,
    /// What lies there and is left out, as it would be in `upload/`.
    pub skipped: Vec<(PathBuf, SkipReason)>,
}

/// Why a folder cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds more than {MAX_FILES} files: share parts of it", path = .path.display())]
    TooManyFiles { path: PathBuf },
}

/// Lists what of `dir` would be shared.
///
/// # Errors
/// When a folder in it cannot be read: the torrent would be a part of what was asked for. When there are too many files.
pub fn list_folder(dir: &Path) -> Result<FolderListing, ListError> {
    let mut listing = FolderListing::default();
    let id = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    let mut folders = vec![(PathBuf::new(), Vec::new())];
    while let Some((folder, mut above)) = folders.pop() {
        let absolute = dir.join(&folder);
        let read_error = |source| ListError::Read { path: absolute.clone(), source };
        let this = id(&fs::metadata(&absolute).map_err(read_error)?);
        if above.contains(&this) {
            listing.skipped.push((absolute, SkipReason::Loop));
            continue;
        }
        above.push(this);
        for entry in fs::read_dir(&absolute).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let below = folder.join(entry.file_name());
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(ListError::Read { path: entry.path(), source }),
            };
            let path = match (refused_name(entry.file_name().as_bytes()), RelPath::from_path(&below)) {
                (Some(why), _) => Err(why),
                (None, path) => path.map_err(|_| SkipReason::TooDeep),
            };
            match (path, Kind::of(&metadata)) {
                (Err(why), _) | (_, Kind::Other(why)) => listing.skipped.push((entry.path(), why)),
                (Ok(path), Kind::File) => listing.files.push((path, metadata.len())),
                (Ok(_), Kind::Dir) => folders.push((below, above.clone())),
            }
            if listing.files.len() > MAX_FILES {
                return Err(ListError::TooManyFiles { path: dir.to_path_buf() });
            }
        }
    }
    listing.files.sort_unstable();
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_upload_would_not_share_is_left_out_and_the_rest_sorted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("b/c")).unwrap();
        fs::create_dir_all(at(".git")).unwrap();
        for (path, bytes) in [
            ("b/c/z", "zz"),
            ("b/empty", ""),
            ("b.txt", "x"),
            ("a", "x"),
            (".hidden", "x"),
            (".git/config", "x"),
            ("draft~", "x"),
            ("b/film.mp4.part", "x"),
        ] {
            fs::write(at(path), bytes).unwrap();
        }
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), at("b/up")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let listing = list_folder(dir.path()).unwrap();
        let path = |path: &str| RelPath::parse(path.as_bytes()).unwrap();
        let expected = [("a", 1), ("b.txt", 1), ("b/c/z", 2), ("b/empty", 0)];
        assert_eq!(listing.files, expected.map(|(name, len)| (path(name), len)));
        let mut skipped = listing.skipped;
        skipped.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            skipped,
            [
                (at(".git"), SkipReason::Hidden),
                (at(".hidden"), SkipReason::Hidden),
                (at("b/film.mp4.part"), SkipReason::Temporary),
                (at("b/up"), SkipReason::Symlink),
                (at("draft~"), SkipReason::Temporary),
                (at("fifo"), SkipReason::Special),
                (at("link"), SkipReason::Symlink),
            ]
        );
        assert!(matches!(list_folder(&at("nowhere")), Err(ListError::Read { .. })));
    }
}
