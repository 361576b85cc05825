//! Scenarios with cheaters, and the figures that say what cheating pays. The same scenarios are played with a plain
//! choker in place of the product's, to show that the cheaters are good at it.

use std::time::Duration;

use super::agents::{BitTyrant, Thief};
use super::conduct::Conduct;
use super::link::payload_bytes_per_s;
use super::outcome::Outcome;
use super::scenario::{PeerSpec, Scenario};

/// Slots of a peer that has four regular ones and an optimistic one.
const PLAIN_SLOTS: f64 = 5.0;
/// When the fast contributor comes: once the others have pieces to give, and the seed's slots are taken. Before that it
/// is a matter of luck who gets one of those, and worth more than how one plays.
const UNDER_WAY: Duration = Duration::from_secs(30);
/// Leechers and pieces of the swarm that it comes to. At the others' rates it takes three minutes and a half, of which
/// reciprocity by rounds of 10 s needs the first to find its partners.
const LASTING: (usize, u32) = (31, 1_024);

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

/// A crowd that lasts. Links `slower` times slower, and pieces as many times smaller, make it the same with fewer blocks.
pub fn lasting_crowd(slower: u32, seed: u64) -> Scenario {
    let (leechers, pieces) = LASTING;
    let mut scenario = Scenario::flash_crowd(leechers, pieces, seed).with_pieces(pieces, 256 * 1024 / slower);
    for peer in &mut scenario.peers {
        peer.up_bits_per_s /= u64::from(slower);
        peer.down_bits_per_s /= u64::from(slower);
    }
    scenario
}

/// The first leecher comes when the swarm is under way, with four times the uplink of the others, and the seed has as
/// much: else all would wait for it. With `tyrant` it plays by BitTyrant's rules.
pub fn fast_contributor(crowd: Scenario, tyrant: bool) -> Scenario {
    let mut scenario = crowd;
    for seed in scenario.peers.iter_mut().filter(|peer| peer.seed) {
        seed.up_bits_per_s *= 4;
    }
    if let Some(peer) = scenario.peers.iter_mut().find(|peer| !peer.seed) {
        let others_slot = payload_bytes_per_s(peer.up_bits_per_s) / PLAIN_SLOTS;
        peer.up_bits_per_s *= 4;
        (peer.class, peer.joins_at) = ("fast", UNDER_WAY);
        if tyrant {
            peer.conduct = BitTyrant::conduct(payload_bytes_per_s(peer.up_bits_per_s), others_slot);
        }
    }
    scenario
}

/// One seed, so many honest leechers, and three thieves beside them. Those come for the seed alone: they are there as
/// soon as it is, while the others hear of it within a second.
pub fn thieves(crowd: Scenario) -> Scenario {
    let mut scenario = crowd;
    let honest = scenario.peers.iter().filter(|peer| !peer.seed);
    let thief = honest.take(3).map(|peer| PeerSpec {
        class: "thief",
        awaited: false,
        joins_at: Duration::ZERO,
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
        assert!(product <= 0.4 * plain, "{product} of the content, {plain} from plain tit-for-tat");
    }

    #[test]
    fn canary_bit_tyrant_is_faster_among_plain_tit_for_tat() {
        let [honest, tyrant] = [false, true].map(|tyrant| {
            let crowd = |seed| lasting_crowd(4, seed).with_conduct(&TitForTat::conduct(4));
            (1..=2).map(|seed| fast_contributor(crowd(seed), tyrant).run().median_s("fast")).sum::<f64>()
        });
        assert!(honest >= 1.3 * tyrant, "BitTyrant takes {} of the time of plain tit-for-tat", tyrant / honest);
    }

    #[test]
    fn canary_thieves_own_a_seed_that_serves_the_fastest_takers_first() {
        let share = mean(|seed| thieves_share(&thieves(plain(20, 256, seed)).run()));
        assert!(share >= 3.0 * 3.0 / 23.0, "{share} of the seed's upload");
    }
}
