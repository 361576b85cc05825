//! One announce, whichever way it came: UDP and HTTP differ in bytes alone.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use rand::Rng;

use super::addresses::OwnAddresses;
use super::limits::Limits;
use super::lists::Gate;
use super::metrics::{Metrics, Refused};
use super::swarms::{Announced, MAX_SAMPLE, Swarms};
use crate::clock::Time;
use crate::wire::announce::{AnnounceRequest, Event};

/// Peers handed out when the asker does not say: what clients dial at once.
pub const DEFAULT_PEERS: usize = 50;

/// The tables that an announce touches.
#[derive(Default)]
pub struct Announcer {
    pub swarms: Swarms,
    pub limits: Limits,
    pub metrics: Metrics,
    pub own: OwnAddresses,
    pub gate: Gate,
    /// Their word on a client's address is believed.
    pub trusted_proxies: HashSet<IpAddr>,
}

/// Who asks, and by which of our addresses. Both canonical: never an IPv4 address mapped into IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    pub ip: IpAddr,
    pub local: IpAddr,
}

/// Why an announce is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", self.message())]
pub enum AnnounceRefused {
    PortZero,
    NewHashes,
    NotTracked,
}

impl AnnounceRefused {
    /// For the client.
    pub fn message(self) -> &'static str {
        match self {
            AnnounceRefused::PortZero => "port 0: nobody can connect to it",
            AnnounceRefused::NewHashes => "too many new torrents from this address: slow down",
            AnnounceRefused::NotTracked => "this torrent is not tracked here",
        }
    }
}

impl Announcer {
    /// Enters the peer and calls `give` with at most `max_peers` others, as the asker can reach them.
    ///
    /// # Errors
    /// See [`AnnounceRefused`]; counted.
    pub fn announce(
        &self,
        now: Time,
        request: &AnnounceRequest,
        asker: Asker,
        max_peers: usize,
        rng: &mut impl Rng,
        mut give: impl FnMut(SocketAddr),
    ) -> Result<Announced, AnnounceRefused> {
        if request.port == 0 && request.event != Event::Stopped {
            self.metrics.refuse(Refused::PortZero);
            return Err(AnnounceRefused::PortZero);
        }
        if !self.gate.permits(&request.info_hash) {
            self.metrics.refuse(Refused::NotTracked);
            return Err(AnnounceRefused::NotTracked);
        }
        let ip = self.own.entered(self.claimed_ip(request, asker.ip));
        let wanted = request.numwant.map_or(DEFAULT_PEERS, |wanted| wanted as usize).min(MAX_SAMPLE).min(max_peers);
        let admit = || self.limits.admit(now, asker.ip, &request.info_hash);
        let names = self.own.names_for(asker.ip, asker.local);
        let give_shown = |peer| {
            if let Some(shown) = names.shown(peer) {
                give(shown);
            }
        };
        self.swarms.announce(now, request, ip, wanted, rng, admit, give_shown).map_err(|_| {
            self.metrics.refuse(Refused::NewHashes);
            AnnounceRefused::NewHashes
        })
    }

    /// `ip=` is believed from this host and from trusted proxies alone: else anybody could enter anybody.
    fn claimed_ip(&self, request: &AnnounceRequest, source: IpAddr) -> IpAddr {
        let claimed = request.ip.filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
        claimed.filter(|_| source.is_loopback() || self.trusted_proxies.contains(&source)).unwrap_or(source)
    }
}

#[cfg(test)]
pub mod fixture {
    //! Requests for the tests of both transports.

    use super::*;
    use crate::wire::id::{InfoHash, PeerId};

    pub fn key(n: u8) -> InfoHash {
        InfoHash::new([n; 20])
    }

    pub fn request(port: u16, left: u64, event: Event) -> AnnounceRequest {
        AnnounceRequest {
            info_hash: key(1),
            peer_id: PeerId(*b"-TR4060-abcdefghijkl"),
            port,
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
}

#[cfg(test)]
mod tests {
    use super::fixture::{key, request};
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn asker(ip: &str) -> Asker {
        Asker { ip: ip.parse().unwrap(), local: "192.0.2.1".parse().unwrap() }
    }

    #[test]
    fn who_may_say_ip() {
        let announcer =
            Announcer { trusted_proxies: HashSet::from(["10.0.0.8".parse().unwrap()]), ..Announcer::default() };
        let mut rng = SmallRng::seed_from_u64(1);
        let mut peers = Vec::new();
        let mut announce = |from: &str, port: u16, claim: Option<&str>| {
            let request =
                AnnounceRequest { ip: claim.map(|ip| ip.parse().unwrap()), ..request(port, 5, Event::Started) };
            peers.clear();
            announcer.announce(Time::ZERO, &request, asker(from), 200, &mut rng, |peer| peers.push(peer)).unwrap();
            peers.sort_unstable();
            peers.iter().map(SocketAddr::to_string).collect::<Vec<_>>()
        };
        announce("10.0.0.1", 1, Some("203.0.113.1"));
        announce("10.0.0.8", 2, Some("203.0.113.2"));
        announce("127.0.0.1", 3, Some("203.0.113.3"));
        announce("127.0.0.1", 4, Some("224.0.0.1"));
        assert_eq!(
            announce("10.0.0.9", 5, None),
            ["10.0.0.1:1", "192.0.2.1:4", "203.0.113.2:2", "203.0.113.3:3"],
            "the tracker's own host is named as the asker reached it"
        );
    }

    #[test]
    fn refusals_are_counted() {
        let announcer = Announcer::default();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut announce = |request: &AnnounceRequest| {
            announcer.announce(Time::ZERO, request, asker("10.0.0.1"), 200, &mut rng, |_| {})
        };
        assert_eq!(announce(&request(0, 5, Event::Started)), Err(AnnounceRefused::PortZero));
        while announcer.limits.charge(Time::ZERO, asker("10.0.0.1").ip) {}
        assert_eq!(announce(&request(1, 5, Event::Started)), Err(AnnounceRefused::NewHashes));
        assert_eq!(announcer.metrics.refusals(Refused::PortZero), 1);
        assert_eq!(announcer.metrics.refusals(Refused::NewHashes), 1);
        assert_eq!(announcer.swarms.scrape(&key(1)).leechers, 0);
    }
}
