//! Processes with a log, an end that is waited for within a bound, and no survivors.

use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{secs, wait_for};

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub command: String,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    #[track_caller]
    pub fn expect_success(self) -> Output {
        self.expect_code(0)
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Output {
        assert_eq!(self.code, Some(code), "{}\n{}{}", self.command, self.text(), self.errors());
        self
    }

    /// A refusal: that code, and a message on standard error with every one of `words` in it, but no panic.
    #[track_caller]
    pub fn expect_refusal(self, code: i32, words: &[&str]) -> Output {
        let output = self.expect_code(code);
        let errors = output.errors();
        assert!(!errors.contains("panicked"), "{}\n{errors}", output.command);
        for word in words {
            let found = errors.to_lowercase().contains(&word.to_lowercase());
            assert!(found, "{}\n{errors}\nsays nothing of {word:?}", output.command);
        }
        output
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: not JSON: {e}\n{}{}", self.command, self.text(), self.errors()))
    }
}

/// Runs `command` to its end, which must come within `limit`. Its output goes through files, so that a daemon which it
/// leaves behind cannot hold the test up.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let shown = describe(command);
    let mut stdout = tempfile::tempfile().expect("a temporary file");
    let mut stderr = tempfile::tempfile().expect("a temporary file");
    command.stdin(Stdio::null());
    command.stdout(stdout.try_clone().expect("a file")).stderr(stderr.try_clone().expect("a file"));
    let start = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            break Some(status);
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let read = |file: &mut fs::File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read what was said");
        bytes
    };
    let output = Output {
        code: status.and_then(|status| status.code()),
        stdout: read(&mut stdout),
        stderr: read(&mut stderr),
        command: shown,
    };
    assert!(status.is_some(), "{}: not done within {limit:?}\n{}{}", output.command, output.text(), output.errors());
    output
}

/// The command as a person would type it on its host.
pub fn describe(command: &Command) -> String {
    let mut words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| {
            let word = word.to_string_lossy();
            if word.contains(' ') { format!("'{word}'") } else { word.into_owned() }
        })
        .collect();
    if words.len() > 3 && words[..3] == ["ip", "netns", "exec"] {
        words.drain(..4);
    }
    if let Some(name) = Path::new(&words[0]).file_name() {
        words[0] = name.to_string_lossy().into_owned();
    }
    words.join(" ")
}

/// A process that lives until it is told to end, or until this is dropped. If the test fails, the end of its log is
/// printed.
pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Process {
        let file = fs::File::options().create(true).append(true).open(log).expect("open a log");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", describe(command)));
        Process { name: name.to_string(), child, log: log.to_path_buf(), status: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for a child");
        }
        self.status
    }

    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait_for(limit, &what, || self.ended())
    }

    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        self.status = self.child.wait().ok();
    }

    pub fn terminate(&self) {
        signal(self.pid(), "TERM");
    }

    /// The most memory it has had resident, in bytes.
    pub fn peak_resident_bytes(&self) -> u64 {
        peak_resident_bytes(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill9();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("---- {} ({:?}), the end of its log\n{tail}", self.name, self.status);
        }
    }
}

pub fn signal(pid: u32, name: &str) {
    let mut kill = Command::new("kill");
    run(kill.args(["-s", name, &pid.to_string()]), secs(5)).expect_success();
}

pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// VmHWM of a process, in bytes.
pub fn peak_resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok())
        .expect("VmHWM");
    kib * 1024
}
