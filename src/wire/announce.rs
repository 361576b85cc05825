//! What a client tells a tracker and hears back, whichever way it travels: HTTP (BEP 3) and UDP (BEP 15) share it.

use std::net::{IpAddr, SocketAddr};

use super::id::{InfoHash, PeerId};
use super::name::text_within;

/// Peers taken from one reply: trackers hand out 50 to 200, and what is dialled is far less; it bounds the memory that a
/// reply of 1 MiB can turn into.
pub const MAX_REPLY_PEERS: usize = 2_000;
/// Torrents named in one scrape: "up to about 74" fit a datagram (BEP 15), and HTTP is held to the same.
pub const MAX_SCRAPE_HASHES: usize = 74;
/// Bytes kept of a failure reason or a warning: people read them, and they go into logs and `status`.
pub const MAX_REASON_BYTES: usize = 512;
/// `left` of a client that does not know the length yet.
pub const LEFT_UNKNOWN: u64 = u64::MAX;

/// Why a client announces (BEP 3, *event*).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Event {
    /// One of the regular announces in between.
    #[default]
    None,
    Started,
    Completed,
    Stopped,
}

/// One announce (BEP 3, *Trackers*; BEP 7; BEP 15).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnnounceRequest {
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
    /// Where the client listens, TCP.
    pub port: u16,
    /// Payload bytes since `started`.
    pub uploaded: u64,
    /// Payload bytes since `started`.
    pub downloaded: u64,
    /// Bytes still missing; [`LEFT_UNKNOWN`] before the length is known.
    pub left: u64,
    pub event: Event,
    /// How many peers are wished for; the tracker's default when not said.
    pub numwant: Option<u32>,
    /// Proves that it is the same client after its address changed.
    pub key: Option<u32>,
    /// HTTP only: peers as bytes (BEP 23). UDP always is.
    pub compact: bool,
    /// HTTP only: peer ids may be left out of a list that is not compact.
    pub no_peer_id: bool,
    /// The address that the client claims; who believes it is the tracker's affair.
    pub ip: Option<IpAddr>,
}

/// A tracker's answer to an announce.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AnnounceResponse {
    /// As sent: clamping is the caller's.
    pub interval_s: u32,
    pub min_interval_s: Option<u32>,
    pub seeders: u32,
    pub leechers: u32,
    pub peers: Vec<SocketAddr>,
    pub warning: Option<String>,
    /// The client's own address as the tracker saw it (BEP 24).
    pub external_ip: Option<IpAddr>,
}

/// A swarm's counts (BEP 48).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrapeEntry {
    pub seeders: u32,
    /// `completed` events ever seen (HTTP: *downloaded*).
    pub completed: u32,
    pub leechers: u32,
}

/// Text for people out of a stranger's bytes: at most [`MAX_REASON_BYTES`], what is no UTF-8 replaced.
pub(in crate::wire) fn reason_text(bytes: &[u8]) -> String {
    text_within(bytes, MAX_REASON_BYTES).trim().to_owned()
}

#[cfg(test)]
pub(in crate::wire) mod samples {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    pub fn info_hash() -> impl Strategy<Value = InfoHash> {
        any::<[u8; 20]>().prop_map(InfoHash::new)
    }

    pub fn event() -> impl Strategy<Value = Event> {
        prop_oneof![Just(Event::None), Just(Event::Started), Just(Event::Completed), Just(Event::Stopped)]
    }

    pub fn address(v6: bool) -> impl Strategy<Value = SocketAddr> {
        any::<([u8; 16], u16)>().prop_map(move |(bytes, port)| {
            let ip = if v6 {
                IpAddr::from(Ipv6Addr::from(bytes))
            } else {
                IpAddr::from(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
            };
            SocketAddr::new(ip, port)
        })
    }

    pub fn request() -> impl Strategy<Value = AnnounceRequest> {
        let identity = (info_hash(), any::<[u8; 20]>(), any::<u16>());
        let amounts = any::<(u64, u64, u64)>();
        let wishes = (event(), any::<Option<u16>>(), any::<Option<u32>>(), any::<(bool, bool)>());
        (identity, amounts, wishes).prop_map(|(identity, amounts, (event, numwant, key, (compact, no_peer_id)))| {
            let (info_hash, peer_id, port) = identity;
            let (uploaded, downloaded, left) = amounts;
            AnnounceRequest {
                info_hash,
                peer_id: PeerId(peer_id),
                port,
                uploaded,
                downloaded,
                left,
                event,
                numwant: numwant.map(u32::from),
                key,
                compact,
                no_peer_id,
                ip: None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_and_made_text() {
        assert_eq!(reason_text(b" not here \n"), "not here");
        assert_eq!(reason_text(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(reason_text(&[b'a'; 100_000]).len(), MAX_REASON_BYTES);
        assert_eq!(reason_text(&[0xFF; 100_000]).len(), MAX_REASON_BYTES - 2);
    }
}
