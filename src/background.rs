//! A daemon that goes to the background once it is up, and how it is stopped.
//!
//! The program starts itself again with the same arguments: nothing is forked, so that threads are no matter. The child
//! tells over a pipe whether it is up; the parent prints what it says and exits accordingly.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stdin, setsid};

/// Tells a process that it is the background one, and which of its descriptors is the pipe.
const READY_FD: &str = "PEERD_READY_FD";
/// The pipe takes the place of the standard input, which a daemon has no use for.
const READY_FD_IS: &str = "0";
/// What a child says is printed: a page of text, not more.
const MAX_MESSAGE_BYTES: u64 = 64 << 10;
const UP: &str = "up\n";
/// How often is looked whether the daemon has ended.
const STOP_POLL: Duration = Duration::from_millis(50);

/// How the start in the background went; the text is for the person who typed the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launched {
    Up(String),
    Failed(String),
}

/// Starts this program again in the background and waits until it is up or has failed. What it writes to its standard
/// outputs goes to the end of `log`; the log's folder is made with `folder_mode` if it is not there. For the parent,
/// before any thread.
///
/// # Errors
/// When the log cannot be written or the program not started.
pub fn launch(log: &Path, folder_mode: u32) -> io::Result<Launched> {
    if let Some(folder) = log.parent() {
        DirBuilder::new().recursive(true).mode(folder_mode).create(folder).map_err(named(folder))?;
    }
    let log_file = OpenOptions::new().append(true).create(true).open(log).map_err(named(log))?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(READY_FD, READY_FD_IS)
        .stdin(OwnedFd::from(theirs))
        .stdout(log_file.try_clone()?)
        .stderr(log_file)
        .spawn()?;
    // The command, and with it our copy of their end, is gone: when the child ends, so does what it says.
    let mut said = Vec::new();
    (&mut ours).take(MAX_MESSAGE_BYTES).read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said);
    Ok(match said.strip_prefix(UP) {
        Some(message) => Launched::Up(message.to_owned()),
        None => {
            let status = child.wait()?;
            let log = log.display();
            let silent = format!("it ended before it was up ({status}): see {log}");
            Launched::Failed(if said.is_empty() { silent } else { said.into_owned() })
        }
    })
}

/// The background process's end of the pipe. Dropped without a word, the parent says that the start failed.
pub struct Readiness(UnixStream);

/// In the background process: leaves the terminal and takes the pipe. `None` in a process that a person or an init
/// system started. To be called first.
///
/// # Errors
/// When the descriptors are not as [`launch`] left them.
pub fn readiness() -> io::Result<Option<Readiness>> {
    if std::env::var_os(READY_FD).is_none_or(|fd| fd != READY_FD_IS) {
        return Ok(None);
    }
    let pipe = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    match setsid() {
        // It leads its group already: then it has no terminal to leave.
        Ok(_) | Err(Errno::EPERM) => Ok(Some(Readiness(UnixStream::from(pipe)))),
        Err(error) => Err(error.into()),
    }
}

impl Readiness {
    /// It is up; the parent prints `message` and exits with 0.
    pub fn up(mut self, message: &str) {
        // A parent that was interrupted does not hear it, and the daemon goes on.
        let _ = self.0.write_all(format!("{UP}{message}").as_bytes());
    }

    /// It is not; the parent prints `message` and exits with 1.
    pub fn failed(mut self, message: &str) {
        let _ = self.0.write_all(message.as_bytes());
    }
}

/// Why a daemon was not stopped.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    #[error("no {program} runs with the state in {}", state_dir.display())]
    NotRunning { program: &'static str, state_dir: PathBuf },
    #[error("process {pid}, which has the state in {}, is {runs}, not {program}: stop that one", state_dir.display())]
    OtherProgram { program: &'static str, state_dir: PathBuf, pid: i32, runs: String },
    #[error("{}: {source}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("process {pid} cannot be stopped: {source}")]
    Signal { pid: i32, source: io::Error },
    #[error("process {pid} has not ended within {after_s} s")]
    StillRunning { pid: i32, after_s: u64 },
}

/// Sends SIGTERM to the `program` that holds `lock`, a file in `state_dir` with its process id, and waits for its end.
/// The process id.
///
/// # Errors
/// See [`StopError`].
pub fn stop(program: &'static str, state_dir: &Path, lock: &Path, patience: Duration) -> Result<i32, StopError> {
    let not_running = || StopError::NotRunning { program, state_dir: state_dir.to_path_buf() };
    let failed = |source| StopError::Lock { path: lock.to_path_buf(), source };
    let open = || match OpenOptions::new().read(true).write(true).open(lock) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    };
    let is_held =
        |file: File| matches!(Flock::lock(file, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK)));
    let mut file = open()?.ok_or_else(not_running)?;
    let mut digits = String::new();
    Read::take(&mut file, 20).read_to_string(&mut digits).map_err(failed)?;
    if !is_held(file) {
        return Err(not_running());
    }
    let pid: i32 = digits.trim().parse().map_err(|_| not_running())?;
    let runs = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    if runs != program {
        return Err(StopError::OtherProgram { program, state_dir: state_dir.to_path_buf(), pid, runs });
    }
    kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|errno| StopError::Signal { pid, source: errno.into() })?;
    let began = Instant::now();
    while open()?.is_some_and(is_held) {
        if began.elapsed() > patience {
            return Err(StopError::StillRunning { pid, after_s: patience.as_secs() });
        }
        std::thread::sleep(STOP_POLL);
    }
    Ok(pid)
}

/// Lets this process have as many descriptors as it may ask for: connections and files each take one.
pub fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Without it fewer connections are taken, no worse.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn named(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn nobody_to_stop_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        let stopped = || stop("trackerd", dir.path(), &lock, PATIENCE);
        assert!(matches!(stopped(), Err(StopError::NotRunning { .. })));
        // Left behind by a process that was killed; its number may be another's by now.
        fs::write(&lock, std::process::id().to_string()).unwrap();
        assert!(matches!(stopped(), Err(StopError::NotRunning { .. })));
    }

    #[test]
    fn another_program_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        fs::write(&lock, std::process::id().to_string()).unwrap();
        let held =
            Flock::lock(File::open(&lock).unwrap(), FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
        let error = stop("trackerd", dir.path(), &lock, PATIENCE).unwrap_err();
        assert!(matches!(error, StopError::OtherProgram { .. }), "{error}");
        drop(held);
    }
}
