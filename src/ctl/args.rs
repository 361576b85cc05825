//! What the user types.

use crate::wire::rate::Rate;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Talks to the peerd that runs here.
#[derive(Clone, Debug, Parser)]
#[command(name = "peerctl", version, after_help = EXIT_CODES)]
pub struct Args {
    /// The daemon's socket
    #[arg(long, global = true, value_name = "PATH", env = "PEERD_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "WHAT is a .torrent file, an info-hash (40 hex digits) or words.\n\
    Exit codes: 0 done, 1 failed, 2 usage, 3 no daemon, 4 not found, 5 ambiguous.";

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Fetch what a .torrent file, an info-hash or words name
    Get {
        #[arg(value_name = "WHAT")]
        what: String,
        /// Folder to put it in; data that lies there already is checked and used
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
        /// Print nothing but errors
        #[arg(long)]
        quiet: bool,
        /// Return at once; the daemon goes on
        #[arg(long)]
        detach: bool,
        /// Fetch in file order, to look at it meanwhile; others find its pieces less useful
        #[arg(long)]
        sequential: bool,
    },
    /// What this peer shares, fetches and has
    List,
    /// Search the tracker; without words, its newest
    Search {
        #[arg(value_name = "WORDS")]
        words: Vec<String>,
    },
    /// A torrent in full, and who has it
    Show {
        #[arg(value_name = "WHAT")]
        what: String,
    },
    /// How the daemon is
    Status,
    /// Who is connected, for one torrent or all
    Peers {
        #[arg(value_name = "WHAT")]
        what: Option<String>,
    },
    /// What passed between us and each peer, over all time
    Ledger,
    /// Stop fetching and serving a torrent
    Pause {
        #[arg(value_name = "WHAT")]
        what: String,
    },
    /// Go on with a paused torrent
    Resume {
        #[arg(value_name = "WHAT")]
        what: String,
    },
    /// Hash a torrent's data again
    Verify {
        #[arg(value_name = "WHAT")]
        what: String,
    },
    /// Forget a torrent; its files stay
    Remove {
        /// Delete its files too
        #[arg(long)]
        data: bool,
        /// Even when they lie in the upload folder
        #[arg(long, requires = "data")]
        yes: bool,
        #[arg(value_name = "WHAT")]
        what: String,
    },
    /// Share a file or folder where it lies, or publish a .torrent
    Share {
        /// Let every client announce it anywhere (not private)
        #[arg(long)]
        public: bool,
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// How fast to go over all peers, until the daemon ends; without options: what holds now
    Limit {
        /// Bytes per second to send: 500K, 2M; 0 is no limit
        #[arg(long, value_name = "RATE")]
        up: Option<Rate>,
        /// Bytes per second to fetch
        #[arg(long, value_name = "RATE")]
        down: Option<Rate>,
    },
    /// Tell the trackers that we leave, and end the daemon
    Leave,
}
