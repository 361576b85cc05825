//! Bencode, framing, bitfields.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use peerd::wire::bitfield::Bitfield;
use peerd::wire::framing::{Frame, Framer};
use peerd::wire::id::PieceCheck;
use peerd::wire::layout::{Layout, RawBlock};
use peerd::wire::message::{Message, encode_piece_header};
use peerd::wire::metainfo::{InfoSpec, Metainfo, SpecFiles, build};
use peerd::wire::name::{FileName, RelPath};

const PIECES: u32 = 10_000;
const PIECE_BYTES: u32 = 1 << 20;
const FILES: u64 = 1_000;
/// As many blocks as peerds ask of one another at a time, and their length.
const BLOCKS: u32 = 64;
const BLOCK_BYTES: u32 = 128 << 10;

fn spec() -> InfoSpec {
    let name = |n: u64| RelPath::parse(format!("folder {}/file {n}.bin", n % 10).as_bytes()).expect("a path");
    let file_bytes = u64::from(PIECES) * u64::from(PIECE_BYTES) / FILES;
    InfoSpec {
        name: FileName::new(b"bench").expect("a name"),
        files: SpecFiles::Multi((0..FILES).map(|n| (name(n), file_bytes)).collect()),
        piece_bytes: PIECE_BYTES,
        pieces: (0..PIECES).map(|n| PieceCheck::Sha1([n as u8; 20])).collect(),
        private: true,
    }
}

/// A `.torrent` of 10,000 pieces and 1,000 files, both ways.
pub fn bencode(criterion: &mut Criterion) {
    let spec = spec();
    let bytes = build(&spec, None, None).expect("a torrent");
    let mut group = criterion.benchmark_group("bencode");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("read a .torrent", |b| b.iter(|| Metainfo::parse(black_box(&bytes)).expect("a torrent")));
    group
        .bench_function("write and check a .torrent", |b| b.iter(|| build(black_box(&spec), None, None).expect("one")));
}

/// Messages, and blocks whose payload passes the framer by.
pub fn framing(criterion: &mut Criterion) {
    let mut haves = Vec::new();
    (0..1_000).for_each(|piece| Message::Have(piece).encode(&mut haves));
    let mut group = criterion.benchmark_group("framing");
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("a HAVE", |b| {
        b.iter(|| {
            let mut framer = Framer::new(PIECES / 8);
            framer.push(black_box(&haves));
            while let Some(frame) = framer.next().expect("frames") {
                black_box(frame);
            }
        });
    });
    group.throughput(Throughput::Elements(u64::from(BLOCKS)));
    group.bench_function("a block's header", |b| {
        let mut framer = Framer::new(PIECES / 8);
        b.iter(|| {
            for block in 0..BLOCKS {
                framer.push(&encode_piece_header(RawBlock { piece: 1, begin: block * BLOCK_BYTES, len: BLOCK_BYTES }));
                assert!(matches!(framer.next(), Ok(Some(Frame::Piece(_)))));
                framer.payload_read(BLOCK_BYTES as usize);
            }
        });
    });
}

pub fn bitfield(criterion: &mut Criterion) {
    let layout = Layout::new(u64::from(PIECES) * u64::from(PIECE_BYTES), u64::from(PIECE_BYTES)).expect("a layout");
    let wire: Vec<u8> = (0..PIECES.div_ceil(8)).map(|n| n as u8).collect();
    let field = Bitfield::from_wire(&wire, PIECES).expect("a bitfield");
    let mut group = criterion.benchmark_group("bitfield");
    group.throughput(Throughput::Elements(u64::from(PIECES)));
    group
        .bench_function("take one off the wire, a piece", |b| b.iter(|| Bitfield::from_wire(black_box(&wire), PIECES)));
    group.bench_function("walk what is set, a piece", |b| b.iter(|| black_box(&field).iter_set(layout).count()));
    group.bench_function("fill, a piece", |b| {
        b.iter(|| {
            let mut empty = Bitfield::empty(PIECES);
            layout.pieces().for_each(|piece| assert!(empty.set(piece)));
            empty
        });
    });
}
