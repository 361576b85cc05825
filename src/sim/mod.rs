//! The simulator: the product's own rules on a virtual clock, between links that have a rate and a delay.
//!
//! Each node is one [`crate::swarm::Swarm`] with its choker and its address book. What they emit is moved to the peers'
//! swarms as encoded bytes, by discrete events in whole nanoseconds; blocks have a length and no bytes. No rule of the
//! game is written here: who is served and what is asked for is decided where the daemon has it decided. Cheaters
//! differ from the product in what they say, serve and unchoke: see [`Behaviour`] and [`Choking`].
//!
//! - [`Scenario`] says who takes part, over which links; [`Scenario::run`] plays it.
//! - [`table::ROWS`] are the scenarios that the rules are judged by.
//! - [`Outcome`] says when each peer was complete and who gave what to whom; [`Outcome::assert_sound`] holds it to what
//!   no schedule can beat.
//!
//! One seed repeats a run to the last event, on any number of threads: see `engine`.

pub mod agents;
mod bound;
mod cheats;
mod conduct;
mod connect;
mod engine;
mod link;
mod node;
mod outcome;
pub mod plot;
mod scenario;
pub mod table;

pub use bound::{block_bound_s, fluid_bound_s};
pub use conduct::{Act, Behaviour, Choking, Conduct, Honest};
pub use outcome::{Outcome, PeerOutcome, Transfer};
pub use scenario::{Links, PeerSpec, Scenario};

#[cfg(test)]
mod tests;
