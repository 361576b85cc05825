//! What goes wrong is said plainly: the right exit code, what happened and what to do next, nothing lost, no hang.

use std::fs;
use std::path::{Path, PathBuf};

use peerd::wire::metainfo::Metainfo;

use crate::support::content::{MIB, assert_same, drop_in, make, make_folder};
use crate::support::net::{Host, Net};
use crate::support::peer::{Peer, Tracker, at_home, peerctl, peerd};
use crate::support::process::{run, signal};
use crate::support::{TRACKERD, gate, secs, wait_until};

/// A tracker, and peers that use it. The folder goes last: processes and their logs lie in it.
struct Scene {
    tracker: Tracker,
    peers: Vec<Peer>,
    net: Net,
    folder: tempfile::TempDir,
}

/// With one host more than it takes.
fn scene(peers: usize) -> Scene {
    let folder = crate::support::folder();
    let net = Net::new(peers + 2);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let peers = (1..=peers)
        .map(|index| Peer::start(&net.hosts[index], folder.path(), &format!("peer {index}"), &tracker))
        .collect();
    Scene { tracker, peers, net, folder }
}

/// A single-file torrent of `length` bytes in pieces of 64 KiB, its hashes all zero, with `root` among its root keys.
fn torrent(name: &str, length: i64, root: &str) -> Vec<u8> {
    let pieces = usize::try_from(length / 65_536 + i64::from(length % 65_536 != 0)).unwrap_or(1).min(4096);
    let mut bytes = format!("d{root}4:infod6:lengthi{length}e4:name{}:{name}", name.len()).into_bytes();
    bytes.extend(format!("12:piece lengthi65536e6:pieces{}:", pieces * 20).as_bytes());
    bytes.extend(vec![0; pieces * 20]);
    bytes.extend(b"ee");
    bytes
}

#[test]
fn torrents_that_are_none() {
    let _turn = gate::heavy();
    let scene = scene(1);
    let peer = &scene.peers[0];
    let key = "00112233445566778899aabbccddeeff00112233";
    let lies = format!("3:Key40:{key}4:Name5:a.bin4:sizei7e7:n_partsi9e");
    let whole = torrent("whole.bin", 100_000, "");
    let ours = Metainfo::parse(&whole).expect("a torrent").with_announce(None);
    let ours = String::from_utf8(ours).expect("hashes that are zero");
    let cases: &[(&str, Vec<u8>)] = &[
        ("empty", Vec::new()),
        ("no-bencode", b"<html>404 not found</html>".to_vec()),
        ("truncated", whole[..whole.len() - 30].to_vec()),
        ("trailing", [&whole[..], b"rubbish"].concat()),
        ("deep", [vec![b'l'; 100_000], vec![b'e'; 100_000]].concat()),
        ("huge-string", b"d4:info99999999999999999999:x".to_vec()),
        ("no-info", b"d8:announce9:http://a/e".to_vec()),
        ("negative-size", torrent("a.bin", -1, "")),
        ("huge-size", torrent("a.bin", i64::MAX, "")),
        ("up-name", torrent("..", 100_000, "")),
        ("slash-name", torrent("../../etc/passwd", 100_000, "")),
        ("empty-name", torrent("", 100_000, "")),
        ("long-name", torrent(&"x".repeat(300), 100_000, "")),
        ("lying-keys", torrent("a.bin", 100_000, &lies)),
        ("up-path", ours.replacen("4:info", "4:Path8:../../up4:info", 1).into_bytes()),
    ];
    for (what, bytes) in cases {
        let name = format!("{what}.torrent");
        fs::write(peer.home.join(&name), bytes).expect("write a torrent");
        peer.ctl(&["get", "--detach", &name]).expect_refusal(1, &[&name]);
    }
    peer.ctl(&["get", "--detach", "missing.torrent"]).expect_refusal(4, &["missing.torrent"]);
    assert!(peer.list().is_empty(), "{:?}", peer.list());
    assert!(!scene.folder.path().join("etc").exists());
}

#[test]
fn what_get_does_not_take() {
    let _turn = gate::heavy();
    let scene = scene(1);
    let peer = &scene.peers[0];
    make_folder(&peer.home.join("some folder"));
    let magnet = "magnet:?xt=urn:btih:00112233445566778899aabbccddeeff00112233";
    for what in [magnet, "http://198.18.0.9/x.torrent", "https://198.18.0.9/x.torrent", "some folder"] {
        peer.ctl(&["get", what]).expect_refusal(2, &[".torrent", "info-hash"]);
    }
    for args in [&["no-such-command"][..], &["get"], &["list", "--no-such-flag"], &[]] {
        assert_eq!(peer.ctl(args).code, Some(2), "{args:?}");
    }
    // Nobody has these.
    peer.ctl(&["get", "nothing is called so"]).expect_refusal(4, &[]);
    peer.ctl(&["get", "00112233445566778899aabbccddeeff00112233"]).expect_refusal(4, &["00112233"]);
    for command in ["show", "pause", "resume", "verify", "remove"] {
        peer.ctl(&[command, "nothing is called so"]).expect_refusal(4, &[]);
    }
}

#[test]
fn two_that_match_are_listed() {
    let _turn = gate::heavy();
    let scene = scene(2);
    let [sharer, fetcher] = &scene.peers[..] else { panic!("two peers") };
    drop_in(&sharer.upload(), "one/readme.txt", 1, 1_000);
    drop_in(&sharer.upload(), "two/readme.txt", 2, 2_000);
    wait_until(secs(20), "both are on the tracker", || scene.tracker.search("readme").len() == 2);
    let output = fetcher.ctl(&["get", "readme.txt"]).expect_code(5);
    let said = output.text() + &output.errors();
    for hit in scene.tracker.search("readme") {
        let key = hit["key"].as_str().expect("a key");
        assert!(said.contains(key), "does not list {key}:\n{said}");
    }
    assert!(fetcher.list().is_empty());
}

#[test]
fn a_name_taken_in_downloads_is_never_written() {
    let _turn = gate::heavy();
    let scene = scene(2);
    let [sharer, fetcher] = &scene.peers[..] else { panic!("two peers") };
    let original = drop_in(&sharer.upload(), "taken.bin", 1, MIB);
    scene.tracker.wait_hit("taken.bin", secs(20));
    make_folder(&fetcher.downloads());
    let mine = fetcher.downloads().join("taken.bin");
    make(&mine, 2, MIB);
    let before = fs::read(&mine).expect("a file");
    fetcher.ctl(&["get", "taken.bin"]).expect_refusal(1, &["taken.bin", "--to"]);
    assert!(fs::read(&mine).expect("a file") == before, "the file was written");
    fetcher.ctl(&["get", "--quiet", "--to", "elsewhere", "taken.bin"]).expect_success();
    assert_same(&original, &fetcher.home.join("elsewhere/taken.bin"));
    assert!(fs::read(&mine).expect("a file") == before, "the file was written");
}

#[test]
fn data_that_is_right_already_is_seeded_where_it_lies() {
    let _turn = gate::heavy();
    let scene = scene(2);
    let [sharer, fetcher] = &scene.peers[..] else { panic!("two peers") };
    let original = drop_in(&sharer.upload(), "had.bin", 1, 8 * MIB);
    scene.tracker.wait_hit("had.bin", secs(20));
    make_folder(&fetcher.home.join("old data"));
    fs::copy(original, fetcher.home.join("old data/had.bin")).expect("copy a file");
    let before = fetcher.host.carried().received;
    fetcher.ctl(&["get", "--quiet", "--to", "old data", "had.bin"]).expect_success();
    assert!(fetcher.host.carried().received - before < 2 * MIB, "it was fetched again");
    fetcher.wait_state("had.bin", "seeding", secs(10));
}

#[test]
fn no_daemon_to_talk_to() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(1);
    let host = &net.hosts[0];
    for command in ["list", "status", "leave", "search", "ledger", "peers"] {
        let output = run(&mut peerctl(host, folder.path(), &["--socket", "no.sock", command]), secs(10));
        output.expect_refusal(3, &["peerd", "no.sock"]);
    }
    // A socket that nobody listens on any more.
    let dead = folder.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("bind a socket"));
    run(&mut peerctl(host, folder.path(), &["--socket", "dead.sock", "list"]), secs(10)).expect_refusal(3, &["peerd"]);
}

#[test]
fn a_second_daemon_on_the_same_folders() {
    let _turn = gate::heavy();
    let scene = scene(1);
    let peer = &scene.peers[0];
    let args = [&*scene.tracker.ip(), "6969"];
    run(&mut peerd(&peer.host, &peer.home, &args), secs(15)).expect_refusal(1, &["already"]);
    let foreground = [args[0], args[1], "--foreground"];
    run(&mut peerd(&peer.host, &peer.home, &foreground), secs(15)).expect_refusal(1, &["already"]);
    peer.ctl(&["status"]).expect_success();
}

fn trackerd_at(host: &Host, home: &Path) -> std::process::Command {
    make_folder(home);
    let mut command = host.command(TRACKERD);
    at_home(&mut command, home);
    command
}

#[test]
fn a_port_in_use() {
    let _turn = gate::heavy();
    let scene = scene(1);
    let host = &scene.tracker.host;
    let home = scene.folder.path().join("another");
    run(&mut trackerd_at(host, &home), secs(15)).expect_refusal(1, &["6969"]);
    // Alone on a host where a tracker runs: it says what to type instead.
    run(&mut peerd(host, &home, &["--own-tracker"]), secs(15))
        .expect_refusal(1, &["a tracker runs here already", "peerd 127.0.0.1 6969"]);
    // A listen port that another peerd has.
    let peer = &scene.peers[0];
    let first = [&*scene.tracker.ip(), "--listen", "0.0.0.0:7001"];
    let mut holder = Peer::launch(&peer.host, scene.folder.path(), "holder", &first);
    holder.wait_ready();
    let home = scene.folder.path().join("third");
    make_folder(&home);
    let args = [&*scene.tracker.ip(), "6969", "--listen", "0.0.0.0:7001"];
    run(&mut peerd(&peer.host, &home, &args), secs(15)).expect_refusal(1, &["7001"]);
}

#[test]
fn a_tracker_that_is_down_at_the_start() {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(3);
    let ip = net.hosts[0].ip.to_string();
    let peer = Peer::start_with(&net.hosts[1], folder.path(), "B", &[&ip, "6969"]);
    let tracker_state = || {
        let status = peer.ctl(&["--json", "status"]).expect_success().json();
        status["trackers"][0]["state"].as_str().expect("a tracker's state").to_string()
    };
    // Even with nothing to announce.
    wait_until(secs(10), "status says that the tracker is down", || tracker_state() == "down");
    peer.ctl(&["search", "anything"]).expect_refusal(1, &[&ip, "reached"]);
    drop_in(&peer.upload(), "early.bin", 1, MIB);
    peer.wait_state("early.bin", "seeding", secs(20));
    let status = peer.ctl(&["status"]).expect_success().text();
    assert!(status.contains(&ip), "status does not name the tracker:\n{status}");
    assert_eq!(tracker_state(), "down");
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    tracker.wait_hit("early.bin", secs(70));
    wait_until(secs(70), "status says that the tracker is up", || tracker_state() == "up");
}

#[test]
fn a_tracker_that_lost_everything_fills_again() {
    let _turn = gate::heavy();
    let mut scene = scene(1);
    drop_in(&scene.peers[0].upload(), "kept.bin", 1, MIB);
    scene.tracker.wait_hit("kept.bin", secs(20));
    scene.tracker.process.kill9();
    fs::remove_dir_all(scene.tracker.home.join("tracker")).expect("lose everything");
    // Something to say to the tracker while it is gone, so that peerd finds it out before the next announce is due.
    drop_in(&scene.peers[0].upload(), "new.bin", 2, MIB);
    std::thread::sleep(secs(3));
    scene.tracker.restart();
    scene.tracker.wait_hit("new.bin", secs(90));
    scene.tracker.wait_hit("kept.bin", secs(90));
}

#[test]
fn a_tracker_killed_knows_what_it_knew() {
    let _turn = gate::heavy();
    let mut scene = scene(1);
    drop_in(&scene.peers[0].upload(), "known.bin", 1, MIB);
    let hit = scene.tracker.wait_hit("known.bin", secs(20));
    // Publications are written twice a second: what is older than the last second is on disk.
    std::thread::sleep(secs(1));
    scene.tracker.restart();
    assert_eq!(scene.tracker.wait_hit("known.bin", secs(1))["key"], hit["key"]);
}

#[test]
fn peers_that_cannot_be_reached() {
    let _turn = gate::heavy();
    let scene = scene(1);
    let peer = &scene.peers[0];
    let file: PathBuf = peer.home.join("lonely.torrent");
    let announce = format!("{}/announce", scene.tracker.url());
    let bytes = torrent("lonely.bin", 100_000, &format!("8:announce{}:{announce}", announce.len()));
    fs::write(&file, bytes).expect("write a torrent");
    peer.ctl(&["get", "--detach", "lonely.torrent"]).expect_success();
    let key = peer.row("lonely.bin").expect("a row")["key"].as_str().expect("a key").to_string();
    let hash: String = (0..20).map(|i| format!("%{}", &key[2 * i..2 * i + 2])).collect();
    // One address where nobody answers, one where nobody listens.
    for ip in ["198.18.200.1", &scene.net.hosts[2].ip.to_string()] {
        let query = format!("info_hash={hash}&peer_id=-XX0000-{ip:0<12.12}&port=7777&left=0&compact=1&ip={ip}");
        let url = format!("http://127.0.0.1:6969/announce?{query}&uploaded=0&downloaded=0");
        scene.tracker.host.curl(&[&url]).expect_success();
    }
    let mut get = peer.ctl_start(&["get", "--quiet", "lonely.torrent"]);
    std::thread::sleep(secs(5));
    assert!(get.ended().is_none(), "get has ended: {}", get.log());
    // Ctrl-C leaves it running in the daemon.
    signal(get.pid(), "INT");
    get.wait(secs(5));
    peer.wait_state("lonely.bin", "downloading", secs(5));
    peer.ctl(&["remove", "lonely.bin"]).expect_success();
    assert!(peer.list().is_empty(), "{:?}", peer.list());
}
