//! Every integration test, one binary.

mod bad_input;
mod disk;
mod interop;
mod reliability;
mod resume;
mod story;
mod support;
mod swarm;
mod tidy;
mod tracker;
mod units;
mod watch;
