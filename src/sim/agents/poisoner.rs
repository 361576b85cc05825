//! Sends noise in place of what it has.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::sim::{Behaviour, Conduct};
use crate::swarm::SessionId;
use crate::swarm::choker::UploadSlots;
use crate::wire::layout::Block;

/// Fetches and unchokes as the product does, and spoils a share of the blocks that it sends.
pub struct Poisoner {
    share: f64,
    rng: SmallRng,
}

impl Poisoner {
    /// `share` of its blocks are noise: 0 to 1.
    pub fn conduct(share: f64) -> Conduct {
        let behaviour = move |seed| Poisoner { share, rng: SmallRng::seed_from_u64(seed) };
        Conduct::product(UploadSlots::Default).behaving(move |seed| Box::new(behaviour(seed)))
    }
}

impl Behaviour for Poisoner {
    fn spoils(&mut self, _session: SessionId, _block: Block) -> bool {
        self.rng.random_bool(self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{PeerSpec, Scenario};

    #[test]
    fn whoever_spoils_one_block_in_twenty_is_found_and_nobody_else_is() {
        for seed in 1..=2 {
            let mut scenario = Scenario::flash_crowd(30, 64, seed);
            for peer in scenario.peers.iter_mut().skip(1).step_by(10) {
                let conduct = Poisoner::conduct(0.05);
                *peer = PeerSpec { class: "poisoner", awaited: false, conduct, ..peer.clone() };
            }
            let outcome = scenario.run();
            outcome.assert_sound();
            let class = |peer: &usize| outcome.peers[*peer].class;
            let bans: Vec<&str> = outcome.peers.iter().flat_map(|peer| &peer.banned).map(class).collect();
            assert!(bans.iter().all(|class| *class == "poisoner"), "seed {seed}: {bans:?}");
            assert!(bans.len() >= 30, "seed {seed}: only {} of 90 pairs", bans.len());
        }
    }
}
