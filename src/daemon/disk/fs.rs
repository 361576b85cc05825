//! Files beneath a root. Paths are [`RelPath`]s, names checked once; the kernel is asked besides to stay beneath the root
//! and to follow no symlink (`openat2`), so that nothing planted in a folder leads out of it.
//!
//! The traits are what a faulty or simulated disk replaces. All calls block.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{
    AtFlags, OFlag, OpenHow, PosixFadviseAdvice, RenameFlags, ResolveFlag, openat2, posix_fadvise, renameat2,
};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::pwritev;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::wire::name::{FileName, RelPath};

/// Slices per `pwritev`: the kernel's IOV_MAX.
const MAX_SLICES: usize = 1_024;

/// Where roots are opened.
pub trait FileSystem: Send + Sync {
    /// The folder at `path`, which may itself be reached through symlinks: it is the user's own choice.
    fn open_root(&self, path: &Path) -> io::Result<Arc<dyn Root>>;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    Read,
    ReadWrite,
    /// Read and write a file that must not exist yet (`AlreadyExists` if it does).
    Create,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    File,
    Directory,
    /// A symlink, FIFO, socket or device.
    Other,
}

/// What is known of a file without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    pub kind: Kind,
    /// Bytes.
    pub len: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Last change of content, name or permissions, nanoseconds since 1970.
    pub changed_ns: i64,
    pub device: u64,
    pub inode: u64,
    /// 0 once the file has been deleted.
    pub links: u64,
}

/// What says that a shared file is still the one that was hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileStat {
    /// Bytes.
    pub len: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
}

impl Stat {
    pub fn file_stat(&self) -> FileStat {
        FileStat { len: self.len, modified_ns: self.modified_ns }
    }
}

/// A folder and everything beneath it.
pub trait Root: Send + Sync {
    /// Regular files alone: anything else is `InvalidInput`, and opening it never blocks.
    fn open(&self, path: &RelPath, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// The folder and those above it, where they do not exist.
    fn create_dirs(&self, path: &RelPath) -> io::Result<()>;
    /// `AlreadyExists` if `to` is taken.
    fn rename_noreplace(&self, from: &RelPath, to: &RelPath) -> io::Result<()>;
    /// A file.
    fn remove(&self, path: &RelPath) -> io::Result<()>;
    /// An empty folder.
    fn remove_dir(&self, path: &RelPath) -> io::Result<()>;
    /// Follows no symlink: one is [`Kind::Other`].
    fn stat(&self, path: &RelPath) -> io::Result<Stat>;
    /// Makes the names in a folder last; `None` is the root.
    fn sync_dir(&self, path: Option<&RelPath>) -> io::Result<()>;
    /// Bytes that may still be written.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file. Several threads may use it at once.
pub trait DiskFile: Send + Sync + Debug {
    /// Fills `buf` as far as the file goes; less only at its end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// The slices one behind the other.
    fn write_vectored_all_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// `fdatasync`. After an error the kernel may have dropped what it could not write: a later success proves nothing.
    fn sync_data(&self) -> io::Result<()>;
    /// After a failed sync: the kernel holds bytes that it takes for written. Without them a later read says what the disk
    /// has.
    fn forget_cached(&self);
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn stat(&self) -> io::Result<Stat>;
    /// What the kernel knows it by, if it does: for moving bytes without looking at them.
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeFs;

impl FileSystem for NativeFs {
    fn open_root(&self, path: &Path) -> io::Result<Arc<dyn Root>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Arc::new(NativeRoot { dir }))
    }
}

struct NativeRoot {
    dir: OwnedFd,
}

impl NativeRoot {
    fn openat2(&self, path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        let beneath =
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(beneath);
        loop {
            match openat2(&self.dir, path, how) {
                Err(Errno::EINTR) => {}
                opened => return opened,
            }
        }
    }

    fn open_dir(&self, path: Option<&RelPath>, access: OFlag) -> nix::Result<OwnedFd> {
        let path = path.map_or(Path::new("."), RelPath::as_path);
        self.openat2(path, access | OFlag::O_DIRECTORY, Mode::empty())
    }

    /// The folder that holds the path's last component, to act on that by name.
    fn parent_of(&self, path: &RelPath) -> nix::Result<(OwnedFd, FileName)> {
        Ok((self.open_dir(path.parent().as_ref(), OFlag::O_PATH)?, path.file_name()))
    }

    fn unlink(&self, path: &RelPath, flag: UnlinkatFlags) -> io::Result<()> {
        let (parent, name) = self.parent_of(path)?;
        Ok(unlinkat(parent, name.as_os_str(), flag)?)
    }
}

impl Root for NativeRoot {
    fn open(&self, path: &RelPath, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        // Non-blocking, so that a FIFO that lies in the way answers at once and can be refused.
        let common = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file_mode = Mode::from_bits_truncate(0o666);
        let opened = match mode {
            OpenMode::Read => {
                // Reading leaves no trace where the file is ours; others' files must be asked for without that.
                let flags = common | OFlag::O_RDONLY;
                match self.openat2(path.as_path(), flags | OFlag::O_NOATIME, Mode::empty()) {
                    Err(Errno::EPERM) => self.openat2(path.as_path(), flags, Mode::empty()),
                    opened => opened,
                }
            }
            OpenMode::ReadWrite => self.openat2(path.as_path(), common | OFlag::O_RDWR, Mode::empty()),
            OpenMode::Create => {
                let flags = common | OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
                self.openat2(path.as_path(), flags, file_mode)
            }
        };
        let file = NativeFile(File::from(opened?));
        match file.stat()?.kind {
            Kind::File => Ok(Arc::new(file)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }

    fn create_dirs(&self, path: &RelPath) -> io::Result<()> {
        match self.open_dir(Some(path), OFlag::O_PATH) {
            Err(Errno::ENOENT) => {}
            there => return Ok(there.map(drop)?),
        }
        if let Some(parent) = path.parent() {
            self.create_dirs(&parent)?;
        }
        let (parent, name) = self.parent_of(path)?;
        match mkdirat(parent, name.as_os_str(), Mode::from_bits_truncate(0o777)) {
            // Made meanwhile, perhaps as something else than a folder.
            Err(Errno::EEXIST) => Ok(self.open_dir(Some(path), OFlag::O_PATH).map(drop)?),
            made => Ok(made?),
        }
    }

    fn rename_noreplace(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        let (from_dir, from_name) = self.parent_of(from)?;
        let (to_dir, to_name) = self.parent_of(to)?;
        let (from_name, to_name) = (from_name.as_os_str(), to_name.as_os_str());
        match renameat2(&from_dir, from_name, &to_dir, to_name, RenameFlags::RENAME_NOREPLACE) {
            // Not every file system knows the flag. A link refuses a taken name as well, but folders cannot be linked.
            Err(Errno::EINVAL) => match linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty()) {
                Ok(()) => Ok(unlinkat(&from_dir, from_name, UnlinkatFlags::NoRemoveDir)?),
                Err(Errno::EEXIST) => Err(Errno::EEXIST.into()),
                Err(_) if self.stat(to).is_ok() => Err(Errno::EEXIST.into()),
                Err(_) => Ok(nix::fcntl::renameat(&from_dir, from_name, &to_dir, to_name)?),
            },
            renamed => Ok(renamed?),
        }
    }

    fn remove(&self, path: &RelPath) -> io::Result<()> {
        self.unlink(path, UnlinkatFlags::NoRemoveDir)
    }

    fn remove_dir(&self, path: &RelPath) -> io::Result<()> {
        self.unlink(path, UnlinkatFlags::RemoveDir)
    }

    fn stat(&self, path: &RelPath) -> io::Result<Stat> {
        let file = match self.openat2(path.as_path(), OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()) {
            // A symlink as the last component is what is asked about; one on the way is an error.
            Err(Errno::ELOOP) => {
                let (parent, name) = self.parent_of(path)?;
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                nix::fcntl::openat(parent, name.as_os_str(), flags, Mode::empty())?
            }
            opened => opened?,
        };
        stat_of(&File::from(file))
    }

    fn sync_dir(&self, path: Option<&RelPath>) -> io::Result<()> {
        File::from(self.open_dir(path, OFlag::O_RDONLY)?).sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = fstatvfs(&self.dir)?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}

#[derive(Debug)]
struct NativeFile(File);

impl DiskFile for NativeFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.0.read_at(&mut buf[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn write_vectored_all_at(&self, slices: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let mut rest = slices.to_vec();
        let mut rest = rest.as_mut_slice();
        // Empty slices at the front would make a write of 0 bytes look like a full disk.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let at = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            match pwritev(self.0.as_fd(), &rest[..rest.len().min(MAX_SLICES)], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn forget_cached(&self) {
        // Advice: there is nothing to do if it is not taken.
        let _ = posix_fadvise(&self.0, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn stat(&self) -> io::Result<Stat> {
        stat_of(&self.0)
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

fn stat_of(file: &File) -> io::Result<Stat> {
    let meta = file.metadata()?;
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    let kind = match meta.file_type() {
        kind if kind.is_file() => Kind::File,
        kind if kind.is_dir() => Kind::Directory,
        _ => Kind::Other,
    };
    Ok(Stat {
        kind,
        len: meta.len(),
        modified_ns: nanos(meta.mtime(), meta.mtime_nsec()),
        changed_ns: nanos(meta.ctime(), meta.ctime_nsec()),
        device: meta.dev(),
        inode: meta.ino(),
        links: meta.nlink(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Arc<dyn Root>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let root = NativeFs.open_root(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn symlinks_are_followed_nowhere_beneath_the_root() {
        let (dir, root) = root();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/secret"), b"secret").unwrap();
        symlink("../outside", dir.path().join("root/folder")).unwrap();
        symlink("../outside/secret", dir.path().join("root/file")).unwrap();
        symlink("loop", dir.path().join("root/loop")).unwrap();
        for name in ["file", "folder/secret", "loop"] {
            assert!(root.open(&path(name), OpenMode::Read).is_err(), "{name}");
            assert!(root.open(&path(name), OpenMode::ReadWrite).is_err(), "{name}");
            assert!(root.open(&path(name), OpenMode::Create).is_err(), "{name}");
        }
        assert!(root.create_dirs(&path("folder/new")).is_err());
        assert!(root.create_dirs(&path("folder")).is_err());
        assert!(root.remove(&path("folder/secret")).is_err());
        assert!(root.rename_noreplace(&path("folder/secret"), &path("mine")).is_err());
        assert!(root.stat(&path("folder/secret")).is_err());
        assert!(root.sync_dir(Some(&path("folder"))).is_err());
        assert_eq!(root.stat(&path("file")).unwrap().kind, Kind::Other);
        assert_eq!(std::fs::read(dir.path().join("outside/secret")).unwrap(), b"secret");
    }

    #[test]
    fn a_fifo_and_a_folder_are_refused_without_blocking() {
        let (dir, root) = root();
        nix::unistd::mkfifo(&dir.path().join("root/fifo"), Mode::S_IRWXU).unwrap();
        std::fs::create_dir(dir.path().join("root/folder")).unwrap();
        for name in ["fifo", "folder"] {
            let refused = root.open(&path(name), OpenMode::Read).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(root.stat(&path("fifo")).unwrap().kind, Kind::Other);
        assert_eq!(root.stat(&path("folder")).unwrap().kind, Kind::Directory);
    }

    #[test]
    fn a_file_is_made_once_and_renamed_only_to_a_free_name() {
        let (dir, root) = root();
        root.create_dirs(&path("a/b/c")).unwrap();
        root.create_dirs(&path("a/b/c")).unwrap();
        let file = root.open(&path("a/b/c/x"), OpenMode::Create).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        let again = root.open(&path("a/b/c/x"), OpenMode::Create).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        std::fs::write(dir.path().join("root/taken"), b"theirs").unwrap();
        let taken = root.rename_noreplace(&path("a/b/c/x"), &path("taken")).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(dir.path().join("root/taken")).unwrap(), b"theirs");
        root.rename_noreplace(&path("a"), &path("free")).unwrap();
        assert_eq!(std::fs::read(dir.path().join("root/free/b/c/x")).unwrap(), b"x");
        root.sync_dir(None).unwrap();
        root.sync_dir(Some(&path("free/b"))).unwrap();
        root.remove(&path("free/b/c/x")).unwrap();
        root.remove_dir(&path("free/b/c")).unwrap();
        assert_eq!(root.stat(&path("free/b/c")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(root.free_bytes().unwrap() > 0);
    }

    #[test]
    fn more_slices_than_one_call_takes_arrive_in_order_past_4_gib() {
        let (_dir, root) = root();
        let file = root.open(&path("big"), OpenMode::Create).unwrap();
        let content: Vec<u8> = (0..3_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let mut slices = vec![IoSlice::new(&[])];
        slices.extend(content.chunks(3).map(IoSlice::new));
        assert!(slices.len() > 2 * MAX_SLICES);
        let offset = (5 << 30) + 1;
        file.write_vectored_all_at(&slices, offset).unwrap();
        let mut read = vec![0; content.len() + 10];
        assert_eq!(file.read_at(&mut read, offset).unwrap(), content.len());
        assert_eq!(read[..content.len()], content);
        file.write_vectored_all_at(&[], 0).unwrap();
        assert_eq!(file.stat().unwrap().len, offset + content.len() as u64);
    }

    #[test]
    fn a_deleted_file_says_so() {
        let (_dir, root) = root();
        let file = root.open(&path("x"), OpenMode::Create).unwrap();
        assert_eq!(file.stat().unwrap().links, 1);
        root.remove(&path("x")).unwrap();
        assert_eq!(file.stat().unwrap().links, 0);
    }
}
