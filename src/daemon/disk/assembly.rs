//! The pieces in progress of one torrent: collects blocks and says what is to be hashed and written, and when. A
//! synchronous state machine; the [`Work`] that it gives out runs on another thread and comes back by [`Assembly::done`].
//!
//! A piece of at most 4 MiB stays in memory until it is whole; then it is hashed and, if right, written at once. A longer
//! piece, or any while memory is short, goes to disk in parts:
//!
//! ```text
//! 0          hashed         run_end                                     len
//! |  hashed, on disk |  out as a run  |  blocks, each in a state, and gaps |
//!
//! a block:   missing -> in memory -> out as a run -> hashed
//!                          |                 ^
//!                          v                 | read back
//!                      being written -> written, not hashed
//! ```
//!
//! A *run* is what follows the hashed prefix without a gap, at least 256 KiB or up to the piece's end; one at a time, as
//! the digest travels with it. A *spill* writes blocks beyond a gap unhashed; the run that reaches them reads them back.

use std::collections::{BTreeMap, HashMap};
use std::io::IoSlice;

use super::check::PieceHasher;
use super::digest;
use super::lanes::sha1_of_each;
use super::pool::Buffer;
use super::storage::{Storage, StorageError};
use crate::swarm::UnitDigest;
use crate::wire::id::PieceCheck;
use crate::wire::layout::{Block, Layout, PieceIndex};

/// Longer pieces are never held whole: eight of them would fill the default memory budget.
pub const WHOLE_PIECE_BYTES: u32 = 4 << 20;
/// Shortest run before the piece's end: long enough that writing it costs little per byte.
pub const RUN_BYTES: u32 = 256 << 10;

/// What [`Assembly::insert`] did with a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    Kept,
    /// Some of it was there already; it was dropped.
    Duplicate,
}

/// What became of a piece when its work came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Not whole yet. Ask [`Assembly::next_work`] again.
    Pending(PieceIndex),
    /// Right and written (not yet synced). The assembly has let go of it.
    Verified(PieceIndex),
    /// Wrong: its blocks are gone. The digests are those of its units, as peers gave them; none if our own disk may be to
    /// blame.
    Wrong { piece: PieceIndex, digests: Vec<UnitDigest> },
    /// The piece was abandoned while the work was out.
    Stale(PieceIndex),
}

impl Outcome {
    fn of(piece: PieceIndex, verdict: Verdict) -> Outcome {
        match verdict {
            Verdict::Right => Outcome::Verified(piece),
            Verdict::Wrong(digests) => Outcome::Wrong { piece, digests },
        }
    }
}

/// The pieces in progress of one torrent.
pub struct Assembly {
    layout: Layout,
    pieces: HashMap<PieceIndex, Partial>,
    serials: u64,
    /// Of all pieces.
    held_bytes: usize,
}

/// A piece in progress.
struct Partial {
    /// Tells this attempt at the piece from an abandoned one.
    serial: u64,
    /// Beyond `run_end`, by where they begin; never overlapping.
    blocks: BTreeMap<u32, Slot>,
    /// Of the blocks that are in memory.
    held_bytes: usize,
    hashed: u32,
    /// Equal to `hashed` when no run is out.
    run_end: u32,
    hasher: Option<PieceHasher>,
    /// Bytes have left memory: it cannot be taken whole any more.
    in_parts: bool,
}

struct Slot {
    len: u32,
    state: State,
}

enum State {
    InMemory(Buffer),
    BeingWritten,
    /// What was written, for it to be known again when it is read back.
    Written(Vec<UnitDigest>),
}

impl Assembly {
    pub fn new(layout: Layout) -> Assembly {
        Assembly { layout, pieces: HashMap::new(), serials: 0, held_bytes: 0 }
    }

    /// Takes a block's bytes.
    ///
    /// # Panics
    /// When the buffer is not as long as the block: a mistake of the caller's, which would corrupt the piece.
    pub fn insert(&mut self, block: Block, buffer: Buffer) -> Inserted {
        assert_eq!(buffer.len(), block.len() as usize, "a block's buffer has the block's length");
        let partial = self.pieces.entry(block.piece()).or_insert_with(|| {
            self.serials += 1;
            Partial::new(self.serials)
        });
        if partial.overlaps(block.begin(), block.end()) {
            return Inserted::Duplicate;
        }
        partial.held_bytes += buffer.len();
        self.held_bytes += buffer.len();
        partial.blocks.insert(block.begin(), Slot { len: block.len(), state: State::InMemory(buffer) });
        Inserted::Kept
    }

    /// Work that is due for the piece. Ask after each insert and after each [`Outcome::Pending`], until there is none.
    pub fn next_work(&mut self, piece: PieceIndex, short_of_memory: bool) -> Option<Work> {
        if let Some(whole) = self.take_piece(piece) {
            return Some(Work::Piece(whole));
        }
        let partial = self.pieces.get(&piece)?;
        let in_parts = partial.in_parts || short_of_memory || self.layout.piece_len(piece) > WHOLE_PIECE_BYTES;
        if in_parts { self.take_run(piece).map(Work::Run) } else { None }
    }

    /// Work that frees memory, however early: a run or a spill of the piece that holds most. `None` when nothing is held.
    pub fn relieve(&mut self) -> Option<Work> {
        let (bytes, piece) = self.pieces.iter().map(|(&piece, partial)| (partial.held_bytes, piece)).max()?;
        if bytes == 0 {
            return None;
        }
        self.next_work(piece, true).or_else(|| self.spill(piece).map(Work::Spill))
    }

    /// The whole piece, if every byte of it is in memory.
    pub fn take_piece(&mut self, piece: PieceIndex) -> Option<CompletePiece> {
        let partial = self.pieces.get(&piece)?;
        let in_memory = partial.held_bytes == self.layout.piece_len(piece) as usize;
        if partial.in_parts || !in_memory {
            return None;
        }
        let blocks = self.remove(piece)?.blocks;
        let buffers = blocks.into_values().filter_map(|slot| slot.state.into_buffer()).collect();
        Some(CompletePiece { piece, start: self.layout.piece_start(piece), buffers })
    }

    /// What follows the hashed prefix without a gap, if that is [`RUN_BYTES`] or reaches the piece's end.
    pub fn take_run(&mut self, piece: PieceIndex) -> Option<Run> {
        let len = self.layout.piece_len(piece);
        let partial = self.pieces.get_mut(&piece)?;
        if partial.run_end != partial.hashed {
            return None;
        }
        let begin = partial.hashed;
        let end = partial.run_limit();
        if end == begin || (end - begin < RUN_BYTES && end < len) {
            return None;
        }
        let beyond = partial.blocks.split_off(&end);
        let taken = std::mem::replace(&mut partial.blocks, beyond);
        let taken_bytes: usize = taken.values().map(Slot::bytes_in_memory).sum();
        partial.held_bytes -= taken_bytes;
        self.held_bytes -= taken_bytes;
        let parts = taken.into_values().map(|slot| match slot.state {
            State::InMemory(buffer) => Part::InMemory(buffer),
            State::Written(digests) => Part::OnDisk { len: slot.len, digests },
            State::BeingWritten => Part::OnDisk { len: slot.len, digests: Vec::new() },
        });
        partial.run_end = end;
        partial.in_parts = true;
        Some(Run {
            piece,
            serial: partial.serial,
            start: self.layout.piece_start(piece),
            begin,
            end,
            is_last: end == len,
            parts: parts.collect(),
            hasher: partial.hasher.take(),
        })
    }

    /// All blocks of the piece that are in memory, to be written unhashed.
    pub fn spill(&mut self, piece: PieceIndex) -> Option<Spill> {
        let partial = self.pieces.get_mut(&piece)?;
        let mut blocks = Vec::new();
        for (&begin, slot) in &mut partial.blocks {
            if matches!(slot.state, State::InMemory(_))
                && let State::InMemory(buffer) = std::mem::replace(&mut slot.state, State::BeingWritten)
            {
                partial.held_bytes -= buffer.len();
                self.held_bytes -= buffer.len();
                blocks.push((begin, buffer));
            }
        }
        if blocks.is_empty() {
            return None;
        }
        partial.in_parts = true;
        Some(Spill { piece, serial: partial.serial, start: self.layout.piece_start(piece), blocks })
    }

    /// Takes work back. Where it failed instead, [`Assembly::abandon`] the piece.
    pub fn done(&mut self, done: Done) -> Outcome {
        let Done { piece, serial, kind, .. } = done;
        match kind {
            DoneKind::Piece(verdict) => {
                if verdict == Verdict::Right {
                    // Copies of its blocks may have come since.
                    self.remove(piece);
                }
                Outcome::of(piece, verdict)
            }
            DoneKind::Run(hashed) => self.run_done(piece, serial, hashed),
            DoneKind::Spill { written } => self.spill_done(piece, serial, written),
        }
    }

    fn same_attempt(&mut self, piece: PieceIndex, serial: u64) -> Option<&mut Partial> {
        self.pieces.get_mut(&piece).filter(|partial| partial.serial == serial)
    }

    fn run_done(&mut self, piece: PieceIndex, serial: u64, hashed: Hashed) -> Outcome {
        let Some(partial) = self.same_attempt(piece, serial) else { return Outcome::Stale(piece) };
        match hashed {
            Hashed::SoFar(hasher) => {
                partial.hasher = Some(hasher);
                partial.hashed = partial.run_end;
                Outcome::Pending(piece)
            }
            Hashed::Whole(verdict) => {
                self.remove(piece);
                Outcome::of(piece, verdict)
            }
        }
    }

    fn spill_done(&mut self, piece: PieceIndex, serial: u64, written: Vec<(u32, Vec<UnitDigest>)>) -> Outcome {
        let Some(partial) = self.same_attempt(piece, serial) else { return Outcome::Stale(piece) };
        for (begin, digests) in written {
            if let Some(slot) = partial.blocks.get_mut(&begin) {
                slot.state = State::Written(digests);
            }
        }
        Outcome::Pending(piece)
    }

    /// Forgets the piece and its blocks: after a failed write, or when its download is given up.
    pub fn abandon(&mut self, piece: PieceIndex) {
        self.remove(piece);
    }

    fn remove(&mut self, piece: PieceIndex) -> Option<Partial> {
        let partial = self.pieces.remove(&piece)?;
        self.held_bytes -= partial.held_bytes;
        Some(partial)
    }

    /// Pieces of which something is held or out.
    pub fn pieces(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.pieces.keys().copied()
    }

    pub fn bytes_in_memory(&self) -> usize {
        self.held_bytes
    }
}

impl Partial {
    fn new(serial: u64) -> Partial {
        let blocks = BTreeMap::new();
        Partial { serial, blocks, held_bytes: 0, hashed: 0, run_end: 0, hasher: None, in_parts: false }
    }

    fn overlaps(&self, begin: u32, end: u32) -> bool {
        let before = self.blocks.range(..end).next_back();
        begin < self.run_end || before.is_some_and(|(&at, slot)| at + slot.len > begin)
    }

    /// Where the blocks that follow the prefix stop: at a gap, or at one that is being written.
    fn run_limit(&self) -> u32 {
        let mut end = self.hashed;
        for (&begin, slot) in &self.blocks {
            if begin != end || matches!(slot.state, State::BeingWritten) {
                break;
            }
            end += slot.len;
        }
        end
    }
}

impl Slot {
    fn bytes_in_memory(&self) -> usize {
        if matches!(self.state, State::InMemory(_)) { self.len as usize } else { 0 }
    }
}

impl State {
    fn into_buffer(self) -> Option<Buffer> {
        match self {
            State::InMemory(buffer) => Some(buffer),
            State::BeingWritten | State::Written(_) => None,
        }
    }
}

/// Something to hash or write, on a thread that may block.
#[must_use = "its blocks are lost if it is not executed"]
pub enum Work {
    Piece(CompletePiece),
    Run(Run),
    Spill(Spill),
}

/// Work that was executed, for [`Assembly::done`].
#[must_use = "the piece waits for it"]
pub struct Done {
    piece: PieceIndex,
    serial: u64,
    kind: DoneKind,
    written_from: Vec<Buffer>,
}

impl Done {
    /// What was written came from these. The pool counts them for as long as they live: until what is written is counted
    /// as uncommitted.
    pub fn take_buffers(&mut self) -> Vec<Buffer> {
        std::mem::take(&mut self.written_from)
    }
}

enum DoneKind {
    Piece(Verdict),
    Run(Hashed),
    /// By where each block begins.
    Spill {
        written: Vec<(u32, Vec<UnitDigest>)>,
    },
}

enum Hashed {
    SoFar(PieceHasher),
    Whole(Verdict),
}

#[derive(PartialEq, Eq)]
enum Verdict {
    Right,
    /// See [`Outcome::Wrong`].
    Wrong(Vec<UnitDigest>),
}

impl Work {
    pub fn piece(&self) -> PieceIndex {
        match self {
            Work::Piece(whole) => whole.piece,
            Work::Run(run) => run.piece,
            Work::Spill(spill) => spill.piece,
        }
    }

    /// What its buffers take of the pool's budget.
    pub fn budget_bytes(&self) -> usize {
        let in_memory = |part: &Part| if let Part::InMemory(buffer) = part { buffer.budget_bytes() } else { 0 };
        match self {
            Work::Piece(whole) => whole.buffers.iter().map(Buffer::budget_bytes).sum(),
            Work::Run(run) => run.parts.iter().map(in_memory).sum(),
            Work::Spill(spill) => spill.blocks.iter().map(|(_, buffer)| buffer.budget_bytes()).sum(),
        }
    }

    /// Hashes and writes. `layout` is the torrent's, `check` the piece's.
    /// Blocking.
    ///
    /// # Errors
    /// When the disk fails: [`Assembly::abandon`] the piece.
    pub fn execute(self, storage: &Storage, layout: Layout, check: &PieceCheck) -> Result<Done, StorageError> {
        match self {
            Work::Piece(whole) => {
                let right = whole.is_right(check);
                whole.write_if_right(right, storage)
            }
            Work::Run(run) => run.execute(storage, layout, check),
            Work::Spill(spill) => spill.execute(storage),
        }
    }
}

/// A piece in memory from its first byte to its last.
pub struct CompletePiece {
    piece: PieceIndex,
    /// In the torrent's stream.
    start: u64,
    buffers: Vec<Buffer>,
}

impl CompletePiece {
    /// In order.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    pub fn index(&self) -> PieceIndex {
        self.piece
    }

    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.len()).sum()
    }

    pub fn is_right(&self, check: &PieceCheck) -> bool {
        are_right(&[(self, *check)]) == [true]
    }

    /// A wrong piece is not written. Blocking.
    ///
    /// # Errors
    /// When the disk fails: [`Assembly::abandon`] the piece.
    pub fn write_if_right(self, right: bool, storage: &Storage) -> Result<Done, StorageError> {
        let mut verdict = Verdict::Right;
        if right {
            let slices: Vec<IoSlice<'_>> = self.buffers.iter().map(|buffer| IoSlice::new(buffer)).collect();
            storage.write_vectored(self.start, &slices)?;
        } else {
            verdict = Verdict::Wrong(digest::of_parts(self.parts()));
        }
        Ok(Done { piece: self.piece, serial: 0, kind: DoneKind::Piece(verdict), written_from: self.buffers })
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().map(|buffer| &**buffer)
    }
}

/// Whether each piece is what its check says: hashed side by side.
pub fn are_right(pieces: &[(&CompletePiece, PieceCheck)]) -> Vec<bool> {
    let parts: Vec<Vec<&[u8]>> = pieces.iter().map(|(piece, _)| piece.parts().collect()).collect();
    let digests = sha1_of_each(&parts).into_iter();
    let right = |(digest, (_, check)): ([u8; 20], &(_, PieceCheck))| match check {
        PieceCheck::Sha1(expected) => digest == *expected,
    };
    digests.zip(pieces).map(right).collect()
}

/// The next bytes of a piece, from its hashed prefix on.
pub struct Run {
    piece: PieceIndex,
    serial: u64,
    /// The piece's, in the torrent's stream.
    start: u64,
    /// In the piece.
    begin: u32,
    end: u32,
    is_last: bool,
    parts: Vec<Part>,
    /// None at the piece's beginning.
    hasher: Option<PieceHasher>,
}

enum Part {
    InMemory(Buffer),
    /// Spilled before: read back, hashed, not written again.
    OnDisk {
        len: u32,
        digests: Vec<UnitDigest>,
    },
}

impl Run {
    /// Where it lies in the piece, in bytes.
    pub fn span(&self) -> std::ops::Range<u32> {
        self.begin..self.end
    }

    fn execute(self, storage: &Storage, layout: Layout, check: &PieceCheck) -> Result<Done, StorageError> {
        let (piece, serial) = (self.piece, self.serial);
        let done = |hashed, written_from| Done { piece, serial, kind: DoneKind::Run(hashed), written_from };
        let mut hasher = self.hasher.unwrap_or_else(|| PieceHasher::for_check(check));
        let mut scratch = Vec::new();
        let mut at = self.start + u64::from(self.begin);
        for group in self.parts.chunk_by(|a, b| matches!((a, b), (Part::InMemory(_), Part::InMemory(_)))) {
            let mut slices = Vec::with_capacity(group.len());
            let group_at = at;
            for part in group {
                match part {
                    Part::InMemory(buffer) => {
                        hasher.update(buffer);
                        slices.push(IoSlice::new(buffer));
                        at += buffer.len() as u64;
                    }
                    Part::OnDisk { len, digests } => {
                        scratch.resize(*len as usize, 0);
                        storage.read(at, &mut scratch)?;
                        if digest::of_parts([&*scratch]) != *digests {
                            // Not what was written: the piece cannot come right any more, and no peer is to blame.
                            return Ok(done(Hashed::Whole(Verdict::Wrong(Vec::new())), Vec::new()));
                        }
                        hasher.update(&scratch);
                        at += u64::from(*len);
                    }
                }
            }
            storage.write_vectored(group_at, &slices)?;
        }
        let in_memory = |part| if let Part::InMemory(buffer) = part { Some(buffer) } else { None };
        let buffers = self.parts.into_iter().filter_map(in_memory).collect();
        if !self.is_last {
            return Ok(done(Hashed::SoFar(hasher), buffers));
        }
        let hash = hasher.finish();
        let verdict = match hash == *check {
            true => Verdict::Right,
            false => Verdict::Wrong(digest::of_piece(storage, layout, piece, &hash)),
        };
        Ok(done(Hashed::Whole(verdict), buffers))
    }
}

/// Blocks to be written where they belong, unhashed.
pub struct Spill {
    piece: PieceIndex,
    serial: u64,
    /// The piece's, in the torrent's stream.
    start: u64,
    /// By where they begin in the piece.
    blocks: Vec<(u32, Buffer)>,
}

impl Spill {
    fn execute(self, storage: &Storage) -> Result<Done, StorageError> {
        let adjacent = |a: &(u32, Buffer), b: &(u32, Buffer)| u64::from(a.0) + a.1.len() as u64 == u64::from(b.0);
        for group in self.blocks.chunk_by(adjacent) {
            let slices: Vec<IoSlice<'_>> = group.iter().map(|(_, buffer)| IoSlice::new(buffer)).collect();
            if let Some((begin, _)) = group.first() {
                storage.write_vectored(self.start + u64::from(*begin), &slices)?;
            }
        }
        let written = self.blocks.iter().map(|(begin, buffer)| (*begin, digest::of_parts([&**buffer]))).collect();
        Ok(Done { piece: self.piece, serial: self.serial, kind: DoneKind::Spill { written }, written_from: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::BufferPool;
    use super::super::storage::test_storage::{TestStorage, content};
    use super::*;
    use crate::wire::layout::{BLOCK_BYTES, RawBlock};
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use sha1::{Digest, Sha1};

    /// One torrent being put together; `len` bytes in pieces of `piece_bytes`.
    struct Bench {
        test: TestStorage,
        layout: Layout,
        content: Vec<u8>,
        checks: Vec<PieceCheck>,
        pool: BufferPool,
        assembly: Assembly,
    }

    impl Bench {
        fn new(len: usize, piece_bytes: usize) -> Bench {
            let content = content(len);
            let layout = Layout::new(len as u64, piece_bytes as u64).unwrap();
            let checks =
                content.chunks(piece_bytes).map(|piece| PieceCheck::Sha1(Sha1::digest(piece).into())).collect();
            let test = TestStorage::single(len as u64);
            let pool = BufferPool::new(64 << 20);
            Bench { test, layout, content, checks, pool, assembly: Assembly::new(layout) }
        }

        fn block(&self, piece: u32, begin: u32, len: u32) -> Block {
            self.layout.block(RawBlock { piece, begin, len }).unwrap()
        }

        fn insert(&mut self, block: Block) -> Inserted {
            let from = self.layout.piece_start(block.piece()) as usize + block.begin() as usize;
            let mut buffer = self.pool.try_take(block.len() as usize).unwrap();
            buffer.copy_from_slice(&self.content[from..from + block.len() as usize]);
            self.assembly.insert(block, buffer)
        }

        fn insert_nth(&mut self, piece: u32, nth: std::ops::Range<u32>) {
            for nth in nth {
                let piece = self.layout.piece(piece).unwrap();
                let block = self.layout.nth_block(piece, nth, BLOCK_BYTES).unwrap();
                assert_eq!(self.insert(block), Inserted::Kept);
            }
        }

        fn execute(&self, work: Work) -> Done {
            let check = self.checks[work.piece().as_usize()];
            work.execute(&self.test.storage, self.layout, &check).unwrap()
        }

        fn piece(&self, piece: u32) -> PieceIndex {
            self.layout.piece(piece).unwrap()
        }

        fn run(&mut self, piece: PieceIndex, under_pressure: bool) -> Option<Outcome> {
            let work = self.assembly.next_work(piece, under_pressure)?;
            let done = self.execute(work);
            Some(self.assembly.done(done))
        }

        fn on_disk(&self) -> Vec<u8> {
            std::fs::read(self.test.part()).unwrap()
        }
    }

    const KIB: usize = 1024;

    #[test]
    fn a_piece_is_taken_when_its_last_block_comes_and_written_if_right() {
        let mut bench = Bench::new(150 * KIB, 64 * KIB);
        let last = bench.piece(2);
        bench.insert_nth(2, 1..2);
        assert!(bench.run(last, false).is_none());
        assert_eq!(bench.assembly.bytes_in_memory(), 22 * KIB - 16 * KIB);
        bench.insert_nth(2, 0..1);
        assert_eq!(bench.run(last, false), Some(Outcome::Verified(last)));
        assert_eq!(bench.on_disk()[128 * KIB..], bench.content[128 * KIB..]);
        assert_eq!((bench.assembly.pieces().count(), bench.pool.in_use_bytes()), (0, 0));
    }

    #[test]
    fn a_wrong_piece_leaves_nothing_behind() {
        let mut bench = Bench::new(64 * KIB, 64 * KIB);
        bench.content[5] ^= 1;
        let piece = bench.piece(0);
        bench.insert_nth(0, 0..4);
        let digests = digest::of_parts([&*bench.content]);
        assert_eq!(bench.run(piece, false), Some(Outcome::Wrong { piece, digests }));
        assert!(!bench.test.part().exists());
        assert_eq!((bench.assembly.pieces().count(), bench.pool.in_use_bytes()), (0, 0));
    }

    #[test]
    fn whatever_overlaps_is_a_duplicate_in_every_state() {
        let mut bench = Bench::new(1 << 20, 1 << 20);
        let piece = bench.piece(0);
        bench.insert_nth(0, 0..16);
        bench.insert_nth(0, 20..21);
        let run = bench.assembly.take_run(piece).unwrap();
        assert_eq!(run.span(), 0..RUN_BYTES);
        let spill = bench.assembly.spill(piece).unwrap();
        for (begin, len) in [(0, 16_384), (255 << 10, 2_048), (320 << 10, 16_384), (319 << 10, 1_025), (335 << 10, 9)] {
            let block = bench.block(0, begin, len);
            assert_eq!(bench.insert(block), Inserted::Duplicate, "{begin} {len}");
        }
        for work in [Work::Run(run), Work::Spill(spill)] {
            let done = bench.execute(work);
            assert_eq!(bench.assembly.done(done), Outcome::Pending(piece));
        }
        let again = bench.block(0, 320 << 10, 16_384);
        assert_eq!(bench.insert(again), Inserted::Duplicate);
        let free = bench.block(0, 256 << 10, 64 << 10);
        assert_eq!(bench.insert(free), Inserted::Kept);
        assert_eq!(bench.pool.in_use_bytes(), 128 << 10, "duplicates are dropped");
    }

    #[test]
    fn a_long_piece_goes_in_runs_without_pressure_and_a_short_one_does_not() {
        let mut bench = Bench::new(9 << 20, 8 << 20);
        let (long, short) = (bench.piece(0), bench.piece(1));
        bench.insert_nth(0, 0..15);
        assert!(bench.assembly.next_work(long, false).is_none(), "less than a run");
        bench.insert_nth(0, 15..17);
        assert_eq!(bench.run(long, false), Some(Outcome::Pending(long)));
        assert_eq!(bench.on_disk()[..17 * 16 * KIB], bench.content[..17 * 16 * KIB]);
        bench.insert_nth(1, 0..16);
        assert!(bench.assembly.next_work(short, false).is_none());
        assert_eq!(bench.run(short, true), Some(Outcome::Pending(short)));
        bench.insert_nth(1, 16..64);
        assert_eq!(bench.run(short, false), Some(Outcome::Verified(short)), "begun in runs, it goes on so");
    }

    #[test]
    fn relief_empties_memory_and_what_was_spilled_still_counts() {
        let mut bench = Bench::new(1 << 20, 1 << 20);
        let piece = bench.piece(0);
        bench.insert_nth(0, 1..63);
        while let Some(work) = bench.assembly.relieve() {
            let done = bench.execute(work);
            assert_eq!(bench.assembly.done(done), Outcome::Pending(piece));
        }
        assert_eq!((bench.assembly.bytes_in_memory(), bench.pool.in_use_bytes()), (0, 0));
        bench.insert_nth(0, 0..1);
        bench.insert_nth(0, 63..64);
        assert_eq!(bench.run(piece, false), Some(Outcome::Verified(piece)));
        assert_eq!(bench.on_disk(), bench.content);
    }

    #[test]
    fn work_of_an_abandoned_attempt_does_not_touch_the_next_one() {
        let mut bench = Bench::new(1 << 20, 1 << 20);
        let piece = bench.piece(0);
        bench.insert_nth(0, 0..16);
        let stale = bench.assembly.take_run(piece).unwrap();
        bench.assembly.abandon(piece);
        bench.insert_nth(0, 0..1);
        let done = bench.execute(Work::Run(stale));
        assert_eq!(bench.assembly.done(done), Outcome::Stale(piece));
        bench.insert_nth(0, 1..64);
        assert_eq!(bench.run(piece, false), Some(Outcome::Verified(piece)));
    }

    #[test]
    fn a_spilled_block_that_went_bad_on_disk_is_found() {
        let mut bench = Bench::new(1 << 20, 1 << 20);
        let piece = bench.piece(0);
        bench.insert_nth(0, 40..41);
        let spill = bench.assembly.spill(piece).unwrap();
        let done = bench.execute(Work::Spill(spill));
        assert_eq!(bench.assembly.done(done), Outcome::Pending(piece));
        bench.test.write(40 * 16_384 + 9, &[!bench.content[40 * 16_384 + 9]]);
        bench.insert_nth(0, 0..40);
        bench.insert_nth(0, 41..64);
        let outcome = bench.run(piece, false);
        assert_eq!(outcome, Some(Outcome::Wrong { piece, digests: Vec::new() }), "and no peer is blamed for it");
    }

    #[test]
    fn a_wrong_piece_that_was_written_in_runs_has_its_digests_too() {
        let mut bench = Bench::new(1 << 20, 1 << 20);
        bench.content[700_000] ^= 1;
        let piece = bench.piece(0);
        bench.insert_nth(0, 30..31);
        let spill = bench.assembly.spill(piece).unwrap();
        let done = bench.execute(Work::Spill(spill));
        assert_eq!(bench.assembly.done(done), Outcome::Pending(piece));
        bench.insert_nth(0, 0..20);
        assert_eq!(bench.run(piece, true), Some(Outcome::Pending(piece)));
        bench.insert_nth(0, 20..30);
        bench.insert_nth(0, 31..64);
        let digests = digest::of_parts([&*bench.content]);
        assert_eq!(bench.run(piece, true), Some(Outcome::Wrong { piece, digests }));
    }

    /// Two pieces, their blocks of mixed lengths in any order, pressure coming and going, work that comes back late.
    fn any_order(seed: u64) {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let piece_bytes = rng.random_range(600 * KIB..1_100 * KIB);
        let mut bench = Bench::new(2 * piece_bytes - 777, piece_bytes);
        let mut blocks = Vec::new();
        for piece in bench.layout.pieces() {
            let (len, mut begin) = (bench.layout.piece_len(piece), 0);
            while begin < len {
                let most = [BLOCK_BYTES, 8 * BLOCK_BYTES, 5_000][rng.random_range(0..3)];
                let block = bench.block(piece.get(), begin, most.min(len - begin));
                blocks.push(block);
                begin = block.end();
            }
        }
        blocks.shuffle(rng);
        let (mut out, mut verified) = (Vec::new(), 0);
        while verified < 2 {
            let slots = bench.assembly.pieces.values().flat_map(|partial| partial.blocks.values());
            assert_eq!(bench.assembly.bytes_in_memory(), slots.map(Slot::bytes_in_memory).sum::<usize>());
            let piece = bench.piece(rng.random_range(0..2));
            match rng.random_range(0..4) {
                0 | 1 => {
                    if let Some(block) = blocks.pop() {
                        assert_eq!(bench.insert(block), Inserted::Kept);
                        out.extend(bench.assembly.next_work(block.piece(), rng.random_bool(0.1)));
                    }
                }
                2 if rng.random_bool(0.1) => out.extend(bench.assembly.relieve()),
                2 => out.extend(bench.assembly.next_work(piece, blocks.is_empty())),
                _ if out.is_empty() => {}
                _ => {
                    let work = out.swap_remove(rng.random_range(0..out.len()));
                    let done = bench.execute(work);
                    match bench.assembly.done(done) {
                        Outcome::Verified(_) => verified += 1,
                        Outcome::Pending(piece) => out.extend(bench.assembly.next_work(piece, false)),
                        wrong => panic!("{wrong:?}"),
                    }
                }
            }
        }
        assert_eq!(bench.on_disk(), bench.content);
        assert_eq!((bench.assembly.pieces().count(), bench.pool.in_use_bytes()), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn in_whatever_order_and_under_whatever_pressure_the_bytes_and_the_digest_are_right(seed: u64) {
            any_order(seed);
        }
    }
}
