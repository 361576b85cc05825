//! Who takes part, over which links.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::conduct::Conduct;
use super::engine;
use super::outcome::Outcome;
use crate::clock::Time;
use crate::swarm::SwarmConfig;
use crate::swarm::choker::UploadSlots;
use crate::wire::layout::{BLOCK_BYTES, Layout};

/// When a run begins; not at zero, so that "a minute ago" can be said in its first minute.
pub(super) const START: Time = Time::from_secs(3_600);

/// What lies between the nodes.
#[derive(Clone, Debug)]
pub struct Links {
    /// One way; each pair of peers has its own, drawn evenly. The least of them is the engine's window.
    pub delay: Range<Duration>,
    /// A connection takes more as long as it holds less than this unsent, as the daemon bounds its sockets on links
    /// like these. What it holds can be neither cancelled nor overtaken.
    pub socket_bytes: u32,
}

/// One peer.
#[derive(Clone)]
pub struct PeerSpec {
    /// Peers of one class are summed up together.
    pub class: &'static str,
    pub up_bits_per_s: u64,
    pub down_bits_per_s: u64,
    /// It has everything from the start.
    pub seed: bool,
    /// After the start of the run.
    pub joins_at: Duration,
    /// After the start of the run.
    pub leaves_at: Option<Duration>,
    /// It leaves so long after it is complete.
    pub leaves_when_done: Option<Duration>,
    /// The run goes on until it is complete.
    pub awaited: bool,
    pub conduct: Conduct,
}

impl PeerSpec {
    /// 10 Mbit/s up, 100 Mbit/s down, there from the start, stays, plays as the product does.
    pub fn leecher() -> PeerSpec {
        PeerSpec {
            class: "leecher",
            up_bits_per_s: 10_000_000,
            down_bits_per_s: 100_000_000,
            seed: false,
            joins_at: Duration::ZERO,
            leaves_at: None,
            leaves_when_done: None,
            awaited: true,
            conduct: Conduct::product(UploadSlots::Default),
        }
    }

    /// The same, with everything.
    pub fn seed() -> PeerSpec {
        PeerSpec { class: "seed", seed: true, awaited: false, ..PeerSpec::leecher() }
    }
}

/// A whole run.
#[derive(Clone)]
pub struct Scenario {
    pub seed: u64,
    pub layout: Layout,
    pub peers: Vec<PeerSpec>,
    pub links: Links,
    /// Sessions that a peer has at most.
    pub neighbours: usize,
    pub config: SwarmConfig,
    /// Threads that play it; the outcome is the same with any number.
    pub threads: usize,
    /// Virtual time after which it ends, complete or not.
    pub limit: Duration,
}

impl Scenario {
    /// The shape that is meant where none is named: one seed and `leechers` peers who come within one second and stay,
    /// 10 Mbit/s up and 100 down, 20 ms +- 5 one way, `pieces` of 256 KiB in blocks of 16 KiB, at most 50 neighbours.
    pub fn flash_crowd(leechers: usize, pieces: u32, seed: u64) -> Scenario {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut peers = vec![PeerSpec::seed()];
        let joins = |rng: &mut SmallRng| Duration::from_nanos(rng.random_range(0..1_000_000_000));
        peers.extend((0..leechers).map(|_| PeerSpec { joins_at: joins(&mut rng), ..PeerSpec::leecher() }));
        Scenario {
            seed,
            layout: layout(pieces, 256 * 1024),
            peers,
            links: Links { delay: Duration::from_millis(15)..Duration::from_millis(25), socket_bytes: 16 * 1024 },
            neighbours: 50,
            config: SwarmConfig {
                max_block_bytes: BLOCK_BYTES,
                window_max_bytes: 8 << 20,
                windows_total_bytes: 32 << 20,
                sequential: false,
                crowd_expected: true,
            },
            threads: 1,
            limit: Duration::from_secs(24 * 3600),
        }
    }

    /// `pieces` of another length.
    pub fn with_pieces(mut self, pieces: u32, piece_bytes: u32) -> Scenario {
        self.layout = layout(pieces, piece_bytes);
        self
    }

    /// Every peer plays like this.
    pub fn with_conduct(mut self, conduct: &Conduct) -> Scenario {
        self.peers.iter_mut().for_each(|peer| peer.conduct = conduct.clone());
        self
    }

    /// Plays it.
    pub fn run(&self) -> Outcome {
        engine::run(self)
    }
}

fn layout(pieces: u32, piece_bytes: u32) -> Layout {
    Layout::new(u64::from(pieces) * u64::from(piece_bytes), u64::from(piece_bytes)).expect("a layout within bounds")
}
