//! How a swarm is kept: its peers in pages, each a value of the store.
//!
//! A page's key is info-hash ‖ family (4 or 6) ‖ number u16 BE. Its content is the swarm's completed count (u32 LE, in the
//! first page of IPv4; 0 in others), then for each peer its address, its port (BE), its id tag (u32 LE) and a byte: bit 7
//! says seeder, the rest the class of its gap. What an announce refreshes is not kept: a page changes when somebody joins,
//! leaves, completes or turns to another rhythm, and peers stand in the order of the table, so that few pages change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::peers::Peer;
use crate::wire::id::InfoHash;

/// Content of one page: with the frame of a record it stays within a value of the store.
pub const MAX_PAGE_BYTES: usize = 4_087;
const HEAD_BYTES: usize = 4;
const V4_BYTES: usize = 4 + 2 + TAIL_BYTES;
const V6_BYTES: usize = 16 + 2 + TAIL_BYTES;
const TAIL_BYTES: usize = 5;
const SEEDER: u8 = 0x80;
/// The upper end of the first class of gaps; each further class reaches twice as far. Classes, because a gap of 600 s is
/// one of 598 s the next time.
const FIRST_GAP_S: u32 = 75;
const LAST_GAP_CLASS: u8 = 7;

/// Which of a swarm's pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PageNumber {
    pub of_v6: bool,
    pub number: u16,
}

impl PageNumber {
    /// The key in the store.
    pub fn key(self, swarm: &InfoHash) -> Vec<u8> {
        let family = if self.of_v6 { 6 } else { 4 };
        let [high, low] = self.number.to_be_bytes();
        [swarm.as_bytes(), &[family, high, low]].concat()
    }

    /// What [`PageNumber::key`] made.
    pub fn from_key(key: &[u8]) -> Option<(InfoHash, PageNumber)> {
        let (swarm, &[family @ (4 | 6), high, low]) = key.split_last_chunk::<3>()? else { return None };
        Some((InfoHash::from_slice(swarm)?, PageNumber { of_v6: family == 6, number: u16::from_be_bytes([high, low]) }))
    }
}

/// The pages of one swarm, those of IPv4 first.
#[derive(Default)]
pub struct Pages {
    bytes: Vec<u8>,
    /// Where each ends in `bytes`.
    ends: Vec<(PageNumber, usize)>,
}

impl Pages {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    pub fn iter(&self) -> impl Iterator<Item = (PageNumber, &[u8])> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        begins.zip(&self.ends).map(|(begin, (number, end))| (*number, &self.bytes[begin..*end]))
    }

    pub(super) fn pack(
        &mut self,
        completed: u32,
        v4: impl ExactSizeIterator<Item = Peer<Ipv4Addr>>,
        v6: impl ExactSizeIterator<Item = Peer<Ipv6Addr>>,
    ) {
        self.add(false, completed, v4, V4_BYTES, |peer, bytes| bytes.extend(peer.at.ip.octets()));
        if v6.len() > 0 {
            self.add(true, 0, v6, V6_BYTES, |peer, bytes| bytes.extend(peer.at.ip.octets()));
        }
    }

    /// One page at least.
    fn add<A>(
        &mut self,
        of_v6: bool,
        completed: u32,
        mut peers: impl ExactSizeIterator<Item = Peer<A>>,
        peer_bytes: usize,
        put_ip: impl Fn(&Peer<A>, &mut Vec<u8>),
    ) {
        let per_page = (MAX_PAGE_BYTES - HEAD_BYTES) / peer_bytes;
        for number in 0..=u16::MAX {
            let completed = if number == 0 { completed } else { 0 };
            self.bytes.extend(completed.to_le_bytes());
            for peer in peers.by_ref().take(per_page) {
                put_ip(&peer, &mut self.bytes);
                let Peer { gap_s, id_tag, seeder, .. } = peer;
                put_tail(peer.at.port, Kept { seeder, gap_s, id_tag }, &mut self.bytes);
            }
            self.ends.push((PageNumber { of_v6, number }, self.bytes.len()));
            if peers.len() == 0 {
                break;
            }
        }
    }
}

fn put_tail(port: u16, kept: Kept, bytes: &mut Vec<u8>) {
    bytes.extend(port.to_be_bytes());
    bytes.extend(kept.id_tag.to_le_bytes());
    bytes.push(gap_class(kept.gap_s) | if kept.seeder { SEEDER } else { 0 });
}

/// The content of a page of these peers, which are of one family, however many they are.
pub fn content(completed: u32, peers: impl Iterator<Item = (SocketAddr, Kept)>) -> Vec<u8> {
    let mut bytes = completed.to_le_bytes().to_vec();
    for (at, kept) in peers {
        match at.ip() {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
        put_tail(at.port(), kept, &mut bytes);
    }
    bytes
}

/// What is kept of a peer beside its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    pub seeder: bool,
    /// Not less than its last gap; 0 if none was known.
    pub gap_s: u16,
    pub id_tag: u32,
}

/// One page as it was found.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    completed: u32,
    of_v6: bool,
    peers: &'a [u8],
}

impl<'a> Page<'a> {
    /// `None` for what is no page's content.
    pub fn parse(of_v6: bool, content: &'a [u8]) -> Option<Page<'a>> {
        let (completed, peers) = content.split_first_chunk()?;
        let whole = peers.len() % if of_v6 { V6_BYTES } else { V4_BYTES } == 0;
        whole.then_some(Page { completed: u32::from_le_bytes(*completed), of_v6, peers })
    }

    pub fn completed(&self) -> u32 {
        self.completed
    }

    /// Number of peers.
    pub fn count(&self) -> usize {
        self.peers.len() / if self.of_v6 { V6_BYTES } else { V4_BYTES }
    }

    pub fn peers(&self, mut tell: impl FnMut(SocketAddr, Kept)) {
        let mut tell = |ip, tail: &[u8; 2 + TAIL_BYTES]| {
            let [high, low, t0, t1, t2, t3, flags] = *tail;
            let (id_tag, gap_s) = (u32::from_le_bytes([t0, t1, t2, t3]), gap_of_class(flags & !SEEDER));
            let kept = Kept { seeder: flags & SEEDER != 0, gap_s, id_tag };
            tell(SocketAddr::new(ip, u16::from_be_bytes([high, low])), kept);
        };
        if self.of_v6 {
            for peer in self.peers.as_chunks::<V6_BYTES>().0 {
                if let (Some(ip), Some(tail)) = (peer.first_chunk::<16>(), peer.last_chunk()) {
                    tell(Ipv6Addr::from(*ip).into(), tail);
                }
            }
        } else {
            for peer in self.peers.as_chunks::<V4_BYTES>().0 {
                if let (Some(ip), Some(tail)) = (peer.first_chunk::<4>(), peer.last_chunk()) {
                    tell(Ipv4Addr::from(*ip).into(), tail);
                }
            }
        }
    }
}

fn gap_class(gap_s: u16) -> u8 {
    let gap_s = u32::from(gap_s);
    if gap_s == 0 {
        return 0;
    }
    (1..LAST_GAP_CLASS).find(|class| gap_s <= FIRST_GAP_S << (class - 1)).unwrap_or(LAST_GAP_CLASS)
}

fn gap_of_class(class: u8) -> u16 {
    match class {
        0 => 0,
        class => u16::try_from(FIRST_GAP_S << (class.min(LAST_GAP_CLASS) - 1)).unwrap_or(u16::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::super::law::MAX_LEASE_S;
    use super::super::peers::Endpoint;
    use super::*;
    use crate::db::MAX_VALUE_BYTES;
    use crate::db::record::HEADER_BYTES;

    const _: () = assert!(MAX_PAGE_BYTES + HEADER_BYTES <= MAX_VALUE_BYTES);

    fn peer<A>(ip: A, n: u16) -> Peer<A> {
        let at = Endpoint { ip, port: n };
        Peer { at, last_s: 7, gap_from_s: 7, gap_s: n % 4_500, lease_s: 9, id_tag: u32::from(n) << 16, seeder: n > 300 }
    }

    #[test]
    fn a_swarm_comes_back_from_its_pages() {
        let v4: Vec<_> = (0..1_000).map(|n| peer(Ipv4Addr::from_bits(0x0A00_0000 + u32::from(n)), n)).collect();
        let v6: Vec<_> = (0..500).map(|n| peer(Ipv6Addr::from_bits(0xFC << 120 | u128::from(n)), n)).collect();
        let mut pages = Pages::default();
        pages.pack(9, v4.iter().copied(), v6.iter().copied());
        let numbers: Vec<(bool, u16)> = pages.iter().map(|(page, _)| (page.of_v6, page.number)).collect();
        assert_eq!(numbers, [(false, 0), (false, 1), (false, 2), (true, 0), (true, 1), (true, 2)]);
        let (mut back, mut completed) = (Vec::new(), 0);
        for (number, content) in pages.iter() {
            assert!(content.len() <= MAX_PAGE_BYTES);
            let page = Page::parse(number.of_v6, content).unwrap();
            completed += page.completed();
            let before = back.len();
            page.peers(|at, kept| back.push((at, kept)));
            assert_eq!(back.len() - before, page.count());
            assert!(Page::parse(number.of_v6, &content[..content.len() - 1]).is_none());
        }
        assert_eq!(completed, 9);
        let all =
            v4.iter().map(|peer| (SocketAddr::from((peer.at.ip, peer.at.port)), peer.seeder, peer.id_tag, peer.gap_s));
        let all = all.chain(
            v6.iter().map(|peer| (SocketAddr::from((peer.at.ip, peer.at.port)), peer.seeder, peer.id_tag, peer.gap_s)),
        );
        for ((at, kept), (expected, seeder, id_tag, gap_s)) in back.into_iter().zip(all) {
            assert_eq!((at, kept.seeder, kept.id_tag), (expected, seeder, id_tag));
            assert!(kept.gap_s >= gap_s && (kept.gap_s == 0) == (gap_s == 0), "{gap_s} came back as {}", kept.gap_s);
        }
    }

    #[test]
    fn a_join_a_leave_and_a_refresh_change_few_pages() {
        use super::super::peers::Peers;
        let packed = |peers: &Peers<Ipv4Addr>| {
            let mut pages = Pages::default();
            pages.pack(0, peers.iter(), [].into_iter());
            pages.iter().map(|(_, content)| content.to_vec()).collect::<Vec<_>>()
        };
        let differing = |a: &[Vec<u8>], b: &[Vec<u8>]| a.iter().zip(b).filter(|(a, b)| a != b).count();
        let mut peers = Peers::default();
        for n in 0..5_000 {
            peers.put(None, peer(Ipv4Addr::from_bits(u32::from(n)), n));
        }
        let before = packed(&peers);
        let (stands, known) = peers.find(peer(Ipv4Addr::from_bits(4_000), 4_000).at).unwrap();
        peers.put(Some(stands), Peer { last_s: 99, lease_s: 1, gap_s: known.gap_s - 1, ..known });
        assert_eq!(differing(&before, &packed(&peers)), 0, "refreshed");
        peers.put(Some(stands), Peer { seeder: false, ..known });
        assert!(differing(&before, &packed(&peers)) <= 2, "another role");
        let before = packed(&peers);
        let (stands, _) = peers.find(peer(Ipv4Addr::from_bits(17), 17).at).unwrap();
        peers.remove(stands);
        assert!(differing(&before, &packed(&peers)) <= 3, "left");
        let before = packed(&peers);
        peers.put(None, peer(Ipv4Addr::from_bits(77_777), 10));
        assert!(differing(&before, &packed(&peers)) <= 2, "joined");
    }

    #[test]
    fn keys_and_gaps() {
        let number = PageNumber { of_v6: true, number: 0x0102 };
        let key = number.key(&InfoHash::new([7; 20]));
        assert_eq!(key, [&[7; 20][..], &[6, 1, 2]].concat());
        assert_eq!(PageNumber::from_key(&key), Some((InfoHash::new([7; 20]), number)));
        assert_eq!(PageNumber::from_key(&key[1..]), None);
        assert_eq!(PageNumber::from_key(&[7; 23]), None);
        for gap_s in 1..=MAX_LEASE_S as u16 {
            let kept_s = gap_of_class(gap_class(gap_s));
            assert!(kept_s >= gap_s && kept_s <= gap_s.max(38) * 2, "{gap_s} came back as {kept_s}");
        }
    }
}
