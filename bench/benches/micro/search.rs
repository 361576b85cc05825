//! The tracker's index with 100,000 names.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use peerd::tracker::search::{Document, Index, Prepared};
use peerd::wire::catalogue::SearchQuery;
use peerd::wire::id::InfoHash;
use peerd::wire::name::split_extension;

#[path = "../../../benches/tracker/names.rs"]
mod names;

const NAMES: u32 = 100_000;
const QUERIES: usize = 1_000;

fn prepared(names: &names::Names, n: u32) -> Prepared {
    let name = names.name(n);
    let mut key = [0; 20];
    key[..4].copy_from_slice(&n.to_be_bytes());
    let types = BTreeSet::from([Cow::from(split_extension(&name).1.to_lowercase())]);
    let paths = &mut std::iter::empty();
    Prepared::new(Document { key: InfoHash::new(key), name: &name, paths, types: &types, size: u64::from(n) })
}

pub fn index(criterion: &mut Criterion) {
    let names = names::Names::new();
    let mut index = Index::default();
    (0..NAMES).for_each(|n| index.insert(prepared(&names, n)));
    let queries: Vec<SearchQuery> = names.queries(NAMES, QUERIES).into_iter().map(SearchQuery::words).collect();
    let mut group = criterion.benchmark_group("search");
    group.sample_size(10).throughput(Throughput::Elements(QUERIES as u64));
    group.bench_function("a query among 100,000 names", |b| {
        b.iter(|| queries.iter().for_each(|query| drop(black_box(index.search(query)))));
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("a name more", |b| {
        let mut n = NAMES;
        b.iter_batched(
            || {
                n += 1;
                prepared(&names, n)
            },
            |prepared| index.insert(prepared),
            BatchSize::SmallInput,
        );
    });
}
