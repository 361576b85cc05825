//! The simulator from the command line: plays the table's rows and prints their figures beside what they must reach.

use std::error::Error;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use peerd::sim::agents::Cooperative;
use peerd::sim::plot::{self, Curve};
use peerd::sim::table::{Goal, Played, ROWS, Row, Size};
use peerd::sim::{Conduct, Scenario, block_bound_s};
use peerd::swarm::choker::UploadSlots;

/// Plays swarms of the product's own rules on a virtual clock and prints what they reach.
///
/// Without rows all are played. Unless a row says otherwise: one seed, 127 leechers within a second, 256 pieces of
/// 256 KiB, 10 Mbit/s up, 100 down, 20 ms +- 5 one way, at most 50 neighbours.
#[derive(Parser)]
struct Args {
    /// Rows to play; see --list.
    rows: Vec<String>,
    /// Print the rows and what they must reach.
    #[arg(long)]
    list: bool,
    /// One seed or a range, as 1-20 [default: what the row is judged by].
    #[arg(long, value_parser = seeds)]
    seeds: Option<RangeInclusive<u64>>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The short forms, which the tests play.
    #[arg(long)]
    short: bool,
    /// Print each run.
    #[arg(long)]
    verbose: bool,
    /// Write finish-time curves of the first seed, as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    crowd: Crowd,
}

/// A flash crowd of your own in place of the table.
#[derive(clap::Args)]
#[command(next_help_heading = "A flash crowd of your own")]
struct Crowd {
    /// Peers beside the one seed; with this the crowd is played and no row.
    #[arg(long)]
    leechers: Option<usize>,
    #[arg(long, default_value_t = 256)]
    pieces: u32,
    #[arg(long, default_value_t = 256)]
    piece_kib: u32,
    /// Mbit/s, of everybody.
    #[arg(long, default_value_t = 10.0)]
    up: f64,
    /// Mbit/s, of everybody but the seed, which takes nothing.
    #[arg(long, default_value_t = 100.0)]
    down: f64,
    /// Mbit/s of the seed, if others.
    #[arg(long)]
    seed_up: Option<f64>,
    /// One way, in milliseconds; each pair draws its own within a quarter of it.
    #[arg(long, default_value_t = 20.0)]
    delay: f64,
    #[arg(long, default_value_t = 50)]
    neighbours: usize,
    /// In KiB; the daemon asks for up to 128 where a peer takes as much.
    #[arg(long, default_value_t = 16)]
    largest_block: u32,
    /// A fixed number, in place of the daemon's own choice.
    #[arg(long)]
    upload_slots: Option<u32>,
    /// Nobody asks for a return: so many are unchoked at most, and served a piece each in turn; another is unchoked when
    /// so many blocks of 16 KiB are left to send. As 4,12.
    #[arg(long, value_parser = cooperative, conflicts_with = "upload_slots")]
    cooperative: Option<(usize, u64)>,
    /// Seconds within which all come.
    #[arg(long, default_value_t = 1.0)]
    within: f64,
    /// In file order in place of rarest first.
    #[arg(long)]
    sequential: bool,
}

impl Crowd {
    fn scenario(&self, leechers: usize, seed: u64, threads: usize) -> Scenario {
        let bits = |mbit: f64| (mbit * 1e6) as u64;
        let mut scenario = Scenario::flash_crowd(leechers, self.pieces, seed);
        scenario = scenario.with_pieces(self.pieces, self.piece_kib * 1024);
        let slots = self.upload_slots.map_or(UploadSlots::Default, UploadSlots::Fixed);
        let conduct = match self.cooperative {
            Some((slots, ahead_blocks)) => Cooperative::conduct(slots, ahead_blocks),
            None => Conduct::product(slots),
        };
        scenario = scenario.with_conduct(&conduct);
        for peer in &mut scenario.peers {
            (peer.up_bits_per_s, peer.down_bits_per_s) = (bits(self.up), bits(self.down));
            peer.joins_at = peer.joins_at.mul_f64(self.within);
        }
        scenario.peers[0].up_bits_per_s = bits(self.seed_up.unwrap_or(self.up));
        let delay = |part: f64| Duration::from_secs_f64(self.delay * part / 1_000.0);
        scenario.links.delay = delay(0.75)..delay(1.25);
        scenario.config.max_block_bytes = self.largest_block * 1024;
        scenario.config.sequential = self.sequential;
        Scenario { neighbours: self.neighbours, threads, ..scenario }
    }

    fn play(&self, leechers: usize, seed: u64, threads: usize) -> Played {
        let scenario = self.scenario(leechers, seed, threads);
        let outcome = scenario.run();
        let bound_s = block_bound_s(scenario.layout, leechers, scenario.peers[1].up_bits_per_s);
        Played { figure: outcome.assert_sound().last_s() / bound_s, bound_s, outcome }
    }
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, std::num::ParseIntError> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Ok(from.parse()?..=to.parse()?)
}

fn cooperative(text: &str) -> Result<(usize, u64), String> {
    let (slots, blocks) = text.split_once(',').ok_or("two numbers, as 4,12")?;
    let number = |text: &str| text.parse::<usize>().map_err(|error| format!("{text}: {error}"));
    Ok((number(slots)?, number(blocks)? as u64))
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args = Args::parse();
    if let Some(unknown) = args.rows.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        return Err(format!("no row is called {unknown}; --list names all").into());
    }
    let rows: Vec<&Row> =
        ROWS.iter().filter(|row| args.rows.is_empty() || args.rows.iter().any(|name| name == row.name)).collect();
    if args.list {
        rows.iter().for_each(|row| println!("{:14} {:10} {}", row.name, goal(row.goal), row.figure));
        return Ok(ExitCode::SUCCESS);
    }
    let mut curves = Vec::new();
    if let Some(leechers) = args.crowd.leechers {
        let began = Instant::now();
        for seed in args.seeds.clone().unwrap_or(1..=1) {
            let played = args.crowd.play(leechers, seed, args.threads);
            report(seed, &played, began);
            curves.push(Curve::new(format!("seed {seed}"), &played.outcome, played.bound_s));
        }
        return plotted(&args, &curves, true);
    }
    let mut all_met = true;
    println!("{:14} {:>10} {:>8} {:>8} {:>8} {:>9}  figure", "row", "must be", "worst", "best", "seeds", "took");
    for row in rows {
        all_met &= play(row, &args, &mut curves);
    }
    plotted(&args, &curves, all_met)
}

fn plotted(args: &Args, curves: &[Curve], success: bool) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(curves))?;
    }
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run in one line.
fn report(seed: u64, played: &Played, began: Instant) {
    let outcome = &played.outcome;
    println!(
        "  seed {seed}: {:.4}; first {:.2} s, median {:.2} s, last {:.2} s, bound {:.2} s; seed copies {:.2}, sent twice \
         {:.2} %, longest wait {:.1} s; {} events, digest {:016x}, {:.1} s so far",
        played.figure,
        outcome.took_s("leecher").first().copied().unwrap_or(f64::INFINITY),
        outcome.median_s("leecher"),
        outcome.last_s(),
        played.bound_s,
        outcome.copies_sent_at_first("seed"),
        outcome.wasted_share() * 100.0,
        outcome.longest_wait_s(),
        outcome.events,
        outcome.digest,
        began.elapsed().as_secs_f64(),
    );
}

/// Plays one row over its seeds and prints it. Returns whether it reaches what it must.
fn play(row: &Row, args: &Args, curves: &mut Vec<Curve>) -> bool {
    let (began, size) = (Instant::now(), if args.short { Size::Short } else { Size::Full });
    let seeds = args.seeds.clone().unwrap_or(1..=row.seeds);
    let mut figures: Vec<f64> = Vec::new();
    for seed in seeds.clone() {
        let played = (row.play)(size, seed, args.threads);
        if args.verbose {
            report(seed, &played, began);
        }
        if figures.is_empty() {
            curves.push(Curve::new(row.name, &played.outcome, played.bound_s));
        }
        figures.push(played.figure);
    }
    let worst = figures.iter().copied().reduce(|a, b| row.goal.worse(a, b)).unwrap_or(f64::NAN);
    let best = figures.iter().copied().reduce(|a, b| if row.goal.worse(a, b) == a { b } else { a }).unwrap_or(f64::NAN);
    let must_be = if args.short { row.short } else { row.goal };
    let met = must_be.is_met(worst);
    println!(
        "{:14} {:>10} {worst:8.3} {best:8.3} {:>8} {:>7.1} s  {}{}",
        row.name,
        goal(must_be),
        format!("{}-{}", seeds.start(), seeds.end()),
        began.elapsed().as_secs_f64(),
        row.figure,
        if met { "" } else { "  MISSED" },
    );
    met
}

fn goal(goal: Goal) -> String {
    match goal {
        Goal::AtMost(limit) => format!("<= {limit:.2}"),
        Goal::AtLeast(limit) => format!(">= {limit:.2}"),
    }
}
