//! What came of a run, and what must hold of every one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::bound::{block_bound_s, fluid_bound_s};
use super::link::{Chunk, payload_bytes_per_s};
use super::node::{Node, What};
use super::scenario::{START, Scenario};
use crate::clock::Time;
use crate::swarm::{PeerFault, SessionReport};

/// What was sent is kept in sums over so long.
const SENT_BIN: Duration = Duration::from_millis(100);

/// What one peer got of another, over all their sessions.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Payload that was of use.
    pub received_bytes: u64,
    /// Payload that came twice or unasked.
    pub wasted_bytes: u64,
    /// Payload in the other direction, as far as it has left the rules.
    pub sent_bytes: u64,
}

/// What is written down of a node while it plays.
#[derive(Debug)]
pub(super) struct Record {
    joined: Time,
    pub completed_at: Option<Time>,
    /// Of each verified piece, in order: milliseconds since the start.
    piece_times_ms: Vec<u32>,
    last_progress: Time,
    longest_wait: Duration,
    /// Payload sent in each [`SENT_BIN`], cumulated on reading.
    sent_bins: Vec<u64>,
    pub neighbours: BTreeSet<u32>,
    transfers: BTreeMap<u32, Transfer>,
    pub faults: Vec<(u32, PeerFault)>,
    pub failed_pieces: u32,
    pub banned: BTreeSet<u32>,
    digest: u64,
    events: u64,
}

impl Record {
    pub fn new(joined: Time) -> Record {
        Record {
            joined,
            completed_at: None,
            piece_times_ms: Vec::new(),
            last_progress: joined,
            longest_wait: Duration::ZERO,
            sent_bins: Vec::new(),
            neighbours: BTreeSet::new(),
            transfers: BTreeMap::new(),
            faults: Vec::new(),
            failed_pieces: 0,
            banned: BTreeSet::new(),
            digest: 0xCBF2_9CE4_8422_2325,
            events: 0,
        }
    }

    /// A block came in.
    pub fn progress(&mut self, now: Time) {
        self.longest_wait = self.longest_wait.max(now.since(self.last_progress));
        self.last_progress = now;
    }

    pub fn piece(&mut self, now: Time) {
        self.piece_times_ms.push(now.since(START).as_millis() as u32);
    }

    pub fn sent(&mut self, now: Time, bytes: u64) {
        let bin = (now.since(START).as_nanos() / SENT_BIN.as_nanos()) as usize;
        if self.sent_bins.len() <= bin {
            self.sent_bins.resize(bin + 1, 0);
        }
        self.sent_bins[bin] += bytes;
    }

    pub fn session(&mut self, peer: u32, report: &SessionReport) {
        let transfer = self.transfers.entry(peer).or_default();
        transfer.received_bytes += report.received_bytes;
        transfer.wasted_bytes += report.wasted_bytes;
        transfer.sent_bytes += report.sent_bytes;
    }

    /// Takes an arrival into the digest of all events.
    pub fn mix(&mut self, now: Time, from: u32, what: &What) {
        let (kind, detail) = match what {
            What::Hello(id) => (1, u64::from(id.0)),
            What::Welcome(id) => (2, u64::from(id.0)),
            What::Refused(twice) => (3, u64::from(*twice)),
            What::Data(chunk) => (4, chunk_digest(chunk)),
            What::Passed(chunk) => (5, chunk_digest(chunk)),
            What::Pause(pause) => (6, pause.as_nanos() as u64),
            What::Bye => (7, 0),
        };
        self.events += 1;
        for word in [now.as_nanos(), u64::from(from) << 8 | kind, detail] {
            self.digest = step(self.digest, word);
        }
    }
}

fn step(digest: u64, word: u64) -> u64 {
    (digest.rotate_left(5) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95)
}

fn chunk_digest(chunk: &Chunk) -> u64 {
    let (words, rest) = chunk.bytes.as_chunks::<8>();
    let digest =
        words.iter().fold(u64::from(chunk.payload_bytes), |digest, word| step(digest, u64::from_le_bytes(*word)));
    rest.iter().fold(digest, |digest, byte| step(digest, u64::from(*byte)))
}

/// One peer's run. Times are since the start of the run.
#[derive(Clone, Debug)]
pub struct PeerOutcome {
    pub class: &'static str,
    pub joined_at: Duration,
    /// `None` for a seed, and for who was not complete at the end.
    pub completed_at: Option<Duration>,
    /// The longest time without a block, from joining to the last one.
    pub longest_wait: Duration,
    /// Pieces whose hash was wrong.
    pub failed_pieces: u32,
    /// Peers that it banned.
    pub banned: BTreeSet<usize>,
    /// Peers that it hung up on, and for what.
    pub faults: Vec<(usize, PeerFault)>,
    /// By peer; only those with whom it had a session.
    pub transfers: BTreeMap<usize, Transfer>,
    piece_times_ms: Vec<u32>,
    sent_bins: Vec<u64>,
    /// Before this no schedule could have completed it, from its joining on.
    bound_s: f64,
    awaited: bool,
}

impl PeerOutcome {
    /// From joining to completion.
    pub fn took_s(&self) -> Option<f64> {
        self.completed_at.map(|at| at.saturating_sub(self.joined_at).as_secs_f64())
    }

    /// Pieces verified by then.
    pub fn pieces_at(&self, at: Duration) -> usize {
        self.piece_times_ms.partition_point(|ms| u128::from(*ms) <= at.as_millis())
    }

    /// Payload that it had sent by then.
    pub fn sent_bytes_at(&self, at: Duration) -> u64 {
        let bins = (at.as_nanos() / SENT_BIN.as_nanos()) as usize;
        self.sent_bins.iter().take(bins).sum()
    }

    pub fn sent_bytes(&self) -> u64 {
        self.sent_bins.iter().sum()
    }

    pub fn wasted_bytes(&self) -> u64 {
        self.transfers.values().map(|transfer| transfer.wasted_bytes).sum()
    }
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub peers: Vec<PeerOutcome>,
    /// Of everything that happened to every node, in order.
    pub digest: u64,
    pub events: u64,
    total_bytes: u64,
    seed: u64,
    /// Before this the last of a flash crowd cannot be complete; `None` where it is none.
    crowd_bound_s: Option<f64>,
}

/// What a run showed that cannot be, or must not.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
pub enum Unsound {
    #[error("peer {peer} took {took_s:.3} s; its links need {bound_s:.3} s")]
    FasterThanItsLinks { peer: usize, took_s: f64, bound_s: f64 },
    #[error("the last peer was complete after {last_s:.3} s; the bound is {bound_s:.3} s")]
    FasterThanTheBound { last_s: f64, bound_s: f64 },
    #[error("peer {peer} has {pieces} pieces at the end")]
    Incomplete { peer: usize, pieces: usize },
    #[error("peer {peer} waited {waited_s:.1} s for a block")]
    Starved { peer: usize, waited_s: f64 },
}

/// Who is awaited and gets no block for so long is *starved*: in this time each of its neighbours gave its optimistic
/// slot to two others, or could have.
const STARVED: Duration = Duration::from_secs(60);

impl Outcome {
    pub(super) fn new(scenario: &Scenario, mut nodes: Vec<Node>) -> Outcome {
        let (mut digest, mut events) = (0, 0);
        for node in &mut nodes {
            node.note_open_sessions();
            digest = step(digest, node.record.digest);
            events += node.record.events;
        }
        let peers = nodes.into_iter().map(|node| peer_outcome(scenario, node)).collect();
        let (total_bytes, crowd_bound_s) = (scenario.layout.total_bytes(), crowd_bound_s(scenario));
        Outcome { peers, digest, events, total_bytes, seed: scenario.seed, crowd_bound_s }
    }

    /// What holds of every run, whoever takes part: nobody beats physics, and whoever is awaited gets everything.
    ///
    /// # Errors
    /// With what does not hold.
    pub fn check(&self) -> Result<(), Unsound> {
        for (peer, it) in self.peers.iter().enumerate() {
            if let Some(took_s) = it.took_s().filter(|took_s| *took_s < it.bound_s) {
                return Err(Unsound::FasterThanItsLinks { peer, took_s, bound_s: it.bound_s });
            }
            if it.awaited && it.completed_at.is_none() {
                return Err(Unsound::Incomplete { peer, pieces: it.piece_times_ms.len() });
            }
            if it.awaited && it.longest_wait > STARVED {
                return Err(Unsound::Starved { peer, waited_s: it.longest_wait.as_secs_f64() });
            }
        }
        match self.crowd_bound_s {
            Some(bound_s) if self.last_s() < bound_s => {
                Err(Unsound::FasterThanTheBound { last_s: self.last_s(), bound_s })
            }
            _ => Ok(()),
        }
    }

    /// The same for tests and tables: a run that cannot be ends them.
    ///
    /// # Panics
    /// With the seed and what does not hold.
    pub fn assert_sound(&self) -> &Outcome {
        if let Err(unsound) = self.check() {
            panic!("seed {}: {unsound}", self.seed);
        }
        self
    }

    /// When the last awaited peer was complete: seconds since the first joined that was none of the seeds.
    pub fn last_s(&self) -> f64 {
        let began = self.peers.iter().filter(|it| it.awaited).map(|it| it.joined_at).min().unwrap_or_default();
        let ends = self.peers.iter().filter(|it| it.awaited).filter_map(|it| it.completed_at);
        ends.max().unwrap_or_default().saturating_sub(began).as_secs_f64()
    }

    /// Of a class: from joining to completion, in seconds, ascending; infinite for who was never complete.
    pub fn took_s(&self, class: &str) -> Vec<f64> {
        let of_class = self.peers.iter().filter(|it| it.class == class);
        let mut took: Vec<f64> = of_class.map(|it| it.took_s().unwrap_or(f64::INFINITY)).collect();
        took.sort_by(f64::total_cmp);
        took
    }

    /// The middle one of [`Outcome::took_s`].
    pub fn median_s(&self, class: &str) -> f64 {
        let took = self.took_s(class);
        took.get(took.len() / 2).copied().unwrap_or(f64::INFINITY)
    }

    /// The longest time that an awaited peer was without a block, in seconds.
    pub fn longest_wait_s(&self) -> f64 {
        let waits = self.peers.iter().filter(|it| it.awaited).map(|it| it.longest_wait);
        waits.max().unwrap_or_default().as_secs_f64()
    }

    /// When half of a class was complete, since the start of the run.
    pub fn half_complete_at(&self, class: &str) -> Option<Duration> {
        let of_class = self.peers.iter().filter(|it| it.class == class);
        let mut ends: Vec<Duration> = of_class.map(|it| it.completed_at.unwrap_or(Duration::MAX)).collect();
        ends.sort();
        ends.get(ends.len() / 2).copied().filter(|at| *at < Duration::MAX)
    }

    /// What the middle peer of a class has of the content at that time: 0 to 1.
    pub fn median_share_at(&self, class: &str, at: Duration, pieces: u32) -> f64 {
        let of_class = self.peers.iter().filter(|it| it.class == class);
        let mut counts: Vec<usize> = of_class.map(|it| it.pieces_at(at)).collect();
        counts.sort();
        counts.get(counts.len() / 2).map_or(0.0, |count| *count as f64 / f64::from(pieces))
    }

    /// Payload that peers of one class got from peers of another, useful or not.
    pub fn moved_bytes(&self, from: &str, to: &str) -> u64 {
        let takers = self.peers.iter().filter(|it| it.class == to);
        let given = takers.flat_map(|it| &it.transfers).filter(|(peer, _)| self.peers[**peer].class == from);
        given.map(|(_, transfer)| transfer.received_bytes + transfer.wasted_bytes).sum()
    }

    /// Copies of the content that a class had sent when the first awaited peer was complete.
    pub fn copies_sent_at_first(&self, class: &str) -> f64 {
        let first = self.peers.iter().filter(|it| it.awaited).filter_map(|it| it.completed_at).min();
        let of_class = self.peers.iter().filter(|it| it.class == class);
        let sent: u64 = of_class.map(|it| it.sent_bytes_at(first.unwrap_or(Duration::MAX))).sum();
        sent as f64 / self.total_bytes as f64
    }

    /// Payload that came twice or unasked, in parts of all that was needed.
    pub fn wasted_share(&self) -> f64 {
        let needed = self.peers.iter().filter(|it| it.completed_at.is_some()).count() as f64 * self.total_bytes as f64;
        self.peers.iter().map(PeerOutcome::wasted_bytes).sum::<u64>() as f64 / needed.max(1.0)
    }
}

fn peer_outcome(scenario: &Scenario, node: Node) -> PeerOutcome {
    let (spec, record) = (node.spec, node.record);
    let total = scenario.layout.total_bytes() as f64;
    let given: f64 =
        record.neighbours.iter().map(|peer| payload_bytes_per_s(scenario.peers[*peer as usize].up_bits_per_s)).sum();
    let bound_s = (total / payload_bytes_per_s(spec.down_bits_per_s)).max(total / given);
    PeerOutcome {
        class: spec.class,
        joined_at: record.joined.since(START),
        completed_at: record.completed_at.map(|at| at.since(START)),
        longest_wait: record.longest_wait,
        failed_pieces: record.failed_pieces,
        banned: record.banned.into_iter().map(|peer| peer as usize).collect(),
        faults: record.faults.into_iter().map(|(peer, fault)| (peer as usize, fault)).collect(),
        transfers: record.transfers.into_iter().map(|(peer, transfer)| (peer as usize, transfer)).collect(),
        piece_times_ms: record.piece_times_ms,
        sent_bins: record.sent_bins,
        bound_s,
        awaited: spec.awaited,
    }
}

/// One seed, everybody there within a second: nothing beats the fluid bound, nor the block bound with the fastest link.
fn crowd_bound_s(scenario: &Scenario) -> Option<f64> {
    let mut seeds = scenario.peers.iter().filter(|peer| peer.seed);
    let seed = seeds.next().filter(|_| seeds.next().is_none())?;
    let leechers: Vec<_> = scenario.peers.iter().filter(|peer| !peer.seed).collect();
    let at_once = leechers.iter().all(|peer| peer.awaited && peer.joins_at <= Duration::from_secs(1));
    if leechers.is_empty() || !at_once {
        return None;
    }
    let links: Vec<_> = leechers.iter().map(|peer| (peer.up_bits_per_s, peer.down_bits_per_s)).collect();
    let fluid = fluid_bound_s(scenario.layout, seed.up_bits_per_s, &links);
    let fastest = links.iter().map(|(up, _)| *up).max().unwrap_or(0).max(seed.up_bits_per_s);
    let rest = block_bound_s(scenario.layout, leechers.len(), fastest) - block_bound_s(scenario.layout, 1, fastest);
    Some(fluid.max(block_bound_s(scenario.layout, 1, seed.up_bits_per_s) + rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_found() {
        let scenario = Scenario::flash_crowd(3, 8, 1);
        let sound = scenario.run();
        assert_eq!(sound.check(), Ok(()));
        let broken = |change: &dyn Fn(&mut Outcome)| {
            let mut outcome = sound.clone();
            change(&mut outcome);
            outcome.check().unwrap_err()
        };
        let too_fast = broken(&|it| it.peers[2].bound_s = 1e6);
        assert!(matches!(too_fast, Unsound::FasterThanItsLinks { peer: 2, .. }), "{too_fast}");
        let too_fast = broken(&|it| it.crowd_bound_s = Some(1e6));
        assert!(matches!(too_fast, Unsound::FasterThanTheBound { .. }), "{too_fast}");
        let starved = broken(&|it| it.peers[1].longest_wait = STARVED * 2);
        assert!(matches!(starved, Unsound::Starved { peer: 1, .. }), "{starved}");
        let cut = Scenario { limit: Duration::from_secs(2), ..scenario }.run().check();
        assert!(matches!(cut, Err(Unsound::Incomplete { .. })), "{cut:?}");
    }

    #[test]
    fn sums_are_of_what_passed() {
        let scenario = Scenario::flash_crowd(4, 8, 1);
        let outcome = scenario.run();
        let content = scenario.layout.total_bytes();
        let got = outcome.moved_bytes("seed", "leecher") + outcome.moved_bytes("leecher", "leecher");
        let wasted: u64 = outcome.peers.iter().map(PeerOutcome::wasted_bytes).sum();
        assert_eq!(got, 4 * content + wasted);
        assert_eq!(outcome.moved_bytes("leecher", "seed"), 0);
        let end = Duration::from_secs_f64(outcome.last_s() + 1.0);
        assert_eq!((outcome.median_share_at("leecher", end, 8), outcome.peers[1].pieces_at(end)), (1.0, 8));
        assert!(outcome.copies_sent_at_first("seed") > 0.9);
    }
}
