//! The tracker's catalogue as JSON over HTTP: `GET /search` and `GET /torrents/<key>/peers`, both ends.
//!
//! The query string is read and written here; which torrents answer it is the tracker's business. Text in a reply is
//! a stranger's: it is shown only after `wire::name::escape_for_terminal`.

use super::id::InfoHash;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr;

/// Bytes of `q` after decoding: several times the longest name, and no lever for slow queries.
pub const MAX_QUERY_BYTES: usize = 1024;
/// Bytes of `type` after decoding: an extension is part of a file name, which has at most 255.
pub const MAX_TYPE_BYTES: usize = 255;
/// Bytes of a whole query string: every byte of `q` and `type` percent-encoded, and room for the numbers.
pub const MAX_QUERY_STRING_BYTES: usize = 3 * (MAX_QUERY_BYTES + MAX_TYPE_BYTES) + 256;
/// Hits in one reply when the query does not say.
pub const DEFAULT_HITS: u32 = 50;
/// Hits in one reply at most: with names of usual length they stay far below [`MAX_REPLY_BYTES`].
pub const MAX_HITS: u32 = 500;
/// Peers in one reply at most: a fair sample, not the swarm.
pub const MAX_PEERS: usize = 200;
/// Bytes of a reply after decompression, on both ends: a tracker cannot fill our memory.
pub const MAX_REPLY_BYTES: usize = 1 << 20;

/// Why a query or a reply is refused.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("the query is {got} bytes: at most {max} are taken")]
    TooLong { got: usize, max: usize },
    #[error("{0}: not percent-encoded UTF-8")]
    Encoding(&'static str),
    #[error("{0}: a whole number is expected")]
    Number(&'static str),
    #[error("the tracker's reply is {0} bytes: at most {MAX_REPLY_BYTES} are taken")]
    ReplyTooLong(usize),
    #[error("the tracker's reply is not what was asked for: {0}")]
    Reply(#[from] serde_json::Error),
}

/// What `GET /search` asks. Parameters that are absent do not restrict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchQuery {
    /// Words; empty asks for the newest.
    pub q: String,
    /// Only names with this extension, without the dot; `-` for names without one.
    pub file_type: Option<String>,
    /// Bytes, inclusive.
    pub min_size: Option<u64>,
    /// Bytes, inclusive.
    pub max_size: Option<u64>,
    /// Hits wanted, at most [`MAX_HITS`].
    pub limit: u32,
    /// Hits skipped, best first.
    pub offset: u32,
}

impl SearchQuery {
    /// These words, no restriction, the first [`DEFAULT_HITS`].
    pub fn words(q: impl Into<String>) -> SearchQuery {
        SearchQuery { q: q.into(), file_type: None, min_size: None, max_size: None, limit: DEFAULT_HITS, offset: 0 }
    }

    /// The part of the URL after `?`, percent-encoded (RFC 3986).
    pub fn to_query_string(&self) -> String {
        let mut text = format!("q={}", percent_encode(self.q.as_bytes()));
        if let Some(file_type) = &self.file_type {
            text.push_str("&type=");
            text.push_str(&percent_encode(file_type.as_bytes()));
        }
        for (name, bytes) in [("min_size", self.min_size), ("max_size", self.max_size)] {
            if let Some(bytes) = bytes {
                let _ = write!(text, "&{name}={bytes}");
            }
        }
        let _ = write!(text, "&limit={}&offset={}", self.limit, self.offset);
        text
    }

    /// Reads what follows `?` in a URL. `+` is a space, as HTML forms send it; a parameter without a value is as good
    /// as absent; unknown ones are passed over; of a repeated one the last counts; `limit` is cut to [`MAX_HITS`].
    ///
    /// # Errors
    /// When it is longer than [`MAX_QUERY_STRING_BYTES`], `q` or `type` decode to more than their caps or to something
    /// that is not UTF-8, or a number is none.
    pub fn from_query_string(text: &str) -> Result<SearchQuery, CatalogueError> {
        if text.len() > MAX_QUERY_STRING_BYTES {
            return Err(CatalogueError::TooLong { got: text.len(), max: MAX_QUERY_STRING_BYTES });
        }
        let mut query = SearchQuery::words("");
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if value.is_empty() {
                continue;
            }
            match name {
                "q" => query.q = decode_text("q", value, MAX_QUERY_BYTES)?,
                "type" => query.file_type = Some(decode_text("type", value, MAX_TYPE_BYTES)?),
                "min_size" => query.min_size = Some(decode_number("min_size", value)?),
                "max_size" => query.max_size = Some(decode_number("max_size", value)?),
                "limit" => query.limit = decode_number::<u32>("limit", value)?.min(MAX_HITS),
                "offset" => query.offset = decode_number("offset", value)?,
                _ => {}
            }
        }
        Ok(query)
    }
}

/// Answer to `GET /search`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchReply {
    /// Torrents that match, before `limit` and `offset`.
    pub total: u64,
    /// Best first.
    pub hits: Vec<Hit>,
}

/// One torrent in a search reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// Info's name, whole.
    pub name: String,
    /// After the name's last dot; `-` if there is none.
    #[serde(rename = "type")]
    pub file_type: String,
    /// The folder below upload/ with `/` between components; empty at the top or when the `.torrent` does not say.
    pub path: String,
    /// `<key>.torrent`: it is fetched from `/torrents/<key>.torrent`.
    pub torrent: String,
    /// Hex of the info-hash.
    #[serde(with = "key_serde")]
    pub key: InfoHash,
    /// Bytes.
    pub size: u64,
    /// Pieces.
    pub n_parts: u32,
    pub seeders: u32,
    pub leechers: u32,
    /// When it was first published here, in seconds since 1970.
    pub added: u64,
    /// How the query matched it.
    #[serde(rename = "match")]
    pub matched: Match,
}

/// How a hit matched, the best first. Who fetches by words decides by this whether to start, to ask or to suggest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Match {
    /// The words are the name, or the name without its extension, in any case.
    Exact,
    /// Every word is a word of the name.
    Words,
    /// Every word begins a word of the name. (All of the newest, too, when no words were given.)
    Prefix,
    /// A typo was forgiven: such a hit is suggested, never fetched by itself. So is what a newer tracker calls
    /// otherwise.
    Typo,
}

impl From<Match> for String {
    fn from(matched: Match) -> String {
        let text = match matched {
            Match::Exact => "exact",
            Match::Words => "words",
            Match::Prefix => "prefix",
            Match::Typo => "typo",
        };
        text.to_owned()
    }
}

impl From<String> for Match {
    fn from(text: String) -> Match {
        match text.as_str() {
            "exact" => Match::Exact,
            "words" => Match::Words,
            "prefix" => Match::Prefix,
            _ => Match::Typo,
        }
    }
}

/// Answer to `GET /torrents/<key>/peers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersReply {
    /// Peers in the swarm, of which `peers` are a sample.
    pub total: u64,
    /// At most [`MAX_PEERS`].
    pub peers: Vec<SwarmPeer>,
}

/// One peer in a [`PeersReply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmPeer {
    pub ip: IpAddr,
    pub port: u16,
    pub seeder: bool,
}

impl SearchReply {
    /// # Errors
    /// When the body passes [`MAX_REPLY_BYTES`] or is not a search reply.
    pub fn from_json(body: &[u8]) -> Result<SearchReply, CatalogueError> {
        from_json(body)
    }
}

impl PeersReply {
    /// # Errors
    /// When the body passes [`MAX_REPLY_BYTES`] or is not a list of peers.
    pub fn from_json(body: &[u8]) -> Result<PeersReply, CatalogueError> {
        from_json(body)
    }
}

fn from_json<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, CatalogueError> {
    if body.len() > MAX_REPLY_BYTES {
        return Err(CatalogueError::ReplyTooLong(body.len()));
    }
    Ok(serde_json::from_slice(body)?)
}

/// An [`InfoHash`] as hex in JSON and as counted bytes in postcard (which leaves room for version 2's 32).
pub(in crate::wire) mod key_serde {
    use super::InfoHash;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;
    use std::borrow::Cow;

    pub fn serialize<S: Serializer>(key: &InfoHash, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.serialize_str(&key.to_hex()) } else { to.serialize_bytes(key.as_bytes()) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<InfoHash, D::Error> {
        if from.is_human_readable() {
            Cow::<str>::deserialize(from)?.parse().map_err(D::Error::custom)
        } else {
            let bytes = <&[u8]>::deserialize(from)?;
            InfoHash::from_slice(bytes).ok_or_else(|| D::Error::custom("an info-hash is 20 bytes"))
        }
    }
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub fn percent_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Undoes [`percent_encode`]. `None` when a `%` is not followed by two hex digits or more than `max_bytes` come out.
/// `plus_is_space` reads `+` as HTML forms write it; announces carry raw bytes and must not be read so.
pub fn percent_decode(text: &str, max_bytes: usize, plus_is_space: bool) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len().min(max_bytes));
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let byte = match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                let digit = |digit: &u8| char::from(*digit).to_digit(16);
                (digit(high)? * 16 + digit(low)?) as u8
            }
            (b'%', _) => return None,
            (byte, _) => {
                rest = tail;
                if *byte == b'+' && plus_is_space { b' ' } else { *byte }
            }
        };
        if bytes.len() == max_bytes {
            return None;
        }
        bytes.push(byte);
    }
    Some(bytes)
}

fn decode_text(name: &'static str, value: &str, max_bytes: usize) -> Result<String, CatalogueError> {
    let bytes = percent_decode(value, MAX_QUERY_STRING_BYTES, true).ok_or(CatalogueError::Encoding(name))?;
    if bytes.len() > max_bytes {
        return Err(CatalogueError::TooLong { got: bytes.len(), max: max_bytes });
    }
    String::from_utf8(bytes).map_err(|_| CatalogueError::Encoding(name))
}

fn decode_number<T: FromStr>(name: &'static str, value: &str) -> Result<T, CatalogueError> {
    value.parse().map_err(|_| CatalogueError::Number(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_match_that_is_not_known_reads_as_a_typo_and_is_written_as_one() {
        for (said, read) in
            [("exact", Match::Exact), ("prefix", Match::Prefix), ("", Match::Typo), ("sound", Match::Typo)]
        {
            assert_eq!(Match::from(said.to_owned()), read);
        }
        assert_eq!(String::from(Match::from("sound".to_owned())), "typo");
    }

    #[test]
    fn a_query_as_curl_and_as_a_form_sends_it() {
        let query = SearchQuery::from_query_string(
            "q=got+s01%20%D1%8F&type=mp4&min_size=1&max_size=18446744073709551615&limit=9999&offset=20&x=y",
        )
        .unwrap();
        assert_eq!(query.q, "got s01 я");
        assert_eq!(query.file_type.as_deref(), Some("mp4"));
        assert_eq!((query.min_size, query.max_size), (Some(1), Some(u64::MAX)));
        assert_eq!((query.limit, query.offset), (MAX_HITS, 20));
        assert_eq!(SearchQuery::from_query_string("").unwrap(), SearchQuery::words(""));
        assert_eq!(SearchQuery::from_query_string("q=&limit=&&=").unwrap(), SearchQuery::words(""));
    }

    #[test]
    fn the_query_string_spelled_out() {
        let query = SearchQuery {
            q: "a+b & ж".into(),
            file_type: Some("-".into()),
            min_size: Some(7),
            max_size: None,
            limit: 3,
            offset: 1,
        };
        assert_eq!(query.to_query_string(), "q=a%2Bb%20%26%20%D0%B6&type=-&min_size=7&limit=3&offset=1");
    }

    #[test]
    fn hostile_queries_are_refused() {
        let encoding = |text: &str| matches!(SearchQuery::from_query_string(text), Err(CatalogueError::Encoding(_)));
        assert!(encoding("q=%"));
        assert!(encoding("q=%4"));
        assert!(encoding("q=%+1"));
        assert!(encoding("q=%zz"));
        assert!(encoding("q=%FF"));
        let number = |text: &str| matches!(SearchQuery::from_query_string(text), Err(CatalogueError::Number(_)));
        assert!(number("limit=-1"));
        assert!(number("offset=4294967296"));
        assert!(number("min_size=1e3"));
        let q = |bytes| SearchQuery::from_query_string(&format!("q={}", "%61".repeat(bytes)));
        assert!(q(MAX_QUERY_BYTES).is_ok());
        assert!(matches!(q(MAX_QUERY_BYTES + 1), Err(CatalogueError::TooLong { got: 1025, max: 1024 })));
        assert!(matches!(q(1 << 20), Err(CatalogueError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn queries_round_trip(q in ".{0,80}", file_type in proptest::option::of("[^.]{1,12}"), min_size: Option<u64>,
                              max_size: Option<u64>, limit in 0..=MAX_HITS, offset: u32) {
            let query = SearchQuery { q, file_type, min_size, max_size, limit, offset };
            prop_assert_eq!(SearchQuery::from_query_string(&query.to_query_string()).unwrap(), query);
        }

        #[test]
        fn bytes_round_trip(bytes: Vec<u8>) {
            let text = percent_encode(&bytes);
            prop_assert_eq!(percent_decode(&text, bytes.len(), false).unwrap(), bytes.clone());
            prop_assert_eq!(percent_decode(&text, bytes.len(), true).unwrap(), bytes);
        }

        #[test]
        fn no_query_string_panics(text in "[%&=+a-z0-9é]{0,64}") {
            let _ = SearchQuery::from_query_string(&text);
        }
    }

    #[test]
    fn replies_as_the_tracker_writes_them() {
        let key = "0123456789abcdef0123456789abcdef01234567";
        let json = format!(
            concat!(
                r#"{{"total":1,"hits":[{{"name":"got5.mp4","type":"mp4","path":"series/one","torrent":"{k}.torrent","#,
                r#""key":"{k}","size":1048577,"n_parts":17,"seeders":2,"leechers":3,"added":1700000000,"match":"exact"}}]}}"#
            ),
            k = key
        );
        let reply = SearchReply::from_json(json.as_bytes()).unwrap();
        assert_eq!(reply.hits[0].key, key.parse().unwrap());
        assert_eq!(reply.hits[0].matched, Match::Exact);
        assert_eq!(serde_json::to_string(&reply).unwrap(), json);

        let json = r#"{"total":900,"peers":[{"ip":"10.0.0.1","port":6881,"seeder":true},{"ip":"2001:db8::1","port":1,"seeder":false}]}"#;
        let reply = PeersReply::from_json(json.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&reply).unwrap(), json);
    }

    #[test]
    fn unknown_ways_to_match_are_never_fetched_by_themselves_and_long_replies_are_refused() {
        assert_eq!(serde_json::from_str::<Match>(r#""by-smell""#).unwrap(), Match::Typo);
        let long = vec![b' '; MAX_REPLY_BYTES + 1];
        assert!(matches!(SearchReply::from_json(&long), Err(CatalogueError::ReplyTooLong(_))));
        assert!(matches!(PeersReply::from_json(br#"{"total":1}"#), Err(CatalogueError::Reply(_))));
    }
}
