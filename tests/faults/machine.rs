//! A machine whose clock jumps, and machines without IPv6: the daemons' own calls of the C library, answered by a few
//! lines of C that are loaded before it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::content::{MIB, assert_same, drop_in, make_folder};
use crate::support::net::{Host, Net};
use crate::support::peer::{at_home, peerctl, rows};
use crate::support::process::{Output, Process, run};
use crate::support::{PEERD, TRACKERD, folder, gate, secs, wait_for, wait_until};

/// The time of day is off by what stands in the file `TEST_CLOCK`; with `TEST_NO_IPV6` the kernel has none.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_s;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof *offset_s, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) offset_s = map;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && offset_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset_s;
    return failed;
}

int socket(int domain, int type, int protocol) {
    if (domain == AF_INET6 && getenv("TEST_NO_IPV6")) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    return syscall(SYS_socket, domain, type, protocol);
}
"#;

const DAY_S: i64 = 86_400;

/// A machine with its own idea of things, on which one of our daemons runs.
struct Machine {
    host: Host,
    home: PathBuf,
    process: Process,
}

impl Machine {
    fn start(host: &Host, folder: &Path, name: &str, program: &str, args: &[&str], shim: &Shim) -> Machine {
        let home = folder.join(name);
        make_folder(&home);
        let mut command = host.command(program);
        at_home(&mut command, &home);
        command.args(args).arg("--foreground").env("LD_PRELOAD", &shim.object).envs(shim.env.clone());
        let process = Process::start(name, &mut command, &home.join("log"));
        Machine { host: host.clone(), home, process }
    }

    fn ctl(&self, args: &[&str]) -> Output {
        run(&mut peerctl(&self.host, &self.home, args), secs(60))
    }

    fn wait_ready(&mut self) {
        wait_until(secs(30), "peerd answers", || {
            assert!(self.process.ended().is_none(), "it has ended:\n{}", self.process.log());
            self.ctl(&["status"]).code == Some(0)
        });
    }

    fn have_bytes(&self, name: &str) -> u64 {
        let rows = rows(self.ctl(&["--json", "list"]).expect_success().json());
        rows.iter().find(|row| row["name"] == name).and_then(|row| row["have_bytes"].as_u64()).unwrap_or(0)
    }
}

struct Shim {
    object: PathBuf,
    clock: File,
    env: Vec<(&'static str, PathBuf)>,
}

impl Shim {
    #[track_caller]
    fn compile(folder: &Path) -> Shim {
        use std::io::Write;
        let (object, clock) = (folder.join("shim.so"), folder.join("clock"));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-x", "c", "-", "-o"]).arg(&object).stdin(Stdio::piped());
        let mut cc = cc.spawn().expect("start cc");
        cc.stdin.take().expect("a pipe").write_all(SHIM.as_bytes()).expect("a listening cc");
        assert!(cc.wait().expect("cc").success());
        std::fs::write(&clock, 0_i64.to_ne_bytes()).expect("a clock");
        let file = File::options().write(true).open(&clock).expect("a clock");
        Shim { object, clock: file, env: vec![("TEST_CLOCK", clock)] }
    }

    /// Every clock of the test is off by this, from now on.
    fn set_clock(&self, offset_s: i64) {
        self.clock.write_all_at(&offset_s.to_ne_bytes(), 0).expect("a clock");
    }
}

/// Announces that the tracker on this host has answered so far.
fn announces(tracker: &Host) -> u64 {
    let text = tracker.get(&format!("http://{}:6969/metrics", tracker.ip)).expect("metrics");
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| line.contains("_announce\"") && !line.contains("bad_announce"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn is_found(host: &Host, tracker: &Host, words: &str) -> bool {
    let found = host.get(&format!("http://{}:6969/search?q={words}", tracker.ip)).expect("an answer");
    String::from_utf8_lossy(&found).contains(&format!("\"{words}"))
}

#[test]
fn a_clock_that_jumps_a_day_ahead_and_a_year_back_disturbs_nothing() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(3);
    let shim = Shim::compile(folder.path());
    let ip = net.hosts[0].ip.to_string();
    let start = |n: usize, name, program, args: &[&str]| {
        Machine::start(&net.hosts[n], folder.path(), name, program, args, &shim)
    };
    let tracker = start(0, "T", TRACKERD, &["--state-dir", "tracker"]);
    wait_until(secs(20), "trackerd answers", || tracker.host.get(&format!("http://{ip}:6969/health")).is_some());
    let mut sharer = start(1, "S", PEERD, &[&ip, "6969"]);
    let mut fetcher = start(2, "F", PEERD, &[&ip, "6969", "--limit-down", "1M"]);
    sharer.wait_ready();
    fetcher.wait_ready();
    let original = drop_in(&sharer.home.join("upload"), "long.bin", 1, 32 * MIB);
    wait_until(secs(60), "it is published", || is_found(&net.hosts[2], &net.hosts[0], "long"));
    fetcher.ctl(&["get", "--detach", "long.bin"]).expect_success();
    wait_until(secs(60), "it has begun", || fetcher.have_bytes("long.bin") > MIB);
    for (n, offset_s) in [DAY_S, -366 * DAY_S].into_iter().enumerate() {
        let (had, announced) = (fetcher.have_bytes("long.bin"), announces(&net.hosts[0]));
        shim.set_clock(offset_s);
        std::thread::sleep(secs(4));
        let came = fetcher.have_bytes("long.bin") - had;
        assert!(came > MIB, "{came} bytes came in the 4 s after the clock was set to {offset_s} s");
        let more = announces(&net.hosts[0]) - announced;
        assert!(more <= 4, "{more} announces in 4 s after the clock was set to {offset_s} s");
        assert!(is_found(&net.hosts[2], &net.hosts[0], "long"), "it is not found any more");
        let name = format!("after{n}.bin");
        drop_in(&sharer.home.join("upload"), &name, 2 + n as u64, MIB);
        wait_until(secs(60), "what came after the jump is published", || {
            is_found(&net.hosts[2], &net.hosts[0], &format!("after{n}"))
        });
    }
    fetcher.ctl(&["limit", "--down", "0"]).expect_success();
    for name in ["long.bin", "after0.bin", "after1.bin"] {
        fetcher.ctl(&["get", "--quiet", name]).expect_success();
    }
    assert_same(&original, &fetcher.home.join("downloads/long.bin"));
    fetcher.ctl(&["ledger"]).expect_success();
    for machine in [&mut sharer, &mut fetcher] {
        let log = machine.process.log();
        assert!(!log.contains("panicked"), "{log}");
        machine.process.terminate();
        assert!(machine.process.wait(secs(50)).success());
    }
}

#[test]
fn without_ipv6_files_are_published_found_and_fetched() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(3);
    // Two have no address of it, and one not even the sockets.
    let mut shim = Shim::compile(folder.path());
    for host in &net.hosts {
        let mut off = host.command("sh");
        off.args(["-c", "for conf in all default; do echo 1 >/proc/sys/net/ipv6/conf/$conf/disable_ipv6; done"]);
        run(&mut off, secs(10)).expect_success();
    }
    let ip = net.hosts[0].ip.to_string();
    let mut own = Machine::start(&net.hosts[0], folder.path(), "own", PEERD, &["--own-tracker"], &shim);
    own.wait_ready();
    let mut plain = Machine::start(&net.hosts[1], folder.path(), "plain", PEERD, &[&ip, "6969"], &shim);
    shim.env.push(("TEST_NO_IPV6", "1".into()));
    let mut bare = Machine::start(&net.hosts[2], folder.path(), "bare", PEERD, &[&ip, "6969"], &shim);
    plain.wait_ready();
    bare.wait_ready();
    let original = drop_in(&plain.home.join("upload"), "four.bin", 1, 4 * MIB);
    for machine in [&bare, &own] {
        wait_for(secs(60), "it is fetched", || {
            let got = run(&mut peerctl(&machine.host, &machine.home, &["get", "--quiet", "four.bin"]), secs(60));
            (got.code == Some(0)).then_some(())
        });
        assert_same(&original, &machine.home.join("downloads/four.bin"));
    }
    // A tracker on a machine whose kernel has none.
    own.process.terminate();
    assert!(own.process.wait(secs(50)).success());
    let bare_tracker = Machine::start(&net.hosts[0], folder.path(), "T", TRACKERD, &["--state-dir", "tracker"], &shim);
    let health = format!("http://{ip}:6969/health");
    wait_until(secs(20), "trackerd answers", || bare_tracker.host.get(&health).is_some());
}
