//! What the tracker counts, as Prometheus text. Every refusal has a name.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests answered, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    UdpConnect,
    UdpAnnounce,
    UdpScrape,
    HttpAnnounce,
    HttpScrape,
    Search,
    ContentFile,
    Torrent,
    Peers,
    Publish,
    Withdraw,
    Unknown,
    Metrics,
    Health,
}

/// Requests refused, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    UdpMalformed,
    UdpConnectionId,
    PortZero,
    NewHashes,
    NotTracked,
    BadAnnounce,
    BadScrape,
    BadQuery,
    NoSuchPath,
    NoSuchTorrent,
    BadMethod,
    PeersNotListed,
    BadTorrent,
    TooLarge,
    BodyTimeout,
    BadAuthorization,
    ClockOff,
    Replayed,
    NotPublisher,
    PublishRate,
    PublisherFull,
    CatalogueFull,
    StoreBehind,
    DiskFull,
    ConnectionDisplaced,
    HeaderTimeout,
    IdleTimeout,
}

const SERVED: [(Served, &str); 14] = [
    (Served::UdpConnect, "udp_connect"),
    (Served::UdpAnnounce, "udp_announce"),
    (Served::UdpScrape, "udp_scrape"),
    (Served::HttpAnnounce, "http_announce"),
    (Served::HttpScrape, "http_scrape"),
    (Served::Search, "search"),
    (Served::ContentFile, "content_file"),
    (Served::Torrent, "torrent"),
    (Served::Peers, "peers"),
    (Served::Publish, "publish"),
    (Served::Withdraw, "withdraw"),
    (Served::Unknown, "unknown"),
    (Served::Metrics, "metrics"),
    (Served::Health, "health"),
];

const REFUSED: [(Refused, &str); 27] = [
    (Refused::UdpMalformed, "udp_malformed"),
    (Refused::UdpConnectionId, "udp_connection_id"),
    (Refused::PortZero, "port_zero"),
    (Refused::NewHashes, "new_hashes"),
    (Refused::NotTracked, "not_tracked"),
    (Refused::BadAnnounce, "bad_announce"),
    (Refused::BadScrape, "bad_scrape"),
    (Refused::BadQuery, "bad_query"),
    (Refused::NoSuchPath, "no_such_path"),
    (Refused::NoSuchTorrent, "no_such_torrent"),
    (Refused::BadMethod, "bad_method"),
    (Refused::PeersNotListed, "peers_not_listed"),
    (Refused::BadTorrent, "bad_torrent"),
    (Refused::TooLarge, "too_large"),
    (Refused::BodyTimeout, "body_timeout"),
    (Refused::BadAuthorization, "bad_authorization"),
    (Refused::ClockOff, "clock_off"),
    (Refused::Replayed, "replayed"),
    (Refused::NotPublisher, "not_publisher"),
    (Refused::PublishRate, "publish_rate"),
    (Refused::PublisherFull, "publisher_full"),
    (Refused::CatalogueFull, "catalogue_full"),
    (Refused::StoreBehind, "store_behind"),
    (Refused::DiskFull, "disk_full"),
    (Refused::ConnectionDisplaced, "connection_displaced"),
    (Refused::HeaderTimeout, "header_timeout"),
    (Refused::IdleTimeout, "idle_timeout"),
];

/// Counters since the start of the process.
#[derive(Default)]
pub struct Metrics {
    served: [AtomicU64; SERVED.len()],
    refused: [AtomicU64; REFUSED.len()],
}

/// What is read off the tables when asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    pub swarms: usize,
    pub peers: usize,
    pub torrents: usize,
    pub connections: usize,
    /// Publications and withdrawals that the disk does not have yet.
    pub unwritten: usize,
    /// Swarms whose last change the disk does not have yet, and how long the first of them has waited.
    pub unwritten_swarms: usize,
    pub unwritten_swarms_s: u32,
}

impl Metrics {
    pub fn serve(&self, kind: Served) {
        self.served[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn refuse(&self, reason: Refused) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn refusals(&self, reason: Refused) -> u64 {
        self.refused[reason as usize].load(Ordering::Relaxed)
    }

    /// Prometheus text, version 0.0.4.
    pub fn render(&self, gauges: Gauges) -> String {
        let mut text = String::with_capacity(4_096);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE trackerd_requests_total counter");
        for (kind, name) in SERVED {
            let count = self.served[kind as usize].load(Ordering::Relaxed);
            let _ = writeln!(text, "trackerd_requests_total{{kind=\"{name}\"}} {count}");
        }
        let _ = writeln!(text, "# TYPE trackerd_refusals_total counter");
        for (reason, name) in REFUSED {
            let count = self.refusals(reason);
            let _ = writeln!(text, "trackerd_refusals_total{{reason=\"{name}\"}} {count}");
        }
        let gauges = [
            ("swarms", gauges.swarms),
            ("peers", gauges.peers),
            ("torrents", gauges.torrents),
            ("http_connections", gauges.connections),
            ("unwritten_changes", gauges.unwritten),
            ("unwritten_swarms", gauges.unwritten_swarms),
            ("unwritten_swarms_oldest_seconds", gauges.unwritten_swarms_s as usize),
        ];
        for (name, value) in gauges {
            let _ = writeln!(text, "# TYPE trackerd_{name} gauge\ntrackerd_{name} {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place_and_name() {
        for (place, (kind, _)) in SERVED.iter().enumerate() {
            assert_eq!(*kind as usize, place);
        }
        for (place, (reason, _)) in REFUSED.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
        let mut names: Vec<&str> = SERVED.iter().map(|row| row.1).chain(REFUSED.iter().map(|row| row.1)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SERVED.len() + REFUSED.len());
    }

    #[test]
    fn counts_show() {
        let metrics = Metrics::default();
        metrics.serve(Served::Search);
        metrics.refuse(Refused::IdleTimeout);
        let text = metrics.render(Gauges { peers: 7, ..Gauges::default() });
        assert!(text.contains("trackerd_requests_total{kind=\"search\"} 1\n"));
        assert!(text.contains("trackerd_refusals_total{reason=\"idle_timeout\"} 1\n"));
        assert!(text.contains("trackerd_peers 7\n"));
    }
}
