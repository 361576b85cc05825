//! `peerd`: parses, composes, runs. What it does is in the library.

use clap::Parser;
use peerd::daemon::options::{Args, TrackerChoice};
use peerd::daemon::trackers::OurTracker;
use peerd::daemon::{Daemon, State};

fn main() -> anyhow::Result<()> {
    let options = Args::parse().resolve()?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let state = State::open(options)?;
        let tracker = match state.tracker() {
            TrackerChoice::At(host, port) => OurTracker::new(&host, port),
            _ => anyhow::bail!("no own tracker yet"),
        };
        let daemon = Daemon::start(state, tracker, false).await?;
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
            () = daemon.left() => {}
        }
        daemon.stop().await;
        Ok(())
    })
}
