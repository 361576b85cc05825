//! `trackerd check`: what a `.torrent` is, or why it would be refused.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::wire::metainfo::{MAX_TORRENT_BYTES, Metainfo, MetainfoError};
use crate::wire::name::escape_for_terminal;

/// Why a file would not be published.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: longer than {MAX_TORRENT_BYTES} bytes, which no .torrent may be", .0.display())]
    TooLong(PathBuf),
    #[error("{}: {source}", path.display())]
    Content { path: PathBuf, source: MetainfoError },
}

/// The `.torrent` in words: its root keys first, a line each. Blocking.
///
/// # Errors
/// When it cannot be read or would be refused.
pub fn describe(file: &Path) -> Result<String, CheckError> {
    let path = || file.to_path_buf();
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_TORRENT_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| CheckError::Read { path: path(), source })?;
    if bytes.len() > MAX_TORRENT_BYTES {
        return Err(CheckError::TooLong(path()));
    }
    let metainfo = Metainfo::parse(&bytes).map_err(|source| CheckError::Content { path: path(), source })?;
    Ok(lines(&metainfo))
}

fn lines(metainfo: &Metainfo) -> String {
    let root = metainfo.root_keys();
    let private = if metainfo.is_private() { "yes" } else { "no" };
    let mut text = format!(
        "Name: {}\nKey: {}\nsize: {}\nn_parts: {}\nprivate: {private}\n",
        root.name, root.key, root.size, root.n_parts
    );
    // Writing into a String never fails.
    if let Some(path) = metainfo.upload_path() {
        let _ = writeln!(text, "folder: {path}");
    }
    for tracker in metainfo.trackers().iter().flatten() {
        let _ = writeln!(text, "tracker: {}", escape_for_terminal(tracker));
    }
    for entry in metainfo.files().iter().filter(|entry| metainfo.is_multi_file() && !entry.padding) {
        let _ = writeln!(text, "file: {} ({} bytes)", entry.path, entry.len);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_is_described_and_what_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.torrent");
        let info = b"4:infod6:lengthi1e4:name5:a.bin12:piece lengthi65536e6:pieces20:".to_vec();
        std::fs::write(&file, [b"d8:announce9:http://\x1b/".to_vec(), info, vec![0; 20], b"ee".to_vec()].concat())
            .unwrap();
        let text = describe(&file).unwrap();
        assert!(text.starts_with("Name: a.bin\nKey: "), "{text}");
        assert!(text.contains("\nsize: 1\nn_parts: 1\nprivate: no\n") && !text.contains('\x1b'), "{text}");

        std::fs::write(&file, "<html>").unwrap();
        assert!(describe(&file).unwrap_err().to_string().contains("a.torrent: not a .torrent"));
        File::create(&file).unwrap().set_len(MAX_TORRENT_BYTES as u64 + 1).unwrap();
        assert!(matches!(describe(&file), Err(CheckError::TooLong(_))));
        assert!(matches!(describe(&folder.path().join("none")), Err(CheckError::Read { .. })));
    }
}
