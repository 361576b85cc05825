//! Scenarios with cheaters, and the figures that say what cheating pays. The same scenarios are played with a plain
//! choker in place of the product's, to show that the cheaters are good at it.

use std::time::Duration;

use super::agents::{BitTyrant, Thief};
use super::conduct::Conduct;
use super::outcome::Outcome;
use super::scenario::{PeerSpec, Scenario};

/// What a peer uploads with where nothing else is said.
const UP_BITS_PER_S: u64 = 10_000_000;
/// A slot of a peer that has four regular ones and an optimistic one.
const PLAIN_SLOTS: u32 = 5;

/// One peer in five gives nothing.
pub fn free_riders(crowd: Scenario, free_rider: &Conduct) -> Scenario {
    let mut scenario = crowd;
    for peer in scenario.peers.iter_mut().filter(|peer| !peer.seed).step_by(5) {
        *peer = PeerSpec { class: "free rider", awaited: false, conduct: free_rider.clone(), ..peer.clone() };
    }
    scenario
}

/// What the median free rider has, 0 to 1, when the median contributor is complete.
pub fn free_riders_share(outcome: &Outcome, pieces: u32) -> f64 {
    let half = outcome.half_complete_at("leecher").unwrap_or(Duration::MAX);
    outcome.median_share_at("free rider", half, pieces)
}

/// The first leecher has four times the uplink of the others, and so has the seed: else all would wait for it. With
/// `tyrant` it plays by BitTyrant's rules.
pub fn fast_contributor(crowd: Scenario, tyrant: bool) -> Scenario {
    let mut scenario = crowd;
    let fast = 4 * UP_BITS_PER_S;
    for seed in scenario.peers.iter_mut().filter(|peer| peer.seed) {
        seed.up_bits_per_s = fast;
    }
    if let Some(peer) = scenario.peers.iter_mut().find(|peer| !peer.seed) {
        (peer.class, peer.up_bits_per_s) = ("fast", fast);
        if tyrant {
            peer.conduct = BitTyrant::conduct(fast, UP_BITS_PER_S, PLAIN_SLOTS);
        }
    }
    scenario
}

/// One seed, so many honest leechers, and three thieves among them.
pub fn thieves(crowd: Scenario) -> Scenario {
    let mut scenario = crowd;
    let honest = scenario.peers.iter().filter(|peer| !peer.seed);
    let thief = honest.take(3).map(|peer| PeerSpec {
        class: "thief",
        awaited: false,
        conduct: Thief::conduct(0),
        ..peer.clone()
    });
    let thieves: Vec<PeerSpec> = thief.collect();
    scenario.peers.extend(thieves);
    scenario
}

/// The thieves' part of what the seed sent, 0 to 1.
pub fn thieves_share(outcome: &Outcome) -> f64 {
    let [stolen, honest] = ["thief", "leecher"].map(|class| outcome.moved_bytes("seed", class) as f64);
    stolen / (stolen + honest).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::agents::{FreeRider, TitForTat};

    /// Everybody plays plain tit-for-tat with four slots, and serves the fastest takers first once it seeds.
    fn plain(leechers: usize, pieces: u32, seed: u64) -> Scenario {
        Scenario::flash_crowd(leechers, pieces, seed).with_conduct(&TitForTat::conduct(4))
    }

    fn mean(figure: impl Fn(u64) -> f64) -> f64 {
        (1..=3).map(figure).sum::<f64>() / 3.0
    }

    #[test]
    fn canary_a_free_rider_does_well_against_plain_tit_for_tat() {
        let ratio = mean(|seed| {
            let outcome = free_riders(plain(31, 48, seed), &FreeRider::conduct());
            let outcome = Scenario { peers: awaited(outcome.peers.clone()), ..outcome }.run();
            outcome.median_s("free rider") / outcome.median_s("leecher")
        });
        assert!(ratio <= 1.5, "{ratio} x a contributor's time");
    }

    /// The run goes on until the cheaters are complete too.
    fn awaited(peers: Vec<PeerSpec>) -> Vec<PeerSpec> {
        peers.into_iter().map(|peer| PeerSpec { awaited: !peer.seed, ..peer }).collect()
    }

    #[test]
    fn free_riders_get_less_from_the_product() {
        let share = |crowd: Scenario| {
            let scenario = free_riders(crowd, &FreeRider::conduct());
            free_riders_share(scenario.run().assert_sound(), 128)
        };
        let (product, plain) = (share(Scenario::flash_crowd(31, 128, 1)), share(plain(31, 128, 1)));
        assert!(product <= 0.75 * plain, "{product} of the content, {plain} from plain tit-for-tat");
    }

    #[test]
    fn bit_tyrant_gains_little_among_products() {
        let took =
            |tyrant| mean(|seed| fast_contributor(Scenario::flash_crowd(31, 96, seed), tyrant).run().median_s("fast"));
        let (honest, tyrant) = (took(false), took(true));
        assert!(tyrant >= 0.8 * honest, "BitTyrant takes {tyrant} s where the product takes {honest} s");
    }

    #[test]
    fn thieves_get_no_more_than_others_from_the_product() {
        let share = mean(|seed| thieves_share(thieves(Scenario::flash_crowd(20, 64, seed)).run().assert_sound()));
        assert!(share <= 1.5 * 3.0 / 23.0, "{share} of the seed's upload");
    }
}
