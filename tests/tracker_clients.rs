//! Real clients at trackerd: by HTTP and by UDP, over IPv4 and over IPv6 they find each other and are counted.

use std::net::{IpAddr, SocketAddr};

use crate::support::clients::Kind;
use crate::support::content::{MIB, make, same};
use crate::support::net::Net;
use crate::support::peer::{TRACKER_PORT, Tracker};
use crate::support::{gate, secs, wait_until};

/// Seeders and leechers of the torrent that the scrape names, whichever it is asked for.
fn scrape(tracker: &Tracker, announced_to: IpAddr, torrent: &str) -> Option<(u64, u64)> {
    let hash: String =
        torrent.as_bytes().chunks(2).map(|pair| format!("%{}{}", pair[0] as char, pair[1] as char)).collect();
    let url = format!("http://{}/scrape?info_hash={hash}", SocketAddr::new(announced_to, TRACKER_PORT));
    let reply = String::from_utf8_lossy(&tracker.host.get(&url)?).into_owned();
    let number = |name: &str| reply.split_once(&format!("{name}i"))?.1.split_once('e')?.0.parse().ok();
    Some((number("8:complete")?, number("10:incomplete")?))
}

fn clients_meet(transport: &str, v6: bool) {
    let _turn = gate::heavy();
    let folder = crate::support::folder();
    let net = Net::new(4);
    let tracker = Tracker::start(&net.hosts[0], &folder.path().join("A"));
    let announced_to = net.hosts[0].over(v6).ip;
    let content = folder.path().join("seed/content.bin");
    make(&content, 3, 4 * MIB);
    let torrent = folder.path().join("t.torrent");
    let url = format!("{transport}://{}/announce", SocketAddr::new(announced_to, TRACKER_PORT));
    Kind::Libtorrent.make_torrent(&content, &torrent, &url);
    let shown = Kind::Libtorrent.show(&torrent);
    let hash = shown.split_whitespace().nth(1).expect("an info-hash").to_string();

    let start = |kind: Kind, host: usize, data: &str| {
        let work = folder.path().join(format!("client {host}"));
        kind.start(&net.hosts[host].over(v6), &work, &torrent, &folder.path().join(data))
    };
    let mut seeder = start(Kind::Libtorrent, 1, "seed");
    seeder.wait(secs(30), "the seeder is counted", || scrape(&tracker, announced_to, &hash) == Some((1, 0)));
    // aria2 speaks to UDP trackers by its DHT socket alone, which is off here; Transmission 3 does over IPv4.
    let others = match (transport, v6) {
        ("http", _) => [Kind::Transmission, Kind::Aria2],
        (_, false) => [Kind::Transmission, Kind::Libtorrent],
        (_, true) => [Kind::Libtorrent, Kind::Libtorrent],
    };
    let mut leechers: Vec<_> =
        others.iter().zip(2..).map(|(kind, host)| (start(*kind, host, &format!("data {host}")), host)).collect();
    for (leecher, host) in &mut leechers {
        let copy = folder.path().join(format!("data {host}/content.bin"));
        leecher.wait(secs(60), "the others have it", || same(&content, &copy));
    }
    wait_until(secs(30), "all three are counted as seeders", || scrape(&tracker, announced_to, &hash) == Some((3, 0)));
}

#[test]
fn over_http_and_ipv4() {
    clients_meet("http", false);
}

#[test]
fn over_http_and_ipv6() {
    clients_meet("http", true);
}

#[test]
fn over_udp_and_ipv4() {
    clients_meet("udp", false);
}

#[test]
fn over_udp_and_ipv6() {
    clients_meet("udp", true);
}
