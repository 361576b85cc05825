//! A store in a process of its own, told line by line what to do: it can be killed in the middle of anything, and what
//! sled holds for a whole process after an error of the disk is nobody else's.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use peerd::db::{Batch, SledStore, Store, StoreError, Table};
use sha1::{Digest, Sha1};

use crate::support::secs;

const ROWS: Table = Table::new("rows");
/// Names the folder of the store.
const DIR: &str = "PEERD_TEST_STORE";
/// Before each answer, among what the test harness says.
const MARK: &str = "answer: ";

/// A hang limit: ten times what any order takes.
const LIMIT: Duration = secs(400);
/// Keys that `fill` commits at once.
const FILL_KEYS: usize = 10_000;

pub struct Keeper {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Keeper {
    /// Starts the process; the store is opened by the order `open`.
    pub fn start(dir: &Path) -> Keeper {
        let name = "disk::child::tells_its_store_what_comes_by_standard_input";
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", name, "--nocapture"]).env(DIR, dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("start a child");
        let orders = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (sender, answers) = sync_channel(1_000);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Some((_, answer)) = line.split_once(MARK) else { continue };
                if sender.send(answer.to_string()).is_err() {
                    break;
                }
            }
        });
        Keeper { child, orders, answers }
    }

    /// Starts it, and has it open its store.
    #[track_caller]
    pub fn open(dir: &Path) -> Keeper {
        let mut keeper = Keeper::start(dir);
        let answer = keeper.ask("open");
        assert!(answer.starts_with("open"), "{answer}");
        keeper
    }

    pub fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("a living child");
    }

    /// The next answer, if one comes in time; a dead child gives none.
    pub fn answer(&mut self, within: Duration) -> Option<String> {
        self.answers.recv_timeout(within).ok()
    }

    #[track_caller]
    pub fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer(LIMIT).unwrap_or_else(|| panic!("no answer to {order:?} within {LIMIT:?}"))
    }

    /// `ask`, when all but one answer is wrong.
    #[track_caller]
    pub fn expect(&mut self, order: &str, answer: &str) {
        let given = self.ask(order);
        assert_eq!(given, answer, "to {order:?}");
    }

    /// kill -9, now; [`Keeper::reap`] waits until it is gone, which it cannot be while a disk does not answer.
    pub fn kill(&mut self) {
        // It fails only if it has ended already.
        let _ = self.child.kill();
    }

    /// The answers that it had given.
    pub fn reap(mut self) -> Vec<String> {
        self.kill();
        let _ = self.child.wait();
        std::iter::from_fn(|| self.answers.recv().ok()).collect()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// The child's side; nothing when nobody asks for it.
#[test]
fn tells_its_store_what_comes_by_standard_input() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let mut held = Held { dir: dir.into(), store: None, bare: None };
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        println!("{MARK}{}", held.carry_out(&words));
    }
    // Whoever asked is gone, and sled may hang in its drop.
    std::process::exit(0);
}

struct Held {
    dir: std::path::PathBuf,
    store: Option<SledStore>,
    bare: Option<sled::Db>,
}

impl Held {
    fn carry_out(&mut self, words: &[&str]) -> String {
        let number = |at: usize| words.get(at).and_then(|word: &&str| word.parse::<u32>().ok()).expect("a number");
        match words {
            ["open"] => match SledStore::open(&self.dir) {
                Ok(store) => {
                    let answer = store.restored().map_or("open".into(), |done| format!("open, restored {done}"));
                    self.store = Some(store);
                    answer
                }
                Err(error) => format!("failed: {error}"),
            },
            ["commit", ..] => done(self.store().commit(numbered(number(1), number(2)))),
            ["check", ..] => self.check(number(1)),
            ["has", ..] => {
                let row = self.store().get(ROWS, &number(1).to_be_bytes());
                row.map_or_else(|error| format!("failed: {error}"), |row| row.is_some().to_string())
            }
            ["fill", ..] => {
                let mut batches = (0..number(1)).step_by(FILL_KEYS).map(|from| scattered(from, FILL_KEYS as u32));
                done(batches.try_for_each(|batch| self.store().commit(batch)))
            }
            ["peak"] => (crate::support::process::peak_resident_bytes(std::process::id()) >> 20).to_string(),
            ["dump"] => done(self.store().dump()),
            ["close"] => {
                let closed = done(self.store().close());
                self.store = None;
                closed
            }
            // The flusher's own rhythm is kept out of it: it syncs, but half a second after it said that it had.
            ["bare", ..] => {
                let config = sled::Config::new().path(&self.dir).flush_every_ms(Some(60_000));
                let db = self.bare.insert(config.open().expect("a database"));
                for n in 0..number(1) {
                    db.insert([&b"rows\0"[..], &n.to_be_bytes()].concat(), value(n)).expect("an insert");
                }
                db.flush().map_or_else(|error| format!("failed: {error}"), |_| "done".into())
            }
            _ => panic!("{words:?}"),
        }
    }

    fn store(&self) -> &SledStore {
        self.store.as_ref().expect("an open store")
    }

    /// Whether the rows `0..count` are there as they were written.
    fn check(&self, count: u32) -> String {
        let right = |n: &u32| self.store().get(ROWS, &n.to_be_bytes()).is_ok_and(|row| row == Some(value(*n)));
        (0..count).find(|n| !right(n)).map_or("whole".into(), |n| format!("row {n} is missing"))
    }
}

fn done(result: Result<(), StoreError>) -> String {
    result.map_or_else(|error| format!("failed: {error}"), |()| "done".into())
}

fn value(n: u32) -> Vec<u8> {
    n.to_be_bytes().repeat(1 + n as usize % 60)
}

/// Keys as those of torrents are: hashes, in no order.
fn scattered(from: u32, count: u32) -> Batch {
    let mut batch = Batch::new();
    for n in from..from + count {
        batch.put(ROWS, &Sha1::digest(n.to_be_bytes()), n.to_be_bytes().repeat(16));
    }
    batch
}

fn numbered(from: u32, count: u32) -> Batch {
    let mut batch = Batch::new();
    for n in from..from + count {
        batch.put(ROWS, &n.to_be_bytes(), value(n));
    }
    batch
}
