//! Every integration test, one binary.

mod bad_input;
mod bans;
mod disk;
mod faults;
mod fuzz;
mod hostile;
mod interop;
mod limits;
mod neighbours;
mod preferred;
mod reliability;
mod resume;
mod story;
mod support;
mod swarm;
mod tidy;
mod tracker;
mod tracker_clients;
mod tracker_hostile;
mod units;
mod watch;
