//! The scenarios that the rules are judged by, each with the figure it must reach.

use std::time::Duration;

use super::agents::{Cooperative, FreeRider};
use super::bound::block_bound_s;
use super::outcome::Outcome;
use super::scenario::{PeerSpec, Scenario};

/// What the peers of a row have to upload with, where it names nothing else.
const UP_BITS_PER_S: u64 = 10_000_000;

/// Slots, and pieces in a turn, of those who cooperate: the best that was found.
const COOPERATIVE: (usize, u64) = (4, 2);

/// How large a row is played.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// As it is judged.
    Full,
    /// A few peers and pieces: seconds, for the tests. Its figures are its own.
    Short,
}

/// What a figure is held to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    pub fn is_met(self, figure: f64) -> bool {
        match self {
            Goal::AtMost(limit) => figure <= limit,
            Goal::AtLeast(limit) => figure >= limit,
        }
    }

    /// The one of two figures that is further from the goal.
    pub fn worse(self, a: f64, b: f64) -> f64 {
        match self {
            Goal::AtMost(_) => a.max(b),
            Goal::AtLeast(_) => a.min(b),
        }
    }
}

/// One run of a row.
pub struct Played {
    pub figure: f64,
    /// What the last awaited peer's completion is compared with, in seconds.
    pub bound_s: f64,
    pub outcome: Outcome,
}

/// A scenario with the figure that it is judged by.
pub struct Row {
    pub name: &'static str,
    /// What the figure is.
    pub figure: &'static str,
    pub goal: Goal,
    /// What the short form must reach: a little more than it does, so that a rule that breaks is seen.
    pub short: Goal,
    /// Seeds 1 to this are played, and the worst counts.
    pub seeds: u64,
    pub play: fn(Size, u64, usize) -> Played,
}

/// All rows, in the order in which they are printed.
pub const ROWS: &[Row] = &[
    Row {
        name: "cooperative",
        figure: "last finish / block bound, nobody asks for a return",
        goal: Goal::AtMost(1.05),
        short: Goal::AtMost(1.75),
        seeds: 20,
        play: cooperative,
    },
    Row {
        name: "product",
        figure: "last finish / block bound, choker as shipped",
        goal: Goal::AtMost(1.20),
        short: Goal::AtMost(1.75),
        seeds: 20,
        play: product,
    },
    Row {
        name: "free-riders",
        figure: "content of the median free rider (20 %) when the median contributor is complete",
        goal: Goal::AtMost(1.0 / 3.0),
        short: Goal::AtMost(1.0),
        seeds: 20,
        play: free_riders,
    },
    Row {
        name: "churn",
        figure: "last finish / fluid bound; half come late, a quarter goes when complete",
        goal: Goal::AtMost(3.0),
        short: Goal::AtMost(1.8),
        seeds: 20,
        play: churn,
    },
    Row {
        name: "ten-thousand",
        figure: "last finish / block bound; 10,000 peers, 1,000 pieces of 16 KiB, 30 neighbours",
        goal: Goal::AtMost(3.0),
        short: Goal::AtMost(3.2),
        seeds: 3,
        play: ten_thousand,
    },
];

/// N = 127 and M = 256, or small.
fn crowd(size: Size, seed: u64, threads: usize) -> Scenario {
    let (leechers, pieces) = match size {
        Size::Full => (127, 256),
        Size::Short => (31, 48),
    };
    Scenario { threads, ..Scenario::flash_crowd(leechers, pieces, seed) }
}

/// Plays a crowd of equal links and compares its end with the block bound.
fn against_block_bound(scenario: &Scenario) -> Played {
    let outcome = scenario.run();
    let leechers = scenario.peers.iter().filter(|peer| peer.awaited).count();
    let bound_s = block_bound_s(scenario.layout, leechers, UP_BITS_PER_S);
    Played { figure: outcome.assert_sound().last_s() / bound_s, bound_s, outcome }
}

fn cooperative(size: Size, seed: u64, threads: usize) -> Played {
    against_block_bound(&crowd(size, seed, threads).with_conduct(&Cooperative::conduct(COOPERATIVE.0, COOPERATIVE.1)))
}

fn product(size: Size, seed: u64, threads: usize) -> Played {
    against_block_bound(&crowd(size, seed, threads))
}

fn free_riders(size: Size, seed: u64, threads: usize) -> Played {
    let mut scenario = crowd(size, seed, threads);
    for peer in scenario.peers.iter_mut().filter(|peer| !peer.seed).step_by(5) {
        *peer = PeerSpec { class: "free rider", awaited: false, conduct: FreeRider::conduct(), ..peer.clone() };
    }
    let played = against_block_bound(&scenario);
    let half = played.outcome.half_complete_at("leecher").unwrap_or(Duration::MAX);
    Played { figure: played.outcome.median_share_at("free rider", half, scenario.layout.piece_count()), ..played }
}

/// Half come over a time of half the bound, one in four goes as soon as it is complete, one in eight before.
fn churn(size: Size, seed: u64, threads: usize) -> Played {
    let mut scenario = crowd(size, seed, threads);
    let span = Duration::from_secs_f64(block_bound_s(scenario.layout, 1, UP_BITS_PER_S) / 2.0);
    let count = scenario.peers.len() as u32;
    for (at, peer) in (0..count).zip(&mut scenario.peers).filter(|(_, peer)| !peer.seed) {
        if at % 2 == 0 {
            peer.joins_at = span * at / count;
        }
        match at % 8 {
            1 | 2 => peer.leaves_when_done = Some(Duration::ZERO),
            3 => (peer.leaves_at, peer.awaited) = (Some(peer.joins_at + span * (at % 3 + 1) / 2), false),
            _ => {}
        }
    }
    against_block_bound(&scenario)
}

fn ten_thousand(size: Size, seed: u64, threads: usize) -> Played {
    let (leechers, pieces) = match size {
        Size::Full => (10_000, 1_000),
        Size::Short => (200, 50),
    };
    let crowd = Scenario::flash_crowd(leechers, pieces, seed).with_pieces(pieces, 16 * 1024);
    against_block_bound(&Scenario { neighbours: 30, threads, ..crowd })
}
