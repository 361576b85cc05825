//! Finding the daemon's socket.

use crate::wire::control::{MAX_SOCKET_PATH_BYTES, private_dir, well_known_socket};
use nix::unistd::getuid;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// No daemon answers at any of these places.
#[derive(Debug, thiserror::Error)]
pub struct NoDaemon {
    tried: Vec<(PathBuf, String)>,
}

impl fmt::Display for NoDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::from(
            "no peerd answers. Start one with `peerd TRACKER` (`peerd` alone runs a tracker of its own), or say where \
             its socket lies with --socket. Tried:",
        );
        for (path, why) in &self.tried {
            let _ = write!(text, "\n  {}: {why}", path.display());
        }
        f.write_str(&text)
    }
}

/// Connects to the socket that the user named, or else to the first of the usual places where a daemon answers.
///
/// # Errors
/// When none does.
pub fn connect(named: Option<&Path>) -> Result<(PathBuf, UnixStream), NoDaemon> {
    let places = match named {
        Some(path) => vec![path.to_path_buf()],
        None => usual_places(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).as_deref(), getuid().as_raw()),
    };
    let mut tried = Vec::new();
    for path in places {
        match connect_to(&path) {
            Ok(stream) => return Ok((path, stream)),
            Err(error) => tried.push((path, reason(&error))),
        }
    }
    Err(NoDaemon { tried })
}

fn usual_places(runtime_dir: Option<&Path>, uid: u32) -> Vec<PathBuf> {
    let beside = std::path::absolute("state/peerd.sock").unwrap_or_else(|_| PathBuf::from("state/peerd.sock"));
    let mut places = vec![beside];
    places.extend(runtime_dir.map(|dir| well_known_socket(Some(dir), uid)));
    places.push(well_known_socket(None, uid));
    places.push(PathBuf::from("/run/peerd/peerd.sock"));
    places
}

/// A path too long for a socket's address holds a link to a shorter one.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let target = match path.as_os_str().len() {
        0..=MAX_SOCKET_PATH_BYTES => path.to_path_buf(),
        _ => fs::read_link(path)?,
    };
    let uid = getuid().as_raw();
    if target.parent() == Some(&private_dir(uid)) {
        check_private(&private_dir(uid), uid)?;
    }
    UnixStream::connect(target)
}

/// In /tmp anybody can make a folder of this name first, and listen in it.
fn check_private(dir: &Path, uid: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(dir)?;
    if meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(io::Error::other("its folder is not yours alone (owner and mode 0700)"))
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "not there".to_owned(),
        ErrorKind::ConnectionRefused => "nobody listens".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    #[test]
    fn the_usual_places_in_their_order() {
        let places = usual_places(Some(Path::new("/run/user/7")), 7);
        assert!(places[0].is_absolute() && places[0].ends_with("state/peerd.sock"));
        let rest = ["/run/user/7/peerd.sock", "/tmp/peerd-7/peerd.sock", "/run/peerd/peerd.sock"].map(PathBuf::from);
        assert_eq!(places[1..], rest);
        assert_eq!(usual_places(None, 7).len(), 3);
    }

    #[test]
    fn a_missing_socket_is_named_and_says_how_to_start_peerd() {
        let dir = TempDir::new().unwrap();
        let stale = dir.path().join("stale.sock");
        drop(UnixListener::bind(&stale).unwrap());
        for (path, why) in [(dir.path().join("none.sock"), "not there"), (stale, "nobody listens")] {
            let message = connect(Some(&path)).unwrap_err().to_string();
            assert!(message.contains(&format!("{}: {why}", path.display())), "{message}");
            assert!(message.contains("peerd TRACKER"), "{message}");
        }
    }

    #[test]
    fn a_path_too_long_for_an_address_is_followed() {
        let dir = TempDir::new().unwrap();
        let short = dir.path().join("s");
        let _listener = UnixListener::bind(&short).unwrap();
        let long = dir.path().join("x".repeat(120));
        symlink(&short, &long).unwrap();
        assert!(connect(Some(&long)).is_ok());
    }

    #[test]
    fn a_folder_that_others_may_enter_is_not_trusted() {
        let dir = TempDir::new().unwrap();
        let uid = getuid().as_raw();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(check_private(dir.path(), uid).is_ok());
        assert!(check_private(dir.path(), uid + 1).is_err());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(check_private(dir.path(), uid).is_err());
    }
}
