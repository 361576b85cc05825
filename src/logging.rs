//! Where the log goes: the terminal, or a file that is rotated by its size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::unistd::{dup2_stderr, dup2_stdout};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// A file that has reached this size becomes `.1`, the one before `.2`.
const ROTATE_BYTES: u64 = 10 << 20;
/// Files kept beside the current one.
const KEEP: u32 = 3;
/// What is logged, in the syntax of `tracing_subscriber::EnvFilter`; `info` if it is not set.
const FILTER: &str = "PEERD_LOG";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Sends the process's log to the terminal (standard error), or to a file.
///
/// # Errors
/// When the file cannot be opened.
pub fn init(format: LogFormat, file: Option<&Path>) -> io::Result<()> {
    match file {
        None => install(format, io::stderr, io::IsTerminal::is_terminal(&io::stderr())),
        Some(path) => install(format, Mutex::new(RotatingFile::open(path, ROTATE_BYTES, true)?), false),
    }
    Ok(())
}

fn install(format: LogFormat, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static, colours: bool) {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    // A second call, as tests make it, changes nothing.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// A file that makes room for itself.
struct RotatingFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// A line may come in pieces, which belong into one file.
    at_line_start: bool,
    rotate_bytes: u64,
    /// The standard outputs point to it: panics and what libraries print belong here too.
    takes_stdio: bool,
}

impl RotatingFile {
    fn open(path: &Path, rotate_bytes: u64, takes_stdio: bool) -> io::Result<RotatingFile> {
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        Ok(RotatingFile { path: path.to_path_buf(), file, bytes, at_line_start: true, rotate_bytes, takes_stdio })
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..KEEP).rev() {
            match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.numbered(1))?;
        self.file = open(&self.path)?;
        self.bytes = 0;
        if self.takes_stdio {
            dup2_stdout(&self.file)?;
            dup2_stderr(&self.file)?;
        }
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.bytes >= self.rotate_bytes && self.at_line_start {
            // When it cannot be rotated it grows: a log that ends would be worse. Tried again after as much more.
            self.bytes = 0;
            let _ = self.rotate();
        }
        let written = self.file.write(line)?;
        self.bytes += written as u64;
        self.at_line_start = line[..written].ends_with(b"\n");
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut log = RotatingFile::open(&path, 100, false).unwrap();
        for n in 0..100 {
            log.write_all(format!("line {n:05}\n").as_bytes()).unwrap();
        }
        let mut names: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["x.log", "x.log.1", "x.log.2", "x.log.3"]);
        let all: Vec<String> = ["x.log.3", "x.log.2", "x.log.1", "x.log"]
            .iter()
            .flat_map(|name| {
                fs::read_to_string(dir.path().join(name)).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        let expected: Vec<String> = (100 - all.len()..100).map(|n| format!("line {n:05}")).collect();
        assert_eq!(all, expected);
        // What an earlier run wrote counts.
        drop(log);
        assert!(RotatingFile::open(&path, 100, false).unwrap().bytes > 0);
    }
}
