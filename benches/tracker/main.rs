//! What the tracker costs and what it survives: `cargo bench --bench tracker -- million` and so on. Against other trackers
//! it is measured by `scripts/bench-tracker.sh`.

mod kill;
mod latency;
mod million;
mod names;
mod server;
mod torrent;

use clap::{Parser, Subcommand};

/// Starts trackerd on the loopback, in a folder that goes away, and measures it.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum What {
    /// A million torrents and two million peers: publishing, memory, search, latency, kill -9 (a quarter of an hour)
    Million {
        #[arg(long, default_value_t = TORRENTS)]
        torrents: u32,
        #[arg(long, default_value_t = PEERS)]
        peers: u32,
    },
    /// kill -9 under load, again and again
    Kill {
        #[arg(long, default_value_t = ROUNDS)]
        rounds: u32,
    },
}

const TORRENTS: u32 = 1_000_000;
const PEERS: u32 = 2_000_000;
const ROUNDS: u32 = 20;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir()?;
    let (million, kill) = (folder.path().join("million"), folder.path().join("kill"));
    match args.what {
        Some(What::Million { torrents, peers }) => million::run(&million, torrents, peers),
        Some(What::Kill { rounds }) => kill::run(&kill, rounds),
        None => million::run(&million, TORRENTS, PEERS).and_then(|()| kill::run(&kill, ROUNDS)),
    }
}
