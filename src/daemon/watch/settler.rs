//! When a file has settled: a rule without clock or files.
//!
//! A file that was *closed* after writing, or moved in, has settled when its size and mtime are the same 250 ms later.
//! Without such a sign it must not have changed for 3 s. Either way it is [checked](Output::Check) once more, and as long
//! as a process holds it open for writing it waits: a download that stalls is not a file.
//!
//! Whoever drives this calls [`Settler::handle_event`] with what was seen and [`Settler::handle_timeout`] when
//! [`Settler::next_timeout`] has come, takes outputs from [`Settler::poll_output`] until there are none, and answers each
//! `Check` by `Checked` or `Gone`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use super::FileStat;
use crate::clock::Time;
use crate::wire::name::RelPath;

/// How long a closed file must stay the same.
const CLOSED_QUIET: Duration = Duration::from_millis(250);
/// How long a file that nobody was seen to close must stay the same.
const UNCLOSED_QUIET: Duration = Duration::from_secs(3);
/// How seldom, at most, a file is checked that a process keeps open. Its close is notified; this is for one that is not.
const MAX_RECHECK: Duration = Duration::from_secs(30);

/// How a file came to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It lay there at the start, and its mtime is many seconds old.
    FoundOld,
    /// Reading a directory.
    Found,
    /// Its attributes changed: mode, owner, times, number of links.
    Attributes,
    /// It was created or written to.
    Written,
    /// It was closed by a writer, or moved here.
    Closed,
}

/// Whether a process holds a file open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    None,
    Open,
    /// The system would not say.
    Unknown,
}

/// What the shell saw.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A file that may be shared lies there.
    File { path: &'a RelPath, stat: FileStat, cause: Cause },
    /// Nothing that may be shared lies there any more, nor below it.
    Gone { path: &'a RelPath },
    /// The answer to [`Output::Check`].
    Checked { path: &'a RelPath, stat: FileStat, writer: Writer },
}

/// What the shell shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Stat the file and see whether somebody writes to it; answer by [`Input::Checked`], or [`Input::Gone`].
    Check(RelPath),
    Settled(RelPath, FileStat),
    Changing(RelPath),
    Removed(RelPath),
}

/// What was said last about a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Nothing,
    Settled,
    Changing,
}

#[derive(Debug)]
struct Known {
    stat: FileStat,
    told: Told,
    /// The scan that saw it last.
    scan: u32,
}

#[derive(Debug)]
struct Waiting {
    /// When it was last seen to change.
    changed: Time,
    closed: bool,
    /// When to check it; `None` while the answer to a check is due.
    due: Option<Time>,
}

/// Every file below the root, and which of them are still in motion.
#[derive(Debug, Default)]
pub struct Settler {
    files: BTreeMap<RelPath, Known>,
    waiting: BTreeMap<RelPath, Waiting>,
    due: BTreeSet<(Time, RelPath)>,
    outputs: VecDeque<Output>,
    scan: u32,
}

impl Settler {
    pub fn new() -> Settler {
        Settler::default()
    }

    pub fn handle_event(&mut self, now: Time, input: Input<'_>) {
        match input {
            Input::File { path, stat, cause } => self.file(now, path, stat, cause),
            Input::Gone { path } => self.gone(path),
            Input::Checked { path, stat, writer } => self.checked(now, path, stat, writer),
        }
    }

    /// Asks for the checks that are due.
    pub fn handle_timeout(&mut self, now: Time) {
        while self.due.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, path)) = self.due.pop_first() else { return };
            if let Some(waiting) = self.waiting.get_mut(&path) {
                waiting.due = None;
            }
            self.outputs.push_back(Output::Check(path));
        }
    }

    pub fn next_timeout(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// From here to [`Settler::scan_ended`] every file that is there is told.
    pub fn scan_started(&mut self) {
        self.scan = self.scan.wrapping_add(1);
    }

    /// A directory could not be read: what was known below it stays.
    pub fn scan_failed(&mut self, folder: Option<&RelPath>) {
        for path in self.below(folder) {
            if let Some(known) = self.files.get_mut(&path) {
                known.scan = self.scan;
            }
        }
    }

    /// Whatever lies at or below `top` (everywhere, if `None`) and was not told since [`Settler::scan_started`] is gone.
    pub fn scan_ended(&mut self, top: Option<&RelPath>) {
        for path in self.below(top).into_iter().chain(top.cloned()) {
            if self.files.get(&path).is_some_and(|known| known.scan != self.scan) {
                self.forget(&path);
            }
        }
    }

    /// The known paths below a folder.
    fn below(&self, folder: Option<&RelPath>) -> Vec<RelPath> {
        let start = folder.map_or_else(Vec::new, |folder| [folder.as_bytes(), b"/"].concat());
        let range = (Bound::Included(&start[..]), Bound::Unbounded);
        let paths = self.files.range::<[u8], _>(range).map(|(path, _)| path);
        paths.take_while(|path| path.as_bytes().starts_with(&start)).cloned().collect()
    }

    fn file(&mut self, now: Time, path: &RelPath, stat: FileStat, cause: Cause) {
        let Some(known) = self.files.get_mut(path) else {
            self.files.insert(path.clone(), Known { stat, told: Told::Nothing, scan: self.scan });
            return self.wait(now, path, cause);
        };
        let (same, same_bytes) = (known.stat == stat, known.stat.same_bytes(&stat));
        known.stat = stat;
        known.scan = self.scan;
        if !same_bytes && known.told == Told::Settled {
            known.told = Told::Changing;
            self.outputs.push_back(Output::Changing(path.clone()));
        }
        match self.waiting.get(path) {
            None if same => {}
            None => self.wait(now, path, cause),
            Some(_) if cause == Cause::Closed => self.wait(now, path, cause),
            Some(_) if same_bytes => {}
            // Programs that copy set the times after they have closed.
            Some(waiting) if waiting.closed && cause == Cause::Attributes => self.wait(now, path, Cause::Closed),
            Some(_) => self.wait(now, path, cause),
        }
    }

    /// Begins to wait, anew if need be.
    fn wait(&mut self, now: Time, path: &RelPath, cause: Cause) {
        let quiet = match cause {
            Cause::FoundOld => Duration::ZERO,
            Cause::Closed => CLOSED_QUIET,
            Cause::Found | Cause::Attributes | Cause::Written => UNCLOSED_QUIET,
        };
        self.stop_waiting(path);
        let due = now + quiet;
        self.waiting.insert(path.clone(), Waiting { changed: now, closed: cause == Cause::Closed, due: Some(due) });
        self.due.insert((due, path.clone()));
    }

    fn stop_waiting(&mut self, path: &RelPath) {
        if let Some((path, Waiting { due: Some(due), .. })) = self.waiting.remove_entry(path) {
            self.due.remove(&(due, path));
        }
    }

    fn checked(&mut self, now: Time, path: &RelPath, stat: FileStat, writer: Writer) {
        let (Some(known), Some(waiting)) = (self.files.get_mut(path), self.waiting.get_mut(path)) else { return };
        if waiting.due.is_some() {
            // It was seen to change after the check was asked for: another one will come.
            return;
        }
        if !known.stat.same_bytes(&stat) {
            return self.file(now, path, stat, Cause::Written);
        }
        known.stat = stat;
        if writer == Writer::Open {
            let due = now + (now.since(waiting.changed) / 2).clamp(UNCLOSED_QUIET, MAX_RECHECK);
            waiting.closed = false;
            waiting.due = Some(due);
            self.due.insert((due, path.clone()));
            return;
        }
        known.told = Told::Settled;
        self.waiting.remove(path);
        self.outputs.push_back(Output::Settled(path.clone(), stat));
    }

    fn gone(&mut self, path: &RelPath) {
        self.forget(path);
        for path in self.below(Some(path)) {
            self.forget(&path);
        }
    }

    fn forget(&mut self, path: &RelPath) {
        self.stop_waiting(path);
        if let Some((path, known)) = self.files.remove_entry(path)
            && known.told != Told::Nothing
        {
            self.outputs.push_back(Output::Removed(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system and a shell in one: what is true, and what was said about it.
    #[derive(Default)]
    struct World {
        settler: Settler,
        now_ms: u64,
        files: BTreeMap<&'static str, (FileStat, Writer)>,
        said: Vec<String>,
    }

    fn path(path: &str) -> RelPath {
        RelPath::parse(path.as_bytes()).unwrap()
    }

    impl World {
        fn now(&self) -> Time {
            Time::from_nanos(self.now_ms * 1_000_000)
        }

        /// Somebody writes to a file: it has `size` bytes now, `writer` says whether it stays open.
        fn write(&mut self, name: &'static str, ino: u64, size: u64, writer: Writer) {
            let now_ns = self.now_ms as i64 * 1_000_000;
            let stat = FileStat { dev: 1, ino, size, mtime_ns: now_ns, ctime_ns: now_ns };
            self.files.insert(name, (stat, writer));
        }

        /// The shell was notified and looks.
        fn look(&mut self, name: &'static str, cause: Cause) {
            let (now, path) = (self.now(), path(name));
            let input = match self.files.get(name) {
                Some((stat, _)) => Input::File { path: &path, stat: *stat, cause },
                None => Input::Gone { path: &path },
            };
            self.settler.handle_event(now, input);
            self.drain();
        }

        fn close(&mut self, name: &'static str) {
            if let Some((_, writer)) = self.files.get_mut(name) {
                *writer = Writer::None;
            }
            self.look(name, Cause::Closed);
        }

        fn drain(&mut self) {
            while let Some(output) = self.settler.poll_output() {
                let say = |what: &str, path: RelPath| format!("{} {what} {path}", self.now_ms);
                match output {
                    Output::Settled(path, stat) => self.said.push(format!("{} {}", say("settled", path), stat.size)),
                    Output::Changing(path) => self.said.push(say("changing", path)),
                    Output::Removed(path) => self.said.push(say("removed", path)),
                    Output::Check(path) => {
                        let now = self.now();
                        let found = self.files.iter().find(|(name, _)| name.as_bytes() == path.as_bytes());
                        let input = match found {
                            Some((_, &(stat, writer))) => Input::Checked { path: &path, stat, writer },
                            None => Input::Gone { path: &path },
                        };
                        self.settler.handle_event(now, input);
                    }
                }
            }
        }

        /// Time passes; every deadline on the way is kept.
        fn until(&mut self, ms: u64) {
            while let Some(due) = self.settler.next_timeout().map(|due| due.as_nanos().div_ceil(1_000_000)) {
                if due > ms {
                    break;
                }
                self.now_ms = self.now_ms.max(due);
                self.settler.handle_timeout(self.now());
                self.drain();
            }
            self.now_ms = ms;
        }
    }

    #[test]
    fn a_closed_file_settles_a_quarter_second_later() {
        let mut world = World::default();
        world.write("a", 1, 10, Writer::Open);
        world.look("a", Cause::Written);
        world.until(100);
        world.write("a", 1, 20, Writer::Open);
        world.close("a");
        world.until(10_000);
        assert_eq!(world.said, ["350 settled a 20"]);
    }

    #[test]
    fn a_browser_and_rsync_rename_into_place() {
        // The name under which they write is never looked at: it is refused before it comes here.
        let mut world = World::default();
        world.until(5000);
        world.write("x", 1, 10, Writer::None);
        world.look("x", Cause::Closed);
        // rsync sets the times before it renames, other tools after.
        world.until(5200);
        world.write("x", 1, 10, Writer::None);
        world.look("x", Cause::Attributes);
        world.until(20_000);
        assert_eq!(world.said, ["5450 settled x 10"]);
    }

    #[test]
    fn a_writer_that_stalls_is_waited_for() {
        let mut world = World::default();
        for second in 0..30 {
            if !(10..20).contains(&second) {
                world.write("big", 1, second << 20, Writer::Open);
                world.look("big", Cause::Written);
            }
            world.until((second + 1) * 1000);
        }
        assert!(world.said.is_empty(), "{:?}", world.said);
        world.write("big", 1, 1 << 30, Writer::Open);
        world.close("big");
        world.until(60_000);
        assert_eq!(world.said, [format!("30250 settled big {}", 1 << 30)]);
    }

    #[test]
    fn another_writer_keeps_a_closed_file_waiting() {
        let mut world = World::default();
        world.write("a", 1, 10, Writer::Open);
        world.look("a", Cause::Closed);
        world.until(20_000);
        assert!(world.said.is_empty());
        world.close("a");
        world.until(30_000);
        assert_eq!(world.said, ["20250 settled a 10"]);
    }

    #[test]
    fn a_close_that_nobody_told_is_found_by_checking_seldom() {
        let mut world = World::default();
        world.write("a", 1, 10, Writer::Open);
        world.look("a", Cause::Found);
        world.until(600_000);
        world.write("a", 1, 11, Writer::None);
        world.until(640_000);
        assert_eq!(world.said.len(), 1, "{:?}", world.said);
        assert!(world.said[0].ends_with("settled a 11"));
    }

    #[test]
    fn without_a_close_three_quiet_seconds_are_needed() {
        let mut world = World::default();
        world.write("found", 1, 10, Writer::Unknown);
        world.look("found", Cause::Found);
        world.until(2000);
        world.write("found", 1, 11, Writer::Unknown);
        world.look("found", Cause::Written);
        // Nobody notified us of this one: the check sees it.
        world.until(4000);
        world.write("found", 1, 12, Writer::Unknown);
        world.until(30_000);
        assert_eq!(world.said, ["8000 settled found 12"]);
        world.write("old", 2, 5, Writer::None);
        world.look("old", Cause::FoundOld);
        world.until(30_001);
        assert_eq!(world.said[1..], ["30000 settled old 5"]);
    }

    #[test]
    fn a_settled_file_that_changes_is_said_to_at_once_and_once() {
        let mut world = World::default();
        world.write("a", 1, 10, Writer::None);
        world.look("a", Cause::Closed);
        world.until(1000);
        world.look("a", Cause::Closed);
        world.look("a", Cause::Found);
        world.until(5000);
        world.write("a", 1, 11, Writer::Open);
        world.look("a", Cause::Written);
        world.until(5100);
        world.write("a", 1, 12, Writer::Open);
        world.look("a", Cause::Written);
        world.close("a");
        world.until(10_000);
        let replaced = "a";
        world.write(replaced, 2, 12, Writer::None);
        world.look(replaced, Cause::Closed);
        world.until(20_000);
        assert_eq!(
            world.said,
            ["250 settled a 10", "5000 changing a", "5350 settled a 12", "10000 changing a", "10250 settled a 12",]
        );
    }

    #[test]
    fn a_new_ctime_alone_does_not_stop_serving() {
        let mut world = World::default();
        world.write("a", 1, 10, Writer::None);
        world.look("a", Cause::Closed);
        world.until(1000);
        world.files.get_mut("a").unwrap().0.ctime_ns += 1;
        world.look("a", Cause::Attributes);
        world.until(10_000);
        assert_eq!(world.said, ["250 settled a 10", "4000 settled a 10"]);
    }

    #[test]
    fn what_goes_is_removed_once_and_what_never_settled_is_not_mentioned() {
        let mut world = World::default();
        for name in ["d", "d/a", "d/b", "d-x"] {
            world.write(name, 1, 10, Writer::None);
            world.look(name, Cause::Closed);
        }
        world.until(1000);
        world.said.clear();
        world.write("d/new", 2, 1, Writer::Open);
        world.look("d/new", Cause::Written);
        world.files.clear();
        world.look("d", Cause::Found);
        world.look("d/a", Cause::Found);
        world.until(60_000);
        assert_eq!(world.said, ["1000 removed d", "1000 removed d/a", "1000 removed d/b"]);
        assert_eq!(world.settler.next_timeout(), None);
    }

    #[test]
    fn a_scan_removes_what_it_did_not_find() {
        let mut world = World::default();
        for name in ["a", "d/x", "d/y", "e/z"] {
            world.write(name, 1, 10, Writer::None);
            world.look(name, Cause::Closed);
        }
        world.until(1000);
        world.said.clear();
        world.settler.scan_started();
        world.look("d/y", Cause::Found);
        world.settler.scan_ended(Some(&path("d")));
        world.drain();
        assert_eq!(world.said, ["1000 removed d/x"]);
        world.settler.scan_started();
        world.look("a", Cause::Found);
        world.settler.scan_failed(Some(&path("d")));
        world.settler.scan_ended(None);
        world.drain();
        assert_eq!(world.said[1..], ["1000 removed e/z"]);
    }
}
