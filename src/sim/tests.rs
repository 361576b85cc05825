//! The simulator itself, and the short forms of its table.

use std::time::Duration;

use super::agents::{FreeRider, ShowsAll};
use super::table::{ROWS, Size};
use super::*;
use crate::swarm::choker::UploadSlots;

#[test]
fn one_seed_and_one_leecher_take_what_the_link_takes() {
    for seed in 1..=3 {
        let scenario = Scenario::flash_crowd(1, 32, seed);
        let outcome = scenario.run();
        let ratio = outcome.assert_sound().last_s() / block_bound_s(scenario.layout, 1, 10_000_000);
        assert!(ratio < 1.06, "seed {seed}: {ratio} of the bound");
        assert_eq!(outcome.wasted_share(), 0.0);
    }
}

#[test]
fn a_seed_repeats_a_run_on_any_number_of_threads() {
    let run = |seed, threads| {
        let mut scenario = Scenario::flash_crowd(15, 16, seed);
        scenario.threads = threads;
        scenario.peers[4].leaves_at = Some(Duration::from_secs(3));
        scenario.peers[4].awaited = false;
        scenario.peers[5].conduct = FreeRider::conduct();
        scenario.peers[6].joins_at = Duration::from_secs(4);
        let outcome = scenario.run();
        (outcome.digest, outcome.events, outcome.last_s())
    };
    let first = run(1, 1);
    assert_eq!(run(1, 1), first);
    assert_eq!(run(1, 2), first);
    assert_eq!(run(1, 3), first);
    assert_ne!(run(2, 1), first);
}

#[test]
fn a_downlink_is_a_limit_too_and_is_used() {
    for down_bits_per_s in [2_000_000, 8_000_000] {
        let mut scenario = Scenario::flash_crowd(1, 32, 1);
        scenario.peers.extend((0..3).map(|_| PeerSpec::seed()));
        scenario.peers[1].down_bits_per_s = down_bits_per_s;
        let outcome = scenario.run();
        let needs_s = fluid_bound_s(scenario.layout, 40_000_000, &[(10_000_000, down_bits_per_s)]);
        let ratio = outcome.assert_sound().last_s() / needs_s;
        assert!(ratio < 1.10, "{ratio} of what {down_bits_per_s} bit/s need");
    }
}

#[test]
fn every_row_of_the_table_reaches_in_small_what_it_did() {
    for row in ROWS {
        let played = (row.play)(Size::Short, 1, 2);
        assert!(row.short.is_met(played.figure), "{}, seed 1: {}", row.name, played.figure);
        let picture = plot::svg(&[plot::Curve::new(row.name, &played.outcome, played.bound_s)]);
        assert!(picture.contains(row.name) && picture.ends_with("</svg>\n"));
    }
}

#[test]
fn who_takes_and_never_gives_is_complete_later() {
    let mut scenario = Scenario::flash_crowd(20, 32, 1);
    for peer in &mut scenario.peers[17..] {
        *peer = PeerSpec { class: "free rider", conduct: FreeRider::conduct(), ..peer.clone() };
    }
    let outcome = scenario.run();
    assert_eq!(outcome.assert_sound().moved_bytes("free rider", "leecher"), 0);
    assert!(outcome.median_s("free rider") > outcome.median_s("leecher"));
}

#[test]
fn peers_that_come_late_and_peers_that_go_leave_nobody_without_a_copy() {
    for seed in 1..=3 {
        let mut scenario = Scenario::flash_crowd(24, 24, seed);
        for (at, peer) in scenario.peers.iter_mut().enumerate().skip(1) {
            peer.joins_at += Duration::from_millis(700 * (at as u64 % 5));
            match at % 4 {
                0 => (peer.leaves_at, peer.awaited) = (Some(Duration::from_secs(4 + at as u64 % 7)), false),
                1 => peer.leaves_when_done = Some(Duration::ZERO),
                _ => {}
            }
        }
        scenario.run().assert_sound();
    }
}

/// A seed that super-seeds hands out the pieces in an order of its own, as long as it is alone; where there are two, or
/// one that shows all at once, it is the leechers' part that each piece leaves a seed but once.
#[test]
fn file_order_in_place_of_rarest_first_makes_it_worse() {
    let last_s = |seeds: usize, conduct: &Conduct, sequential| {
        let mut scenario = Scenario::flash_crowd(24, 96, 1);
        scenario.config.sequential = sequential;
        scenario.peers.extend((1..seeds).map(|_| PeerSpec::seed()));
        scenario.peers.iter_mut().filter(|peer| peer.seed).for_each(|peer| peer.conduct = conduct.clone());
        scenario.run().assert_sound().last_s()
    };
    let product = Conduct::product(UploadSlots::Default);
    for (seeds, conduct, worse) in [(2, product, 1.1), (2, ShowsAll::conduct(), 1.8), (1, ShowsAll::conduct(), 2.0)] {
        let [rarest, in_order] = [false, true].map(|sequential| last_s(seeds, &conduct, sequential));
        assert!(in_order > worse * rarest, "{seeds} seeds: {rarest} s, {in_order} s in file order");
    }
}
