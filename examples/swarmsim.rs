//! The simulator from the command line.

use std::process::ExitCode;
use std::time::Instant;

use peerd::sim::agents::Cooperative;
use peerd::sim::{Scenario, block_bound_s};

const HELP: &str = "\
Plays swarms of the product's own rules on a virtual clock.

    swarmsim [--conduct product|cooperative] [--slots N] [--peers N] [--pieces N] [--seeds A-B] [--threads N]
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (mut conduct, mut slots, mut peers, mut pieces, mut seeds, mut threads) =
        ("product".to_owned(), 4, 127, 256, (1, 1), 1);
    while let Some(arg) = args.next() {
        let value = args.next().unwrap_or_default();
        match arg.as_str() {
            "--conduct" => conduct = value,
            "--slots" => slots = value.parse().expect("a number"),
            "--peers" => peers = value.parse().expect("a number"),
            "--pieces" => pieces = value.parse().expect("a number"),
            "--threads" => threads = value.parse().expect("a number"),
            "--seeds" => {
                let (from, to) = value.split_once('-').unwrap_or((&value, &value));
                seeds = (from.parse().expect("a number"), to.parse().expect("a number"));
            }
            _ => {
                print!("{HELP}");
                return ExitCode::FAILURE;
            }
        }
    }
    for seed in seeds.0..=seeds.1 {
        let mut scenario = Scenario::flash_crowd(peers, pieces, seed);
        if conduct == "cooperative" {
            scenario = scenario.with_conduct(&Cooperative::conduct(slots));
        }
        scenario.threads = threads;
        let began = Instant::now();
        let outcome = scenario.run();
        let bound = block_bound_s(scenario.layout, peers, 10_000_000);
        let took = outcome.took_s("leecher");
        println!(
            "seed {seed}: first {:.1} s, median {:.1} s, last {:.1} s, bound {bound:.1} s, ratio {:.3}, seed copies {:.2}, wasted {:.4}, {} events, {:.1} s, {:?}",
            took[0],
            outcome.median_s("leecher"),
            outcome.last_s(),
            outcome.last_s() / bound,
            outcome.copies_sent_at_first("seed"),
            outcome.wasted_share(),
            outcome.events,
            began.elapsed().as_secs_f64(),
            outcome.check(),
        );
    }
    ExitCode::SUCCESS
}
