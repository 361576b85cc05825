//! SHA-1 on one core. RESULTS.md gives openssl's beside it.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use peerd::daemon::disk::check::PieceHasher;
use peerd::daemon::disk::lanes::sha1_of_each;
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
    // As whole pieces are, in blocks.
    let pieces: Vec<Vec<u8>> = (0..4u32)
        .map(|piece| (0..1 << 20).map(|n: u32| (n + piece).wrapping_mul(2_654_435_761) as u8).collect())
        .collect();
    for count in 2..=4 {
        let messages: Vec<Vec<&[u8]>> = pieces[..count].iter().map(|piece| piece.chunks(16 << 10).collect()).collect();
        group.throughput(Throughput::Bytes((count as u64) << 20));
        group.bench_function(format!("SHA-1 of {count} times 1024 KiB, side by side"), |b| {
            b.iter(|| sha1_of_each(black_box(&messages)));
        });
    }
}
