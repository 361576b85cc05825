//! Plays a scenario: nodes meet in conservative windows.
//!
//! Nothing that one node does reaches another sooner than the least delay between any two. So all nodes may be played
//! through a window of that length one after the other, or on several threads at once; what they sent is handed over at
//! its end. A node takes what reaches it in the order of time, sender and the sender's own count, whoever played first:
//! the outcome is the same on any number of threads. Playing a node through a whole window also finds its memory warm.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Duration;

use super::node::{Desk, Mail, Node};
use super::outcome::Outcome;
use super::scenario::{START, Scenario};
use crate::clock::Time;

/// The shortest window: delays of less are treated as this. Smaller ones change nothing that can be measured and cost
/// a round of all nodes each.
const MIN_WINDOW: Duration = Duration::from_micros(20);

/// What the threads of one run share.
struct Table<'a> {
    scenario: &'a Scenario,
    threads: usize,
    window: Duration,
    barrier: Barrier,
    /// Mail for the nodes of each thread.
    trays: Vec<Mutex<Vec<Mail>>>,
    /// Of each thread: when something happens next, in nanoseconds.
    next: Vec<AtomicU64>,
    /// Of each thread: nodes that the run waits for.
    awaited: Vec<AtomicUsize>,
    failed: AtomicBool,
}

pub fn run(scenario: &Scenario) -> Outcome {
    let threads = scenario.threads.clamp(1, scenario.peers.len().max(1));
    let table = Table {
        scenario,
        threads,
        window: scenario.links.delay.start.max(MIN_WINDOW),
        barrier: Barrier::new(threads),
        trays: (0..threads).map(|_| Mutex::default()).collect(),
        next: (0..threads).map(|_| AtomicU64::new(START.as_nanos())).collect(),
        awaited: (0..threads).map(|_| AtomicUsize::new(1)).collect(),
        failed: AtomicBool::new(false),
    };
    let table = &table;
    let shares: Vec<Vec<Node>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || play(table, thread))).collect();
        let mut shares = vec![play(table, 0)];
        shares.extend(others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))));
        shares
    });
    let mut nodes: Vec<Node> = shares.into_iter().flatten().collect();
    nodes.sort_by_key(|node| node.index);
    Outcome::new(scenario, nodes)
}

/// One thread's part: every `threads`-th node. All threads agree on each window and on the last one.
fn play(table: &Table<'_>, thread: usize) -> Vec<Node> {
    let mut share = Share::new(table, thread);
    let mut panicked = None;
    loop {
        table.barrier.wait();
        let all = |numbers: &[AtomicUsize]| numbers.iter().map(|number| number.load(Ordering::Relaxed)).sum::<usize>();
        let start = table.next.iter().map(|next| next.load(Ordering::Relaxed)).min().map(Time::from_nanos);
        let last = START + table.scenario.limit;
        let Some(start) = start.filter(|start| *start < last && all(&table.awaited) > 0) else { break };
        if table.failed.load(Ordering::Relaxed) {
            break;
        }
        let end = start + table.window;
        // A thread that fails still meets the others, so that they can stop.
        panicked = panicked.or(catch_unwind(AssertUnwindSafe(|| share.play_window(end))).err());
        table.barrier.wait();
        share.take_mail();
        if panicked.is_some() {
            table.failed.store(true, Ordering::Relaxed);
        }
    }
    panicked.map_or(share.nodes, |panic| resume_unwind(panic))
}

/// The nodes of one thread.
struct Share<'a> {
    table: &'a Table<'a>,
    thread: usize,
    nodes: Vec<Node>,
    desk: Desk,
}

impl<'a> Share<'a> {
    fn new(table: &'a Table<'a>, thread: usize) -> Share<'a> {
        let indices = (thread..table.scenario.peers.len()).step_by(table.threads);
        let nodes = indices.map(|index| Node::new(index as u32, table.scenario)).collect();
        Share { table, thread, nodes, desk: Desk::new(table.threads) }
    }

    fn play_window(&mut self, end: Time) {
        for node in self.nodes.iter_mut().filter(|node| node.next_event() < end) {
            node.play(end, self.table.scenario, &mut self.desk);
        }
        for (thread, mail) in self.desk.mail.iter_mut().enumerate() {
            debug_assert!(mail.iter().all(|mail| mail.arrival.at >= end), "an arrival within its own window");
            if thread != self.thread {
                self.table.trays[thread].lock().unwrap_or_else(PoisonError::into_inner).append(mail);
            }
        }
    }

    /// Takes what was sent to its nodes, and says how they stand.
    fn take_mail(&mut self) {
        let mut tray = self.table.trays[self.thread].lock().unwrap_or_else(PoisonError::into_inner);
        for mail in tray.drain(..).chain(self.desk.mail[self.thread].drain(..)) {
            self.nodes[mail.to as usize / self.table.threads].put(mail.arrival);
        }
        let next = self.nodes.iter().map(Node::next_event).min().map_or(u64::MAX, Time::as_nanos);
        let awaited = self.nodes.iter().filter(|node| !node.is_through()).count();
        self.table.next[self.thread].store(next, Ordering::Relaxed);
        self.table.awaited[self.thread].store(awaited, Ordering::Relaxed);
    }
}
