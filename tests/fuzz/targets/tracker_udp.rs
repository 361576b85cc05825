//! Announce and scrape over UDP: what a client sends, and what a tracker answers.

use std::net::SocketAddr;

use peerd::wire::announce::{MAX_REASON_BYTES, MAX_REPLY_PEERS, MAX_SCRAPE_HASHES};
use peerd::wire::tracker_udp::{ANNOUNCE_BYTES, CONNECT_BYTES, Family, Request, Response, UdpError};

use super::bounds::{SLACK_BYTES, bounded, bounded_by};

/// The peers of a reply, each a `SocketAddr`: six bytes on the wire become 32.
const PEERS_BYTES: usize = MAX_REPLY_PEERS * size_of::<SocketAddr>();
/// Where an announce request has its event and its `numwant`, a big-endian number each.
const EVENT: std::ops::Range<usize> = 80..84;
const NUMWANT: std::ops::Range<usize> = 92..96;

/// Strict but for what a later document may add: bytes behind the last field, an event that is not known. A negative
/// `numwant` is any.
pub fn request(input: &[u8]) {
    check_request(input, Request::decode);
}

pub fn check_request(input: &[u8], decode: impl Fn(&[u8]) -> Result<Request, UdpError>) {
    let Ok(request) = bounded(input, || decode(input)) else { return };
    let mut again = Vec::new();
    request.encode(&mut again);
    let mut expected = input.to_vec();
    match &request {
        Request::Connect { .. } => expected.truncate(CONNECT_BYTES),
        Request::Announce { .. } => {
            expected.truncate(ANNOUNCE_BYTES);
            if expected[EVENT] > [0, 0, 0, 3][..] {
                expected[EVENT].fill(0);
            }
            if expected[NUMWANT][0] >= 0x80 {
                expected[NUMWANT].fill(0xFF);
            }
        }
        Request::Scrape { info_hashes, .. } => assert!((1..=MAX_SCRAPE_HASHES).contains(&info_hashes.len())),
    }
    assert_eq!(again, expected);
    assert_eq!(Request::decode(&again), Ok(request));
}

/// Strict but for what is left over: behind a connection id, behind the last whole peer or count, peers and counts
/// beyond their caps. The text of an error is cut and made UTF-8.
pub fn reply(input: &[u8]) {
    for family in [Family::V4, Family::V6] {
        check_reply(input, family, Response::decode);
    }
}

pub fn check_reply(input: &[u8], family: Family, decode: impl Fn(&[u8], Family) -> Result<Response, UdpError>) {
    let Ok(response) = bounded_by(input, SLACK_BYTES + PEERS_BYTES, || decode(input, family)) else { return };
    let mut again = Vec::new();
    response.encode(family, &mut again);
    let left_over = input.len().checked_sub(again.len());
    match &response {
        Response::Connect { .. } => assert!(input.starts_with(&again)),
        Response::Announce { announce, .. } => {
            let peer_bytes = if family == Family::V4 { 6 } else { 18 };
            assert!(input.starts_with(&again));
            assert!(left_over < Some(peer_bytes) || announce.peers.len() == MAX_REPLY_PEERS);
            assert!(announce.peers.iter().all(|peer| peer.is_ipv4() == (family == Family::V4)));
        }
        Response::Scrape { entries, .. } => {
            assert!(input.starts_with(&again));
            assert!(left_over < Some(12) || entries.len() == MAX_SCRAPE_HASHES);
        }
        Response::Error { message, .. } => {
            assert!(message.len() <= MAX_REASON_BYTES);
            let text = str::from_utf8(&input[8..]);
            assert!(text.is_err() || text.is_ok_and(|text| text.trim_start().starts_with(message)));
        }
    }
    assert_eq!(Response::decode(&again, family).as_ref(), Ok(&response));
    assert_eq!(response.transaction_id().to_be_bytes(), input[4..8]);
}
