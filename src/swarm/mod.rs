//! The rules of the game: pure. `now` and seeded randomness go in, messages and effects come out; sockets, disks and
//! payload stay with the shell, be it the daemon or the simulator.
//!
//! - [`Swarm`]: one torrent's swarm from our seat. Sessions, what to ask of whom, what to serve, whom to tell.
//! - [`choker`]: who may be served, over all sessions of all torrents.
//! - [`dial`]: whom to connect to; [`neighbours`]: how many, and who makes room. [`proving`]: how a peer proves who it is.
//! - [`bans`]: who is shut out, over all torrents; `blame`: who gave the wrong bytes of a piece.
//! - [`limiter`]: how a limited rate is shared out.
//! - [`picker`] and [`rarity`]: which block next; used by [`Swarm`] alone.
//! - `superseed`: what a lone seed shows to whom, so that each piece goes out once before any goes twice.

use std::net::IpAddr;

pub mod bans;
mod blame;
pub mod choker;
pub mod dial;
mod download;
mod fault;
mod flood;
pub mod limiter;
pub mod neighbours;
pub mod picker;
pub mod proving;
pub mod rarity;
pub mod rate;
mod session;
mod superseed;
#[cfg(test)]
mod testnet;
mod torrent;
mod upload;

pub use blame::{Giver, UnitDigest};
pub use download::{Placement, Receipt};
pub use fault::{CloseReason, PeerFault};
pub use session::{LIMITED_WINDOW_TIME, SessionInfo, SessionReport};
pub use torrent::{Effect, Swarm, SwarmConfig};

/// One connection to one peer; unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u32);

/// Who earns: a peerd by the key it has proved, another client by the address it comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Identity {
    Key([u8; 32]),
    Address(IpAddr),
}

/// What somebody gave of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Given {
    pub identity: Identity,
    /// The session over which it came; it may be closed by now.
    pub session: SessionId,
    pub bytes: u32,
}

impl Given {
    fn by(giver: &Giver) -> Given {
        Given { identity: giver.identity, session: giver.session, bytes: 0 }
    }
}
