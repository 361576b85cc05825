//! A file-sharing network that people run themselves: `trackerd` (who has what, and search), `peerd` (the daemon
//! that shares and fetches) and `peerctl` (its control). BitTorrent on the wire.
//!
//! ARCHITECTURE.md says what each room holds and what it may never do; `tests/tidy.rs` holds the tree to it.

pub mod background;
pub mod clock;
pub mod ctl;
pub mod daemon;
pub mod db;
pub mod logging;
pub mod sim;
pub mod swarm;
pub mod tracker;
pub mod wire;
