use super::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

struct Table {
    swarms: Swarms,
    rng: SmallRng,
}

/// `host:port` of a peer that announces, e.g. `10.0.0.1:7`.
fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn key(n: u8) -> InfoHash {
    InfoHash::new([n; 20])
}

fn request(key: InfoHash, from: SocketAddr, left: u64, event: Event) -> AnnounceRequest {
    let mut peer_id = *b"-LT2110-............";
    peer_id[18..].copy_from_slice(&from.port().to_be_bytes());
    AnnounceRequest {
        info_hash: key,
        peer_id: PeerId(peer_id),
        port: from.port(),
        uploaded: 0,
        downloaded: 0,
        left,
        event,
        numwant: None,
        key: None,
        compact: true,
        no_peer_id: false,
        ip: None,
    }
}

impl Table {
    fn new(max_swarms: usize) -> Table {
        Table { swarms: Swarms::new(max_swarms), rng: SmallRng::seed_from_u64(5) }
    }

    fn send(&mut self, now_s: u64, request: &AnnounceRequest, from: SocketAddr) -> (Announced, Vec<String>) {
        let mut peers = Vec::new();
        let announced = self
            .swarms
            .announce(Time::from_secs(now_s), request, from.ip(), 50, &mut self.rng, || true, &mut peers)
            .unwrap();
        let mut peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
        peers.sort();
        (announced, peers)
    }

    fn announce(&mut self, now_s: u64, from: &str, left: u64, event: Event) -> (Announced, Vec<String>) {
        self.send(now_s, &request(key(1), at(from), left, event), at(from))
    }

    fn present(&mut self, now_s: u64) -> u32 {
        self.swarms.expire(Time::from_secs(now_s));
        let counts = self.swarms.scrape(&key(1));
        assert_eq!(self.swarms.entries() as u32, counts.seeders + counts.leechers);
        counts.seeders + counts.leechers
    }
}

#[test]
fn peers_find_each_other_within_their_family() {
    let mut table = Table::new(100);
    assert!(table.announce(0, "10.0.0.1:1", 0, Event::Started).1.is_empty());
    let (counts, peers) = table.announce(1, "10.0.0.2:2", 9, Event::Started);
    assert_eq!((counts.seeders, counts.leechers, peers), (1, 1, vec!["10.0.0.1:1".to_owned()]));
    assert!(table.announce(1, "[2001:db8::3]:3", 0, Event::Started).1.is_empty());
    assert_eq!(table.announce(1, "[2001:db8::4]:4", 1, Event::Started).1, ["[2001:db8::3]:3"]);
    // Mapped into IPv6, an IPv4 address is what it is.
    assert_eq!(table.announce(1, "[::ffff:10.0.0.5]:5", 0, Event::Started).1, ["10.0.0.2:2"]);
    assert_eq!(table.swarms.scrape(&key(1)), ScrapeEntry { seeders: 3, completed: 0, leechers: 2 });
}

#[test]
fn stopped_drops_at_once_and_only_the_one_who_says_it() {
    let mut table = Table::new(100);
    table.announce(0, "10.0.0.1:1", 0, Event::Started);
    table.announce(0, "10.0.0.2:2", 9, Event::Started);
    // The first one's peer id from another address: nobody leaves.
    table.send(0, &request(key(1), at("10.0.0.1:1"), 0, Event::Stopped), at("10.6.6.6:1"));
    assert_eq!(table.present(0), 2);
    let (counts, peers) = table.announce(1, "10.0.0.1:1", 0, Event::Stopped);
    assert_eq!((counts.seeders, counts.leechers, peers.len()), (0, 1, 0));
    assert_eq!(table.present(1), 1);
    assert!(table.announce(2, "10.0.0.2:2", 9, Event::None).1.is_empty());
    // Stopping in a swarm that nobody knows makes none.
    table.send(3, &request(key(9), at("10.0.0.1:1"), 0, Event::Stopped), at("10.0.0.1:1"));
    assert_eq!(table.swarms.len(), 1);
}

#[test]
fn a_client_that_announced_once_is_kept_for_660_s() {
    let mut table = Table::new(100);
    table.announce(0, "10.0.0.1:1", 5, Event::Started);
    assert_eq!(table.present(659), 1);
    assert_eq!(table.present(670), 0);
    assert_eq!(table.swarms.len(), 0);
}

#[test]
fn peerd_is_dropped_after_two_and_a_half_intervals() {
    let mut table = Table::new(100);
    let mut hello = request(key(1), at("10.0.0.1:1"), 5, Event::Started);
    hello.peer_id = PeerId::ours([1; 12]);
    let (announced, _) = table.send(0, &hello, at("10.0.0.1:1"));
    let lease_s = u64::from(announced.interval_s) * 5 / 2;
    assert_eq!(table.present(lease_s - 1), 1);
    assert_eq!(table.present(lease_s + u64::from(SWEEP_PAUSE_S)), 0);
}

/// libtorrent never announces more often than every 300 s, rTorrent 600 s, whatever it is told; each also announces
/// its completion when it comes.
#[test]
fn clients_with_a_long_minimum_interval_of_their_own_are_never_dropped() {
    for gap_s in [300, 600] {
        for completed_at in [2, gap_s / 2, gap_s - 1, gap_s + 1, 2 * gap_s + 7] {
            let mut table = Table::new(100);
            let mut announces: Vec<(u64, Event)> = (1..6).map(|n| (n * gap_s, Event::None)).collect();
            announces.push((completed_at, Event::Completed));
            announces.sort_by_key(|(when, _)| *when);
            table.announce(0, "10.0.0.1:1", 5, Event::Started);
            for (when, event) in announces {
                for now in (0..when).rev().take(400).rev() {
                    assert_eq!(table.present(now), 1, "gap {gap_s}, completed {completed_at}, at {now}");
                }
                let left = if when < completed_at { 5 } else { 0 };
                table.announce(when, "10.0.0.1:1", left, event);
            }
        }
    }
}

#[test]
fn completions_are_counted_once() {
    let mut table = Table::new(100);
    table.announce(0, "10.0.0.1:1", 5, Event::Started);
    table.announce(5, "10.0.0.1:1", 0, Event::Completed);
    table.announce(6, "10.0.0.1:1", 0, Event::Completed);
    assert_eq!(table.swarms.scrape(&key(1)), ScrapeEntry { seeders: 1, completed: 1, leechers: 0 });
}

#[test]
fn a_client_in_both_families_counts_once() {
    let mut table = Table::new(100);
    table.announce(0, "10.0.0.1:6881", 0, Event::Started);
    table.announce(0, "[2001:db8::1]:6881", 0, Event::Started);
    table.announce(0, "[2001:db8::2]:6882", 0, Event::Started);
    assert_eq!(table.swarms.scrape(&key(1)).seeders, 2);
    let (total, peers) = table.swarms.sample(&key(1), 10, &mut table.rng);
    assert_eq!((total, peers.len()), (3, 3));
    assert_eq!(table.swarms.sample(&key(1), 2, &mut table.rng).1.len(), 2);
}

#[test]
fn who_is_not_admitted_changes_nothing_and_who_is_known_is_not_asked() {
    let mut table = Table::new(100);
    let hello = request(key(1), at("10.0.0.1:1"), 5, Event::Started);
    let mut announce = |admit: &dyn Fn() -> bool| {
        let ip = at("10.0.0.1:1").ip();
        table.swarms.announce(Time::ZERO, &hello, ip, 50, &mut table.rng, admit, &mut Vec::new())
    };
    assert_eq!(announce(&|| false), Err(NotAdmitted));
    announce(&|| true).unwrap();
    announce(&|| panic!("a repeated announce costs nothing")).unwrap();
    assert_eq!(table.swarms.len(), 1);
}

#[test]
fn at_the_cap_the_emptiest_swarms_go_first() {
    let mut table = Table::new(16 * 64);
    let mut join = |n: u16, port: u16| {
        let mut bytes = [0; 20];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        bytes[19] = (n % 16) as u8;
        let from = SocketAddr::from(([10, 0, 0, 1], port));
        table.send(0, &request(InfoHash::new(bytes), from, 1, Event::Started), from);
        (table.swarms.len(), table.swarms.entries(), InfoHash::new(bytes))
    };
    let mut honest = Vec::new();
    for n in 0..100 {
        (1..=3).for_each(|port| honest.push(join(n, port).2));
    }
    for n in 100..20_000 {
        let (swarms, entries, _) = join(n, 1);
        assert!(swarms <= 16 * 64 && entries <= 300 + 16 * 64);
    }
    assert!(honest.iter().all(|key| table.swarms.scrape(key).leechers == 3));
    // What was planned for the evicted does not pile up either.
    assert!(table.swarms.shards.iter().all(|shard| lock(shard).due.len() < 4_096));
}

#[test]
fn changes_are_told_once() {
    let mut table = Table::new(100);
    let mut told = |table: &Table| {
        let mut told = Vec::new();
        table.swarms.drain_changed(|key, counts| told.push((*key, counts.seeders, counts.leechers)));
        told
    };
    table.announce(0, "10.0.0.1:1", 5, Event::Started);
    table.announce(0, "10.0.0.2:1", 0, Event::Started);
    assert_eq!(told(&table), [(key(1), 1, 1)]);
    table.announce(9, "10.0.0.1:1", 5, Event::None);
    assert_eq!(told(&table), []);
    table.announce(10, "10.0.0.1:1", 0, Event::Completed);
    assert_eq!(told(&table), [(key(1), 2, 0)]);
    table.swarms.expire(Time::from_secs(100_000));
    assert_eq!(told(&table), [(key(1), 0, 0)]);
}
