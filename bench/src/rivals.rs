//! The clients that race, as their makers ship them but for what would look beyond the hosts (DHT, local discovery,
//! port mapping) and limits that a race would only measure. Transmission is not among them: it chooses whom to serve every 10 s,
//! and that is what a race would measure.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::content::Content;
use crate::figures::cpu_s;
use crate::support::content::make_folder;
use crate::support::net::Host;
use crate::support::peer::at_home;
use crate::support::process::{Process, run};
use crate::support::{PEERCTL, PEERD, here, secs};

const PORT: u16 = 51413;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Peerd,
    Libtorrent,
    LibtorrentTuned,
    Aria2,
    Floor,
}

impl Client {
    pub const ALL: [Client; 5] =
        [Client::Peerd, Client::Libtorrent, Client::LibtorrentTuned, Client::Aria2, Client::Floor];

    pub fn label(self) -> &'static str {
        match self {
            Client::Peerd => "peerd",
            Client::Libtorrent => "libtorrent, as packaged",
            Client::LibtorrentTuned => "libtorrent, tuned",
            Client::Aria2 => "aria2",
            Client::Floor => "no protocol at all: sendfile; receive, SHA-1, write",
        }
    }

    /// Its version; `None` where it is not installed.
    pub fn version(self) -> Option<String> {
        let mut command = match self {
            Client::Peerd => Command::new(PEERD),
            Client::Libtorrent | Client::LibtorrentTuned => {
                let mut python = Command::new(python());
                python.args(["-c", "import libtorrent; print(libtorrent.__version__)"]);
                python
            }
            Client::Aria2 => Command::new("aria2c"),
            Client::Floor => return Some(String::new()),
        };
        if !matches!(self, Client::Libtorrent | Client::LibtorrentTuned) {
            command.arg("--version");
        }
        let output = command.output().ok().filter(|output| output.status.success())?;
        let said = [output.stdout, output.stderr].concat();
        let line = String::from_utf8_lossy(&said).lines().next()?.to_string();
        let digits = line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        digits.map(str::to_string)
    }
}

fn python() -> PathBuf {
    let venv = std::env::var_os("PEERD_TEST_VENV").map_or_else(|| here().join("../target/venv"), PathBuf::from);
    let python = venv.join("bin/python");
    if python.exists() { python } else { "python3".into() }
}

/// Where a client sits: its folders, and the file that appears once its copy is complete.
#[derive(Clone)]
pub struct Seat {
    pub host: Host,
    pub work: PathBuf,
    pub data: PathBuf,
    pub done: PathBuf,
}

impl Seat {
    pub fn new(host: &Host, folder: &Path) -> Seat {
        let (work, data) = (folder.join("work"), folder.join("data"));
        make_folder(&work);
        make_folder(&data);
        Seat { host: host.clone(), done: folder.join("done"), work, data }
    }
}

/// A started client, and whoever tells it what to do.
pub struct Running {
    pub client: Process,
    helper: Option<Process>,
}

impl Running {
    /// Of both, in seconds.
    pub fn cpu_s(&self) -> f64 {
        cpu_s(self.client.pid()) + self.helper.as_ref().map_or(0.0, |helper| cpu_s(helper.pid()))
    }

    pub fn assert_lives(&mut self) {
        if let Some(status) = self.client.ended() {
            panic!("{} has ended, {status}:\n{}", self.client.name, self.client.log());
        }
    }
}

/// Starts `client` in its seat. With `seeds` all data lies there already; else it comes from `seeder`, which only the floor
/// must be told.
pub fn start(client: Client, seat: &Seat, content: &Content, seeds: bool, seeder: SocketAddr) -> Result<Running> {
    let mut helper = None;
    let mut command = match client {
        Client::Peerd => {
            helper = Some(peerd_helper(seat, content));
            peerd(seat)
        }
        Client::Libtorrent => libtorrent(seat, content, "packaged"),
        Client::LibtorrentTuned => libtorrent(seat, content, "tuned"),
        Client::Aria2 => aria2(seat, content, seeds)?,
        Client::Floor => floor(seat, content, seeds, seeder)?,
    };
    let process = Process::start(client.label(), &mut command, &seat.work.join("log"));
    let helper = helper.map(|mut helper| Process::start("the helper", &mut helper, &seat.work.join("helper.log")));
    Ok(Running { client: process, helper })
}

pub fn listens_on(host: &Host) -> SocketAddr {
    SocketAddr::new(host.ip, PORT)
}

fn peerd(seat: &Seat) -> Command {
    let mut command = seat.host.command(PEERD);
    at_home(&mut command, &seat.work);
    command.args(["198.18.0.2", "6969", "--foreground", "--listen", &listens_on(&seat.host).to_string()]);
    command.arg("--socket").arg(seat.work.join("ctl.sock"));
    command
}

/// What a user types once peerd is up.
fn peerd_helper(seat: &Seat, content: &Content) -> Command {
    let mut sh = seat.host.command("sh");
    at_home(&mut sh, &seat.work);
    let script = r#"until [ -S "$1" ]; do sleep 0.01; done; "$2" --socket "$1" get --quiet --to "$3" "$4" && : >"$5""#;
    sh.args(["-c", script, "sh"]).arg(seat.work.join("ctl.sock")).arg(PEERCTL);
    sh.arg(&seat.data).arg(&content.torrent).arg(&seat.done);
    sh
}

fn libtorrent(seat: &Seat, content: &Content, profile: &str) -> Command {
    let mut command = seat.host.command(python());
    command.arg(here().join("lt_peer.py")).arg(&content.torrent).arg(&seat.data);
    command.args([seat.host.ip.to_string(), PORT.to_string()]).arg(&seat.done).arg(profile);
    command
}

/// A script that makes the file `done`.
fn hook(seat: &Seat) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let script = seat.work.join("done.sh");
    fs::write(&script, format!("#!/bin/sh\n: >'{}'\n", seat.done.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

fn aria2(seat: &Seat, content: &Content, seeds: bool) -> Result<Command> {
    let mut command = seat.host.command("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"]);
    command.args(["--enable-peer-exchange=false", "--seed-ratio=0", "--quiet=true", "--file-allocation=falloc"]);
    command.args(["--bt-max-peers=0", "--max-upload-limit=0", "--disk-cache=64M"]);
    command.args(["--bt-request-peer-speed-limit=1000000K".to_string(), format!("--listen-port={PORT}")]);
    command.arg(format!("--interface={}", seat.host.ip)).arg("--dir").arg(&seat.data);
    if seeds {
        command.args(["--check-integrity=true", "--bt-hash-check-seed=true"]);
    } else {
        command.arg("--on-bt-download-complete").arg(hook(seat)?);
    }
    command.arg(&content.torrent);
    Ok(command)
}

fn floor(seat: &Seat, content: &Content, seeds: bool, seeder: SocketAddr) -> Result<Command> {
    let mut command = seat.host.command(std::env::current_exe()?);
    let file = seat.data.join(content.name());
    if seeds {
        command.args(["floor-seed", &listens_on(&seat.host).to_string()]).arg(file);
    } else {
        let piece_bytes = content.layout.piece_bytes().to_string();
        command.args(["floor-leech", &seeder.to_string()]).arg(file).arg(piece_bytes);
    }
    command.arg(&seat.done);
    Ok(command)
}

/// How many complete peers the tracker counts (BEP 48).
pub fn complete_peers(asker: &Host, content: &Content) -> u64 {
    let hash: String = content.key.as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
    let url = format!("http://198.18.0.2:6969/scrape?info_hash={hash}");
    let mut curl = asker.command("curl");
    curl.args(["--silent", "--max-time", "5", &url]);
    let said = run(&mut curl, secs(10)).text();
    let count = said.split_once("8:completei").and_then(|(_, rest)| rest.split_once('e'));
    count.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}
