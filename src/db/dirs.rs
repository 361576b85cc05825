//! Folders whose names outlive a power cut.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

/// Makes a folder and those above it, where they do not exist, and makes the names of all of them last: a folder of the
/// run before may lie there with its name still in memory alone.
///
/// # Errors
/// When a folder cannot be made, or the disk fails.
pub fn make_dirs(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    let path = path.canonicalize()?;
    let device = path.metadata()?.dev();
    for folder in path.ancestors().skip(1) {
        if folder.metadata()?.dev() != device {
            break;
        }
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            // Somebody else's folder, which has been there for longer than ours.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_once_with_their_mode_and_a_file_in_the_way_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        for _ in 0..2 {
            make_dirs(&path, 0o700).unwrap();
        }
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::write(path.join("file"), b"x").unwrap();
        assert!(make_dirs(&path.join("file"), 0o700).is_err());
    }
}
