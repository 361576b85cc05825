//! Whether a process holds a file open for writing. The kernel tells it to whoever asks for a read lease: it is refused
//! with EAGAIN exactly then (fcntl(2), *Leases*).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{self, c_int};

use super::settler::Writer;

/// Chooses the signal that a lease's holder gets (fcntl(2)); libc does not name it.
const F_SETSIG: c_int = 10;

/// Opens what should be a plain file without ever waiting for the other end of a FIFO, and not through a link.
pub(in crate::daemon) fn open_plain(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)
}

/// Asks for a read lease and gives it back at once. Only the file's owner and root may ask, and not on every file
/// system: then the answer is [`Writer::Unknown`].
pub(super) fn writer_of(file: &File) -> Writer {
    // Who opens the file for writing while the lease stands makes the kernel signal its holder; by default that is
    // SIGIO, which would end the process. SIGURG is ignored.
    if fcntl(file, F_SETSIG, libc::SIGURG).is_err() {
        return Writer::Unknown;
    }
    match fcntl(file, libc::F_SETLEASE, c_int::from(libc::F_RDLCK)) {
        Ok(()) => {
            // Closing the file, which our caller does next, gives the lease back as well.
            let _ = fcntl(file, libc::F_SETLEASE, c_int::from(libc::F_UNLCK));
            Writer::None
        }
        Err(Errno::EAGAIN) => Writer::Open,
        Err(_) => Writer::Unknown,
    }
}

/// The `fcntl` commands that take a number and that no wrapper offers.
fn fcntl(file: &File, command: c_int, argument: c_int) -> nix::Result<()> {
    // SAFETY: `file` is open for the whole call, and the commands used here take an int and touch no memory of ours.
    #[allow(unsafe_code)]
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_seen_until_its_last_descriptor_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let writer = File::create(&path).unwrap();
        let twin = writer.try_clone().unwrap();
        let reader = open_plain(&path).unwrap();
        assert_eq!(writer_of(&reader), Writer::Open);
        drop(writer);
        assert_eq!(writer_of(&reader), Writer::Open);
        drop(twin);
        assert_eq!(writer_of(&reader), Writer::None);
        OpenOptions::new().write(true).open(&path).expect("the lease was given back");
    }

    #[test]
    fn neither_links_nor_fifos_hold_us_up() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(!open_plain(&fifo).unwrap().metadata().unwrap().is_file());
        std::os::unix::fs::symlink(&fifo, dir.path().join("link")).unwrap();
        assert!(open_plain(&dir.path().join("link")).is_err());
    }
}
