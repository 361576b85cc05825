//! The scenarios that the rules are judged by, each with the figure it must reach.

use std::time::Duration;

use super::agents::{Cooperative, FreeRider, Poisoner, ShowsAll};
use super::bound::block_bound_s;
use super::cheats;
use super::outcome::Outcome;
use super::scenario::{PeerSpec, Scenario};

/// What the peers of a row have to upload with, where it names nothing else.
const UP_BITS_PER_S: u64 = 10_000_000;

/// Most unchoked at a time, and blocks left to send when another is unchoked, of those who cooperate: the best that was
/// found.
const COOPERATIVE: (usize, u64) = (4, 12);

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
        short: Goal::AtMost(1.45),
        seeds: 20,
        play: cooperative,
    },
    Row {
        name: "product",
        figure: "last finish / block bound, choker as shipped",
        goal: Goal::AtMost(1.20),
        short: Goal::AtMost(1.55),
        seeds: 20,
        play: product,
    },
    Row {
        name: "plain-seed",
        figure: "last finish / block bound; the seed shows all at once, as those of other clients do",
        goal: Goal::AtMost(2.5),
        short: Goal::AtMost(2.5),
        seeds: 20,
        play: plain_seed,
    },
    Row {
        name: "free-riders",
        figure: "content of the median free rider (20 %) when the median contributor is complete",
        goal: Goal::AtMost(1.0 / 3.0),
        short: Goal::AtMost(1.0 / 3.0),
        seeds: 20,
        play: free_riders,
    },
    Row {
        name: "poisoners",
        figure: "last finish with 10 % poisoners / with none; infinite if an innocent peer was banned, or no poisoner",
        goal: Goal::AtMost(1.25),
        short: Goal::AtMost(1.4),
        seeds: 20,
        play: poisoners,
    },
    Row {
        name: "large-view",
        figure: "the same with free riders that connect to everybody",
        goal: Goal::AtMost(1.0 / 3.0),
        short: Goal::AtMost(0.4),
        seeds: 20,
        play: large_view,
    },
    Row {
        name: "bit-tyrant",
        figure: "BitTyrant's finish / the product's in the place of a contributor with 4 x the uplink of others",
        goal: Goal::AtLeast(0.8),
        short: Goal::AtLeast(0.95),
        seeds: 20,
        play: bit_tyrant,
    },
    Row {
        name: "thieves",
        figure: "part of the seed's upload that 3 thieves get beside 20 honest leechers",
        goal: Goal::AtMost(1.5 * 3.0 / 23.0),
        short: Goal::AtMost(1.5 * 3.0 / 23.0),
        seeds: 20,
        play: thieves,
    },
    Row {
        name: "churn",
        figure: "last finish / fluid bound; half come late, a quarter goes when complete",
        goal: Goal::AtMost(3.0),
        short: Goal::AtMost(1.6),
        seeds: 20,
        play: churn,
    },
    Row {
        name: "ten-thousand",
        figure: "last finish / block bound; 10,000 peers, 1,000 pieces of 16 KiB, 30 neighbours",
        goal: Goal::AtMost(3.0),
        short: Goal::AtMost(2.95),
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

/// The same, but not so small: who does not give is found out only after a while.
fn longer_crowd(size: Size, seed: u64, threads: usize) -> Scenario {
    match size {
        Size::Full => crowd(size, seed, threads),
        Size::Short => Scenario { threads, ..Scenario::flash_crowd(31, 192, seed) },
    }
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

/// Here the leechers alone see to it that a lone seed's uplink is well spent: rarest first is all they have for it.
fn plain_seed(size: Size, seed: u64, threads: usize) -> Played {
    let mut scenario = crowd(size, seed, threads);
    scenario.peers.iter_mut().filter(|peer| peer.seed).for_each(|peer| peer.conduct = ShowsAll::conduct());
    against_block_bound(&scenario)
}

fn free_riders(size: Size, seed: u64, threads: usize) -> Played {
    let scenario = cheats::free_riders(longer_crowd(size, seed, threads), &FreeRider::conduct());
    let played = against_block_bound(&scenario);
    Played { figure: cheats::free_riders_share(&played.outcome, scenario.layout.piece_count()), ..played }
}

fn large_view(size: Size, seed: u64, threads: usize) -> Played {
    let scenario = cheats::free_riders(longer_crowd(size, seed, threads), &FreeRider::with_large_view());
    let played = against_block_bound(&scenario);
    Played { figure: cheats::free_riders_share(&played.outcome, scenario.layout.piece_count()), ..played }
}

fn bit_tyrant(size: Size, seed: u64, threads: usize) -> Played {
    let slower = if size == Size::Full { 1 } else { 4 };
    let crowd = Scenario { threads, ..cheats::lasting_crowd(slower, seed) };
    let honest = cheats::fast_contributor(crowd.clone(), false).run();
    let played = against_block_bound(&cheats::fast_contributor(crowd, true));
    Played { figure: played.outcome.median_s("fast") / honest.assert_sound().median_s("fast"), ..played }
}

/// Small enough to be played in full by the tests.
fn thieves(_size: Size, seed: u64, threads: usize) -> Played {
    let crowd = Scenario { threads, ..Scenario::flash_crowd(20, 256, seed) };
    let played = against_block_bound(&cheats::thieves(crowd));
    Played { figure: cheats::thieves_share(&played.outcome), ..played }
}

/// One leecher in ten sends nothing but noise, in the place of one that is honest in the run it is compared with.
fn poisoners(size: Size, seed: u64, threads: usize) -> Played {
    let clean = crowd(size, seed, threads);
    let mut poisoned = clean.clone();
    for peer in poisoned.peers.iter_mut().filter(|peer| !peer.seed).step_by(10) {
        *peer = PeerSpec { class: "poisoner", awaited: false, conduct: Poisoner::conduct(1.0), ..peer.clone() };
    }
    let clean_s = clean.run().assert_sound().last_s();
    let played = against_block_bound(&poisoned);
    let peers = &played.outcome.peers;
    let mut banned = peers.iter().flat_map(|peer| &peer.banned).map(|banned| peers[*banned].class).peekable();
    let just = banned.peek().is_some() && banned.all(|class| class == "poisoner");
    let ratio = if just { played.outcome.last_s() / clean_s } else { f64::INFINITY };
    Played { figure: ratio, ..played }
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
