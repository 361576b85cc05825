//! Announce and scrape over HTTP, both ends: the query string and the bencoded body (BEP 3, *Trackers*; BEP 7, 23, 24,
//! 48). The HTTP around it is the shells'.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::announce::{
    AnnounceRequest, AnnounceResponse, Event, LEFT_UNKNOWN, MAX_REPLY_PEERS, MAX_SCRAPE_HASHES, ScrapeEntry,
    reason_text,
};
use super::bencode::{self, BencodeError, Dict, Encoder, Limits, Value};
use super::extension::address;
use super::id::{InfoHash, PeerId};
use super::tracker_udp::{Family, decode_peers};

/// The longest reply that is read, after decompression: 2,000 peers in the longest form are 200 KiB.
pub const MAX_REPLY_BYTES: usize = 1 << 20;
/// The interval taken of a reply that names none: what most trackers say.
const DEFAULT_INTERVAL_S: u32 = 1_800;
const REPLY_LIMITS: Limits = Limits { max_bytes: MAX_REPLY_BYTES, max_depth: 16, max_tokens: 200_000 };

/// Why a query is no announce or scrape; the text is the failure reason to answer with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueryError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} must be 20 bytes, percent-encoded")]
    NotTwentyBytes(&'static str),
    #[error("{0} is not a number in range")]
    Number(&'static str),
    #[error("more than {MAX_SCRAPE_HASHES} info_hash")]
    TooManyHashes,
}

/// Why a body is no answer that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplyError {
    /// The tracker answered, and refused.
    #[error("{0}")]
    Failure(String),
    #[error("not bencode: {0}")]
    Bencode(#[from] BencodeError),
    #[error("no dictionary")]
    NotADictionary,
    #[error("\"{0}\" is missing or of the wrong type")]
    Field(&'static str),
}

/// How peers are listed in a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerList {
    /// 6 bytes each in `peers` (BEP 23), 18 in `peers6` (BEP 7).
    Compact,
    /// Dictionaries with `ip` and `port` (BEP 3), both families; without `peer id`, which no client needs.
    Dictionaries,
}

impl AnnounceRequest {
    /// `info_hash=...&peer_id=...` and so on, without a leading `?` or `&`.
    pub fn to_query(&self) -> String {
        let mut query = String::with_capacity(384);
        query.push_str("info_hash=");
        percent_encode(self.info_hash.as_bytes(), &mut query);
        query.push_str("&peer_id=");
        percent_encode(&self.peer_id.0, &mut query);
        let AnnounceRequest { port, uploaded, downloaded, left, .. } = self;
        // Writing to a String cannot fail.
        let _ = write!(query, "&port={port}&uploaded={uploaded}&downloaded={downloaded}&left={left}");
        let event = match self.event {
            Event::None => "",
            Event::Started => "&event=started",
            Event::Completed => "&event=completed",
            Event::Stopped => "&event=stopped",
        };
        query.push_str(event);
        query.push_str(if self.compact { "&compact=1" } else { "&compact=0" });
        if self.no_peer_id {
            query.push_str("&no_peer_id=1");
        }
        if let Some(numwant) = self.numwant {
            let _ = write!(query, "&numwant={numwant}");
        }
        if let Some(key) = self.key {
            let _ = write!(query, "&key={key:08X}");
        }
        if let Some(ip) = self.ip {
            let _ = write!(query, "&ip={ip}");
        }
        query
    }

    /// Reads a query without its `?`. Keys that are not known, values of `event` and `ip` that say nothing to us are
    /// passed over; a key given twice counts as the last one says.
    ///
    /// # Errors
    /// When `info_hash`, `peer_id` or `port` is missing, or a value that matters is malformed.
    pub fn from_query(query: &str) -> Result<AnnounceRequest, QueryError> {
        let (mut info_hash, mut peer_id, mut port) = (None, None, None);
        let mut rest = Optional::default();
        for (key, value) in pairs(query) {
            match key {
                b"info_hash" => info_hash = Some(twenty_bytes(value, "info_hash")?),
                b"peer_id" => peer_id = Some(twenty_bytes(value, "peer_id")?),
                b"port" => port = Some(number(value, "port")?),
                _ => rest.take(key, value)?,
            }
        }
        Ok(AnnounceRequest {
            info_hash: InfoHash::new(info_hash.ok_or(QueryError::Missing("info_hash"))?),
            peer_id: PeerId(peer_id.ok_or(QueryError::Missing("peer_id"))?),
            port: port.ok_or(QueryError::Missing("port"))?,
            uploaded: rest.uploaded,
            downloaded: rest.downloaded,
            left: rest.left.unwrap_or(LEFT_UNKNOWN),
            event: rest.event,
            numwant: rest.numwant,
            key: rest.key,
            compact: !rest.not_compact,
            no_peer_id: rest.no_peer_id,
            ip: rest.ip,
        })
    }
}

/// What a query may leave out.
#[derive(Default)]
struct Optional {
    uploaded: u64,
    downloaded: u64,
    left: Option<u64>,
    event: Event,
    numwant: Option<u32>,
    key: Option<u32>,
    /// Compact is the answer unless it is declined (BEP 23).
    not_compact: bool,
    no_peer_id: bool,
    ip: Option<IpAddr>,
}

impl Optional {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), QueryError> {
        match key {
            b"uploaded" => self.uploaded = number(value, "uploaded")?,
            b"downloaded" => self.downloaded = number(value, "downloaded")?,
            // A client that has no metadata yet may say -1.
            b"left" => self.left = if value == b"-1" { None } else { Some(number(value, "left")?) },
            b"event" => {
                self.event = match value {
                    b"started" => Event::Started,
                    b"completed" => Event::Completed,
                    b"stopped" => Event::Stopped,
                    _ => Event::None,
                }
            }
            // A negative number asks for the default, as over UDP.
            b"numwant" => self.numwant = number(value, "numwant").ok(),
            b"key" => self.key = std::str::from_utf8(value).ok().and_then(|hex| u32::from_str_radix(hex, 16).ok()),
            b"compact" => self.not_compact = value == b"0",
            b"no_peer_id" => self.no_peer_id = value == b"1",
            b"ip" => self.ip = ip(value),
            _ => {}
        }
        Ok(())
    }
}

/// `info_hash=...&info_hash=...` (BEP 48), without a leading `?`.
pub fn scrape_query(info_hashes: &[InfoHash]) -> String {
    let mut query = String::with_capacity(info_hashes.len() * 72);
    for info_hash in info_hashes {
        query.push_str(if query.is_empty() { "info_hash=" } else { "&info_hash=" });
        percent_encode(info_hash.as_bytes(), &mut query);
    }
    query
}

/// The hashes that a scrape names; none when it asks for everything.
///
/// # Errors
/// When a hash is malformed or there are more than [`MAX_SCRAPE_HASHES`].
pub fn parse_scrape_query(query: &str) -> Result<Vec<InfoHash>, QueryError> {
    let mut info_hashes = Vec::new();
    for (_, value) in pairs(query).filter(|(key, _)| key == b"info_hash") {
        if info_hashes.len() == MAX_SCRAPE_HASHES {
            return Err(QueryError::TooManyHashes);
        }
        info_hashes.push(InfoHash::new(twenty_bytes(value, "info_hash")?));
    }
    Ok(info_hashes)
}

/// Appends the body of an answer to an announce.
pub fn encode_announce_response(response: &AnnounceResponse, list: PeerList, out: &mut Vec<u8>) {
    Encoder::new(out).dict(|dict| {
        dict.int(b"complete", i64::from(response.seeders));
        match response.external_ip {
            Some(IpAddr::V4(ip)) => dict.bytes(b"external ip", &ip.octets()),
            Some(IpAddr::V6(ip)) => dict.bytes(b"external ip", &ip.octets()),
            None => {}
        }
        dict.int(b"incomplete", i64::from(response.leechers));
        dict.int(b"interval", i64::from(response.interval_s));
        if let Some(min_interval_s) = response.min_interval_s {
            dict.int(b"min interval", i64::from(min_interval_s));
        }
        match list {
            PeerList::Compact => {
                let (mut peers, mut peers6) = (Vec::with_capacity(response.peers.len() * 6), Vec::new());
                for peer in &response.peers {
                    let (octets, list): (&[u8], _) = match peer.ip() {
                        IpAddr::V4(ip) => (&ip.octets(), &mut peers),
                        IpAddr::V6(ip) => (&ip.octets(), &mut peers6),
                    };
                    list.extend_from_slice(octets);
                    list.extend_from_slice(&peer.port().to_be_bytes());
                }
                dict.bytes(b"peers", &peers);
                if !peers6.is_empty() {
                    dict.bytes(b"peers6", &peers6);
                }
            }
            PeerList::Dictionaries => dict.list(b"peers", |items| {
                for peer in &response.peers {
                    items.dict(|dict| {
                        dict.bytes(b"ip", peer.ip().to_string().as_bytes());
                        dict.int(b"port", i64::from(peer.port()));
                    });
                }
            }),
        }
        if let Some(warning) = &response.warning {
            dict.bytes(b"warning message", warning.as_bytes());
        }
    });
}

/// Appends the body of a refusal.
pub fn encode_failure(reason: &str, out: &mut Vec<u8>) {
    Encoder::new(out).dict(|dict| dict.bytes(b"failure reason", reason.as_bytes()));
}

/// Reads the body of an answer to an announce: peers in any of the three forms, at most [`MAX_REPLY_PEERS`]; host names
/// among them are passed over. Numbers out of range go to the nearest that fits.
///
/// # Errors
/// When the tracker refused, or the body is no answer.
pub fn decode_announce_response(body: &[u8]) -> Result<AnnounceResponse, ReplyError> {
    let dict = reply_dict(body)?;
    let [complete, external_ip, incomplete, interval, min_interval, peers, peers6, warning] = dict.get_many([
        b"complete",
        b"external ip",
        b"incomplete",
        b"interval",
        b"min interval",
        b"peers",
        b"peers6",
        b"warning message",
    ]);
    let mut all = match peers {
        None => Vec::new(),
        Some(Value::Bytes(compact)) => decode_peers(compact, Family::V4),
        Some(Value::List(list)) => list.iter().filter_map(peer).take(MAX_REPLY_PEERS).collect(),
        Some(_) => return Err(ReplyError::Field("peers")),
    };
    if let Some(peers6) = peers6.and_then(Value::as_bytes) {
        all.extend(decode_peers(peers6, Family::V6));
        all.truncate(MAX_REPLY_PEERS);
    }
    let interval = interval.map(|interval| interval.as_int().ok_or(ReplyError::Field("interval"))).transpose()?;
    Ok(AnnounceResponse {
        interval_s: interval.map_or(DEFAULT_INTERVAL_S, clamped),
        min_interval_s: min_interval.and_then(Value::as_int).map(clamped),
        seeders: count(complete),
        leechers: count(incomplete),
        peers: all,
        warning: warning.and_then(Value::as_bytes).map(reason_text),
        external_ip: external_ip.and_then(Value::as_bytes).and_then(address),
    })
}

/// Appends the body of an answer to a scrape.
pub fn encode_scrape_response(entries: &[(InfoHash, ScrapeEntry)], out: &mut Vec<u8>) {
    let mut sorted: Vec<&(InfoHash, ScrapeEntry)> = entries.iter().collect();
    sorted.sort_unstable_by_key(|(info_hash, _)| *info_hash);
    sorted.dedup_by_key(|(info_hash, _)| *info_hash);
    Encoder::new(out).dict(|dict| {
        dict.dict(b"files", |files| {
            for (info_hash, entry) in sorted {
                files.dict(info_hash.as_bytes(), |file| {
                    file.int(b"complete", i64::from(entry.seeders));
                    file.int(b"downloaded", i64::from(entry.completed));
                    file.int(b"incomplete", i64::from(entry.leechers));
                });
            }
        });
    });
}

/// Reads the body of an answer to a scrape: at most [`MAX_SCRAPE_HASHES`] entries, those without a hash passed over.
///
/// # Errors
/// When the tracker refused, or the body is no answer.
pub fn decode_scrape_response(body: &[u8]) -> Result<Vec<(InfoHash, ScrapeEntry)>, ReplyError> {
    let files = reply_dict(body)?.get(b"files").and_then(Value::as_dict).ok_or(ReplyError::Field("files"))?;
    let entries = files.iter().filter_map(|(key, file)| {
        let [complete, downloaded, incomplete] = file.as_dict()?.get_many([b"complete", b"downloaded", b"incomplete"]);
        let entry = ScrapeEntry { seeders: count(complete), completed: count(downloaded), leechers: count(incomplete) };
        Some((InfoHash::from_slice(key)?, entry))
    });
    Ok(entries.take(MAX_SCRAPE_HASHES).collect())
}

fn reply_dict(body: &[u8]) -> Result<Dict<'_>, ReplyError> {
    // Trackers written as web pages end their bodies with a line feed or two.
    let (value, _) = bencode::decode_prefix(body, &REPLY_LIMITS)?;
    let dict = value.as_dict().ok_or(ReplyError::NotADictionary)?;
    match dict.get(b"failure reason").and_then(Value::as_bytes) {
        Some(reason) => Err(ReplyError::Failure(reason_text(reason))),
        None => Ok(dict),
    }
}

fn peer(value: Value<'_>) -> Option<SocketAddr> {
    let [host, port] = value.as_dict()?.get_many([b"ip", b"port"]);
    let port = u16::try_from(port?.as_int()?).ok()?;
    Some(SocketAddr::new(ip(host?.as_bytes()?)?, port))
}

fn clamped(int: i64) -> u32 {
    u32::try_from(int.max(0)).unwrap_or(u32::MAX)
}

fn count(value: Option<Value<'_>>) -> u32 {
    value.and_then(Value::as_int).map_or(0, clamped)
}

/// An address in digits; host names are not resolved. Colons of IPv6 may come percent-encoded.
fn ip(text: &[u8]) -> Option<IpAddr> {
    const LONGEST: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();
    let (mut plain, mut len) = ([0; LONGEST], 0);
    for byte in percent_decode(text) {
        *plain.get_mut(len)? = byte?;
        len += 1;
    }
    std::str::from_utf8(plain.get(..len)?).ok()?.parse().ok()
}

/// Keys and values, still percent-encoded.
fn pairs(query: &str) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.as_bytes().split(|&byte| byte == b'&').filter_map(|pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        Some((&pair[..at], &pair[at + 1..]))
    })
}

fn number<T: std::str::FromStr>(value: &[u8], field: &'static str) -> Result<T, QueryError> {
    std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).ok_or(QueryError::Number(field))
}

fn twenty_bytes(value: &[u8], field: &'static str) -> Result<[u8; 20], QueryError> {
    let (mut bytes, mut decoded) = ([0; 20], percent_decode(value));
    for byte in &mut bytes {
        *byte = decoded.next().flatten().ok_or(QueryError::NotTwentyBytes(field))?;
    }
    if decoded.next().is_some() { Err(QueryError::NotTwentyBytes(field)) } else { Ok(bytes) }
}

/// The bytes behind the text; a `None` among them is a broken escape. A `+` is a space: clients that build their query
/// by the rules of forms write one so, and every client escapes a plus.
fn percent_decode(text: &[u8]) -> impl Iterator<Item = Option<u8>> {
    let mut rest = text;
    std::iter::from_fn(move || match rest {
        [b'%', high, low, tail @ ..] => {
            rest = tail;
            Some(hex_digit(*high).zip(hex_digit(*low)).map(|(high, low)| high << 4 | low))
        }
        [b'%', ..] => {
            rest = &[];
            Some(None)
        }
        [byte, tail @ ..] => {
            rest = tail;
            Some(Some(if *byte == b'+' { b' ' } else { *byte }))
        }
        [] => None,
    })
}

const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Everything but RFC 3986's unreserved characters becomes `%XX`.
fn percent_encode(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::announce::{MAX_REASON_BYTES, samples};
    use super::*;

    const KEY: &[u8; 20] = b"\x12\x34\x56\x78\x9a\xbc\xde\xf1\x23\x45\x67\x89\xab\xcd\xef\x12\x34\x56\x78\x9a";

    fn request() -> AnnounceRequest {
        AnnounceRequest {
            info_hash: InfoHash::new(*KEY),
            peer_id: PeerId(*b"-PY0100-abcdefghijkl"),
            port: 6881,
            uploaded: 1,
            downloaded: 2,
            left: 3,
            event: Event::Started,
            numwant: Some(50),
            key: Some(0xAB),
            compact: true,
            no_peer_id: true,
            ip: None,
        }
    }

    #[test]
    fn the_query_of_bep_3() {
        let query = "info_hash=%124Vx%9A%BC%DE%F1%23Eg%89%AB%CD%EF%124Vx%9A&peer_id=-PY0100-abcdefghijkl&port=6881\
            &uploaded=1&downloaded=2&left=3&event=started&compact=1&no_peer_id=1&numwant=50&key=000000AB";
        assert_eq!(request().to_query(), query);
        assert_eq!(AnnounceRequest::from_query(query), Ok(request()));
    }

    #[test]
    fn queries_as_other_clients_write_them() {
        let id = "peer_id=%2DTR4060%2D%20a++bcdefghi";
        let hash = "info_hash=%124Vx%9a%bc%de%f1%23Eg%89%ab%cd%ef%124Vx%9a";
        let odd = "left=-1&numwant=-1&event=paused&x&=&supportcrypto=1&key=zz";
        let read = AnnounceRequest::from_query(&format!("{hash}&{id}&port=1&{odd}")).unwrap();
        assert_eq!(read.info_hash, InfoHash::new(*KEY));
        assert_eq!(read.peer_id, PeerId(*b"-TR4060- a  bcdefghi"));
        assert_eq!((read.left, read.numwant, read.event, read.key), (LEFT_UNKNOWN, None, Event::None, None));
        assert!(read.compact, "compact unless declined (BEP 23)");
    }

    #[test]
    fn what_matters_must_be_there_and_well_formed() {
        let id = "peer_id=abcdefghijklmnopqrst";
        let hash = "info_hash=abcdefghijklmnopqrst";
        let refused = [
            (String::new(), QueryError::Missing("info_hash")),
            (format!("{hash}&port=1"), QueryError::Missing("peer_id")),
            (format!("{hash}&{id}"), QueryError::Missing("port")),
            (format!("{hash}&{id}&port=65536"), QueryError::Number("port")),
            (format!("{hash}&{id}&port=1&left=-2"), QueryError::Number("left")),
            (format!("{hash}&{id}&port=1&uploaded=99999999999999999999"), QueryError::Number("uploaded")),
            (format!("{hash}u&{id}&port=1"), QueryError::NotTwentyBytes("info_hash")),
            (format!("info_hash=abc&{id}&port=1"), QueryError::NotTwentyBytes("info_hash")),
            (format!("info_hash=abcdefghijklmnopqrs%4&{id}&port=1"), QueryError::NotTwentyBytes("info_hash")),
            (format!("info_hash=abcdefghijklmnopqrs%4g&{id}&port=1"), QueryError::NotTwentyBytes("info_hash")),
            (format!("{hash}&peer_id=%&port=1"), QueryError::NotTwentyBytes("peer_id")),
        ];
        for (query, error) in refused {
            assert_eq!(AnnounceRequest::from_query(&query), Err(error), "{query}");
        }
    }

    #[test]
    fn an_address_may_come_with_its_colons_escaped() {
        for text in ["2001:db8::1", "2001%3Adb8%3A%3A1"] {
            assert_eq!(ip(text.as_bytes()), Some("2001:db8::1".parse().unwrap()));
        }
        assert_eq!(ip(b"example.org"), None);
        assert_eq!(ip(&[b'1'; 1000]), None);
    }

    #[test]
    fn the_compact_body_of_bep_23_and_7() {
        let response = AnnounceResponse {
            interval_s: 1800,
            min_interval_s: Some(60),
            seeders: 2,
            leechers: 1,
            peers: vec!["10.1.2.3:6881".parse().unwrap(), "[2001:db8::1]:258".parse().unwrap()],
            warning: Some("slow".into()),
            external_ip: Some("192.0.2.7".parse().unwrap()),
        };
        let expected = b"d8:completei2e11:external ip4:\xc0\x00\x02\x0710:incompletei1e8:intervali1800e\
            12:min intervali60e5:peers6:\x0a\x01\x02\x03\x1a\xe16:peers618:\
            \x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x0215:warning message4:slowe";
        let mut body = Vec::new();
        encode_announce_response(&response, PeerList::Compact, &mut body);
        assert_eq!(body.escape_ascii().to_string(), expected.escape_ascii().to_string());
        assert_eq!(decode_announce_response(&body), Ok(response));
    }

    #[test]
    fn a_list_of_dictionaries_is_written_and_read() {
        let peers: Vec<SocketAddr> = vec!["10.1.2.3:6881".parse().unwrap(), "[::1]:1".parse().unwrap()];
        let response = AnnounceResponse { interval_s: 60, peers: peers.clone(), ..Default::default() };
        let mut body = Vec::new();
        encode_announce_response(&response, PeerList::Dictionaries, &mut body);
        let expected = b"d8:completei0e10:incompletei0e8:intervali60e\
            5:peersld2:ip8:10.1.2.34:porti6881eed2:ip3:::14:porti1eeee";
        assert_eq!(body.escape_ascii().to_string(), expected.escape_ascii().to_string());
        assert_eq!(decode_announce_response(&body), Ok(response));

        let odd = b"d8:intervali60e5:peersld2:ip9:localhost4:porti1eed2:ip8:10.1.2.37:peer id3:abc4:porti6881ee\
            d2:ip7:1.2.3.44:porti70000eed2:ip3:::14:porti1eei3eee";
        assert_eq!(decode_announce_response(odd).map(|response| response.peers), Ok(peers));
    }

    #[test]
    fn refusals_and_replies_that_are_none() {
        let mut body = Vec::new();
        encode_failure("unregistered", &mut body);
        assert_eq!(body, b"d14:failure reason12:unregisterede");
        assert_eq!(decode_announce_response(&body), Err(ReplyError::Failure("unregistered".into())));
        assert_eq!(decode_scrape_response(&body), Err(ReplyError::Failure("unregistered".into())));
        assert!(matches!(decode_announce_response(b"<html>"), Err(ReplyError::Bencode(_))));
        assert_eq!(decode_announce_response(b"le"), Err(ReplyError::NotADictionary));
        assert_eq!(decode_announce_response(b"d5:peersi1ee"), Err(ReplyError::Field("peers")));
        assert_eq!(decode_announce_response(b"d8:interval1:xe"), Err(ReplyError::Field("interval")));
        assert_eq!(decode_scrape_response(b"de"), Err(ReplyError::Field("files")));
        let long = [b"d14:failure reason5000:".as_slice(), &[b'x'; 5000], b"e"].concat();
        assert_eq!(decode_announce_response(&long), Err(ReplyError::Failure("x".repeat(MAX_REASON_BYTES))));
    }

    #[test]
    fn numbers_out_of_range_go_to_the_nearest() {
        let interval = |int: &str| {
            decode_announce_response(format!("d8:intervali{int}e5:peers0:e").as_bytes()).map(|reply| reply.interval_s)
        };
        assert_eq!(interval("-5"), Ok(0));
        assert_eq!(interval("315360000000"), Ok(u32::MAX));
        assert_eq!(decode_announce_response(b"de\n").map(|reply| reply.interval_s), Ok(DEFAULT_INTERVAL_S));
    }

    #[test]
    fn what_a_tracker_can_make_us_keep_is_bounded() {
        let compact = [b"d8:intervali60e5:peers60000:".as_slice(), &[1; 60_000], b"e"].concat();
        assert_eq!(decode_announce_response(&compact).map(|reply| reply.peers.len()), Ok(MAX_REPLY_PEERS));
        let both = [b"d5:peers12000:".as_slice(), &[1; 12_000], b"6:peers618:", &[1; 18], b"e"].concat();
        assert_eq!(decode_announce_response(&both).map(|reply| reply.peers.len()), Ok(MAX_REPLY_PEERS));
        let list = [b"d5:peersl".to_vec(), b"d2:ip7:1.2.3.44:porti1ee".repeat(5000), b"ee".to_vec()].concat();
        assert_eq!(decode_announce_response(&list).map(|reply| reply.peers.len()), Ok(MAX_REPLY_PEERS));
        let huge = vec![b'l'; MAX_REPLY_BYTES + 1];
        let refused = decode_announce_response(&huge);
        assert!(matches!(refused, Err(ReplyError::Bencode(BencodeError::TooLarge { .. }))), "{refused:?}");
    }

    #[test]
    fn the_scrape_of_bep_48() {
        let hash = InfoHash::new(*b"aaaaaaaaaaaaaaaaaaaa");
        let other = InfoHash::new(*b"AAAAAAAAAAAAAAAAAAAA");
        assert_eq!(scrape_query(&[hash, other]), format!("info_hash={}&info_hash={}", "a".repeat(20), "A".repeat(20)));
        assert_eq!(parse_scrape_query(&scrape_query(&[hash, other])), Ok(vec![hash, other]));
        assert_eq!(parse_scrape_query(""), Ok(vec![]));
        assert_eq!(parse_scrape_query(&scrape_query(&[hash; 75])), Err(QueryError::TooManyHashes));

        let entry = ScrapeEntry { seeders: 5, completed: 50, leechers: 10 };
        let mut body = Vec::new();
        encode_scrape_response(&[(hash, entry), (other, ScrapeEntry::default()), (hash, entry)], &mut body);
        let expected = b"d5:filesd20:AAAAAAAAAAAAAAAAAAAAd8:completei0e10:downloadedi0e10:incompletei0ee\
            20:aaaaaaaaaaaaaaaaaaaad8:completei5e10:downloadedi50e10:incompletei10eeee";
        assert_eq!(body, expected);
        assert_eq!(decode_scrape_response(&body), Ok(vec![(other, ScrapeEntry::default()), (hash, entry)]));
    }

    proptest! {
        #[test]
        fn requests_round_trip(request in samples::request(), v6: Option<[u8; 16]>) {
            let request = AnnounceRequest { ip: v6.map(IpAddr::from), ..request };
            let known_left = AnnounceRequest { left: request.left.min(LEFT_UNKNOWN - 1), ..request };
            prop_assert_eq!(AnnounceRequest::from_query(&known_left.to_query()), Ok(known_left));
        }

        #[test]
        fn responses_round_trip(
            interval_s: u32, min_interval_s: Option<u32>, seeders: u32, leechers: u32, dictionaries: bool,
            v4 in prop::collection::vec(samples::address(false), 0..20),
            v6 in prop::collection::vec(samples::address(true), 0..20),
            warning in prop::option::of("[!-~]{1,40}"), external: Option<[u8; 16]>,
        ) {
            let peers = v4.into_iter().chain(v6).collect();
            let external_ip = external.map(IpAddr::from);
            let sent = AnnounceResponse { interval_s, min_interval_s, seeders, leechers, peers, warning, external_ip };
            let list = if dictionaries { PeerList::Dictionaries } else { PeerList::Compact };
            let mut body = Vec::new();
            encode_announce_response(&sent, list, &mut body);
            for cut in 0..body.len() {
                prop_assert!(decode_announce_response(&body[..cut]).is_err());
            }
            prop_assert_eq!(decode_announce_response(&body), Ok(sent));
        }

        #[test]
        fn noise_never_panics(query in "[a-z_=&%0-9]{0,100}", body in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = AnnounceRequest::from_query(&query);
            let _ = parse_scrape_query(&format!("info_hash={query}"));
            let _ = decode_announce_response(&body);
            let _ = decode_scrape_response(&body);
        }
    }
}
