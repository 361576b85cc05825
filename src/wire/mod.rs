//! Bytes to types and back: no IO, no clock, no allocation beyond a named cap.

pub mod announce;
pub mod auth;
pub mod bencode;
pub mod bitfield;
pub mod catalogue;
pub mod control;
pub mod extension;
pub mod framing;
pub mod handshake;
pub mod id;
pub mod identity;
pub mod layout;
pub mod message;
pub mod metainfo;
pub mod name;
pub mod rate;
pub mod recipe;
pub mod tracker_http;
pub mod tracker_udp;
