//! The simulator from the command line: plays the table's rows and prints their figures beside what they must reach.

use std::error::Error;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use peerd::sim::plot::{self, Curve};
use peerd::sim::table::{Goal, ROWS, Row, Size};

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
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, std::num::ParseIntError> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Ok(from.parse()?..=to.parse()?)
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
    let mut all_met = true;
    println!("{:14} {:>10} {:>8} {:>8} {:>8} {:>9}  figure", "row", "must be", "worst", "best", "seeds", "took");
    for row in rows {
        all_met &= play(row, &args, &mut curves);
    }
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(&curves))?;
    }
    Ok(if all_met || args.short { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plays one row over its seeds and prints it. Returns whether it reaches what it must.
fn play(row: &Row, args: &Args, curves: &mut Vec<Curve>) -> bool {
    let (began, size) = (Instant::now(), if args.short { Size::Short } else { Size::Full });
    let seeds = args.seeds.clone().unwrap_or(1..=row.seeds);
    let mut figures: Vec<f64> = Vec::new();
    for seed in seeds.clone() {
        let played = (row.play)(size, seed, args.threads);
        if args.verbose {
            let outcome = &played.outcome;
            println!(
                "  seed {seed}: {:.4}; first {:.1} s, median {:.1} s, last {:.1} s, bound {:.1} s; seed copies {:.2}, \
                 sent twice {:.2} %; {} events, {:.1} s so far",
                played.figure,
                outcome.took_s("leecher").first().copied().unwrap_or(f64::INFINITY),
                outcome.median_s("leecher"),
                outcome.last_s(),
                played.bound_s,
                outcome.copies_sent_at_first("seed"),
                outcome.wasted_share() * 100.0,
                outcome.events,
                began.elapsed().as_secs_f64(),
            );
        }
        if figures.is_empty() {
            curves.push(Curve::new(row.name, &played.outcome, played.bound_s));
        }
        figures.push(played.figure);
    }
    let worst = figures.iter().copied().reduce(|a, b| row.goal.worse(a, b)).unwrap_or(f64::NAN);
    let best = figures.iter().copied().reduce(|a, b| if row.goal.worse(a, b) == a { b } else { a }).unwrap_or(f64::NAN);
    let met = row.goal.is_met(worst);
    println!(
        "{:14} {:>10} {worst:8.3} {best:8.3} {:>8} {:>7.1} s  {}{}",
        row.name,
        goal(row.goal),
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
