//! What single steps cost: `cargo bench --bench micro`. Medians go to bench/RESULTS.md.

mod hashing;
mod rules;
mod search;
mod wire;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    micro,
    wire::bencode,
    wire::framing,
    wire::bitfield,
    rules::picker,
    rules::choker,
    hashing::sha1,
    search::index
);
criterion_main!(micro);
