//! `trackerd`, `peerd` and `peerctl` as a user has them: each peer in a folder of its own on a host of its own.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::content::make_folder;
use super::net::Host;
use super::process::{Output, Process, run};
use super::{PEERCTL, PEERD, TRACKERD, secs, wait_for, wait_until};

pub const TRACKER_PORT: u16 = 6969;

/// A tracker on a host.
pub struct Tracker {
    pub host: Host,
    pub home: PathBuf,
    pub process: Process,
}

impl Tracker {
    /// Starts one with its state below `home`, and waits until it answers.
    #[track_caller]
    pub fn start(host: &Host, home: &Path) -> Tracker {
        make_folder(home);
        let mut command = Tracker::command(host, home);
        let process = Process::start("trackerd", &mut command, &home.join("trackerd.log"));
        let mut tracker = Tracker { host: host.clone(), home: home.to_path_buf(), process };
        tracker.wait_ready();
        tracker
    }

    fn command(host: &Host, home: &Path) -> Command {
        let mut command = host.command(TRACKERD);
        at_home(&mut command, home);
        command.args(["--foreground", "--state-dir"]).arg(home.join("tracker"));
        command
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        let health = format!("{}/health", self.url());
        wait_until(secs(20), "trackerd answers", || {
            assert!(self.process.ended().is_none(), "trackerd has ended");
            self.host.get(&health).is_some()
        });
    }

    /// `http://IP:6969`
    pub fn url(&self) -> String {
        format!("http://{}:{TRACKER_PORT}", self.host.ip)
    }

    pub fn ip(&self) -> String {
        self.host.ip.to_string()
    }

    /// Starts it again after its end, with the state it left.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.kill9();
        let mut command = Tracker::command(&self.host, &self.home);
        self.process = Process::start("trackerd", &mut command, &self.home.join("trackerd.log"));
        self.wait_ready();
    }

    /// What `path` answers, as seen from the tracker's own host.
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.host.get(&format!("{}{path}", self.url()))
    }

    /// The hits for `words`.
    #[track_caller]
    pub fn search(&self, words: &str) -> Vec<Value> {
        let words: String = words.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let body = self.get(&format!("/search?q={words}&limit=100")).expect("a search reply");
        let reply: Value = serde_json::from_slice(&body).expect("JSON");
        reply["hits"].as_array().expect("hits").clone()
    }

    /// The hit whose file is called exactly `name`, once it is there.
    #[track_caller]
    pub fn wait_hit(&self, name: &str, limit: Duration) -> Value {
        let (stem, kind) = name.rsplit_once('.').unwrap_or((name, "-"));
        wait_for(limit, &format!("{name} on the tracker"), || {
            self.search(stem).into_iter().find(|hit| {
                let hit_name = hit["name"].as_str().unwrap_or_default();
                hit_name == name || hit_name == stem && hit["type"] == kind
            })
        })
    }

    /// Fetches the `.torrent` of `name` from the tracker as any person with curl would.
    #[track_caller]
    pub fn fetch_torrent(&self, from: &Host, name: &str, folder: &Path) -> PathBuf {
        let hit = self.wait_hit(name, secs(60));
        let key = hit["key"].as_str().expect("a key");
        let file = folder.join(format!("{key}.torrent"));
        from.download(&format!("{}/torrents/{key}.torrent", self.url()), &file);
        file
    }

    /// How many peers the tracker lists for `key`.
    #[track_caller]
    pub fn peers_of(&self, key: &str) -> u64 {
        let body = self.get(&format!("/torrents/{key}/peers")).expect("a list of peers");
        let reply: Value = serde_json::from_slice(&body).expect("JSON");
        reply["total"].as_u64().expect("total")
    }
}

/// A peerd in the foreground, in a home of its own.
pub struct Peer {
    pub name: String,
    pub host: Host,
    pub home: PathBuf,
    pub process: Process,
    args: Vec<String>,
}

impl Peer {
    /// Starts `peerd TRACKER 6969` in `parent/name`.
    #[track_caller]
    pub fn start(host: &Host, parent: &Path, name: &str, tracker: &Tracker) -> Peer {
        Peer::start_with(host, parent, name, &[&tracker.ip(), "6969"])
    }

    /// Starts peerd with these arguments and `--foreground`, and waits until it answers peerctl.
    #[track_caller]
    pub fn start_with(host: &Host, parent: &Path, name: &str, args: &[&str]) -> Peer {
        let mut peer = Peer::launch(host, parent, name, args);
        peer.wait_ready();
        peer
    }

    /// The same without the wait, for tests that start many.
    #[track_caller]
    pub fn launch(host: &Host, parent: &Path, name: &str, args: &[&str]) -> Peer {
        let home = parent.join(name);
        make_folder(&home);
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let process = Peer::spawn(host, &home, name, &args);
        Peer { name: name.to_string(), host: host.clone(), home, process, args }
    }

    fn spawn(host: &Host, home: &Path, name: &str, args: &[String]) -> Process {
        let mut command = host.command(PEERD);
        at_home(&mut command, home);
        command.args(args).arg("--foreground");
        Process::start(&format!("peerd {name}"), &mut command, &home.join("peerd.log"))
    }

    #[track_caller]
    pub fn wait_ready(&mut self) {
        wait_until(secs(20), &format!("peerd {} answers", self.name), || {
            assert!(self.process.ended().is_none(), "peerd {} has ended", self.name);
            // Where none is found here, peerctl looks on, and would find whatever else runs on this machine.
            self.ctl(&["--socket", "state/peerd.sock", "status"]).code == Some(0)
        });
    }

    /// Starts it again, with the same arguments and in the same home.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.kill9();
        self.process = Peer::spawn(&self.host, &self.home, &self.name, &self.args);
        self.wait_ready();
    }

    pub fn upload(&self) -> PathBuf {
        self.home.join("upload")
    }

    pub fn downloads(&self) -> PathBuf {
        self.home.join("downloads")
    }

    /// `peerctl ARGS` in this peer's home.
    pub fn ctl_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        peerctl(&self.host, &self.home, args)
    }

    /// Runs `peerctl ARGS`, which must end within a minute.
    #[track_caller]
    pub fn ctl<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        run(&mut self.ctl_command(args), secs(60))
    }

    /// Starts `peerctl ARGS` beside the test.
    #[track_caller]
    pub fn ctl_start(&self, args: &[&str]) -> Process {
        let log = self.home.join("peerctl.log");
        // A test run in the background of a shell inherits an ignored Ctrl-C; a person's terminal does not.
        let mut command = self.host.command("env");
        at_home(&mut command, &self.home);
        command.arg("--default-signal=INT").arg(PEERCTL).args(args);
        Process::start(&format!("peerctl {} on {}", args.join(" "), self.name), &mut command, &log)
    }

    /// `peerctl get --quiet WHAT`, done within `limit`.
    #[track_caller]
    pub fn fetch(&self, what: impl AsRef<OsStr>, limit: Duration) -> Output {
        let args = [OsStr::new("get"), OsStr::new("--quiet"), what.as_ref()];
        run(&mut self.ctl_command(&args), limit).expect_success()
    }

    /// The rows of `peerctl --json list`.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        rows(self.ctl(&["--json", "list"]).expect_success().json())
    }

    /// The row of `list` whose name is `name`.
    #[track_caller]
    pub fn row(&self, name: &str) -> Option<Value> {
        self.list().into_iter().find(|row| row["name"] == name)
    }

    /// How much of `name` is verified and on disk, between 0 and 1.
    #[track_caller]
    pub fn progress(&self, name: &str) -> f64 {
        self.row(name).as_ref().map_or(0.0, progress)
    }

    #[track_caller]
    pub fn wait_state(&self, name: &str, state: &str, limit: Duration) -> Value {
        wait_for(limit, &format!("{name} is {state} at {}", self.name), || {
            self.row(name).filter(|row| row["state"] == state)
        })
    }

    #[track_caller]
    pub fn wait_progress(&self, name: &str, share: f64, limit: Duration) {
        wait_until(limit, &format!("{share} of {name} at {}", self.name), || self.progress(name) >= share);
    }

    /// The sessions of this peer: `peerctl --json peers`.
    #[track_caller]
    pub fn sessions(&self) -> Vec<Value> {
        rows(self.ctl(&["--json", "peers"]).expect_success().json())
    }

    /// How many sessions it serves at this moment.
    #[track_caller]
    pub fn served(&self) -> usize {
        self.sessions().iter().filter(|session| session["am_choking"] == false).count()
    }
}

/// `peerctl ARGS` as typed in `home`.
pub fn peerctl<S: AsRef<OsStr>>(host: &Host, home: &Path, args: &[S]) -> Command {
    let mut command = host.command(PEERCTL);
    at_home(&mut command, home);
    command.args(args);
    command
}

/// `peerd ARGS` as typed in `home`.
pub fn peerd<S: AsRef<OsStr>>(host: &Host, home: &Path, args: &[S]) -> Command {
    let mut command = host.command(PEERD);
    at_home(&mut command, home);
    command.args(args);
    command
}

/// A command started in `home`, with a runtime folder of its own and nothing of ours in its environment, so that the
/// sockets and settings of whoever runs the tests stay out of them.
pub fn at_home(command: &mut Command, home: &Path) {
    let runtime = home.join("run");
    if !runtime.exists() {
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&runtime).expect("create a runtime folder");
    }
    command.current_dir(home).env("XDG_RUNTIME_DIR", runtime);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PEERD_") {
            command.env_remove(name);
        }
    }
}

/// The rows of a `--json` answer: the answer itself, or the one list in it.
#[track_caller]
pub fn rows(answer: Value) -> Vec<Value> {
    match answer {
        Value::Array(rows) => rows,
        Value::Object(fields) => fields
            .into_iter()
            .find_map(|(_, value)| if let Value::Array(rows) = value { Some(rows) } else { None })
            .expect("a list in the answer"),
        other => panic!("no rows: {other}"),
    }
}

fn progress(row: &Value) -> f64 {
    match (row["have_bytes"].as_f64(), row["size"].as_f64()) {
        (Some(have), Some(size)) if size > 0.0 => have / size,
        _ => f64::from(u8::from(row["state"] == "seeding")),
    }
}
