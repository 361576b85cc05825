//! The query of a search, and the search itself in a small catalogue.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use peerd::tracker::search::{Document, Found, Index, Prepared, TooManyWords};
use peerd::wire::catalogue::{MAX_HITS, MAX_QUERY_BYTES, MAX_TYPE_BYTES, SearchQuery};
use peerd::wire::id::InfoHash;
use peerd::wire::name::split_extension;

use super::bounds::{bounded, bounded_by};

/// What a search may allocate: sets of the index's torrents for each of the words and their parts, whatever the query's
/// length. Most is taken by the words of a query that has too many.
const SEARCH_BYTES: usize = 64 << 10;

const NAMES: [&str; 8] = [
    "got5.mp4",
    "Game.of.Thrones.S01E02.1080p.mkv",
    "Amélie Poulain.avi",
    "Москва слезам не верит.mkv",
    "東京物語1953.mkv",
    "SomeCamelCaseName_v2.pdf",
    "Schindler's List.mkv",
    "???",
];

/// So many were withdrawn before: more than the index keeps of them.
const WITHDRAWN: u32 = 10_100;

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index::default();
    for (number, name) in (0..).zip(NAMES) {
        index.insert(prepared(number, name));
        index.set_seeders(&key(number), number % 3);
    }
    // What is there already stays as it is.
    index.insert(prepared(0, "temporary"));
    for number in 1_000..1_000 + WITHDRAWN {
        index.insert(prepared(number, "temporary"));
        index.remove(&key(number));
    }
    assert!(index.len() == NAMES.len() && !index.is_empty());
    index
});

fn key(number: u32) -> InfoHash {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    InfoHash::new(bytes)
}

fn prepared(number: u32, name: &str) -> Prepared {
    let types = BTreeSet::from([Cow::from(split_extension(name).1)]);
    let paths = &mut std::iter::once(Cow::from("series/one"));
    let prepared =
        Prepared::new(Document { key: key(number), name, paths, types: &types, size: u64::from(number) << 20 });
    assert_eq!(prepared.key(), key(number));
    prepared
}

/// Lenient, as HTML forms are: `+` for a space, parameters without a value, unknown or repeated; `limit` is cut.
pub fn run(input: &[u8]) {
    check(input, find);
}

pub fn find(query: &SearchQuery) -> Result<Found, TooManyWords> {
    INDEX.search(query)
}

pub fn check(input: &[u8], search: impl Fn(&SearchQuery) -> Result<Found, TooManyWords>) {
    let Ok(text) = str::from_utf8(input) else { return };
    let Ok(query) = bounded(input, || SearchQuery::from_query_string(text)) else { return };
    assert!(query.q.len() <= MAX_QUERY_BYTES && query.limit <= MAX_HITS);
    assert!(query.file_type.as_ref().is_none_or(|file_type| file_type.len() <= MAX_TYPE_BYTES));
    let again = query.to_query_string();
    assert_eq!(SearchQuery::from_query_string(&again).expect("what was written is read"), query);

    LazyLock::force(&INDEX);
    if let Ok(found) = bounded_by(input, SEARCH_BYTES, || search(&query)) {
        let shown = found.total.saturating_sub(u64::from(query.offset)).min(u64::from(query.limit));
        assert_eq!(found.hits.len() as u64, shown);
        assert!(found.total <= NAMES.len() as u64);
    }
}
