//! Which block to ask of whom: pieces in progress, and what is known of each of their 16 KiB units.
//!
//! A piece is *fresh* (in [`Rarity`]'s order) → *begun* (some unit asked for) → *had*. Begun pieces are finished first;
//! a begun piece with a unit that nobody has been asked for is *open*. Peers may be asked for blocks of different sizes,
//! so all bookkeeping is by unit: a block covers one to eight of them.
//!
//! A unit is missing, being written, or received; beside that it counts the requests under way for it.
//! *missing* → `place` (slot) → *writing* → `received` → *received*, or → `lost` → *missing*. A whole piece of received
//! units waits for its hash: `verified` makes it had, `failed` and `dropped` make every unit missing again.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::blame::{Giver, Origins};
use super::rarity::Rarity;
use super::{Given, SessionId};
use crate::wire::bitfield::Bitfield;
use crate::wire::layout::{BLOCK_BYTES, Block, Layout, PieceIndex, RawBlock};

/// Bookkeeping is by the block that every client grants.
pub const UNIT_BYTES: u32 = BLOCK_BYTES;
/// Until this many pieces are had, pieces are begun at random: a newcomer needs something to trade, and the rarest
/// piece is the one that few can send.
const RANDOM_FIRST_PIECES: u32 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Missing,
    Writing,
    Received,
}

#[derive(Clone, Copy, Debug)]
struct Unit {
    state: State,
    /// Requests under way that are not late.
    asked: u8,
    /// Index into the piece's givers; meaningful once received.
    giver: u16,
}

/// Who may be asked for a begun piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Anyone,
    /// All of it is asked of one peer, so that a failure has one culprit: it came out wrong once, or that peer is suspected.
    One(Option<SessionId>),
}

#[derive(Clone, Debug)]
struct Begun {
    units: Vec<Unit>,
    /// Units below it are not pickable.
    cursor: u32,
    /// Units that are missing and asked of nobody.
    pickable: u32,
    received: u32,
    source: Source,
    /// Some unit may be under way twice: a receipt must look for requests to cancel.
    contested: bool,
    givers: Vec<Giver>,
    /// Sessions that gave some of it when it came out wrong: others are asked first.
    suspects: Vec<SessionId>,
}

/// What a peer can be asked for.
pub struct Want<'a> {
    pub session: SessionId,
    /// What the peer has.
    pub pieces: &'a Bitfield,
    /// The largest block it serves.
    pub block_bytes: u32,
    /// It may give wrong bytes: only pieces of its own, so that they can be told from what others gave.
    pub alone: bool,
    /// Requests of this very session that may cover pickable units (late ones, still unanswered).
    pub own: &'a dyn Fn(PieceIndex, u32) -> bool,
}

/// Where a block's payload shall go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    Slot,
    Scratch,
    Discard,
}

/// What became of a payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taken {
    /// All of it counts.
    Whole,
    /// Of the scratch copy these parts were still missing.
    Parts(Vec<Block>),
    Nothing,
}

pub struct Picker {
    layout: Layout,
    have: Bitfield,
    left_bytes: u64,
    pub(super) rarity: Rarity,
    begun: BTreeMap<PieceIndex, Begun>,
    /// Begun pieces with pickable units, in the order of their beginning or reopening.
    open: Vec<PieceIndex>,
    /// In file order: every piece below is had or begun.
    sequential_floor: Option<u32>,
    pub(super) rng: SmallRng,
}

impl Picker {
    pub fn new(layout: Layout, have: Bitfield, sequential: bool, seed: u64) -> Picker {
        let mut rng = SmallRng::seed_from_u64(seed);
        // A torrent that is only seeded needs no order: ten thousand of them may be at rest.
        let rarity = if have.is_full() { Rarity::default() } else { Rarity::new(layout, &have, &mut rng) };
        let left_bytes = have.iter_missing(layout).map(|piece| u64::from(layout.piece_len(piece))).sum();
        let sequential_floor = sequential.then_some(0);
        Picker { layout, have, left_bytes, rarity, begun: BTreeMap::new(), open: Vec::new(), sequential_floor, rng }
    }

    /// From now on pieces are begun in file order.
    pub fn pick_in_order(&mut self) {
        self.sequential_floor.get_or_insert(0);
    }

    pub fn have(&self) -> &Bitfield {
        &self.have
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes of the pieces that are not had.
    pub fn left_bytes(&self) -> u64 {
        self.left_bytes
    }

    pub fn begun_count(&self) -> usize {
        self.begun.len()
    }

    /// The next block to ask of this peer, counted as asked. `fresh` says whether a new piece may be begun.
    pub fn pick(&mut self, want: &Want, fresh: bool) -> Option<Block> {
        let fit = |begun: &Begun| {
            let separate = !want.alone || begun.source != Source::Anyone;
            separate && !begun.suspects.contains(&want.session)
        };
        if let Some((piece, unit)) = self.find_open(want, fit) {
            return self.ask(piece, unit, want);
        }
        if let Some(piece) = fresh.then(|| self.next_fresh(want.pieces)).flatten() {
            self.begin(piece, if want.alone { Source::One(None) } else { Source::Anyone });
            return self.ask(piece, 0, want);
        }
        // Rather from a suspect than not at all.
        let (piece, unit) = self.find_open(want, |begun| !fit(begun))?;
        self.ask(piece, unit, want)
    }

    /// The first open unit that this peer has, in pieces that `fit`.
    fn find_open(&self, want: &Want, fit: impl Fn(&Begun) -> bool) -> Option<(PieceIndex, u32)> {
        self.open.iter().filter(|&&piece| want.pieces.get(piece)).find_map(|&piece| {
            let begun = self.begun.get(&piece).filter(|begun| fit(begun))?;
            Some((piece, begun.first_pickable(piece, want)?))
        })
    }

    /// The next block of this very piece, for peers that serve some pieces while they choke us (BEP 6, *Allowed fast*).
    pub fn pick_in(&mut self, piece: PieceIndex, want: &Want) -> Option<Block> {
        if self.rarity.is_fresh(piece) {
            self.begin(piece, Source::Anyone);
        }
        let unit = self.begun.get(&piece)?.first_pickable(piece, want)?;
        self.ask(piece, unit, want)
    }

    /// Whether every missing piece has been begun: the end game may start for whoever finds nothing to ask.
    pub fn all_begun(&self) -> bool {
        self.rarity.fresh_count() == 0 && !self.begun.is_empty()
    }

    /// Asks a second peer for a block that is under way once; false if it is not, or is being received already.
    pub fn ask_again(&mut self, block: Block) -> bool {
        let Some(begun) = self.begun.get_mut(&block.piece()) else { return false };
        let once = |unit: &Unit| unit.state == State::Missing && unit.asked == 1;
        if begun.source != Source::Anyone || !begun.units[span(block)].iter().all(once) {
            return false;
        }
        begun.units[span(block)].iter_mut().for_each(|unit| unit.asked += 1);
        begun.contested = true;
        true
    }

    /// A request came to nothing (choked, rejected, closed), or is late (`contested`: its answer may still come).
    /// Returns whether something became pickable.
    pub fn unask(&mut self, block: Block, contested: bool) -> bool {
        let Some(begun) = self.begun.get_mut(&block.piece()) else { return false };
        begun.contested |= contested;
        let was_open = begun.pickable > 0;
        for (index, unit) in span(block).zip(&mut begun.units[span(block)]) {
            unit.asked = unit.asked.saturating_sub(1);
            if unit.is_pickable() {
                begun.pickable += 1;
                begun.cursor = begun.cursor.min(index as u32);
            }
        }
        let opened = begun.pickable > 0;
        self.reopen(block.piece(), was_open);
        opened
    }

    /// This session is not to be waited for: another may finish the pieces that were left to it alone.
    pub fn release(&mut self, session: SessionId) {
        for begun in self.begun.values_mut().filter(|begun| begun.source == Source::One(Some(session))) {
            begun.source = Source::One(None);
        }
    }

    /// A request that was not late has had its answer.
    pub fn answered(&mut self, block: Block) {
        let units = self.begun.get_mut(&block.piece()).map(|begun| &mut begun.units[span(block)]);
        units.into_iter().flatten().for_each(|unit| unit.asked = unit.asked.saturating_sub(1));
    }

    /// A block's header came: where its payload shall go.
    pub fn place(&mut self, block: Block) -> Put {
        let Some(begun) = self.begun.get_mut(&block.piece()) else { return Put::Discard };
        if !is_aligned(block, self.layout) {
            return Put::Discard;
        }
        let was_open = begun.pickable > 0;
        let units = &mut begun.units[span(block)];
        if units.iter().all(|unit| unit.state == State::Received) {
            return Put::Discard;
        }
        if units.iter().any(|unit| unit.state != State::Missing) {
            return Put::Scratch;
        }
        for unit in units {
            begun.pickable -= u32::from(unit.is_pickable());
            unit.state = State::Writing;
        }
        self.reopen(block.piece(), was_open);
        Put::Slot
    }

    /// The whole payload of a placed block is in. `slot` is where it was placed.
    pub fn received(&mut self, block: Block, slot: bool, giver: Giver) -> Taken {
        let Some(begun) = self.begun.get_mut(&block.piece()) else { return Taken::Nothing };
        let was_open = begun.pickable > 0;
        let giver = begun.giver(giver);
        let mut parts = Vec::new();
        for index in span(block) {
            let unit = &mut begun.units[index];
            let wanted = if slot { unit.state == State::Writing } else { unit.state == State::Missing };
            if !wanted {
                continue;
            }
            begun.pickable -= u32::from(unit.is_pickable());
            (unit.state, unit.giver) = (State::Received, giver);
            begun.received += 1;
            parts.extend(self.layout.nth_block(block.piece(), index as u32, UNIT_BYTES).filter(|_| !slot));
        }
        self.reopen(block.piece(), was_open);
        match parts.is_empty() {
            _ if slot => Taken::Whole,
            true => Taken::Nothing,
            false => Taken::Parts(parts),
        }
    }

    /// The payload of a block placed in its slot broke off. Returns whether something became pickable.
    pub fn lost(&mut self, block: Block) -> bool {
        let Some(begun) = self.begun.get_mut(&block.piece()) else { return false };
        let was_open = begun.pickable > 0;
        for index in span(block) {
            let unit = &mut begun.units[index];
            if unit.state == State::Writing {
                unit.state = State::Missing;
                if unit.is_pickable() {
                    begun.pickable += 1;
                    begun.cursor = begun.cursor.min(index as u32);
                }
            }
        }
        let opened = begun.pickable > 0;
        self.reopen(block.piece(), was_open);
        opened
    }

    /// Whether all units of this piece are in.
    pub fn is_complete(&self, piece: PieceIndex) -> bool {
        self.begun.get(&piece).is_some_and(|begun| begun.received as usize == begun.units.len())
    }

    /// Whether a request for this block is of no more use.
    pub fn is_received(&self, block: Block) -> bool {
        match self.begun.get(&block.piece()) {
            Some(begun) => begun.units[span(block)].iter().all(|unit| unit.state == State::Received),
            None => self.have.get(block.piece()),
        }
    }

    /// Whether some unit of the piece may be under way twice.
    pub fn is_contested(&self, piece: PieceIndex) -> bool {
        self.begun.get(&piece).is_some_and(|begun| begun.contested)
    }

    /// The piece is had. Returns who gave what of it, and whether it is news.
    pub fn verified(&mut self, piece: PieceIndex) -> (Vec<Given>, bool) {
        let begun = self.begun.remove(&piece);
        self.open.retain(|&open| open != piece);
        self.rarity.remove(piece);
        let news = self.have.set(piece);
        if news {
            self.left_bytes -= u64::from(self.layout.piece_len(piece));
        }
        if self.have.is_full() {
            self.rarity = Rarity::default();
        }
        (begun.map(|begun| begun.givers_of(self.layout, piece)).unwrap_or_default(), news)
    }

    /// Who gave what is in of the piece, by unit. All of it must be in.
    pub(super) fn origins(&self, piece: PieceIndex) -> Origins {
        let Some(begun) = self.begun.get(&piece) else { return Origins::default() };
        Origins { givers: begun.givers.clone(), units: begun.units.iter().map(|unit| unit.giver).collect() }
    }

    /// Every unit of the piece is missing again. With `suspect`, its hash was wrong: from now on all of it is asked of
    /// one peer. Returns who had given what of it.
    pub fn restart(&mut self, piece: PieceIndex, suspect: bool) -> Vec<Given> {
        let Some(begun) = self.begun.get_mut(&piece) else { return Vec::new() };
        let was_open = begun.pickable > 0;
        let given = begun.givers_of(self.layout, piece);
        for unit in &mut begun.units {
            if unit.state == State::Received {
                unit.state = State::Missing;
            }
        }
        if suspect {
            begun.source = Source::One(None);
            begun.suspects = given.iter().map(|given| given.session).collect();
        }
        begun.givers.clear();
        (begun.received, begun.cursor) = (0, 0);
        begun.pickable = begun.units.iter().filter(|unit| unit.is_pickable()).count() as u32;
        self.reopen(piece, was_open);
        given
    }

    /// A piece that was had is gone. `peers` gives what the sessions have, for the order to be made anew.
    pub fn forget<'a>(&mut self, piece: PieceIndex, peers: impl Iterator<Item = &'a Bitfield>) -> bool {
        let was_full = self.have.is_full();
        if !self.have.clear(piece) {
            return false;
        }
        self.left_bytes += u64::from(self.layout.piece_len(piece));
        if let Some(floor) = &mut self.sequential_floor {
            *floor = piece.get().min(*floor);
        }
        if was_full {
            self.rarity = Rarity::new(self.layout, &self.have, &mut self.rng);
            peers.for_each(|pieces| self.peer_joins(pieces));
        } else {
            self.rarity.insert(piece, &mut self.rng);
        }
        true
    }

    /// A peer's pieces enter the count.
    pub fn peer_joins(&mut self, pieces: &Bitfield) {
        if self.have.is_full() {
            return;
        }
        if pieces.is_full() {
            return self.rarity.add_seed();
        }
        pieces.iter_set(self.layout).for_each(|piece| self.rarity.increment(piece, &mut self.rng));
    }

    /// A peer's pieces leave the count.
    pub fn peer_leaves(&mut self, pieces: &Bitfield) {
        if self.have.is_full() {
            return;
        }
        if pieces.is_full() {
            return self.rarity.remove_seed();
        }
        pieces.iter_set(self.layout).for_each(|piece| self.rarity.decrement(piece, &mut self.rng));
    }

    /// A peer turns out not to have a piece; `pieces` are without it.
    pub fn peer_lacks(&mut self, pieces: &Bitfield, piece: PieceIndex) {
        if self.have.is_full() {
            return;
        }
        if pieces.count() + 1 == pieces.piece_count() {
            self.rarity.remove_seed();
            return self.peer_joins(pieces);
        }
        self.rarity.decrement(piece, &mut self.rng);
    }

    /// A peer got one more piece: `pieces` has it already.
    pub fn peer_has(&mut self, pieces: &Bitfield, piece: PieceIndex) {
        if self.have.is_full() {
            return;
        }
        if pieces.is_full() {
            // It is counted as one that has all from now on.
            let others = pieces.iter_set(self.layout).filter(|&other| other != piece);
            others.for_each(|other| self.rarity.decrement(other, &mut self.rng));
            return self.rarity.add_seed();
        }
        self.rarity.increment(piece, &mut self.rng);
    }

    fn next_fresh(&mut self, peer: &Bitfield) -> Option<PieceIndex> {
        let Some(floor) = &mut self.sequential_floor else {
            return match self.have.count() {
                0..RANDOM_FIRST_PIECES => self.rarity.random(peer, &mut self.rng),
                _ => self.rarity.rarest(peer),
            };
        };
        while self.layout.piece(*floor).is_some_and(|piece| !self.rarity.is_fresh(piece)) {
            *floor += 1;
        }
        let from_floor = (*floor..self.layout.piece_count()).filter_map(|index| self.layout.piece(index));
        from_floor.into_iter().find(|&piece| peer.get(piece) && self.rarity.is_fresh(piece))
    }

    fn begin(&mut self, piece: PieceIndex, source: Source) {
        self.rarity.remove(piece);
        let units = self.layout.piece_len(piece).div_ceil(UNIT_BYTES);
        let begun = Begun {
            units: vec![Unit { state: State::Missing, asked: 0, giver: 0 }; units as usize],
            cursor: 0,
            pickable: units,
            received: 0,
            source,
            contested: false,
            givers: Vec::new(),
            suspects: Vec::new(),
        };
        self.begun.insert(piece, begun);
        self.open.push(piece);
    }

    /// Asks for a run of pickable units from `first` on, as long as the peer's blocks may be.
    fn ask(&mut self, piece: PieceIndex, first: u32, want: &Want) -> Option<Block> {
        let begun = self.begun.get_mut(&piece)?;
        let most = (want.block_bytes / UNIT_BYTES).max(1) as usize;
        let run = begun.units[first as usize..].iter().take(most).enumerate();
        let free = |(at, unit): &(usize, &Unit)| unit.is_pickable() && !(want.own)(piece, first + *at as u32);
        let count = run.take_while(free).count() as u32;
        let begin = first * UNIT_BYTES;
        let len = (count * UNIT_BYTES).min(self.layout.piece_len(piece) - begin);
        let block = self.layout.block(RawBlock { piece: piece.get(), begin, len })?;
        begun.units[span(block)].iter_mut().for_each(|unit| unit.asked += 1);
        begun.pickable -= count;
        if let Source::One(who) = &mut begun.source {
            *who = Some(want.session);
        }
        while begun.units.get(begun.cursor as usize).is_some_and(|unit| !unit.is_pickable()) {
            begun.cursor += 1;
        }
        self.reopen(piece, true);
        Some(block)
    }

    /// Keeps `open` true to the piece's state.
    fn reopen(&mut self, piece: PieceIndex, was_open: bool) {
        let is_open = self.begun.get(&piece).is_some_and(|begun| begun.pickable > 0);
        match (was_open, is_open) {
            (false, true) => self.open.push(piece),
            (true, false) => self.open.retain(|&open| open != piece),
            _ => {}
        }
    }

    #[cfg(test)]
    pub fn check(&self) {
        if !self.have.is_full() {
            self.rarity.check();
        }
        for piece in self.layout.pieces() {
            let places = [self.have.get(piece), self.begun.contains_key(&piece), self.rarity.is_fresh(piece)];
            assert_eq!(places.iter().filter(|&&there| there).count(), 1, "{piece:?}: had, begun, fresh: {places:?}");
        }
        for (piece, begun) in &self.begun {
            let pickable = begun.units.iter().filter(|unit| unit.is_pickable()).count();
            let received = begun.units.iter().filter(|unit| unit.state == State::Received).count();
            assert_eq!((begun.pickable as usize, begun.received as usize), (pickable, received), "{piece:?}");
            assert!(!begun.units[..begun.cursor as usize].iter().any(Unit::is_pickable), "{piece:?}: cursor");
            let opens = self.open.iter().filter(|&open| open == piece).count();
            assert_eq!(opens, usize::from(pickable > 0), "{piece:?} in open");
        }
        let left: u64 = self.have.iter_missing(self.layout).map(|p| u64::from(self.layout.piece_len(p))).sum();
        assert_eq!(left, self.left_bytes);
    }

    /// Requests under way over all units, each counted as often as it is asked for.
    #[cfg(test)]
    pub fn asked_units(&self) -> usize {
        self.begun.values().flat_map(|begun| &begun.units).map(|unit| usize::from(unit.asked)).sum()
    }
}

impl Begun {
    fn first_pickable(&self, piece: PieceIndex, want: &Want) -> Option<u32> {
        if matches!(self.source, Source::One(Some(other)) if other != want.session) {
            return None;
        }
        let units = self.units.iter().enumerate().skip(self.cursor as usize);
        let mut free = units.filter(|(_, unit)| unit.is_pickable()).map(|(at, _)| at as u32);
        free.find(|&at| !(want.own)(piece, at))
    }

    fn giver(&mut self, giver: Giver) -> u16 {
        let at = self.givers.iter().position(|known| *known == giver).unwrap_or_else(|| {
            self.givers.push(giver);
            self.givers.len() - 1
        });
        at as u16
    }

    fn givers_of(&self, layout: Layout, piece: PieceIndex) -> Vec<Given> {
        let mut given: Vec<Given> = self.givers.iter().map(Given::by).collect();
        for (at, unit) in self.units.iter().enumerate().filter(|(_, unit)| unit.state == State::Received) {
            if let Some(giver) = given.get_mut(usize::from(unit.giver)) {
                giver.bytes += layout.nth_block(piece, at as u32, UNIT_BYTES).map_or(0, |block| block.len());
            }
        }
        given.retain(|giver| giver.bytes > 0);
        given
    }
}

impl Unit {
    fn is_pickable(&self) -> bool {
        self.state == State::Missing && self.asked == 0
    }
}

/// The units that a block covers.
pub fn span(block: Block) -> std::ops::Range<usize> {
    (block.begin() / UNIT_BYTES) as usize..block.end().div_ceil(UNIT_BYTES) as usize
}

fn is_aligned(block: Block, layout: Layout) -> bool {
    let ends = block.end().is_multiple_of(UNIT_BYTES) || block.end() == layout.piece_len(block.piece());
    block.begin().is_multiple_of(UNIT_BYTES) && ends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::Identity;
    use std::net::{IpAddr, Ipv4Addr};

    const PIECE_BYTES: u64 = 4 * UNIT_BYTES as u64;

    /// A swarm as text: `have` is ours, each row of `peers` one peer's pieces, `#` for had and `.` for not.
    fn picker(have: &str, peers: &[&str], sequential: bool, seed: u64) -> (Picker, Vec<Bitfield>) {
        let layout = Layout::new(have.len() as u64 * PIECE_BYTES, PIECE_BYTES).unwrap();
        let mut picker = Picker::new(layout, pieces(have), sequential, seed);
        let peers: Vec<Bitfield> = peers.iter().map(|row| pieces(row)).collect();
        peers.iter().for_each(|peer| picker.peer_joins(peer));
        (picker, peers)
    }

    fn pieces(row: &str) -> Bitfield {
        let layout = Layout::new(row.len() as u64 * PIECE_BYTES, PIECE_BYTES).unwrap();
        let mut set = Bitfield::empty(row.len() as u32);
        for (piece, _) in layout.pieces().zip(row.chars()).filter(|(_, mark)| *mark == '#') {
            set.set(piece);
        }
        set
    }

    /// The next `count` blocks for peer 0, as `piece:unit+units`.
    fn picks(picker: &mut Picker, peers: &[Bitfield], who: usize, units: u32, count: usize) -> String {
        let never = |_: PieceIndex, _: u32| false;
        let session = SessionId(who as u32);
        let want = Want { session, pieces: &peers[who], block_bytes: units * UNIT_BYTES, alone: false, own: &never };
        let blocks = (0..count).map_while(|_| {
            let block = picker.pick(&want, true);
            picker.check();
            block
        });
        let text = |block: Block| format!("{}:{}+{}", block.piece().get(), span(block).start, span(block).len());
        blocks.map(text).collect::<Vec<_>>().join(" ")
    }

    fn giver(session: u32) -> Giver {
        let identity = Identity::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, session as u8)));
        Giver { session: SessionId(session), identity, endpoint: None }
    }

    fn fill(picker: &mut Picker, peers: &[Bitfield], who: usize, units: u32) -> PieceIndex {
        let never = |_: PieceIndex, _: u32| false;
        let session = SessionId(who as u32);
        let want = Want { session, pieces: &peers[who], block_bytes: units * UNIT_BYTES, alone: false, own: &never };
        loop {
            let block = picker.pick(&want, true).unwrap();
            assert_eq!(picker.place(block), Put::Slot);
            assert_eq!(picker.received(block, true, giver(who as u32)), Taken::Whole);
            picker.answered(block);
            picker.check();
            if picker.is_complete(block.piece()) {
                return block.piece();
            }
        }
    }

    #[test]
    fn rarest_first_and_begun_pieces_before_all() {
        //                 0123456
        let have = "####...";
        let peers = ["####.##", "....###", ".....##", "......#"];
        for seed in 0..20 {
            let (mut picker, peers) = picker(have, &peers, false, seed);
            assert_eq!(picks(&mut picker, &peers, 0, 2, 5), "5:0+2 5:2+2 6:0+2 6:2+2");
            assert_eq!(picks(&mut picker, &peers, 1, 4, 9), "4:0+4");
        }
    }

    #[test]
    fn the_first_pieces_are_random_and_later_ties_too() {
        for have in ["###.....", "####...."] {
            let peers = ["########", if have == "####...." { "........" } else { "...#...." }];
            let mut seen = std::collections::BTreeSet::new();
            for seed in 0..100 {
                let (mut picker, peers) = picker(have, &peers, false, seed);
                seen.insert(picks(&mut picker, &peers, 0, 4, 1));
            }
            assert_eq!(seen.len(), have.matches('.').count(), "{seen:?}");
        }
    }

    #[test]
    fn in_order_when_asked_to() {
        let (mut picker, peers) = picker("#.......", &["########", "....####"], true, 1);
        assert_eq!(picks(&mut picker, &peers, 1, 4, 1), "4:0+4");
        assert_eq!(picks(&mut picker, &peers, 0, 4, 4), "1:0+4 2:0+4 3:0+4 5:0+4");
        let layout = picker.layout();
        picker.forget(layout.piece(0).unwrap(), peers.iter());
        assert_eq!(picks(&mut picker, &peers, 0, 4, 1), "0:0+4");
        let (mut picker, peers) = self::picker("....######", &["##########"], false, 1);
        picker.pick_in_order();
        assert_eq!(picks(&mut picker, &peers, 0, 4, 4), "0:0+4 1:0+4 2:0+4 3:0+4");
    }

    #[test]
    fn blocks_of_different_sizes_fill_one_piece() {
        let (mut picker, peers) = picker("####.", &["#####", "#####"], false, 1);
        assert_eq!(picks(&mut picker, &peers, 0, 1, 1), "4:0+1");
        assert_eq!(picks(&mut picker, &peers, 1, 2, 1), "4:1+2");
        assert_eq!(picks(&mut picker, &peers, 0, 8, 2), "4:3+1");
        let layout = picker.layout();
        let block = |unit, units: u32| {
            layout.block(RawBlock { piece: 4, begin: unit * UNIT_BYTES, len: units * UNIT_BYTES }).unwrap()
        };
        // Two units are being written; a copy that covers them goes to scratch, and only what is missing is taken.
        assert_eq!(picker.place(block(1, 2)), Put::Slot);
        assert_eq!(picker.place(block(0, 4)), Put::Scratch);
        assert_eq!(picker.received(block(0, 4), false, giver(7)), Taken::Parts(vec![block(0, 1), block(3, 1)]));
        assert!(!picker.is_complete(block(0, 1).piece()));
        assert_eq!(picker.received(block(1, 2), true, giver(1)), Taken::Whole);
        assert!(picker.is_complete(block(0, 1).piece()));
        assert_eq!(picker.place(block(0, 4)), Put::Discard);
        let (mut given, news) = picker.verified(block(0, 1).piece());
        given.sort_by_key(|given| given.session);
        let bytes: Vec<_> = given.iter().map(|given| (given.session.0, given.bytes / UNIT_BYTES)).collect();
        assert_eq!((bytes, news, picker.left_bytes()), (vec![(1, 2), (7, 2)], true, 0));
    }

    #[test]
    fn what_breaks_off_is_asked_again_and_first() {
        let (mut picker, peers) = picker("####..", &["######", "######"], false, 1);
        let layout = picker.layout();
        let first = picks(&mut picker, &peers, 0, 2, 1);
        let index = first[..1].parse().unwrap();
        let block = layout.block(RawBlock { piece: index, begin: 0, len: 2 * UNIT_BYTES }).unwrap();
        assert_eq!(picker.place(block), Put::Slot);
        assert!(picker.lost(block), "its other half was open all the time");
        assert!(picker.unask(block, false));
        picker.check();
        assert_eq!(picks(&mut picker, &peers, 1, 2, 1), first);
    }

    #[test]
    fn a_piece_that_was_wrong_is_fetched_from_one_peer_alone() {
        let (mut picker, peers) = picker("####.", &["#####", "#####"], false, 1);
        let piece = fill(&mut picker, &peers, 0, 1);
        assert_eq!(picker.restart(piece, true).len(), 1);
        picker.check();
        assert_eq!(picks(&mut picker, &peers, 1, 1, 1), "4:0+1");
        assert_eq!(picks(&mut picker, &peers, 0, 1, 1), "");
        picker.release(SessionId(1));
        assert_eq!(picks(&mut picker, &peers, 0, 1, 1), "4:1+1");
    }

    #[test]
    fn suspects_get_pieces_of_their_own_and_a_piece_that_was_wrong_last() {
        let never = |_: PieceIndex, _: u32| false;
        let (mut picker, peers) = picker("####..", &["######", "######", "######"], false, 1);
        let first = picks(&mut picker, &peers, 0, 1, 1);
        let want = Want { session: SessionId(1), pieces: &peers[1], block_bytes: UNIT_BYTES, alone: true, own: &never };
        let own = picker.pick(&want, true).unwrap().piece();
        assert!(!first.starts_with(&own.get().to_string()), "not one that somebody else gives to");
        assert_eq!(picker.pick(&want, true).unwrap().piece(), own);
        let rest = picks(&mut picker, &peers, 0, 4, 9);
        assert_eq!(rest, format!("{}:1+3", &first[..1]), "and nobody else gives to its own");
        // What it spoilt is asked of another, of it only while there is nothing else.
        for unit in 0..4 {
            let block = picker.layout().nth_block(own, unit, UNIT_BYTES).unwrap();
            assert_eq!(picker.place(block), Put::Slot);
            picker.received(block, true, giver(1));
            picker.answered(block);
        }
        picker.restart(own, true);
        picker.forget(picker.layout().piece(0).unwrap(), peers.iter());
        assert_eq!(picker.pick(&want, true).unwrap().piece().get(), 0);
        assert_eq!(picks(&mut picker, &peers, 2, 1, 1), format!("{}:0+1", own.get()));
        picker.check();
    }

    #[test]
    fn a_block_is_asked_of_two_at_most() {
        let (mut picker, peers) = picker("####.", &["#####", "#####"], false, 1);
        let block = picker.layout().block(RawBlock { piece: 4, begin: 0, len: UNIT_BYTES }).unwrap();
        assert!(!picker.ask_again(block), "nobody has been asked yet");
        picks(&mut picker, &peers, 0, 1, 4);
        assert!(picker.all_begun() && picker.ask_again(block) && !picker.ask_again(block));
        assert!(picker.is_contested(block.piece()));
        assert!(!picker.unask(block, false) && picker.unask(block, false), "free when both came to nothing");
    }
}
