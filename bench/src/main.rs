//! Whole programs, measured: races against the clients that are installed here, the daemon with much to do, limits on the
//! link, and how cost grows. `make bench` runs all of it and writes RESULTS.md; as root, or in a user namespace of one's
//! own (scripts/test.sh says how).

mod content;
mod crowd;
mod figures;
mod floor;
mod plot;
mod race;
mod relay;
mod report;
mod rivals;
mod sections;
mod support;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::Result;
use clap::{Parser, Subcommand};
use nix::sched::{CloneFlags, setns};
use sections::{Bench, Section};
use support::net::Host;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measure; without names everything. What was measured is kept for the report
    Run {
        sections: Vec<Section>,
        /// Runs of each race, beside one that warms the machine
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Where races keep their data: memory, so that no disk is measured
        #[arg(long, default_value = "/dev/shm")]
        memory: PathBuf,
        /// A folder on a real disk
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target"))]
        disk: PathBuf,
    },
    /// Write RESULTS.md of what was measured last
    Report,
    #[command(hide = true)]
    FloorSeed { listen: SocketAddr, file: PathBuf, done: PathBuf },
    #[command(hide = true)]
    FloorLeech { from: SocketAddr, file: PathBuf, piece_bytes: usize, done: PathBuf },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::Run { sections, runs, memory, disk } => {
            let bench = Bench { runs, memory, disk };
            let all = Section::ALL.to_vec();
            for section in if sections.is_empty() { all } else { sections } {
                let body = section.measure(&bench)?;
                println!("{body}");
                report::keep(section, &body)?;
            }
            Ok(())
        }
        What::Report => report::write(),
        What::FloorSeed { listen, file, done } => floor::seed(listen, &file, &done),
        What::FloorLeech { from, file, piece_bytes, done } => floor::leech(from, &file, piece_bytes, &done),
    }
}

/// Runs `f` on a thread whose sockets are the host's; so are those of the threads that it starts.
fn on_host<T: Send + 'static>(host: &Host, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let namespace = File::open(Path::new("/run/netns").join(&host.namespace)).expect("the host's namespace");
    thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the host's namespace");
        f()
    })
}
