//! Real clients on the real wire, in both directions, with nothing but the `.torrent` from the tracker.

use std::path::Path;

use crate::support::clients::Kind;
use crate::support::content::{MIB, drop_in, make, same, same_tree};
use crate::support::net::Net;
use crate::support::peer::{Peer, Tracker};
use crate::support::{full_size, gate, secs};

/// 200 bytes of Cyrillic and CJK, the type included.
fn long_name() -> String {
    let name = format!("{}{}.bin", "ж".repeat(41), "漢".repeat(38));
    assert_eq!(name.len(), 200);
    name
}

/// Files of the kind people put into one folder, one of them empty.
fn make_folder_of_files(root: &Path) {
    for (seed, (name, len)) in
        [("a.txt", 10), ("b/c.bin", 3 * MIB + 7), ("b/d e.bin", 65_536), ("b/ж/z.bin", 100_001), ("empty", 0)]
            .into_iter()
            .enumerate()
    {
        make(&root.join(name), 40 + seed as u64, len);
    }
}

/// Padding and empty files are not every client's business.
fn beside_the_point(path: &Path, len: u64) -> bool {
    len == 0 || path.starts_with(".pad")
}

/// The client fetches what was dropped into upload/, and a shared folder.
fn client_fetches(kind: Kind) {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(7);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let peer = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let large = if full_size() { 300 * MIB } else { 40 * MIB };
    let names = [("one.byte", 1), ("odd.bin", 16 * MIB + 1), ("large.bin", large), (&long_name(), 70_000)];
    for (seed, (name, len)) in names.iter().enumerate() {
        drop_in(&peer.upload(), name, seed as u64, *len);
    }
    let shared = folder.path().join("a shared folder");
    make_folder_of_files(&shared);
    peer.ctl(&[Path::new("share"), &shared]).expect_success();

    let mut running = Vec::new();
    for (index, name) in names.iter().map(|(name, _)| *name).chain(["a shared folder"]).enumerate() {
        let host = &net.hosts[2 + index];
        let torrent = tracker.fetch_torrent(host, name, folder.path());
        kind.show(&torrent);
        let work = folder.path().join(format!("client {index}"));
        running.push((kind.start(host, &work, &torrent, &work.join("data")), name, work.join("data").join(name)));
    }
    for (client, name, copy) in &mut running {
        client.wait(secs(90), &format!("{kind:?} has {name}"), || match *name {
            "a shared folder" => same_tree(&shared, copy, beside_the_point),
            name => same(&peer.upload().join(name), copy),
        });
    }
}

/// peerd fetches what the client made and seeds: a file, and a folder with whatever padding the client puts in.
fn peerd_fetches(kind: Kind) {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let peer = Peer::start(&net.hosts[1], folder.path(), "B", &tracker);
    let data = folder.path().join("data");
    make(&data.join("single file.bin"), 1, 16 * MIB + 1);
    make_folder_of_files(&data.join("a folder"));
    let announce = format!("{}/announce", tracker.url());
    let mut clients = Vec::new();
    for (index, name) in ["single file.bin", "a folder"].into_iter().enumerate() {
        let torrent = folder.path().join(format!("{index}.torrent"));
        kind.make_torrent(&data.join(name), &torrent, &announce);
        let work = folder.path().join(format!("client {index}"));
        clients.push((kind.start(&net.hosts[2 + index], &work, &torrent, &data), torrent));
    }
    for (_, torrent) in &clients {
        peer.fetch(torrent, secs(90));
    }
    let copies = peer.downloads();
    assert!(same(&data.join("single file.bin"), &copies.join("single file.bin")));
    // transmission-create leaves empty files out of what it makes.
    let left_out = |len| len == 0 && kind == Kind::Transmission;
    let ignored = |path: &Path, len| path.starts_with(".pad") || left_out(len);
    assert!(same_tree(&data.join("a folder"), &copies.join("a folder"), ignored));
}

#[test]
fn transmission_fetches_from_peerd() {
    client_fetches(Kind::Transmission);
}

#[test]
fn aria2_fetches_from_peerd() {
    client_fetches(Kind::Aria2);
}

#[test]
fn libtorrent_fetches_from_peerd() {
    client_fetches(Kind::Libtorrent);
}

#[test]
fn peerd_fetches_from_transmission() {
    peerd_fetches(Kind::Transmission);
}

#[test]
fn peerd_fetches_from_aria2() {
    peerd_fetches(Kind::Aria2);
}

#[test]
fn peerd_fetches_from_libtorrent() {
    peerd_fetches(Kind::Libtorrent);
}
