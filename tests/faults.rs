//! Faults of the machine around the real daemons: too few descriptors, odd things in upload/, a stop in the middle of a
//! terabyte, names that nobody resolves.

mod machine;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use crate::support::content::{MIB, assert_same, drop_in, make, make_folder};
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker, at_home, peerctl, rows};
use crate::support::process::{Process, run};
use crate::support::scripted::on_host;
use crate::support::{PEERD, folder, gate, secs, wait_until};

/// Seconds of processor time that a process has used.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) / 100.0
}

/// So many silent connections from a host.
pub fn silent(host: &Host, to: (std::net::IpAddr, u16), count: usize) -> Vec<TcpStream> {
    let connect = move || (0..count).filter_map(|_| TcpStream::connect(to).ok()).collect();
    on_host(host, connect).join().expect("a thread")
}

#[test]
fn with_64_descriptors_it_shares_fetches_and_answers_and_comes_through_a_flood() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let other = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let original = drop_in(&other.upload(), "theirs.bin", 1, 8 * MIB);
    let home = folder.path().join("A");
    make_folder(&home);
    let mut command = net.hosts[2].command("prlimit");
    at_home(&mut command, &home);
    command.arg("--nofile=64:64").arg(PEERD).args([tracker.ip().as_str(), "6969", "--foreground"]);
    let mut process = Process::start("peerd A", &mut command, &home.join("peerd.log"));
    let ctl = |args: &[&str]| run(&mut peerctl(&net.hosts[2], &home, args), secs(60));
    wait_until(secs(50), "peerd A answers", || ctl(&["status"]).code == Some(0));
    let own = drop_in(&home.join("upload"), "ours.bin", 2, 8 * MIB);
    tracker.wait_hit("ours.bin", secs(60));
    tracker.wait_hit("theirs.bin", secs(60));

    let flood = silent(&net.hosts[3], (net.hosts[2].ip, 6881), 300);
    assert!(flood.len() > 100, "{} connections", flood.len());
    let before = cpu_seconds(process.pid());
    std::thread::sleep(secs(3));
    let spent = cpu_seconds(process.pid()) - before;
    assert!(spent < 1.5, "{spent} s of processor time in 3 s of silence");
    ctl(&["get", "--quiet", "theirs.bin"]).expect_success();
    assert_same(&original, &home.join("downloads/theirs.bin"));
    other.fetch("ours.bin", secs(60));
    assert_same(&own, &other.downloads().join("ours.bin"));
    drop(flood);
    let shown = rows(ctl(&["--json", "list"]).expect_success().json());
    assert!(shown.len() == 2 && shown.iter().all(|row| row["state"] == "seeding"), "{shown:?}");
    process.terminate();
    assert!(process.wait(secs(50)).success());
}

#[test]
fn links_loops_pipes_and_sockets_in_upload_hold_nobody_up_and_are_not_shared() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let upload = folder.path().join("A/upload");
    make_folder(&upload.join("deep"));
    fs::write(folder.path().join("secret.txt"), "not in upload").expect("write a file");
    symlink("..", upload.join("deep/loop")).expect("a link");
    symlink(folder.path(), upload.join("out")).expect("a link");
    symlink(folder.path().join("secret.txt"), upload.join("secret.txt")).expect("a link");
    run(std::process::Command::new("mkfifo").arg(upload.join("pipe")), secs(10)).expect_success();
    let socket = tempfile::tempdir().expect("a folder with a short path");
    let _listener = UnixListener::bind(socket.path().join("s")).expect("a socket");
    fs::rename(socket.path().join("s"), upload.join("socket")).expect("move a socket");
    let peer = Peer::start(&net.hosts[1], folder.path(), "A", &tracker);
    drop_in(&upload, "deep/real.bin", 1, MIB);
    tracker.wait_hit("real.bin", secs(60));
    let names: Vec<_> = peer.list().into_iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["real.bin"]);
    peer.ctl(&["share", "upload/pipe"]).expect_refusal(2, &["pipe"]);
}

#[test]
fn a_folder_that_may_not_be_read_is_passed_over_and_said() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let home = folder.path().join("A");
    let upload = home.join("upload");
    make_folder(&upload.join("locked"));
    make(&upload.join("locked/hidden.bin"), 1, MIB);
    make(&upload.join("unreadable.bin"), 2, MIB);
    let set_mode = |path: &str, mode| {
        fs::set_permissions(upload.join(path), fs::Permissions::from_mode(mode)).expect("a mode");
    };
    set_mode("locked", 0o000);
    set_mode("unreadable.bin", 0o000);
    // Root that may not pass over a mode is anybody.
    let mut command = net.hosts[1].command("setpriv");
    at_home(&mut command, &home);
    command.args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]).arg(PEERD);
    command.args([tracker.ip().as_str(), "6969", "--foreground"]);
    let process = Process::start("peerd A", &mut command, &home.join("peerd.log"));
    let ctl = |args: &[&str]| run(&mut peerctl(&net.hosts[1], &home, args), secs(60));
    wait_until(secs(50), "peerd A answers", || ctl(&["status"]).code == Some(0));
    drop_in(&upload, "open.bin", 3, MIB);
    tracker.wait_hit("open.bin", secs(60));
    let names = || -> Vec<_> {
        let rows = rows(ctl(&["--json", "list"]).expect_success().json());
        rows.into_iter().filter(|row| row["state"] == "seeding").map(|row| row["name"].clone()).collect()
    };
    assert_eq!(names(), ["open.bin"]);
    for said in ["locked", "unreadable.bin"] {
        wait_until(secs(30), &format!("it says of {said} that it is not shared"), || process.log().contains(said));
    }
    assert_eq!(names(), ["open.bin"]);
    // A set is shared whole or not at all.
    make(&home.join("set/fine.bin"), 4, MIB);
    make_folder(&home.join("set/closed"));
    fs::set_permissions(home.join("set/closed"), fs::Permissions::from_mode(0o000)).expect("a mode");
    ctl(&["share", "set"]).expect_refusal(1, &["closed"]);
    assert_eq!(names(), ["open.bin"]);
}

#[test]
fn a_file_deleted_while_it_is_served_is_withdrawn_and_not_made_again() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(3);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let sharer = Peer::start(&net.hosts[1], folder.path(), "A", &tracker);
    let fetcher = Peer::start(&net.hosts[2], folder.path(), "B", &tracker);
    let gone = drop_in(&sharer.upload(), "gone.bin", 1, 32 * MIB);
    let stays = drop_in(&sharer.upload(), "stays.bin", 2, 16 * MIB);
    for name in ["gone.bin", "stays.bin"] {
        tracker.wait_hit(name, secs(60));
    }
    sharer.host.shape(Some(30), None);
    for name in ["gone.bin", "stays.bin"] {
        fetcher.ctl(&["get", "--detach", name]).expect_success();
    }
    fetcher.wait_progress("gone.bin", 0.1, secs(60));
    fs::remove_file(&gone).expect("a file");
    wait_until(secs(60), "it is withdrawn", || tracker.search("gone").is_empty() && sharer.row("gone.bin").is_none());
    fetcher.wait_state("stays.bin", "seeding", secs(60));
    assert_same(&stays, &fetcher.downloads().join("stays.bin"));
    assert!(!gone.exists(), "it was made again");
    let row = fetcher.row("gone.bin").expect("a row");
    assert!(row["state"] == "downloading" && row["have_bytes"].as_u64() < Some(32 * MIB), "{row}");
}

#[test]
fn a_stop_in_the_middle_of_a_terabyte_does_not_wait_for_it() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("T"));
    let mut peer = Peer::start(&net.hosts[1], folder.path(), "A", &tracker);
    drop_in(&peer.upload(), "small.bin", 1, MIB);
    tracker.wait_hit("small.bin", secs(60));
    let beside = folder.path().join("holes");
    fs::File::create(&beside).expect("create a file").set_len(1 << 40).expect("a terabyte of holes");
    fs::rename(&beside, peer.upload().join("huge.img")).expect("move a file in");
    let is_hashing = |peer: &Peer| peer.list().iter().any(|row| row["state"] == "hashing");
    wait_until(secs(60), "it is hashed", || is_hashing(&peer));
    for _ in 0..2 {
        let begun = Instant::now();
        peer.process.terminate();
        assert!(peer.process.wait(secs(50)).success());
        println!("stopped after {:?}", begun.elapsed());
        peer.restart();
        peer.wait_state("small.bin", "seeding", secs(60));
        wait_until(secs(60), "it is hashed again", || is_hashing(&peer));
    }
}

#[test]
fn a_name_server_that_is_silent_delays_nobody_but_the_tracker() {
    let _turn = gate::heavy();
    let folder = folder();
    let net = Net::new(1);
    let host = &net.hosts[0];
    // The machine's own name servers, as addresses of this host on which nobody answers.
    let servers = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut servers: Vec<&str> =
        servers.lines().filter_map(|line| line.strip_prefix("nameserver ")).map(str::trim).collect();
    servers.push("127.0.0.1");
    let mut sinks = Vec::new();
    for server in servers {
        let mut add = host.command("ip");
        // It fails for an address that is there.
        let _ = add.args(["addr", "add", server, "dev", "lo"]).stderr(std::process::Stdio::null()).status();
        let Ok(ip) = server.parse::<std::net::IpAddr>() else { continue };
        sinks.extend(on_host(host, move || std::net::UdpSocket::bind((ip, 53))).join().expect("a thread"));
    }
    assert!(!sinks.is_empty(), "no name server to be silent");
    let begun = Instant::now();
    let mut peer = Peer::start_with(host, folder.path(), "A", &["tracker.example", "6969"]);
    println!("up after {:?}", begun.elapsed());
    drop_in(&peer.upload(), "alone.bin", 1, MIB);
    peer.wait_state("alone.bin", "seeding", secs(60));
    for args in [&["status"][..], &["list"], &["ledger"]] {
        let begun = Instant::now();
        peer.ctl(args).expect_success();
        assert!(begun.elapsed() < secs(1), "{args:?} took {:?}", begun.elapsed());
    }
    let status = peer.ctl(&["status"]).expect_success().text();
    assert!(status.contains("tracker.example"), "{status}");
    let begun = Instant::now();
    peer.ctl(&["leave"]).expect_success();
    assert!(peer.process.wait(secs(50)).success());
    println!("left after {:?}", begun.elapsed());
}
