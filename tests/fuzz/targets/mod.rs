//! The targets: one plain function for each decoder that is given a stranger's bytes. The test command and the
//! coverage-guided fuzzer (`make fuzz`) run the same ones.
//!
//! Each asserts that what was decoded encodes to the bytes it came from, or, where the decoder is lenient, to something
//! that decodes to the same value; what it is lenient about stands above it. Each also bounds what decoding costs:
//! [`bounds`]. Where a target takes the decoder as an argument, that is for `canary.rs`, which gives it a broken one.

pub mod authorization;
pub mod bencode;
pub mod bounds;
pub mod catalogue;
pub mod control;
pub mod metainfo;
pub mod names;
pub mod peer;
pub mod records;
pub mod search;
pub mod tracker_http;
pub mod tracker_udp;

/// A target and the folder of its corpus.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// Every target.
pub const ALL: [Target; 16] = [
    Target { name: "authorization", run: authorization::run },
    Target { name: "bencode", run: bencode::run },
    Target { name: "catalogue", run: catalogue::run },
    Target { name: "control_answers", run: control::answers },
    Target { name: "control_requests", run: control::requests },
    Target { name: "extension_handshake", run: peer::extension_handshake },
    Target { name: "handshake", run: peer::handshake },
    Target { name: "http_query", run: tracker_http::query },
    Target { name: "http_reply", run: tracker_http::reply },
    Target { name: "metainfo", run: metainfo::run },
    Target { name: "names", run: names::run },
    Target { name: "peer_stream", run: peer::stream },
    Target { name: "records", run: records::run },
    Target { name: "search_query", run: search::run },
    Target { name: "udp_reply", run: tracker_udp::reply },
    Target { name: "udp_request", run: tracker_udp::request },
];

/// The target of this name.
///
/// # Panics
/// When there is none.
pub fn named(name: &str) -> &'static Target {
    const TARGETS: &[Target] = &ALL;
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target is called {name}"))
}
