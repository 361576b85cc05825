//! `peerctl`: commands for the peerd that runs here.

use clap::Parser;
use peerd::ctl::{Args, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(run(Args::parse()))
}
