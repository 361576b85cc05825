//! One broken decoder for each target: off by one, or trusting a number. None fails on the corpus; if the mutations did
//! not find one of them, they would not find its like in the real decoders.

use peerd::wire::announce::AnnounceRequest;
use peerd::wire::auth::{Authorization, NotAnAuthorization};
use peerd::wire::bencode::{self, Limits};
use peerd::wire::catalogue::SearchReply;
use peerd::wire::control::{AnswerDecoder, RequestDecoder};
use peerd::wire::extension::ExtensionHandshake;
use peerd::wire::framing::Framer;
use peerd::wire::handshake::{self, Handshake};
use peerd::wire::metainfo::Metainfo;
use peerd::wire::name::{FileName, NameError};
use peerd::wire::tracker_http;
use peerd::wire::tracker_udp::{Family, Request, Response, UdpError};

use super::targets;

/// A character more than the signature has is taken.
pub fn authorization(input: &[u8]) {
    targets::authorization::check(input, |text| {
        text.parse().or_else(|error: NotAnAuthorization| {
            let shorter = text.char_indices().next_back().and_then(|(at, _)| text.get(..at)).ok_or(error)?;
            shorter.parse::<Authorization>()
        })
    });
}

/// A value more than the limit says is taken.
pub fn bencode(input: &[u8]) {
    let limits = Limits { max_tokens: targets::bencode::LIMITS.max_tokens + 1, ..targets::bencode::LIMITS };
    targets::bencode::check(input, |input| bencode::decode(input, &limits));
}

/// Takes the hits that are shown from those that there are.
pub fn catalogue(input: &[u8]) {
    targets::catalogue::check(input, |input| {
        let reply = SearchReply::from_json(input)?;
        assert!(reply.total.checked_sub(reply.hits.len() as u64).is_some(), "subtracts with overflow");
        Ok(reply)
    });
}

/// Believes that it knows whatever concerns the connection.
pub fn control_answers(input: &[u8]) {
    targets::control::check_answers(input, |decoder: &mut AnswerDecoder| {
        let received = decoder.next_answer()?;
        let unknown = received.as_ref().is_some_and(|one| one.request_id == 0 && one.answer.is_none());
        assert!(!unknown, "unwraps nothing");
        Ok(received)
    });
}

/// Makes room for a frame of whatever length is said.
pub fn control_requests(input: &[u8]) {
    targets::control::check_requests(input, |decoder: &mut RequestDecoder, bytes| {
        let length = bytes.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
        let room: Vec<u8> = Vec::with_capacity(if length <= 1 << 20 { length } else { 0 });
        decoder.push(std::hint::black_box(&room));
        decoder.push(bytes);
    });
}

/// Takes port 0 for a port.
pub fn extension_handshake(input: &[u8]) {
    targets::peer::check_extension(input, |payload| {
        let mut heard = ExtensionHandshake::decode(payload)?;
        let zero = payload.windows(6).any(|window| window == b"1:pi0e");
        heard.port = heard.port.or(zero.then_some(0));
        Ok(heard)
    });
}

/// Compares one byte too few of the protocol's name.
pub fn handshake(input: &[u8]) {
    targets::peer::check_handshake(input, |bytes: &[u8; handshake::LEN]| {
        let mut bytes = *bytes;
        bytes[19] = b'l';
        Handshake::decode(&bytes)
    });
}

/// Counts ports in a number that holds one less.
pub fn http_query(input: &[u8]) {
    targets::tracker_http::check_query(input, |query| {
        let mut request = AnnounceRequest::from_query(query)?;
        request.port %= u16::MAX;
        Ok(request)
    });
}

/// Waits for the interval less the least interval.
pub fn http_reply(input: &[u8]) {
    targets::tracker_http::check_reply(input, |body| {
        let response = tracker_http::decode_announce_response(body)?;
        let wait_s = response.interval_s.checked_sub(response.min_interval_s.unwrap_or(0));
        assert!(wait_s.is_some(), "subtracts with overflow");
        Ok(response)
    });
}

/// Passes over one byte behind the end.
pub fn metainfo(input: &[u8]) {
    targets::metainfo::check(input, |input| {
        Metainfo::parse(input).or_else(|error| match input.split_last() {
            Some((_, shorter)) => Metainfo::parse(shorter),
            None => Err(error),
        })
    });
}

/// Takes a name that is a byte too long.
pub fn names(input: &[u8]) {
    targets::names::check(input, |name| match (FileName::new(name), name.split_last()) {
        (Err(NameError::TooLong(256)), Some((_, shorter))) => FileName::new(shorter),
        (checked, _) => checked,
    });
}

/// Takes a bitfield that is a byte too long.
pub fn peer_stream(input: &[u8]) {
    targets::peer::check_stream(input, |max_bitfield_bytes| Framer::new(max_bitfield_bytes + 1));
}

/// Passes over one byte behind the end.
pub fn records(input: &[u8]) {
    let version = targets::records::VERSION;
    targets::records::check(input, |input| {
        peerd::db::record::open(version, input).or_else(|error| match input.split_last() {
            Some((_, shorter)) => peerd::db::record::open(version, shorter),
            None => Err(error),
        })
    });
}

/// Shows the first hit of a page that has none.
pub fn search_query(input: &[u8]) {
    targets::search::check(input, |query| {
        let found = targets::search::find(query)?;
        assert!(query.limit > 0 || found.total == 0, "indexes out of bounds");
        Ok(found)
    });
}

/// Takes a peer of which the last byte is missing.
pub fn udp_reply(input: &[u8]) {
    targets::tracker_udp::check_reply(input, Family::V4, |datagram, family| {
        let longer = [datagram, &[0][..]].concat();
        match (Response::decode(datagram, family), Response::decode(&longer, family)) {
            (Ok(_), longer @ Ok(Response::Announce { .. })) => longer,
            (decoded, _) => decoded,
        }
    });
}

/// Passes over one byte behind the last hash.
pub fn udp_request(input: &[u8]) {
    targets::tracker_udp::check_request(input, |datagram| match (Request::decode(datagram), datagram.split_last()) {
        (Err(UdpError::Hashes(bytes)), Some((_, shorter))) if bytes % 20 == 1 => Request::decode(shorter),
        (decoded, _) => decoded,
    });
}
