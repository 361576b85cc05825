//! Where the control socket lies, and the links that lead to it.

use super::access::Access;
use crate::wire::control::{MAX_SOCKET_PATH_BYTES, private_dir, well_known_socket};
use crate::wire::id::to_hex;
use nix::unistd::{Gid, Group, chown, getuid};
use sha1::{Digest, Sha1};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{}: a peerd answers there already; `peerctl --socket` reaches it, `leave` ends it", .0.display())]
    InUse(PathBuf),
    #[error("{}: something lies there that is not a socket; move it away or choose another --socket", .0.display())]
    NotASocket(PathBuf),
    #[error("{}: not a folder that belongs to you alone (mode 0700); remove it", .0.display())]
    NotPrivate(PathBuf),
    #[error("control_group: there is no group {0:?}")]
    NoSuchGroup(String),
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Where the socket is wanted.
#[derive(Clone, Debug)]
pub struct SocketPlace {
    /// Absolute: `--socket`, else `STATE/peerd.sock`. When it is longer than a socket's address may be, a link lies
    /// there, and the socket in a private folder.
    pub path: PathBuf,
    /// The group whose members may command the daemon.
    pub control_group: Option<String>,
    /// `XDG_RUNTIME_DIR`
    pub runtime_dir: Option<PathBuf>,
    /// Takes its part where there is none: /tmp/peerd-UID, made when needed.
    pub private_dir: PathBuf,
}

impl SocketPlace {
    /// The usual surroundings: `runtime_dir` is `XDG_RUNTIME_DIR`.
    pub fn new(path: PathBuf, control_group: Option<String>, runtime_dir: Option<PathBuf>) -> SocketPlace {
        SocketPlace { path, control_group, runtime_dir, private_dir: private_dir(getuid().as_raw()) }
    }
}

/// The bound socket. Dropped, it takes its files away.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    access: Access,
    place: PathBuf,
    bound: PathBuf,
    /// Links of ours that lead to `bound`.
    links: Vec<PathBuf>,
    /// Device and inode of the socket: another daemon's is left alone.
    id: (u64, u64),
}

impl ControlSocket {
    /// Binds, and links the well-known place to it where that is free. Call it while holding the lock on the state
    /// folder: of two daemons that find the same stale socket one would unlink the other's. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a live daemon or something else lies there, the group does not exist, or the file system refuses.
    pub fn bind(place: &SocketPlace) -> Result<ControlSocket, BindError> {
        let group = place.control_group.as_deref().map(find_group).transpose()?;
        let fits = place.path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES;
        let bound = if fits { place.path.clone() } else { short_path(place)? };
        make_free(&bound)?;
        let listener = UnixListener::bind(&bound).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => BindError::InUse(bound.clone()),
            _ => BindError::Io { path: bound.clone(), error },
        })?;
        let id = restrict(&bound, group).map_err(|error| BindError::Io { path: bound.clone(), error })?;
        let access = Access::new(getuid(), group);
        let mut socket = ControlSocket { listener, access, place: place.path.clone(), bound, links: Vec::new(), id };
        if !fits {
            socket.link(&place.path)?;
        }
        socket.link_well_known(place);
        Ok(socket)
    }

    /// Where `peerctl --socket` finds it.
    pub fn path(&self) -> &Path {
        &self.place
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// A convenience: where it fails, `peerctl --socket` still works.
    fn link_well_known(&mut self, place: &SocketPlace) {
        let link = match &place.runtime_dir {
            Some(dir) if dir.is_dir() => well_known_socket(Some(dir), 0),
            _ => match make_private(&place.private_dir) {
                Ok(()) => place.private_dir.join("peerd.sock"),
                Err(error) => return tracing::warn!(%error, "no well-known control socket"),
            },
        };
        if link == self.bound || link == self.place {
            return;
        }
        match self.link(&link) {
            Ok(()) => {}
            Err(BindError::InUse(path)) => tracing::info!(path = %path.display(), "another peerd has this place"),
            Err(error) => tracing::warn!(%error, "no well-known control socket"),
        }
    }

    fn link(&mut self, link: &Path) -> Result<(), BindError> {
        let target = std::path::absolute(&self.bound).unwrap_or_else(|_| self.bound.clone());
        // A run that was killed has left it; who answers behind it now is this one.
        if fs::read_link(link).is_ok_and(|left| left == target) {
            self.links.push(link.to_path_buf());
            return Ok(());
        }
        make_free(link)?;
        symlink(target, link).map_err(|error| BindError::Io { path: link.to_path_buf(), error })?;
        self.links.push(link.to_path_buf());
        Ok(())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = |path: &Path| fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id);
        // Links first: once the socket is gone, what they lead to cannot be told.
        for path in self.links.iter().chain([&self.bound]) {
            if ours(path) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn find_group(name: &str) -> Result<Gid, BindError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(BindError::NoSuchGroup(name.to_owned())),
    }
}

/// Mode and group of the socket file, and its identity. Between bind and here only the umask guards it; whoever slips
/// in is refused by [`Access`].
fn restrict(socket: &Path, group: Option<Gid>) -> io::Result<(u64, u64)> {
    if let Some(gid) = group {
        chown(socket, None, Some(gid))?;
    }
    fs::set_permissions(socket, Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
    let meta = fs::metadata(socket)?;
    Ok((meta.dev(), meta.ino()))
}

/// A private path short enough, the same for the same place: the hash of its name tells it from others.
fn short_path(place: &SocketPlace) -> Result<PathBuf, BindError> {
    let hash = to_hex(&Sha1::digest(place.path.as_os_str().as_bytes())[..8]);
    if let Some(dir) = &place.runtime_dir {
        let path = dir.join(format!("peerd-{hash}.sock"));
        if path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES && dir.is_dir() {
            return Ok(path);
        }
    }
    make_private(&place.private_dir)?;
    Ok(place.private_dir.join(format!("{hash}.sock")))
}

/// Makes the folder, or sees that it is ours alone: in /tmp another user may have been first.
fn make_private(dir: &Path) -> Result<(), BindError> {
    let io_error = |error| BindError::Io { path: dir.to_path_buf(), error };
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io_error(error)),
        _ => {}
    }
    let meta = fs::symlink_metadata(dir).map_err(io_error)?;
    let private = meta.is_dir() && meta.uid() == getuid().as_raw() && meta.mode() & 0o077 == 0;
    if private { Ok(()) } else { Err(BindError::NotPrivate(dir.to_path_buf())) }
}

/// Sees that nothing lies at `path`: a socket that nobody listens on, or a link that leads nowhere or to such a one,
/// is taken away.
fn make_free(path: &Path) -> Result<(), BindError> {
    let io_error = |error| BindError::Io { path: path.to_path_buf(), error };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
    };
    if !meta.file_type().is_socket() && !meta.file_type().is_symlink() {
        return Err(BindError::NotASocket(path.to_path_buf()));
    }
    // What is too long to connect to can only be a link of ours, which names its socket absolutely.
    let fits = path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES;
    let target = if fits { path.to_path_buf() } else { fs::read_link(path).map_err(io_error)? };
    match StdUnixStream::connect(&target) {
        Ok(_) => Err(BindError::InUse(path.to_path_buf())),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            fs::remove_file(path).map_err(io_error)
        }
        Err(error) => Err(io_error(error)),
    }
}
