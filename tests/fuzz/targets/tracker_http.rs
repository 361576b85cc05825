//! Announce and scrape over HTTP: what a client asks, and what a tracker answers.

use peerd::wire::announce::{AnnounceRequest, AnnounceResponse, MAX_REASON_BYTES, MAX_REPLY_PEERS, MAX_SCRAPE_HASHES};
use peerd::wire::catalogue::percent_decode;
use peerd::wire::tracker_http::{self, PeerList, QueryError, ReplyError};

use super::bounds::{SLACK_BYTES, bounded, bounded_by};

/// The peers of a reply, each a `SocketAddr`, in a vector that grows by doubling: six bytes on the wire become 32.
const PEERS_BYTES: usize = 3 * MAX_REPLY_PEERS * size_of::<std::net::SocketAddr>();

/// Lenient: order, unknown parameters and repeated ones (the last counts), a plus before a number, events and addresses
/// that say nothing, either case of hex.
pub fn query(input: &[u8]) {
    check_query(input, AnnounceRequest::from_query);
    let Ok(text) = str::from_utf8(input) else { return };
    if let Ok(hashes) = bounded(input, || tracker_http::parse_scrape_query(text)) {
        assert!(hashes.len() <= MAX_SCRAPE_HASHES);
        assert_eq!(tracker_http::parse_scrape_query(&tracker_http::scrape_query(&hashes)), Ok(hashes));
    }
}

pub fn check_query(input: &[u8], decode: impl Fn(&str) -> Result<AnnounceRequest, QueryError>) {
    let Ok(text) = str::from_utf8(input) else { return };
    let Ok(request) = bounded(input, || decode(text)) else { return };
    assert_eq!(AnnounceRequest::from_query(&request.to_query()), Ok(request.clone()));
    let last = |key: &str| {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(found, _)| *found == key).map(|(_, value)| value).next_back().expect("it is required")
    };
    let decoded = |key: &str| percent_decode(last(key), input.len(), true).expect("it is well formed");
    assert_eq!(decoded("info_hash"), request.info_hash.as_bytes());
    assert_eq!(decoded("peer_id"), request.peer_id.0);
    assert_eq!(last("port").parse(), Ok(request.port));
}

/// Lenient: peers in three forms, host names among them and whatever is of the wrong kind passed over, numbers cut to
/// what fits, bytes behind the dictionary.
pub fn reply(input: &[u8]) {
    check_reply(input, tracker_http::decode_announce_response);
    if let Ok(entries) = bounded(input, || tracker_http::decode_scrape_response(input)) {
        assert!(entries.len() <= MAX_SCRAPE_HASHES);
        let mut again = Vec::new();
        tracker_http::encode_scrape_response(&entries, &mut again);
        let mut sorted = entries;
        sorted.sort_unstable_by_key(|(info_hash, _)| *info_hash);
        assert_eq!(tracker_http::decode_scrape_response(&again), Ok(sorted));
    }
}

pub fn check_reply(input: &[u8], decode: impl Fn(&[u8]) -> Result<AnnounceResponse, ReplyError>) {
    let response = match bounded_by(input, SLACK_BYTES + PEERS_BYTES, || decode(input)) {
        Ok(response) => response,
        Err(ReplyError::Failure(reason)) => return failure(&reason),
        Err(_) => return,
    };
    assert!(response.peers.len() <= MAX_REPLY_PEERS);
    assert!(response.warning.as_ref().is_none_or(|warning| warning.len() <= MAX_REASON_BYTES));
    let written = |list| {
        let mut out = Vec::new();
        tracker_http::encode_announce_response(&response, list, &mut out);
        tracker_http::decode_announce_response(&out)
    };
    assert_eq!(written(PeerList::Dictionaries).as_ref(), Ok(&response));
    // In bytes, one family follows the other.
    let mut by_family = response.clone();
    by_family.peers.sort_by_key(|peer| peer.is_ipv6());
    assert_eq!(written(PeerList::Compact), Ok(by_family));
}

fn failure(reason: &str) {
    assert!(reason.len() <= MAX_REASON_BYTES);
    let mut out = Vec::new();
    tracker_http::encode_failure(reason, &mut out);
    assert_eq!(tracker_http::failure_reason(&out).as_deref(), Some(reason));
}
