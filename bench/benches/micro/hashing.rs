//! SHA-1 on one core. RESULTS.md gives openssl's beside it.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use peerd::daemon::disk::check::PieceHasher;
use peerd::wire::id::PieceCheck;

pub fn sha1(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hashing");
    for bytes in [16 << 10, 1 << 20] {
        let piece: Vec<u8> = (0..bytes).map(|n: u32| n.wrapping_mul(2_654_435_761) as u8).collect();
        group.throughput(Throughput::Bytes(u64::from(bytes)));
        group.bench_function(format!("SHA-1 of {} KiB", bytes >> 10), |b| {
            b.iter(|| {
                let mut hasher = PieceHasher::for_check(&PieceCheck::Sha1([0; 20]));
                hasher.update(black_box(&piece));
                hasher.finish()
            });
        });
    }
}
