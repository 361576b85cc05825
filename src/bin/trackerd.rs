//! The tracker as a program: arguments, background, signals.

use std::fs::File;
use std::io::{BufReader, BufWriter, stdin, stdout};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Parser, Subcommand};
use peerd::background::{self, Launched, Readiness};
use peerd::logging::{self, LogFormat};
use peerd::tracker::check::describe;
use peerd::tracker::config::FileConfig;
use peerd::tracker::lists::ListFiles;
use peerd::tracker::transfer;
use peerd::tracker::{DEFAULT_PROXY_HEADER, STORE_DIR, Tracker, TrackerOptions, commands_for_others};
use tokio::signal::unix::{SignalKind, signal};

const DEFAULT_STATE_DIR: &str = "tracker";
/// A stop writes what waits; a disk that takes longer is stuck.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Keeps who has what, and answers searches. Goes to the background once it is up.
#[derive(Parser)]
#[command(name = "trackerd", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct RunArgs {
    /// Where to listen, TCP and UDP [default: 0.0.0.0:6969 and [::]:6969]
    #[arg(long, value_name = "IP:PORT", num_args = 1.., value_delimiter = ',', env = "TRACKERD_LISTEN")]
    listen: Vec<SocketAddr>,
    /// Where what must survive is kept [default: tracker/]
    #[arg(long, value_name = "DIR", env = "TRACKERD_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Stay in the foreground, log to the terminal
    #[arg(long, env = "TRACKERD_FOREGROUND")]
    foreground: bool,
    /// A configuration file (TOML); its keys are these flags, list_peers, public_address, trusted_proxies,
    /// proxy_header, allow_list, deny_list, publisher_list, hide_seedless_after_days and drop_seedless_after_days
    #[arg(long, value_name = "FILE", env = "TRACKERD_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Stop the tracker that keeps its state in this folder
    Stop {
        #[arg(long, value_name = "DIR", env = "TRACKERD_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Say what a .torrent is, or why it would be refused
    Check { file: PathBuf },
    /// Print everything that a stopped tracker keeps, as JSON lines
    Export {
        #[arg(long, value_name = "DIR", env = "TRACKERD_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Add what `export` has printed, from a file or from standard input, to what a stopped tracker keeps
    Import {
        #[arg(long, value_name = "DIR", env = "TRACKERD_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
        file: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Stop { state_dir }) => stop(&state_dir),
        Some(Command::Check { file }) => describe(&file).map_err(Into::into).map(|text| {
            print!("{text}");
            ExitCode::SUCCESS
        }),
        Some(Command::Export { state_dir }) => export(&state_dir),
        Some(Command::Import { state_dir, file }) => import(&state_dir, file.as_deref()),
        None => run(cli.run),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("trackerd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let readiness = background::readiness()?;
    let file = args.config.as_deref().map(FileConfig::read).transpose()?.unwrap_or_default();
    let patience = file.patience();
    let foreground = args.foreground || file.foreground.unwrap_or(false);
    let state_dir = args.state_dir.or(file.state_dir).unwrap_or_else(|| DEFAULT_STATE_DIR.into());
    let options = TrackerOptions {
        listen: if args.listen.is_empty() { file.listen.unwrap_or_default() } else { args.listen },
        list_peers: file.list_peers.unwrap_or(true),
        public_address: file.public_address,
        trusted_proxies: file.trusted_proxies,
        proxy_header: file.proxy_header.unwrap_or_else(|| DEFAULT_PROXY_HEADER.to_owned()),
        patience,
        lists: ListFiles { allow: file.allow_list, deny: file.deny_list, publishers: file.publisher_list },
        ..TrackerOptions::new(&state_dir)
    };
    let log = state_dir.join("trackerd.log");
    if !foreground && readiness.is_none() {
        return Ok(match background::launch(&log, 0o755)? {
            Launched::Up(message) => {
                print!("{message}");
                ExitCode::SUCCESS
            }
            Launched::Failed(message) => {
                eprintln!("trackerd: {}", message.trim_end());
                ExitCode::FAILURE
            }
        });
    }
    logging::init(LogFormat::Text, readiness.is_some().then_some(log.as_path()))?;
    background::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options, readiness))
}

async fn serve(options: TrackerOptions, readiness: Option<Readiness>) -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let state_dir = options.state_dir.clone();
    let tracker = match Tracker::start(options).await {
        Ok(tracker) => tracker,
        Err(error) => {
            tracing::error!(%error, "not started");
            if let Some(readiness) = readiness {
                readiness.failed(&error.to_string());
                return Ok(ExitCode::FAILURE);
            }
            return Err(error.into());
        }
    };
    let greeting = greeting(tracker.local_addrs(), &state_dir);
    tracing::info!(addresses = ?tracker.local_addrs(), "up");
    match readiness {
        Some(readiness) => readiness.up(&greeting),
        None => print!("{greeting}"),
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => match tracker.reload_lists().await {
                Ok(listed) => tracing::info!(?listed, "the lists were read again"),
                Err(error) => tracing::error!(%error, "the lists stay as they were"),
            },
        }
    }
    tracing::info!("stopping");
    tracker.stop().await.map_err(|error| anyhow!("not everything could be written: {error}"))?;
    Ok(ExitCode::SUCCESS)
}

fn greeting(addresses: &[SocketAddr], state_dir: &Path) -> String {
    let listed: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_path_buf());
    let mut text = format!("The tracker listens on {}; its state is in {}.\n", listed.join(", "), state_dir.display());
    let commands = commands_for_others(addresses);
    if commands.is_empty() {
        text.push_str("It can be reached from this machine alone.\n");
    } else {
        text.push_str("On other machines type one of:\n");
        commands.iter().for_each(|command| text.push_str(&format!("  {command}\n")));
    }
    text
}

fn export(state_dir: &Path) -> anyhow::Result<ExitCode> {
    let done = transfer::export(state_dir, &mut BufWriter::new(stdout().lock()))?;
    eprintln!("{} torrents and {} peers were exported.", done.torrents, done.peers);
    Ok(ExitCode::SUCCESS)
}

fn import(state_dir: &Path, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let done = match file {
        Some(file) => {
            let opened = File::open(file).map_err(|error| anyhow!("{}: {error}", file.display()))?;
            transfer::import(state_dir, &mut BufReader::new(opened))?
        }
        None => transfer::import(state_dir, &mut stdin().lock())?,
    };
    println!("{} torrents and {} peers were new and have been imported.", done.torrents, done.peers);
    Ok(ExitCode::SUCCESS)
}

fn stop(state_dir: &Path) -> anyhow::Result<ExitCode> {
    let lock = state_dir.join(STORE_DIR).join("lock");
    let pid = background::stop("trackerd", state_dir, &lock, STOP_PATIENCE)?;
    println!("The tracker (process {pid}) has stopped.");
    Ok(ExitCode::SUCCESS)
}
