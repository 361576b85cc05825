//! Announce and scrape over UDP (BEP 15), both ends. All numbers are big-endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::announce::{
    AnnounceRequest, AnnounceResponse, Event, MAX_REPLY_PEERS, MAX_SCRAPE_HASHES, ScrapeEntry, reason_text,
};
use super::id::{InfoHash, PeerId};

/// What a connect request carries in place of a connection id.
pub const PROTOCOL_ID: u64 = 0x0417_2710_1980;
/// Bytes of a connect request.
pub const CONNECT_BYTES: usize = 16;
/// Bytes of an announce request; options may follow (BEP 41).
pub const ANNOUNCE_BYTES: usize = 98;
/// The longest datagram that either end has a use for: an announce reply of 200 IPv6 peers is 3,620 bytes.
pub const MAX_DATAGRAM_BYTES: usize = 8 * 1024;

/// The three numbers before the peers of an announce reply.
const COUNTS_BYTES: usize = 12;

const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const SCRAPE: u32 = 2;
const ERROR: u32 = 3;

/// What a client sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    Connect {
        transaction_id: u32,
    },
    Announce {
        connection_id: u64,
        transaction_id: u32,
        /// `compact` is always true and `no_peer_id` false; an `ip` that is IPv6 is not sent (the field has 4 bytes).
        announce: AnnounceRequest,
    },
    Scrape {
        connection_id: u64,
        transaction_id: u32,
        /// At most [`MAX_SCRAPE_HASHES`].
        info_hashes: Vec<InfoHash>,
    },
}

/// What a tracker sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    Connect { transaction_id: u32, connection_id: u64 },
    Announce { transaction_id: u32, announce: AnnounceResponse },
    Scrape { transaction_id: u32, entries: Vec<ScrapeEntry> },
    Error { transaction_id: u32, message: String },
}

/// Which addresses an announce reply carries: those of the family that the request came by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of a socket address; an IPv4 address mapped into IPv6 is IPv4.
    pub fn of(address: IpAddr) -> Family {
        if address.to_canonical().is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Why a datagram is no request or reply. Both ends drop such a datagram without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UdpError {
    #[error("a datagram of {0} bytes, too short for what it claims to be")]
    Short(usize),
    #[error("unknown action {0}")]
    Action(u32),
    #[error("a connect request without the protocol's id")]
    Protocol,
    #[error("a scrape of {0} bytes of hashes: 1 to {MAX_SCRAPE_HASHES} whole ones are due")]
    Hashes(usize),
}

impl Request {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Request::Connect { transaction_id } => head(PROTOCOL_ID, CONNECT, *transaction_id, out),
            Request::Announce { connection_id, transaction_id, announce } => {
                head(*connection_id, ANNOUNCE, *transaction_id, out);
                encode_announce_fields(announce, out);
            }
            Request::Scrape { connection_id, transaction_id, info_hashes } => {
                head(*connection_id, SCRAPE, *transaction_id, out);
                for info_hash in info_hashes.iter().take(MAX_SCRAPE_HASHES) {
                    out.extend(info_hash.array());
                }
            }
        }
    }

    /// # Errors
    /// When it is no request. Whether the connection id is good is the tracker's to judge.
    pub fn decode(datagram: &[u8]) -> Result<Request, UdpError> {
        Ok(match RequestView::decode(datagram)? {
            RequestView::Connect { transaction_id } => Request::Connect { transaction_id },
            RequestView::Announce { connection_id, transaction_id, announce } => {
                Request::Announce { connection_id, transaction_id, announce }
            }
            RequestView::Scrape { connection_id, transaction_id, info_hashes } => {
                Request::Scrape { connection_id, transaction_id, info_hashes: info_hashes.collect() }
            }
        })
    }
}

/// A [`Request`] whose hashes still lie in the datagram: the tracker's hot path makes no list of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestView<'d> {
    Connect { transaction_id: u32 },
    Announce { connection_id: u64, transaction_id: u32, announce: AnnounceRequest },
    Scrape { connection_id: u64, transaction_id: u32, info_hashes: ScrapeHashes<'d> },
}

/// The hashes of a scrape, 1 to [`MAX_SCRAPE_HASHES`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrapeHashes<'d>(&'d [[u8; InfoHash::LEN]]);

impl Iterator for ScrapeHashes<'_> {
    type Item = InfoHash;

    fn next(&mut self) -> Option<InfoHash> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(InfoHash::new(*first))
    }
}

impl<'d> RequestView<'d> {
    /// # Errors
    /// As [`Request::decode`].
    pub fn decode(datagram: &'d [u8]) -> Result<RequestView<'d>, UdpError> {
        let mut fields = Fields::new(datagram);
        let (connection_id, action, transaction_id) = (fields.u64()?, fields.u32()?, fields.u32()?);
        match action {
            CONNECT if connection_id != PROTOCOL_ID => Err(UdpError::Protocol),
            CONNECT => Ok(RequestView::Connect { transaction_id }),
            ANNOUNCE => {
                let announce = decode_announce_fields(&mut fields)?;
                Ok(RequestView::Announce { connection_id, transaction_id, announce })
            }
            SCRAPE => {
                let (hashes, rest) = fields.rest.as_chunks::<{ InfoHash::LEN }>();
                if !(1..=MAX_SCRAPE_HASHES).contains(&hashes.len()) || !rest.is_empty() {
                    return Err(UdpError::Hashes(fields.rest.len()));
                }
                Ok(RequestView::Scrape { connection_id, transaction_id, info_hashes: ScrapeHashes(hashes) })
            }
            other => Err(UdpError::Action(other)),
        }
    }
}

impl Response {
    /// Peers of the other family are left out.
    pub fn encode(&self, family: Family, out: &mut Vec<u8>) {
        match self {
            Response::Connect { transaction_id, connection_id } => {
                reply_head(CONNECT, *transaction_id, out);
                out.extend(connection_id.to_be_bytes());
            }
            Response::Announce { transaction_id, announce } => {
                let mut reply = AnnounceReply::begin(*transaction_id, family, out);
                announce.peers.iter().for_each(|peer| reply.peer(*peer));
                reply.finish(Counts {
                    interval_s: announce.interval_s,
                    leechers: announce.leechers,
                    seeders: announce.seeders,
                });
            }
            Response::Scrape { transaction_id, entries } => {
                encode_scrape_reply(*transaction_id, entries.iter().copied(), out);
            }
            Response::Error { transaction_id, message } => encode_error(*transaction_id, message, out),
        }
    }

    /// `family` is that of the address the reply came from. Bytes after the last whole peer are ignored.
    ///
    /// # Errors
    /// When it is no reply: to be ignored, it may come from anybody.
    pub fn decode(datagram: &[u8], family: Family) -> Result<Response, UdpError> {
        let mut fields = Fields::new(datagram);
        let (action, transaction_id) = (fields.u32()?, fields.u32()?);
        match action {
            CONNECT => Ok(Response::Connect { transaction_id, connection_id: fields.u64()? }),
            ANNOUNCE => {
                let (interval_s, leechers, seeders) = (fields.u32()?, fields.u32()?, fields.u32()?);
                let peers = decode_peers(fields.rest, family);
                let announce = AnnounceResponse { interval_s, leechers, seeders, peers, ..Default::default() };
                Ok(Response::Announce { transaction_id, announce })
            }
            SCRAPE => {
                let mut entries = Vec::new();
                while fields.rest.len() >= 12 && entries.len() < MAX_SCRAPE_HASHES {
                    let (seeders, completed, leechers) = (fields.u32()?, fields.u32()?, fields.u32()?);
                    entries.push(ScrapeEntry { seeders, completed, leechers });
                }
                Ok(Response::Scrape { transaction_id, entries })
            }
            ERROR => Ok(Response::Error { transaction_id, message: reason_text(fields.rest) }),
            other => Err(UdpError::Action(other)),
        }
    }

    pub fn transaction_id(&self) -> u32 {
        match self {
            Response::Connect { transaction_id, .. }
            | Response::Announce { transaction_id, .. }
            | Response::Scrape { transaction_id, .. }
            | Response::Error { transaction_id, .. } => *transaction_id,
        }
    }
}

/// The numbers of an announce reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    pub interval_s: u32,
    pub leechers: u32,
    pub seeders: u32,
}

/// An announce reply as it is written: the tracker's hot path makes no list of peers, and knows the counts last.
pub struct AnnounceReply<'o> {
    out: &'o mut Vec<u8>,
    family: Family,
    counts_at: usize,
}

impl AnnounceReply<'_> {
    pub fn begin(transaction_id: u32, family: Family, out: &mut Vec<u8>) -> AnnounceReply<'_> {
        reply_head(ANNOUNCE, transaction_id, out);
        let counts_at = out.len();
        out.extend([0; COUNTS_BYTES]);
        AnnounceReply { out, family, counts_at }
    }

    /// Peers of the other family are left out.
    pub fn peer(&mut self, peer: SocketAddr) {
        let [high, low] = peer.port().to_be_bytes();
        match (peer.ip(), self.family) {
            (IpAddr::V4(ip), Family::V4) => {
                let [a, b, c, d] = ip.octets();
                self.out.extend_from_slice(&[a, b, c, d, high, low]);
            }
            (IpAddr::V6(ip), Family::V6) => {
                self.out.extend_from_slice(&ip.octets());
                self.out.extend_from_slice(&[high, low]);
            }
            _ => {}
        }
    }

    pub fn finish(self, counts: Counts) {
        let numbers = [counts.interval_s, counts.leechers, counts.seeders];
        let (places, _) = self.out[self.counts_at..].as_chunks_mut::<4>();
        places.iter_mut().zip(numbers).for_each(|(place, number)| *place = number.to_be_bytes());
    }
}

/// A scrape reply straight from an iterator.
pub fn encode_scrape_reply(transaction_id: u32, entries: impl Iterator<Item = ScrapeEntry>, out: &mut Vec<u8>) {
    reply_head(SCRAPE, transaction_id, out);
    for entry in entries {
        for count in [entry.seeders, entry.completed, entry.leechers] {
            out.extend(count.to_be_bytes());
        }
    }
}

/// A refusal in words.
pub fn encode_error(transaction_id: u32, message: &str, out: &mut Vec<u8>) {
    reply_head(ERROR, transaction_id, out);
    out.extend(message.as_bytes());
}

/// Compact peers (BEP 23, BEP 7): 6 or 18 bytes each, at most [`MAX_REPLY_PEERS`].
pub(in crate::wire) fn decode_peers(bytes: &[u8], family: Family) -> Vec<SocketAddr> {
    match family {
        Family::V4 => {
            let (peers, _) = bytes.as_chunks::<6>();
            let peer = |&[a, b, c, d, high, low]: &[u8; 6]| {
                SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])))
            };
            peers.iter().take(MAX_REPLY_PEERS).map(peer).collect()
        }
        Family::V6 => {
            let (peers, _) = bytes.as_chunks::<18>();
            let peer = |bytes: &[u8; 18]| {
                let octets: [u8; 16] = std::array::from_fn(|i| bytes[i]);
                SocketAddr::from((Ipv6Addr::from(octets), u16::from_be_bytes([bytes[16], bytes[17]])))
            };
            peers.iter().take(MAX_REPLY_PEERS).map(peer).collect()
        }
    }
}

fn head(connection_id: u64, action: u32, transaction_id: u32, out: &mut Vec<u8>) {
    out.extend(connection_id.to_be_bytes());
    reply_head(action, transaction_id, out);
}

fn reply_head(action: u32, transaction_id: u32, out: &mut Vec<u8>) {
    out.extend(action.to_be_bytes());
    out.extend(transaction_id.to_be_bytes());
}

fn encode_announce_fields(announce: &AnnounceRequest, out: &mut Vec<u8>) {
    out.extend(announce.info_hash.array());
    out.extend(announce.peer_id.0);
    for amount in [announce.downloaded, announce.left, announce.uploaded] {
        out.extend(amount.to_be_bytes());
    }
    let event: u32 = match announce.event {
        Event::None => 0,
        Event::Completed => 1,
        Event::Started => 2,
        Event::Stopped => 3,
    };
    out.extend(event.to_be_bytes());
    let ip = if let Some(IpAddr::V4(ip)) = announce.ip { ip } else { Ipv4Addr::UNSPECIFIED };
    out.extend(ip.octets());
    out.extend(announce.key.unwrap_or(0).to_be_bytes());
    let numwant = announce.numwant.map_or(-1, |n| i32::try_from(n).unwrap_or(i32::MAX));
    out.extend(numwant.to_be_bytes());
    out.extend(announce.port.to_be_bytes());
}

/// What follows the last field is BEP 41's options: none of them concerns us.
fn decode_announce_fields(fields: &mut Fields<'_>) -> Result<AnnounceRequest, UdpError> {
    let (info_hash, peer_id) = (InfoHash::new(fields.array()?), PeerId(fields.array()?));
    let (downloaded, left, uploaded) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let event = match fields.u32()? {
        1 => Event::Completed,
        2 => Event::Started,
        3 => Event::Stopped,
        // 0, and what later documents may add: a regular announce does no harm.
        _ => Event::None,
    };
    let ip = Ipv4Addr::from(fields.u32()?);
    let key = fields.u32()?;
    let numwant = i32::from_be_bytes(fields.array()?);
    let port = u16::from_be_bytes(fields.array()?);
    Ok(AnnounceRequest {
        info_hash,
        peer_id,
        port,
        uploaded,
        downloaded,
        left,
        event,
        numwant: u32::try_from(numwant).ok(),
        key: Some(key),
        compact: true,
        no_peer_id: false,
        ip: (!ip.is_unspecified()).then_some(IpAddr::V4(ip)),
    })
}

/// Fixed fields, one after the other.
struct Fields<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Fields<'a> {
    fn new(datagram: &'a [u8]) -> Fields<'a> {
        Fields { rest: datagram, total: datagram.len() }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], UdpError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(UdpError::Short(self.total))?;
        self.rest = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, UdpError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, UdpError> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::announce::samples;
    use super::*;

    fn sent(request: &Request) -> Vec<u8> {
        let mut out = Vec::new();
        request.encode(&mut out);
        out
    }

    fn replied(response: &Response, family: Family) -> Vec<u8> {
        let mut out = Vec::new();
        response.encode(family, &mut out);
        out
    }

    fn announce() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash::new([0xAA; 20]),
            peer_id: PeerId([0xBB; 20]),
            port: 6881,
            uploaded: 3,
            downloaded: 1,
            left: 2,
            event: Event::Started,
            numwant: None,
            key: Some(0xDEAD_BEEF),
            compact: true,
            no_peer_id: false,
            ip: None,
        }
    }

    #[test]
    fn connect_field_by_field() {
        let request = Request::Connect { transaction_id: 0x0102_0304 };
        let bytes = [0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 1, 2, 3, 4];
        assert_eq!(sent(&request), bytes);
        assert_eq!(Request::decode(&bytes), Ok(request));
        let reply = Response::Connect { transaction_id: 0x0102_0304, connection_id: 0x0A0B_0C0D_0E0F_1011 };
        let bytes = [0, 0, 0, 0, 1, 2, 3, 4, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E, 0x0F, 0x10, 0x11];
        assert_eq!(replied(&reply, Family::V4), bytes);
        assert_eq!(Response::decode(&bytes, Family::V4), Ok(reply));
    }

    #[test]
    fn announce_field_by_field() {
        let request = Request::Announce { connection_id: 5, transaction_id: 6, announce: announce() };
        let mut bytes = vec![0, 0, 0, 0, 0, 0, 0, 5];
        bytes.extend([0, 0, 0, 1]); // action
        bytes.extend([0, 0, 0, 6]); // transaction id
        bytes.extend([0xAA; 20]);
        bytes.extend([0xBB; 20]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]); // downloaded
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 2]); // left
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 3]); // uploaded
        bytes.extend([0, 0, 0, 2]); // event: started
        bytes.extend([0, 0, 0, 0]); // ip: the sender's
        bytes.extend([0xDE, 0xAD, 0xBE, 0xEF]); // key
        bytes.extend([0xFF, 0xFF, 0xFF, 0xFF]); // num want: the default
        bytes.extend([0x1A, 0xE1]); // port
        assert_eq!(bytes.len(), ANNOUNCE_BYTES);
        assert_eq!(sent(&request), bytes);
        assert_eq!(Request::decode(&bytes), Ok(request.clone()));
        bytes.extend([2, 3, b'/', b'a', b'n', 0]); // BEP 41: URL data, end of options
        assert_eq!(Request::decode(&bytes), Ok(request));
    }

    #[test]
    fn announce_reply_field_by_field() {
        let v4: SocketAddr = "10.1.2.3:6881".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:6881".parse().unwrap();
        let reply = |peers| Response::Announce {
            transaction_id: 6,
            announce: AnnounceResponse {
                interval_s: 1800,
                seeders: 9,
                leechers: 7,
                peers,
                ..AnnounceResponse::default()
            },
        };
        let mut head = vec![0, 0, 0, 1, 0, 0, 0, 6];
        head.extend([0, 0, 7, 8]); // interval
        head.extend([0, 0, 0, 7]); // leechers
        head.extend([0, 0, 0, 9]); // seeders
        let four = [head.as_slice(), &[10, 1, 2, 3, 0x1A, 0xE1]].concat();
        let mut six = head.clone();
        six.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x1A, 0xE1]);
        assert_eq!(replied(&reply(vec![v4, v6]), Family::V4), four);
        assert_eq!(replied(&reply(vec![v4, v6]), Family::V6), six);
        assert_eq!(Response::decode(&four, Family::V4), Ok(reply(vec![v4])));
        assert_eq!(Response::decode(&six, Family::V6), Ok(reply(vec![v6])));
        assert_eq!(Response::decode(&[four, vec![1, 2]].concat(), Family::V4), Ok(reply(vec![v4])));
    }

    #[test]
    fn scrape_and_error_field_by_field() {
        let hashes = vec![InfoHash::new([1; 20]), InfoHash::new([2; 20])];
        let request = Request::Scrape { connection_id: 5, transaction_id: 6, info_hashes: hashes };
        let mut bytes = vec![0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 6];
        bytes.extend([1; 20]);
        bytes.extend([2; 20]);
        assert_eq!(sent(&request), bytes);
        assert_eq!(Request::decode(&bytes), Ok(request));

        let entry = ScrapeEntry { seeders: 1, completed: 2, leechers: 3 };
        let reply = Response::Scrape { transaction_id: 6, entries: vec![entry] };
        let bytes = [0, 0, 0, 2, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
        assert_eq!(replied(&reply, Family::V4), bytes);
        assert_eq!(Response::decode(&bytes, Family::V6), Ok(reply));

        let reply = Response::Error { transaction_id: 6, message: "no".into() };
        assert_eq!(replied(&reply, Family::V4), [0, 0, 0, 3, 0, 0, 0, 6, b'n', b'o']);
        assert_eq!(Response::decode(&[0, 0, 0, 3, 0, 0, 0, 6, b'n', b'o'], Family::V4), Ok(reply));
    }

    #[test]
    fn short_and_foreign_datagrams_are_refused() {
        let whole = sent(&Request::Announce { connection_id: 5, transaction_id: 6, announce: announce() });
        for cut in 0..whole.len() {
            assert_eq!(Request::decode(&whole[..cut]), Err(UdpError::Short(cut)));
        }
        for cut in 0..16 {
            let connect = replied(&Response::Connect { transaction_id: 1, connection_id: 2 }, Family::V4);
            assert_eq!(Response::decode(&connect[..cut], Family::V4), Err(UdpError::Short(cut)));
        }
        assert_eq!(Response::decode(&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1], Family::V4), Err(UdpError::Short(12)));
        let mut foreign = [0; 16];
        assert_eq!(Request::decode(&foreign), Err(UdpError::Protocol));
        foreign[11] = 4;
        assert_eq!(Request::decode(&foreign), Err(UdpError::Action(4)));
        assert_eq!(Response::decode(&[0, 0, 0, 9, 0, 0, 0, 0], Family::V4), Err(UdpError::Action(9)));
    }

    #[test]
    fn a_scrape_names_one_to_74_whole_hashes() {
        let scrape = |bytes: usize| {
            let mut datagram = vec![0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 6];
            datagram.extend(vec![7; bytes]);
            Request::decode(&datagram)
        };
        assert_eq!(scrape(0), Err(UdpError::Hashes(0)));
        assert_eq!(scrape(19), Err(UdpError::Hashes(19)));
        assert_eq!(scrape(21), Err(UdpError::Hashes(21)));
        assert!(scrape(74 * 20).is_ok());
        assert_eq!(scrape(75 * 20), Err(UdpError::Hashes(1500)));
    }

    proptest! {
        #[test]
        fn announces_round_trip(connection_id: u64, transaction_id: u32, request in samples::request(), ip: [u8; 4]) {
            let ip = Ipv4Addr::from(ip);
            let announce = AnnounceRequest {
                key: Some(request.key.unwrap_or(0)),
                compact: true,
                no_peer_id: false,
                ip: (!ip.is_unspecified()).then_some(IpAddr::V4(ip)),
                ..request
            };
            let request = Request::Announce { connection_id, transaction_id, announce };
            prop_assert_eq!(Request::decode(&sent(&request)), Ok(request));
        }

        #[test]
        fn replies_round_trip(
            transaction_id: u32, interval_s: u32, seeders: u32, leechers: u32,
            peers in any::<bool>().prop_flat_map(|v6| (Just(v6), prop::collection::vec(samples::address(v6), 0..50))),
        ) {
            let (v6, peers) = peers;
            let family = if v6 { Family::V6 } else { Family::V4 };
            let announce = AnnounceResponse { interval_s, seeders, leechers, peers, ..Default::default() };
            let reply = Response::Announce { transaction_id, announce };
            prop_assert_eq!(Response::decode(&replied(&reply, family), family), Ok(reply));
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), action in 0u8..5) {
            let mut bytes = bytes;
            for at in [3, 11] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = action;
                }
            }
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(Request::decode(&sent(&request)), Ok(request));
            }
            let reply = Response::decode(&bytes, Family::V4);
            // An error's text is made readable, so it need not come back as it was.
            if let Some(reply) = reply.ok().filter(|reply| !matches!(reply, Response::Error { .. })) {
                prop_assert_eq!(Response::decode(&replied(&reply, Family::V4), Family::V4), Ok(reply));
            }
        }
    }
}
