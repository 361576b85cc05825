//! What one address may cost: token buckets for publications, malformed requests and torrents new to the address. A
//! repeated announce costs nothing.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::keyed_hash::BuildKeyedHasher;
use crate::clock::Time;
use crate::wire::id::InfoHash;

/// A peer that comes with its whole library at once is served: 50,000 torrents are more than people have.
pub const BURST: u32 = 50_000;
/// Sustained, far above any honest peer and below what would fill the tables in minutes.
pub const REFILL_PER_S: u32 = 5_000;
/// Buckets held, some 5 MB: more addresses than that are not known to be busy at once.
const MAX_BUCKETS: usize = 65_536;
/// Slots that remember which address announced which torrent: 4 MiB. Whose slot was taken pays one token more, of 5,000 a
/// second.
const SEEN_SLOTS: usize = 1 << 20;
/// Slots looked at for one pair.
const SEEN_WAYS: usize = 4;

/// The buckets and what they need to know.
pub struct Limits {
    buckets: Mutex<Buckets>,
    seen: Box<[AtomicU32]>,
}

type Buckets = HashMap<Subject, Bucket, BuildKeyedHasher>;

/// Who has a bucket: an address, or the network it is in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Subject {
    Address(IpAddr),
    /// A /24 or a /48 of global addresses; within a home or a company a prefix says nothing about who it is.
    Prefix(IpAddr),
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: u32,
    at: Time,
}

impl Bucket {
    fn refilled(self, now: Time) -> Bucket {
        let earned = now.since(self.at).as_nanos() * u128::from(REFILL_PER_S) / 1_000_000_000;
        if earned == 0 {
            // The clock stays, so that fractions add up.
            return self;
        }
        let tokens = u32::try_from(earned).unwrap_or(BURST).saturating_add(self.tokens).min(BURST);
        Bucket { tokens, at: now }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            buckets: Mutex::default(),
            seen: std::iter::repeat_with(AtomicU32::default).take(SEEN_SLOTS).collect(),
        }
    }
}

impl Limits {
    /// Takes a token from the address and its prefix; `false` when either has none.
    pub fn charge(&self, now: Time, ip: IpAddr) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = [None, None];
        for (place, subject) in filled.iter_mut().zip(subjects(ip)) {
            let Some(subject) = subject else { continue };
            let fresh = Bucket { tokens: BURST, at: now };
            let bucket = buckets.get(&subject).copied().unwrap_or(fresh).refilled(now);
            if bucket.tokens == 0 {
                return false;
            }
            *place = Some((subject, Bucket { tokens: bucket.tokens - 1, ..bucket }));
        }
        if buckets.len() + 2 > MAX_BUCKETS {
            make_room(&mut buckets, now);
        }
        buckets.extend(filled.into_iter().flatten());
        true
    }

    /// Whether the address may announce this torrent: free if it did before, else for a token.
    pub fn admit(&self, now: Time, ip: IpAddr, key: &InfoHash) -> bool {
        let hash = BuildKeyedHasher.hash_one((ip, key));
        let mark = (hash as u32) | 1;
        let first = (hash >> 32) as usize % (SEEN_SLOTS / SEEN_WAYS) * SEEN_WAYS;
        let slots = &self.seen[first..first + SEEN_WAYS];
        if slots.iter().any(|slot| slot.load(Ordering::Relaxed) == mark) {
            return true;
        }
        if !self.charge(now, ip) {
            return false;
        }
        // A free slot, else one by chance: whoever loses theirs pays a token more.
        let free = slots.iter().position(|slot| slot.load(Ordering::Relaxed) == 0);
        let place = free.unwrap_or((hash >> 24) as usize % SEEN_WAYS);
        slots[place].store(mark, Ordering::Relaxed);
        true
    }
}

/// Drops the buckets that are full again; when there are too few of them, every other one.
fn make_room(buckets: &mut Buckets, now: Time) {
    buckets.retain(|_, bucket| bucket.refilled(now).tokens < BURST);
    if buckets.len() > MAX_BUCKETS / 2 {
        let mut keep = false;
        buckets.retain(|_, _| {
            keep = !keep;
            keep
        });
    }
}

fn subjects(ip: IpAddr) -> [Option<Subject>; 2] {
    let ip = ip.to_canonical();
    let prefix = is_global(ip).then(|| match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & 0xFFFF_FF00).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 80 << 80).into(),
    });
    [Some(Subject::Address(ip)), prefix.map(Subject::Prefix)]
}

/// Reachable from the internet, as far as the address itself tells.
pub fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        IpAddr::V6(ip) => {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn drain(limits: &Limits, now: Time, from: &str) -> u32 {
        (0..).take_while(|_| limits.charge(now, ip(from))).count() as u32
    }

    #[test]
    fn a_burst_then_the_refill_and_never_more_than_the_burst() {
        let limits = Limits::default();
        let mut now = Time::from_secs(10);
        assert_eq!(drain(&limits, now, "10.0.0.1"), BURST);
        for _ in 0..10 {
            now = now + Duration::from_micros(100);
            limits.charge(now, ip("10.0.0.1"));
        }
        // A millisecond in ten steps is worth five tokens however it is cut.
        assert_eq!(drain(&limits, now, "10.0.0.1"), 0);
        assert_eq!(drain(&limits, now + Duration::from_secs(1), "10.0.0.1"), REFILL_PER_S);
        assert_eq!(drain(&limits, now + Duration::from_secs(86_400), "10.0.0.1"), BURST);
    }

    #[test]
    fn prefixes_count_for_global_addresses_alone() {
        let limits = Limits::default();
        let now = Time::from_secs(10);
        drain(&limits, now, "203.0.113.7");
        assert!(!limits.charge(now, ip("203.0.113.8")));
        assert!(!limits.charge(now, ip("::ffff:203.0.113.9")));
        assert!(limits.charge(now, ip("203.0.112.8")));
        drain(&limits, now, "2001:db8:7::1");
        assert!(!limits.charge(now, ip("2001:db8:7:ffff::2")));
        assert!(limits.charge(now, ip("2001:db8:8::1")));
        for (busy, neighbour) in [("192.168.1.1", "192.168.1.2"), ("127.0.0.1", "127.0.0.2"), ("fd00::1", "fd00::2")] {
            drain(&limits, now, busy);
            assert!(limits.charge(now, ip(neighbour)), "{neighbour}");
        }
    }

    #[test]
    fn a_repeated_announce_costs_nothing() {
        let limits = Limits::default();
        let now = Time::from_secs(10);
        let key = InfoHash::new([7; 20]);
        assert!(limits.admit(now, ip("10.0.0.1"), &key));
        drain(&limits, now, "10.0.0.1");
        assert!(limits.admit(now, ip("10.0.0.1"), &key));
        assert!(!limits.admit(now, ip("10.0.0.1"), &InfoHash::new([8; 20])));
        assert!(limits.admit(now, ip("10.0.0.2"), &InfoHash::new([8; 20])));
    }

    #[test]
    fn the_table_is_bounded() {
        let limits = Limits::default();
        let now = Time::from_secs(10);
        for n in 0..200_000_u32 {
            assert!(limits.charge(now, Ipv4Addr::from_bits(0x0A00_0000 + n).into()));
        }
        assert!(limits.buckets.lock().unwrap().len() <= MAX_BUCKETS);
    }
}
