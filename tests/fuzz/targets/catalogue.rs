//! What a tracker answers to a search, and who has a torrent: JSON.

use std::fmt::Debug;

use peerd::wire::catalogue::{CatalogueError, PeersReply, SearchReply};
use serde::Serialize;

use super::bounds::bounded;

/// Lenient, as JSON is: spaces, order, other spellings of a text, fields that are not known, and ways to match that a
/// newer tracker may name.
pub fn run(input: &[u8]) {
    check(input, SearchReply::from_json);
    check(input, PeersReply::from_json);
}

pub fn check<T: Serialize + PartialEq + Debug>(input: &[u8], decode: impl Fn(&[u8]) -> Result<T, CatalogueError>) {
    let Ok(reply) = bounded(input, || decode(input)) else { return };
    let again = serde_json::to_vec(&reply).expect("plain fields");
    assert_eq!(decode(&again).expect("what was written is read"), reply);
}
