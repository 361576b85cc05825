//! Hosts on one machine: network namespaces on a bridge that lives in a namespace of its own and leads nowhere.
//!
//! Addresses are from 198.18.0.0/15 and 2001:2::/48, which are reserved for benchmarking (RFC 2544, RFC 5180). It
//! takes root, or `unshare -Urnm` with a tmpfs on /run (scripts/test.sh arranges that), and iproute2.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::process::{Output, run};
use super::{secs, wait_until};

const PREFIX: &str = "peerd-";

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// Hosts on one bridge. Dropping it ends every process that is left on them.
pub struct Net {
    pub hosts: Vec<Host>,
    namespaces: Vec<String>,
    /// Keeps the switch's namespace open, and lends it a /proc in which its counters can be read.
    keeper: Option<Child>,
}

/// One host: the namespace and its port on the switch.
#[derive(Clone, Debug)]
pub struct Host {
    pub namespace: String,
    pub ip: IpAddr,
    pub ip6: IpAddr,
    switch: String,
    port: String,
    keeper: u32,
}

/// What went over a host's cable so far, headers included, as the kernel counts it. A shaped link carries packets of
/// 1,514 bytes, 1.046 times their payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Carried {
    pub sent: u64,
    pub received: u64,
}

impl Net {
    pub fn new(count: usize) -> Net {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let tag = format!("{PREFIX}{}x{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let switch = format!("{tag}-sw");
        let mut net = Net { hosts: Vec::new(), namespaces: Vec::new(), keeper: None };
        net.add_namespace(&switch);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        let keeper = inside(&switch, "sleep").arg("infinity").stdin(Stdio::null()).spawn().expect("start sleep");
        let pid = keeper.id();
        net.keeper = Some(keeper);
        let own = fs::read_link("/proc/self/ns/net").expect("our own namespace");
        wait_until(secs(10), "the switch's namespace", || {
            fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs != own)
        });
        for index in 0..count {
            net.add_host(&tag, &switch, pid, index);
        }
        net
    }

    fn add_namespace(&mut self, name: &str) {
        ip(&["netns", "add", name]);
        self.namespaces.push(name.to_string());
        ip(&["-n", name, "link", "set", "lo", "up"]);
    }

    fn add_host(&mut self, tag: &str, switch: &str, keeper: u32, index: usize) {
        let (namespace, port) = (format!("{tag}-h{index}"), format!("p{index}"));
        let number = u16::try_from(index + 1).expect("few hosts");
        let v4 = Ipv4Addr::new(198, 18, (number / 250) as u8, (number % 250 + 1) as u8);
        let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, number + 1);
        self.add_namespace(&namespace);
        ip(&["-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["-n", switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{v4}/15"), "dev", "eth0"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        self.hosts.push(Host { namespace, ip: v4.into(), ip6: v6.into(), switch: switch.to_string(), port, keeper });
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in &self.hosts {
            end_all(&host.namespace);
        }
        if let Some(keeper) = &mut self.keeper {
            // Both fail only if it has ended already.
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status();
        }
    }
}

impl Host {
    /// `program` on this host. `ip netns exec` execs it: the process id is the program's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        inside(&self.namespace, program)
    }

    /// The same host for programs that are to know one of its addresses.
    pub fn over(&self, v6: bool) -> Host {
        Host { ip: if v6 { self.ip6 } else { self.ip }, ..self.clone() }
    }

    /// Limits what this host sends and receives, in Mbit/s.
    pub fn shape(&self, up_mbit: Option<u32>, down_mbit: Option<u32>) {
        for (namespace, device, rate) in
            [(&self.namespace, "eth0", up_mbit), (&self.switch, self.port.as_str(), down_mbit)]
        {
            let _ =
                inside(namespace, "tc").args(["qdisc", "del", "dev", device, "root"]).stderr(Stdio::null()).status();
            // A shaped cable carries packets as a real one does, not the kernel's bundles of many.
            let segments = if rate.is_some() { "1" } else { "65535" };
            ip(&["-n", namespace, "link", "set", "dev", device, "gso_max_segs", segments]);
            if let Some(rate) = rate {
                // 10 ms of the rate, and never less than a bundle that the kernel may hand over whole.
                let burst = (rate * 1_250).max(32_000).to_string();
                let rate = format!("{rate}mbit");
                let mut tc = inside(namespace, "tc");
                tc.args(["qdisc", "add", "dev", device, "root", "tbf", "rate", &rate, "burst", &burst]);
                tc.args(["latency", "50ms"]);
                run(&mut tc, secs(10)).expect_success();
            }
        }
    }

    /// Pulls this host's cable.
    pub fn cut(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.port, "down"]);
    }

    pub fn mend(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.port, "up"]);
    }

    pub fn carried(&self) -> Carried {
        let table = fs::read_to_string(format!("/proc/{}/net/dev", self.keeper)).expect("the switch's counters");
        let line = table
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(&self.port)?.strip_prefix(':'))
            .expect("the host's port");
        let fields: Vec<u64> = line.split_whitespace().map(|field| field.parse().expect("a counter")).collect();
        // What the switch receives on the port is what the host sent.
        Carried { sent: fields[0], received: fields[8] }
    }

    /// What programs on this host have read, headers of any protocol above TCP included, from the connections to `peer`
    /// that are open.
    pub fn read_from(&self, peer: SocketAddr) -> u64 {
        let mut ss = self.command("ss");
        ss.args(["--no-header", "--oneline", "--tcp", "--numeric", "--info", "dst", &peer.to_string()]);
        let output = run(&mut ss, secs(10)).expect_success();
        let read = |line: &str| -> Option<u64> {
            let unread: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            let received = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_received:"));
            Some(received.map_or(0, |bytes| bytes.parse().expect("a counter")) - unread)
        };
        output.text().lines().filter_map(read).sum()
    }

    /// The processes on this host whose program is called `name`.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        pids(&self.namespace)
            .into_iter()
            .filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name))
            .collect()
    }

    /// `curl` on this host, failing on an HTTP error like a script would.
    pub fn curl(&self, args: &[&str]) -> Output {
        let mut curl = self.command("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "20"]).args(args);
        run(&mut curl, secs(30))
    }

    /// The body at `url`, or nothing if it cannot be had.
    pub fn get(&self, url: &str) -> Option<Vec<u8>> {
        let output = self.curl(&[url]);
        (output.code == Some(0)).then_some(output.stdout)
    }

    /// Fetches `url` into `file`.
    #[track_caller]
    pub fn download(&self, url: &str, file: &Path) {
        let body = self.curl(&[url]).expect_success().stdout;
        fs::write(file, body).expect("write what was fetched");
    }
}

fn inside(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

#[track_caller]
fn ip(args: &[&str]) {
    run(Command::new("ip").args(args), secs(20)).expect_success();
}

fn pids(namespace: &str) -> Vec<u32> {
    let output = run(Command::new("ip").args(["netns", "pids", namespace]), secs(20));
    output.text().lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Ends everything that runs in a namespace of ours.
fn end_all(namespace: &str) {
    for pid in pids(namespace) {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
    }
}

/// Removes what test processes that are no more have left behind.
fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('x')).map(|(pid, _)| pid);
        if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            end_all(&name);
            let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn hosts_see_each_other_until_a_cable_is_pulled() {
    let folder = super::folder();
    super::content::make(&folder.path().join("file"), 1, 1 << 20);
    let net = Net::new(2);
    let [a, b] = &net.hosts[..] else { panic!("two hosts") };
    let mut server = a.command("python3");
    server.args(["-m", "http.server", "--bind", &a.ip.to_string(), "8000"]).current_dir(folder.path());
    let _server = super::process::Process::start("http.server", &mut server, &folder.path().join("log"));
    let url = format!("http://{}:8000/file", a.ip);
    let body = super::wait_for(secs(20), "an answer", || b.get(&url));
    assert_eq!(body.len(), 1 << 20);
    assert!(a.carried().sent > 1 << 20 && b.carried().received > 1 << 20);

    a.shape(Some(8), None);
    let start = std::time::Instant::now();
    b.get(&url).expect("an answer");
    let took = start.elapsed().as_secs_f64();
    assert!((0.8..2.5).contains(&took), "1 MiB at 8 Mbit/s took {took} s");
    a.shape(None, None);
    b.shape(None, Some(200));
    let before = b.carried().received;
    b.get(&url).expect("an answer");
    let ratio = (b.carried().received - before) as f64 / (1 << 20) as f64;
    // 1.046, and what a busy machine makes TCP send twice.
    assert!((1.03..1.2).contains(&ratio), "{ratio} bytes on the cable for each of the file");

    a.cut();
    assert!(b.curl(&["--max-time", "1", &url]).code != Some(0));
    a.mend();
    super::wait_until(secs(20), "an answer again", || b.get(&url).is_some());
}
