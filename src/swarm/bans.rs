//! Who is shut out, and for how long. A ban needs a proof: bytes that were wrong and that nobody else gave. What is
//! merely useless or rude is hung up on, by other rules.
//!
//! A peer that proved a key is banned by its key. Every culprit is banned as well by where it was met, address *and*
//! port: behind one address live others. Where it was dialled is known for certain, and there it is dialled no more.
//! Of one that came by itself only the address is certain, the port is what it said of itself: that bars it from coming
//! in again, but not us from dialling, so that nobody can have another peer of its own address shut out by naming that
//! one's port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Identity;
use super::blame::Giver;
use crate::clock::Time;

/// A first ban; doubled by each further one.
pub const FIRST_TERM: Duration = Duration::from_secs(10 * 60);
/// Addresses change hands: after a day most belong to somebody else.
pub const MAX_TERM: Duration = Duration::from_secs(24 * 60 * 60);
/// A ban that ended so long ago no longer counts as an earlier one.
const REMEMBERED_AFTER_END: Duration = Duration::from_secs(24 * 60 * 60);
/// Bans remembered, ended ones too: every session that the daemon may have, twenty times over; half a MiB.
pub const MAX_BANS: usize = 4_096;

/// Where a peer was met. IPv4 inside IPv6 is IPv4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Endpoint {
    /// We dialled it here.
    Dialled(SocketAddr),
    /// It came from this address, and says that it listens on this port; if it says nothing, the port it came from.
    CameFrom(SocketAddr),
}

impl Endpoint {
    pub fn addr(&self) -> SocketAddr {
        let (Endpoint::Dialled(addr) | Endpoint::CameFrom(addr)) = self;
        *addr
    }

    fn canonical(self) -> Endpoint {
        let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
        match self {
            Endpoint::Dialled(addr) => Endpoint::Dialled(canonical(addr)),
            Endpoint::CameFrom(addr) => Endpoint::CameFrom(canonical(addr)),
        }
    }
}

/// What a ban is tied to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Banned {
    /// A proven key.
    Key([u8; 32]),
    At(Endpoint),
}

impl Banned {
    /// All that is known of a peer to tell it by; its IP address alone is nothing.
    fn names_of(peer: &Giver) -> impl Iterator<Item = Banned> + use<> {
        let key = if let Identity::Key(key) = peer.identity { Some(Banned::Key(key)) } else { None };
        key.into_iter().chain(peer.endpoint.map(|endpoint| Banned::At(endpoint.canonical())))
    }
}

#[derive(Clone, Copy, Debug)]
struct Ban {
    ends: Time,
    term: Duration,
}

/// The bans of one daemon, over all its torrents.
#[derive(Default, Debug)]
pub struct Bans {
    bans: BTreeMap<Banned, Ban>,
}

impl Bans {
    /// Bans a culprit by all that it is known by, for twice as long as the last time. Who is banned already stays so, no
    /// longer: what comes to light of it meanwhile was done before. Returns for how long, if it is news.
    pub fn ban(&mut self, culprit: &Giver, now: Time) -> Option<Duration> {
        let dialled = culprit.endpoint.filter(|endpoint| matches!(endpoint, Endpoint::Dialled(_)));
        // What is not dialled may not come in either.
        let from = dialled.map(|endpoint| Banned::At(Endpoint::CameFrom(endpoint.addr()).canonical()));
        Banned::names_of(culprit).chain(from).filter_map(|name| self.ban_name(name, now)).max()
    }

    /// Whether a peer is banned, by what is known of it.
    pub fn is_banned(&self, peer: &Giver, now: Time) -> bool {
        Banned::names_of(peer).any(|name| self.bans_name(name, now))
    }

    /// Whether a peer may be dialled at this address.
    pub fn may_dial(&self, addr: SocketAddr, now: Time) -> bool {
        !self.bans_name(Banned::At(Endpoint::Dialled(addr).canonical()), now)
    }

    /// Whether somebody at this IP address is banned: others there are innocent, and may be the same under another name.
    pub fn knows_of(&self, ip: IpAddr, now: Time) -> bool {
        let ip = ip.to_canonical();
        let there = |name: &Banned| matches!(name, Banned::At(endpoint) if endpoint.addr().ip() == ip);
        self.bans.iter().any(|(name, ban)| there(name) && now < ban.ends)
    }

    fn bans_name(&self, name: Banned, now: Time) -> bool {
        self.bans.get(&name).is_some_and(|ban| now < ban.ends)
    }

    fn ban_name(&mut self, name: Banned, now: Time) -> Option<Duration> {
        let term = match self.bans.get(&name) {
            Some(ban) if now < ban.ends => return None,
            Some(ban) if now < ban.ends + REMEMBERED_AFTER_END => (ban.term * 2).min(MAX_TERM),
            _ => FIRST_TERM,
        };
        if !self.bans.contains_key(&name) {
            self.make_room(now);
        }
        self.bans.insert(name, Ban { ends: now + term, term });
        Some(term)
    }

    /// When the list is full: what no longer counts goes, else the ban that ends first.
    fn make_room(&mut self, now: Time) {
        if self.bans.len() < MAX_BANS {
            return;
        }
        self.bans.retain(|_, ban| now < ban.ends + REMEMBERED_AFTER_END);
        if self.bans.len() >= MAX_BANS
            && let Some(first) = self.bans.iter().min_by_key(|(_, ban)| ban.ends).map(|(who, _)| *who)
        {
            self.bans.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::SessionId;
    use std::net::Ipv4Addr;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn peer(endpoint: Option<Endpoint>) -> Giver {
        Giver { session: SessionId(1), identity: Identity::Address(IpAddr::V4(IP)), endpoint }
    }

    fn dialled(port: u16) -> Giver {
        peer(Some(Endpoint::Dialled((IP, port).into())))
    }

    fn came(port: u16) -> Giver {
        peer(Some(Endpoint::CameFrom((IP, port).into())))
    }

    fn minutes(minutes: u64) -> Time {
        Time::from_secs(1_000_000 + minutes * 60)
    }

    #[test]
    fn a_ban_ends_and_the_next_one_is_twice_as_long() {
        let (mut bans, culprit) = (Bans::default(), dialled(1));
        let mut now = minutes(0);
        for expected in [10, 20, 40, 80, 160, 320, 640, 1_280, 1_440, 1_440].map(|m| Duration::from_secs(m * 60)) {
            assert!(!bans.is_banned(&culprit, now));
            assert_eq!(bans.ban(&culprit, now), Some(expected));
            assert_eq!(bans.ban(&culprit, now + expected / 2), None, "what else comes to light adds nothing");
            assert!(bans.is_banned(&culprit, now + (expected - Duration::from_nanos(1))));
            assert!(!bans.is_banned(&culprit, now + expected));
            now = now + expected;
        }
        let much_later = now + REMEMBERED_AFTER_END;
        assert_eq!(bans.ban(&culprit, much_later), Some(FIRST_TERM), "a day of good conduct and it is forgotten");
        assert!(!bans.is_banned(&culprit, much_later + FIRST_TERM));
    }

    #[test]
    fn who_is_not_dialled_does_not_come_in_and_others_behind_the_address_do() {
        let (mut bans, now) = (Bans::default(), minutes(0));
        bans.ban(&dialled(1), now);
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:1".parse().unwrap();
        assert!(bans.is_banned(&dialled(1), now) && bans.is_banned(&came(1), now) && !bans.may_dial(mapped, now));
        assert!(!bans.is_banned(&dialled(2), now) && !bans.is_banned(&came(2), now));
        assert!(bans.may_dial((IP, 2).into(), now));
        // They are only watched more closely, for as long.
        let other = Ipv4Addr::new(10, 0, 0, 2);
        assert!(bans.knows_of(mapped.ip(), now) && !bans.knows_of(other.into(), now));
        assert!(!bans.knows_of(IP.into(), now + FIRST_TERM));
    }

    #[test]
    fn nobody_is_shut_out_by_a_culprit_that_names_its_port() {
        let (mut bans, now) = (Bans::default(), minutes(0));
        bans.ban(&came(2), now);
        assert!(bans.is_banned(&came(2), now));
        assert!(bans.may_dial((IP, 2).into(), now) && !bans.is_banned(&dialled(2), now));
    }

    #[test]
    fn a_proven_key_is_banned_wherever_it_is_met_and_an_address_alone_never_is() {
        let (mut bans, now) = (Bans::default(), minutes(0));
        assert_eq!(bans.ban(&peer(None), now), None);
        assert!(!bans.is_banned(&peer(None), now));
        let proven = |giver| Giver { identity: Identity::Key([7; 32]), ..giver };
        bans.ban(&proven(came(5)), now);
        assert!(bans.is_banned(&proven(came(6)), now) && bans.is_banned(&proven(dialled(9)), now));
        assert!(bans.is_banned(&came(5), now) && !bans.is_banned(&came(6), now));
    }

    #[test]
    fn the_list_is_bounded_and_what_ends_first_makes_room() {
        let mut bans = Bans::default();
        let proven = Giver { identity: Identity::Key([1; 32]), ..peer(None) };
        bans.ban(&proven, minutes(0));
        bans.ban(&proven, minutes(11));
        for port in 0..10_000 {
            assert!(bans.ban(&came(port), minutes(12) + Duration::from_millis(u64::from(port))).is_some());
            assert!(bans.bans.len() <= MAX_BANS);
        }
        assert!(bans.is_banned(&came(9_999), minutes(13)) && !bans.is_banned(&came(0), minutes(13)));
        assert!(bans.is_banned(&proven, minutes(13)), "a longer ban outlasts the flood");
    }
}
