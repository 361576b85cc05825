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

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index::default();
    for (number, name) in (0..).zip(NAMES) {
        let document = Document {
            key: InfoHash::new([number; 20]),
            name,
            paths: &mut std::iter::once(Cow::from("series/one")),
            types: &BTreeSet::from([Cow::from(split_extension(name).1)]),
            size: u64::from(number) << 20,
        };
        index.insert(Prepared::new(document));
    }
    index
});

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
