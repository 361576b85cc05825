//! What the user means by WHAT.

use crate::wire::control::{Failure, MAX_TORRENT_BYTES, What};
use crate::wire::metainfo::Metainfo;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

const ACCEPTED: &str = "WHAT is a .torrent file, an info-hash (40 hex digits) or words";

/// Whether WHAT asks the network or names one of our own torrents: a name that a folder here has too is taken as a
/// name by the latter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Network,
    Own,
}

/// A regular file is read as a `.torrent` when it is called so, is written as a path, or begins like one; `<key>` and
/// `<key>.torrent` are info-hashes; the rest is words.
///
/// # Errors
/// Of the class *usage* for what is not accepted, *not found* for a `.torrent` that is not there, *failed* for one that
/// is none. The daemon, which is sent the bytes alone, could not name the file.
pub(super) fn classify(text: &str, scope: Scope) -> Result<What, Failure> {
    let lower = text.to_ascii_lowercase();
    for (prefix, what) in [("magnet:", "a magnet link"), ("http://", "a URL"), ("https://", "a URL")] {
        if lower.starts_with(prefix) {
            return Err(Failure::usage(format!("{text}: {what} is not accepted; {ACCEPTED}")));
        }
    }
    let path = Path::new(text);
    let is_torrent_name = lower.ends_with(".torrent");
    let is_path = text.contains('/');
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() && (scope == Scope::Network || is_path) => {
            return Err(Failure::usage(format!("{text}: a folder is not accepted; {ACCEPTED}")));
        }
        Ok(meta) if meta.is_file() && (is_torrent_name || is_path) => return read_torrent(path).map(What::Torrent),
        Ok(meta) if meta.is_file() && begins_as_dictionary(path) => {
            // A file that begins so by chance does not stand in the way of a search for its name.
            if let Ok(bytes) = read_torrent(path) {
                return Ok(What::Torrent(bytes));
            }
        }
        Err(error) if (is_torrent_name || is_path) && error.kind() != ErrorKind::NotFound => {
            return Err(Failure::failed(format!("{text}: {error}")));
        }
        _ => {}
    }
    if let Ok(key) = lower.strip_suffix(".torrent").unwrap_or(&lower).parse() {
        return Ok(What::InfoHash(key));
    }
    if is_torrent_name {
        return Err(Failure::not_found(format!("{text}: there is no such .torrent file")));
    }
    if text.trim().is_empty() {
        return Err(Failure::usage(format!("WHAT is empty; {ACCEPTED}")));
    }
    Ok(What::Words(text.to_owned()))
}

/// Every `.torrent` begins with `d`; hardly any other file of a name that somebody searches for does.
fn begins_as_dictionary(path: &Path) -> bool {
    let mut first = [0];
    File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == *b"d"
}

fn read_torrent(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    let too_long = || Failure::usage(format!("{shown}: over {MAX_TORRENT_BYTES} bytes, which no .torrent may have"));
    let io_error = |error| Failure::failed(format!("{shown}: {error}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io_error)?;
    if file.metadata().map_err(io_error)?.len() > MAX_TORRENT_BYTES as u64 {
        return Err(too_long());
    }
    // It may grow while we read.
    file.take(MAX_TORRENT_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.len() > MAX_TORRENT_BYTES {
        return Err(too_long());
    }
    match Metainfo::parse(&bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::failed(format!("{shown}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::FailureClass;
    use tempfile::TempDir;

    fn class(text: &str) -> FailureClass {
        classify(text, Scope::Network).unwrap_err().class
    }

    #[test]
    fn words_and_keys() {
        let key = "0123456789abcdef0123456789ABCDEF01234567";
        let hash = What::InfoHash(key.parse().unwrap());
        assert_eq!(classify(key, Scope::Network), Ok(hash.clone()));
        assert_eq!(classify(&format!("{key}.torrent"), Scope::Own), Ok(hash));
        for words in ["got5", "got 5 s01", "got5.mp4", &key[1..], "no/such/file", "d"] {
            assert_eq!(classify(words, Scope::Network), Ok(What::Words(words.into())));
        }
    }

    #[test]
    fn links_urls_and_folders_are_usage_errors_that_say_what_is_accepted() {
        let dir = TempDir::new().unwrap();
        let dir = dir.path().to_str().unwrap();
        for text in ["magnet:?xt=urn:btih:00", "MAGNET:?", "http://x/y.torrent", "https://x", dir, "", " "] {
            let failure = classify(text, Scope::Network).unwrap_err();
            assert_eq!(failure.class, FailureClass::Usage, "{text}");
            assert!(failure.message.contains("an info-hash"), "{text}");
        }
        assert_eq!(class("no-such.torrent"), FailureClass::NotFound);
        // The folder `src` is there; as the name of an own torrent it is a name.
        assert_eq!(class("src"), FailureClass::Usage);
        assert_eq!(classify("src", Scope::Own), Ok(What::Words("src".into())));
    }

    #[test]
    fn files_are_read_when_they_may_be_torrents() {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let torrent = [&b"d4:infod6:lengthi1e4:name1:a12:piece lengthi65536e6:pieces20:"[..], &[0; 20], b"ee"].concat();
        for name in ["a.torrent", "b"] {
            fs::write(path(name), &torrent).unwrap();
            assert_eq!(classify(&path(name), Scope::Network), Ok(What::Torrent(torrent.clone())));
        }
        fs::write(path("garbage.torrent"), b"d4:info").unwrap();
        let failure = classify(&path("garbage.torrent"), Scope::Network).unwrap_err();
        assert_eq!(failure.class, FailureClass::Failed);
        assert!(failure.message.contains("garbage.torrent: not a .torrent"), "{failure}");
        File::create(path("long.torrent")).unwrap().set_len(MAX_TORRENT_BYTES as u64 + 1).unwrap();
        assert_eq!(class(&path("long.torrent")), FailureClass::Usage);
        // A file of ours that lies in the folder where a torrent of its name is asked for.
        assert_eq!(classify("Cargo.toml", Scope::Own), Ok(What::Words("Cargo.toml".into())));
    }
}
