//! Every integration test, one binary.

mod bad_input;
mod bans;
mod fuzz;
mod interop;
mod limits;
mod neighbours;
mod preferred;
mod resume;
mod story;
mod support;
mod swarm;
mod tidy;
mod tracker;
mod tracker_clients;
mod units;
mod watch;
