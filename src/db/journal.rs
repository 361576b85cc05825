//! What was promised and may not be in the database yet. A batch is noted before anybody is told of it; a process that is
//! killed finds it here when it starts again, for what was handed to the kernel stays. Against power loss it helps nothing:
//! that is what the database's barrier is for, and what another run of the machine has noted does not count.
//!
//! Two files take turns: one is written to while the database takes what the other holds. Each begins with a line that
//! names the schema and this run of the machine; then follows for each batch a [`record`]: a number that goes up by one
//! (u64 LE), and its operations.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::packed::{batch_of, put_batch};
use super::schema::SCHEMA_VERSION;
use super::{Batch, record};

const FILES: [&str; 2] = ["journal.0", "journal.1"];
const VERSION: u8 = 1;
/// Names this run of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

pub struct Journal {
    files: [Leaf; 2],
    /// Which of them is written to.
    current: usize,
    next: u64,
}

struct Leaf {
    file: File,
    /// Where the last whole note ends; what lies behind is written over.
    end: u64,
    first_line: Vec<u8>,
}

impl Journal {
    /// Opens the journal in `dir`, or makes it. Beside it everything that was noted and not cleared, in order: to be
    /// committed, and then cleared by [`Journal::clear`].
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(dir: &Path) -> io::Result<(Journal, Batch)> {
        Journal::open_of_run(dir, fs::read_to_string(BOOT_ID).ok().as_deref())
    }

    fn open_of_run(dir: &Path, run: Option<&str>) -> io::Result<(Journal, Batch)> {
        let first_line = format!("peerd journal, schema {SCHEMA_VERSION}, {}\n", run.unwrap_or("unknown").trim_end());
        let mut notes = Vec::new();
        for name in FILES {
            match fs::read(dir.join(name)) {
                Ok(bytes) if run.is_some() => read_notes(&bytes, first_line.as_bytes(), &mut notes),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        notes.sort_unstable_by_key(|(number, _)| *number);
        // The files are kept as they are until what they hold is committed: the next note has a place behind all others.
        let next = notes.last().map_or(0, |(number, _)| number + 1);
        let leaf = |name| -> io::Result<Leaf> {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(name))?;
            Ok(Leaf { end: file.metadata()?.len(), file, first_line: first_line.clone().into_bytes() })
        };
        let mut all = Batch::new();
        notes.into_iter().for_each(|(_, batch)| all.append(batch));
        Ok((Journal { files: [leaf(FILES[0])?, leaf(FILES[1])?], current: 0, next }, all))
    }

    /// What was found is in the database.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn clear(&mut self) -> io::Result<()> {
        self.files.iter_mut().try_for_each(Leaf::clear)
    }

    /// # Errors
    /// When the disk does not take it: nothing was noted then.
    pub fn note(&mut self, batch: &Batch) -> io::Result<()> {
        let mut note = self.next.to_le_bytes().to_vec();
        put_batch(batch, &mut note);
        self.files[self.current].append(&record::seal(VERSION, &note))?;
        self.next += 1;
        Ok(())
    }

    /// What is noted from here on goes into the other file; not while that one is still needed.
    pub fn turn(&mut self) {
        if self.files[1 - self.current].is_clear() {
            self.current = 1 - self.current;
        }
    }

    /// What was noted before the last turn is in the database.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn clear_before_turn(&mut self) -> io::Result<()> {
        self.files[1 - self.current].clear()
    }
}

impl Leaf {
    fn append(&mut self, note: &[u8]) -> io::Result<()> {
        self.file.write_all_at(note, self.end)?;
        self.end += note.len() as u64;
        Ok(())
    }

    fn is_clear(&self) -> bool {
        self.end == self.first_line.len() as u64
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(&self.first_line, 0)?;
        self.end = self.first_line.len() as u64;
        Ok(())
    }
}

/// Numbers and batches of a file of this run, until something is no note: the end, or half of one.
fn read_notes(bytes: &[u8], first_line: &[u8], notes: &mut Vec<(u64, Batch)>) {
    let Some(mut rest) = bytes.strip_prefix(first_line) else { return };
    while let Some(&[l0, l1, l2, l3]) = rest.get(1..5).and_then(|length| length.first_chunk()) {
        let whole = record::HEADER_BYTES + u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let Some((note, behind)) = rest.split_at_checked(whole) else { return };
        let Ok(content) = record::open(VERSION, note) else { return };
        let Some((number, ops)) = content.split_first_chunk() else { return };
        notes.push((u64::from_le_bytes(*number), batch_of(ops)));
        rest = behind;
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{A, keys};
    use super::super::{MemStore, Store};
    use super::*;

    const RUN: Option<&str> = Some("one run");

    fn put(key: u8) -> Batch {
        let mut batch = Batch::new();
        batch.put(A, &[key], vec![key; 5]);
        batch.delete(A, &[key - 1]);
        batch
    }

    fn found(dir: &Path, run: Option<&str>) -> Vec<Vec<u8>> {
        let (_, batch) = Journal::open_of_run(dir, run).unwrap();
        let store = MemStore::new();
        store.commit(batch).unwrap();
        keys(&store, A, b"")
    }

    #[test]
    fn what_was_noted_and_not_cleared_is_found_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, found_first) = Journal::open_of_run(dir.path(), RUN).unwrap();
        assert!(found_first.is_empty());
        journal.clear().unwrap();
        journal.note(&put(1)).unwrap();
        journal.note(&put(2)).unwrap();
        journal.turn();
        journal.note(&put(3)).unwrap();
        assert_eq!(found(dir.path(), RUN), [[3]], "each note deletes what the one before put");
        journal.clear_before_turn().unwrap();
        journal.note(&put(4)).unwrap();
        journal.turn();
        journal.note(&put(9)).unwrap();
        journal.turn();
        journal.note(&put(7)).unwrap();
        assert_eq!(found(dir.path(), RUN), [[4], [7], [9]], "no turn while the other file is needed");
        journal.clear().unwrap();
        assert!(found(dir.path(), RUN).is_empty());
    }

    #[test]
    fn what_was_found_stays_until_it_is_cleared_and_half_a_note_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open_of_run(dir.path(), RUN).unwrap();
        journal.clear().unwrap();
        journal.note(&put(5)).unwrap();
        let whole = fs::read(dir.path().join(FILES[0])).unwrap();
        journal.note(&put(9)).unwrap();
        assert_eq!(found(dir.path(), RUN), [[5], [9]]);
        assert_eq!(found(dir.path(), RUN), [[5], [9]], "opening alone takes nothing away");
        let longer = fs::read(dir.path().join(FILES[0])).unwrap();
        for cut in whole.len()..longer.len() {
            fs::write(dir.path().join(FILES[0]), &longer[..cut]).unwrap();
            assert_eq!(found(dir.path(), RUN), [[5]], "{cut}");
        }
    }

    #[test]
    fn another_run_of_the_machine_has_noted_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open_of_run(dir.path(), RUN).unwrap();
        journal.clear().unwrap();
        journal.note(&put(5)).unwrap();
        assert!(found(dir.path(), Some("another")).is_empty());
        assert!(found(dir.path(), None).is_empty());
        assert_eq!(found(dir.path(), RUN), [[5]]);
    }
}
