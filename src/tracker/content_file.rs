//! `search_content.txt`: one line for each file that the catalogue knows, for people and their scripts.
//!
//! The file follows the registry: publications are appended, withdrawals leave it by a rewrite into a new file that takes
//! its place. After a crash it is put right from itself; only what it lacks is read from the `.torrent`s.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::keyed_hash::BuildKeyedHasher;
use crate::wire::id::InfoHash;
use crate::wire::name::{escape_for_terminal, split_extension};

pub const FILE_NAME: &str = "search_content.txt";
/// No line is longer: a name of 255 bytes, each escaped in six characters, and what stands around it.
const MAX_LINE_BYTES: usize = 255 * 6 + 128;
/// In place of the lines that are held of a torrent: all that it has.
const RIGHT: u32 = 0;

/// One line, as the format demands it to the letter.
pub fn line(file_name: &str, key: &InfoHash) -> String {
    let (name, file_type) = split_extension(file_name);
    let (name, file_type) = (escape_for_terminal(name), escape_for_terminal(file_type));
    format!("Name : {name} type: {file_type} tor : {key}.torrent\n")
}

/// The torrent that a line belongs to; `None` for a line that is not whole.
fn key_of(line: &str) -> Option<InfoHash> {
    let rest = line.strip_suffix(".torrent\n")?;
    let (rest, key) = rest.split_at_checked(rest.len().checked_sub(2 * InfoHash::LEN)?)?;
    if rest.ends_with(" tor : ") { key.parse().ok() } else { None }
}

pub struct ContentFile {
    path: PathBuf,
    file: File,
}

impl ContentFile {
    /// Opens the file in `state_dir` and makes it hold what it must: `live` says how many lines, one at least, each torrent
    /// has that can be found. The torrents whose lines are missing, for [`ContentFile::append`].
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(
        state_dir: &Path,
        live: impl Iterator<Item = (InfoHash, u32)>,
    ) -> io::Result<(ContentFile, Vec<InfoHash>)> {
        let path = state_dir.join(FILE_NAME);
        let room = live.size_hint().1.unwrap_or_default();
        let mut held: HashMap<InfoHash, u32, _> = HashMap::with_capacity_and_hasher(room, BuildKeyedHasher);
        let mut broken = false;
        for_each_line(&path, |line| {
            match key_of(line) {
                Some(key) => *held.entry(key).or_default() += 1,
                None => broken = true,
            }
            Ok(())
        })?;
        let (mut right, mut missing) = (0, Vec::new());
        for (key, lines) in live {
            match held.get_mut(&key) {
                Some(held) if *held == lines => (*held, right) = (RIGHT, right + 1),
                _ => missing.push(key),
            }
        }
        if broken || right < held.len() {
            rewrite(&path, |key| held.get(key) == Some(&RIGHT))?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        Ok((ContentFile { path, file }, missing))
    }

    /// # Errors
    /// When the disk fails.
    pub fn append(&mut self, lines: &str) -> io::Result<()> {
        self.file.write_all(lines.as_bytes())
    }

    /// Takes out every line of these torrents.
    ///
    /// # Errors
    /// When the disk fails; the file is as before then.
    pub fn remove(&mut self, gone: &HashSet<InfoHash>) -> io::Result<()> {
        rewrite(&self.path, |key| !gone.contains(key))?;
        self.file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        Ok(())
    }
}

/// The file, opened, and how many bytes of it are whole lines: its end may be half of one that is being appended.
///
/// # Errors
/// When it cannot be read.
pub fn open_whole_lines(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let looked_at = len.min(MAX_LINE_BYTES as u64);
    let mut end = vec![0; looked_at as usize];
    file.read_exact_at(&mut end, len - looked_at)?;
    let torn = end.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
    Ok((file, len - torn))
}

/// Keeps the lines of those torrents that `keep` says. Readers see the old file or the new one.
fn rewrite(path: &Path, keep: impl Fn(&InfoHash) -> bool) -> io::Result<()> {
    let beside = path.with_extension("txt.new");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&beside)?);
    for_each_line(path, |line| {
        if key_of(line).is_some_and(|key| keep(&key)) { out.write_all(line.as_bytes()) } else { Ok(()) }
    })?;
    out.flush()?;
    fs::rename(&beside, path)
}

/// Every line with its line feed; what is longer than a line can be comes in pieces, which are no lines.
fn for_each_line(path: &Path, mut each: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        io::Read::take(&mut reader, MAX_LINE_BYTES as u64).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            return Ok(());
        }
        each(&String::from_utf8_lossy(&bytes))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> InfoHash {
        InfoHash::new([n; 20])
    }

    #[test]
    fn the_format_is_exact() {
        let hex = "07".repeat(20);
        for (name, start) in [
            ("got5.mp4", "Name : got5 type: mp4 tor : "),
            ("got5", "Name : got5 type: - tor : "),
            ("a.b.tar.gz", "Name : a.b.tar type: gz tor : "),
            (".profile", "Name : .profile type: - tor : "),
            ("two\nlines\u{1b}[31m.txt", "Name : two\\u000Alines\\u001B[31m type: txt tor : "),
            ("Фильм 東京 \"x\".mkv", "Name : Фильм 東京 \"x\" type: mkv tor : "),
        ] {
            let line = line(name, &key(7));
            assert_eq!(line, format!("{start}{hex}.torrent\n"));
            assert_eq!(key_of(&line), Some(key(7)));
        }
        assert!(line(&"\u{1}".repeat(255), &key(7)).len() <= MAX_LINE_BYTES);
        // A name that imitates a line's end fools nobody.
        let sly = format!("x tor : {}.torrent", "08".repeat(20));
        assert_eq!(key_of(&line(&sly, &key(7))), Some(key(7)));
    }

    #[test]
    fn publishes_and_withdrawals() {
        let dir = tempfile::tempdir().unwrap();
        let read = || fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        let (mut file, missing) = ContentFile::open(dir.path(), std::iter::empty()).unwrap();
        assert!(missing.is_empty());
        let lines: Vec<String> = (1..5).map(|n| line(&format!("file{n}.txt"), &key(n))).collect();
        file.append(&lines.concat()).unwrap();
        file.remove(&HashSet::from([key(2), key(9)])).unwrap();
        file.append(&line("more", &key(5))).unwrap();
        assert_eq!(read(), [&lines[0], &lines[2], &lines[3], &line("more", &key(5))].map(String::as_str).concat());
    }

    #[test]
    fn readers_get_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let lines = line("a.txt", &key(1)) + &line("b.txt", &key(2));
        for (content, whole) in [
            (String::new(), 0),
            (lines.clone(), lines.len()),
            (lines.clone() + "Name : c", lines.len()),
            ("Name : half of the first".to_owned(), 0),
        ] {
            fs::write(&path, content).unwrap();
            let (_, bytes) = open_whole_lines(&path).unwrap();
            assert_eq!(bytes, whole as u64);
        }
    }

    #[test]
    fn what_a_crash_left_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let two = line("a.txt", &key(2)) + &line("b.txt", &key(2));
        // 1 is right, 2 lacks a file, 3 is no longer live, 4 was never written, the last line is torn.
        let torn = &line("d", &key(4))[..30];
        let before = line("1", &key(1)) + &line("a.txt", &key(2)) + &line("3", &key(3)) + torn;
        fs::write(&path, before).unwrap();
        let live = [(key(1), 1), (key(2), 2), (key(4), 1)];
        let (mut file, mut missing) = ContentFile::open(dir.path(), live.into_iter()).unwrap();
        missing.sort();
        assert_eq!(missing, [key(2), key(4)]);
        file.append(&two).unwrap();
        file.append(&line("d", &key(4))).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line("1", &key(1)) + &two + &line("d", &key(4)));
        let (_, missing) = ContentFile::open(dir.path(), live.into_iter()).unwrap();
        assert!(missing.is_empty());
    }
}
