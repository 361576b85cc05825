//! The picker with 10,000 pieces and 200 peers, and the choker with as many.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use peerd::clock::Time;
use peerd::swarm::choker::{Account, Choker, SessionView, UploadSlots};
use peerd::swarm::picker::{Picker, Put, Want};
use peerd::swarm::{Giver, Identity, SessionId};
use peerd::wire::bitfield::Bitfield;
use peerd::wire::layout::Layout;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const PIECES: u32 = 10_000;
const PEERS: u32 = 200;
const PIECE_BYTES: u32 = 256 << 10;
const BLOCK_BYTES: u32 = 16 << 10;
const BLOCKS: u64 = PIECES as u64 * (PIECE_BYTES / BLOCK_BYTES) as u64;

fn identity(n: u32) -> Identity {
    Identity::Address(IpAddr::V4(Ipv4Addr::from(0x0A00_0000 + n)))
}

/// Peers that have half of the pieces each, the last one all: every piece is with somebody.
fn peers(layout: Layout) -> Vec<Bitfield> {
    let mut rng = SmallRng::seed_from_u64(6);
    let mut peers = vec![Bitfield::empty(PIECES); PEERS as usize - 1];
    for peer in &mut peers {
        layout.pieces().filter(|_| rng.random()).for_each(|piece| assert!(peer.set(piece)));
    }
    peers.push(Bitfield::full(PIECES));
    peers
}

fn joined(layout: Layout, peers: &[Bitfield]) -> Picker {
    let mut picker = Picker::new(layout, Bitfield::empty(PIECES), false, 1);
    peers.iter().for_each(|peer| picker.peer_joins(peer));
    picker
}

/// All blocks, asked of the peers in turn, received and verified.
fn download(picker: &mut Picker, peers: &[Bitfield]) {
    let never = |_, _| false;
    let mut idle = 0;
    for (n, pieces) in (0..).zip(peers).cycle() {
        let (session, identity) = (SessionId(n), identity(n));
        let want = Want { session, pieces, block_bytes: BLOCK_BYTES, alone: false, own: &never };
        let Some(block) = picker.pick(&want, true) else {
            idle += 1;
            assert!(idle < 2 * PEERS, "nobody has what is missing");
            continue;
        };
        idle = 0;
        let put = picker.place(block);
        picker.answered(block);
        picker.received(block, put == Put::Slot, Giver { session, identity, endpoint: None });
        if picker.is_complete(block.piece()) {
            picker.verified(block.piece());
            if picker.have().is_full() {
                return;
            }
        }
    }
}

pub fn picker(criterion: &mut Criterion) {
    let layout = Layout::new(u64::from(PIECES) * u64::from(PIECE_BYTES), u64::from(PIECE_BYTES)).expect("a layout");
    let peers = peers(layout);
    let mut group = criterion.benchmark_group("picker");
    group.sample_size(10).throughput(Throughput::Elements(BLOCKS));
    group.bench_function("a block picked, placed, received", |b| {
        b.iter_batched_ref(|| joined(layout, &peers), |picker| download(picker, &peers), BatchSize::PerIteration);
    });
    group.throughput(Throughput::Elements(u64::from(PEERS)));
    group.bench_function("a peer joins", |b| b.iter(|| joined(layout, &peers)));
    group.throughput(Throughput::Elements(u64::from(PIECES)));
    group.bench_function("a HAVE heard", |b| {
        b.iter_batched_ref(
            || (joined(layout, &peers), Bitfield::empty(PIECES)),
            |(picker, newcomer)| {
                for piece in layout.pieces() {
                    newcomer.set(piece);
                    picker.peer_has(newcomer, piece);
                }
            },
            BatchSize::PerIteration,
        );
    });
}

/// A review of 200 sessions, a quarter of a second after the last, of a seed.
pub fn choker(criterion: &mut Criterion) {
    let view = |n: u32| SessionView {
        session: SessionId(n),
        identity: identity(n),
        seeding: true,
        interested: true,
        unchoked: false,
        asks: true,
        mid_piece: false,
        received_bytes: 0,
        sent_bytes: 0,
        account: Account { given_bytes: u64::from(n) << 20, taken_bytes: 1 << 20 },
        piece_bytes: PIECE_BYTES,
        since: Time::ZERO,
        keeps: false,
        denies: false,
    };
    let mut views: Vec<SessionView> = (0..PEERS).map(view).collect();
    let (mut choker, mut now, mut decisions) = (Choker::new(UploadSlots::Default, 1), Time::ZERO, Vec::new());
    let mut group = criterion.benchmark_group("choker");
    group.bench_function("a review of 200 sessions", |b| {
        b.iter(|| {
            now = now + Duration::from_millis(250);
            decisions.clear();
            choker.review(now, &views, &mut decisions);
            for decision in &decisions {
                views[decision.session.0 as usize].unchoked = !decision.choke;
            }
            views.iter_mut().filter(|view| view.unchoked).for_each(|view| view.sent_bytes += u64::from(PIECE_BYTES));
        });
    });
}
