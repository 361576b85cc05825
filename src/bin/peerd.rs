//! The daemon as a program: arguments, background, signals, and the tracker inside it when there is no other.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Parser;
use peerd::background::{self, Launched, Readiness};
use peerd::daemon::options::{Args, Options, TRACKER_PORT, TrackerChoice};
use peerd::daemon::trackers::OurTracker;
use peerd::daemon::{Daemon, STATE_DIR_MODE, State};
use peerd::logging;
use peerd::tracker::{Tracker, TrackerOptions, commands_for_others};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("peerd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    let readiness = background::readiness()?;
    let options = args.resolve()?;
    let log = options.state_dir.join("peerd.log");
    if !options.foreground && readiness.is_none() {
        return Ok(match background::launch(&log, STATE_DIR_MODE)? {
            Launched::Up(message) => {
                print!("{message}");
                ExitCode::SUCCESS
            }
            Launched::Failed(message) => {
                eprintln!("peerd: {}", message.trim_end());
                ExitCode::FAILURE
            }
        });
    }
    logging::init(options.log_format, readiness.is_some().then_some(log.as_path()))?;
    background::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(serve(options, readiness));
    // A read from a dead disk must not keep the process alive: all that must be kept has been.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

async fn serve(options: Options, readiness: Option<Readiness>) -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let running = match start(options).await {
        Ok(running) => running,
        Err(error) => {
            tracing::error!("not started: {error}");
            if let Some(readiness) = readiness {
                readiness.failed(&error.to_string());
                return Ok(ExitCode::FAILURE);
            }
            return Err(error);
        }
    };
    tracing::info!(listening = ?running.daemon.listening(), "up");
    match readiness {
        Some(readiness) => readiness.up(&running.greeting),
        None => print!("{}", running.greeting),
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = running.daemon.left() => {}
    }
    tracing::info!("stopping");
    running.daemon.stop().await;
    if let Some(tracker) = running.tracker {
        tracker.stop().await.map_err(|error| anyhow!("the tracker could not write everything: {error}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Running {
    daemon: Daemon,
    tracker: Option<Tracker>,
    greeting: String,
}

async fn start(options: Options) -> anyhow::Result<Running> {
    let state = tokio::task::spawn_blocking(move || State::open(options)).await??;
    let Options { upload_dir, download_dir, .. } = state.options();
    let mut greeting = format!(
        "peerd is up.\nShared is what is copied into {}\nFetched files go to {}\n",
        upload_dir.display(),
        download_dir.display()
    );
    let (tracker, at) = match state.tracker() {
        TrackerChoice::At(host, port) => (None, OurTracker::new(&host, port)),
        TrackerChoice::Own | TrackerChoice::AsBefore => {
            let tracker = Tracker::start(TrackerOptions::new(state.options().state_dir.join("tracker"))).await?;
            (Some(tracker), OurTracker::new("127.0.0.1", TRACKER_PORT))
        }
    };
    match &tracker {
        Some(tracker) => greeting.push_str(&invitation(tracker)),
        None => greeting.push_str(&format!("The tracker is {at}\n")),
    }
    greeting.push_str("Next: peerctl search [WORDS], get WHAT, list, status, leave; peerctl help for more.\n");
    let daemon = Daemon::start(state, at, tracker.is_some()).await?;
    Ok(Running { daemon, tracker, greeting })
}

/// What others must type to join.
fn invitation(tracker: &Tracker) -> String {
    let commands = commands_for_others(tracker.local_addrs());
    if commands.is_empty() {
        return "It runs a tracker of its own, which only this machine can reach.\n".to_owned();
    }
    format!("It runs a tracker of its own. On other machines type one of:\n  {}\n", commands.join("\n  "))
}
