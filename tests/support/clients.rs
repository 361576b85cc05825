//! Other people's clients as peers, with everything switched off that would look beyond the test's own hosts: DHT,
//! local discovery, peer exchange and port mapping.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::content::make_folder;
use super::net::Host;
use super::process::{Process, run};
use super::{secs, wait_for};

/// The port every client listens on: each has a host of its own.
const PORT: u16 = 51413;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Transmission,
    Aria2,
    Libtorrent,
}

/// A running client.
pub struct Client {
    pub process: Process,
}

/// Python with libtorrent, in a virtual environment that scripts/test.sh makes.
fn python() -> PathBuf {
    let venv = std::env::var_os("PEERD_TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(python.exists(), "{}: not there; scripts/test.sh makes it", python.display());
    python
}

fn libtorrent_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/lt_peer.py")
}

impl Kind {
    /// Starts the client on `host` with the data in (or for) `folder`; `work` is for its own state. Data that lies in
    /// `folder` already is checked and seeded.
    #[track_caller]
    pub fn start(self, host: &Host, work: &Path, torrent: &Path, folder: &Path) -> Client {
        make_folder(work);
        make_folder(folder);
        match self {
            Kind::Transmission => transmission(host, work, torrent, folder),
            Kind::Aria2 => aria2(host, work, torrent, folder),
            Kind::Libtorrent => libtorrent(host, work, torrent, folder),
        }
    }

    /// Makes a `.torrent` of `content` with the client's own maker.
    #[track_caller]
    pub fn make_torrent(self, content: &Path, torrent: &Path, announce: &str) {
        let mut command = match self {
            Kind::Transmission => {
                let mut command = Command::new("transmission-create");
                command.arg("-o").arg(torrent).args(["-t", announce]).arg(content);
                command
            }
            Kind::Aria2 => {
                // aria2 makes no torrents; mktorrent is what its users have.
                let mut command = Command::new("mktorrent");
                command.args(["-a", announce, "-l", "18", "-o"]).arg(torrent).arg(content);
                command
            }
            Kind::Libtorrent => {
                let mut command = Command::new(python());
                command.arg(libtorrent_script()).arg("make").arg(content).arg(torrent).arg(announce);
                command
            }
        };
        run(&mut command, secs(120)).expect_success();
    }

    /// Opens a `.torrent` with the client's own tool and returns what it says.
    #[track_caller]
    pub fn show(self, torrent: &Path) -> String {
        let mut command = match self {
            Kind::Transmission => Command::new("transmission-show"),
            Kind::Aria2 => {
                let mut command = Command::new("aria2c");
                command.arg("-S");
                command
            }
            Kind::Libtorrent => {
                let mut command = Command::new(python());
                command.arg(libtorrent_script()).arg("show");
                command
            }
        };
        run(command.arg(torrent), secs(30)).expect_success().text()
    }
}

#[track_caller]
fn transmission(host: &Host, work: &Path, torrent: &Path, folder: &Path) -> Client {
    let settings = serde_json::json!({
        "download-dir": folder,
        "incomplete-dir-enabled": false,
        // Whatever stands here it asks the tracker from, over either family.
        "bind-address-ipv4": if host.ip.is_ipv4() { host.ip.to_string() } else { "0.0.0.0".into() },
        "peer-port": PORT,
        "peer-port-random-on-start": false,
        "port-forwarding-enabled": false,
        "dht-enabled": false,
        "lpd-enabled": false,
        "pex-enabled": false,
        "utp-enabled": false,
        "encryption": 0,
        "rpc-enabled": true,
        "rpc-port": 9091,
        "rpc-authentication-required": false,
        "rpc-whitelist-enabled": false,
        "watch-dir-enabled": false,
        "start-added-torrents": true,
        "download-queue-enabled": false,
        "seed-queue-enabled": false,
    });
    fs::write(work.join("settings.json"), settings.to_string()).expect("write Transmission's settings");
    let mut command = host.command("transmission-daemon");
    command.args(["-f", "--log-info", "-g"]).arg(work);
    let process = Process::start("transmission-daemon", &mut command, &work.join("log"));
    wait_for(secs(20), "Transmission takes the torrent", || {
        let mut add = host.command("transmission-remote");
        let output = run(add.arg("127.0.0.1:9091").arg("-a").arg(torrent), secs(10));
        (output.code == Some(0)).then_some(())
    });
    Client { process }
}

#[track_caller]
fn aria2(host: &Host, work: &Path, torrent: &Path, folder: &Path) -> Client {
    let mut command = host.command("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"]);
    command.args(["--enable-peer-exchange=false", "--seed-ratio=0", "--file-allocation=none", "--disk-cache=0"]);
    command.args(["--check-integrity=true", "--bt-hash-check-seed=true", "--summary-interval=0"]);
    command.arg(format!("--listen-port={PORT}")).arg(format!("--interface={}", host.ip));
    command.arg("--dir").arg(folder).arg(torrent);
    Client { process: Process::start("aria2c", &mut command, &work.join("log")) }
}

#[track_caller]
fn libtorrent(host: &Host, work: &Path, torrent: &Path, folder: &Path) -> Client {
    let mut command = host.command(python());
    let listen = SocketAddr::new(host.ip, PORT).to_string();
    command.arg(libtorrent_script()).arg("run").arg(torrent).arg(folder).arg(listen);
    Client { process: Process::start("libtorrent", &mut command, &work.join("log")) }
}

impl Client {
    /// Asks `done` until it holds; the client must live until then.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
        wait_for(limit, what, || {
            if done() {
                return Some(());
            }
            assert!(self.process.ended().is_none(), "{} has ended before: {what}", self.process.name);
            std::thread::sleep(Duration::from_millis(200));
            None
        });
    }
}
