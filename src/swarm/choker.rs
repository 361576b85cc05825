//! Who may be served, over all sessions of all torrents.
//!
//! Torrents that we lack something of are played by reciprocity: who sends us most is served, decided anew each 10 s.
//! Torrents that we seed are served in rounds: everybody who wants gets one turn, who has given us most first; a turn
//! has a quota. One optimistic slot on top gives strangers a chance. A free slot is filled at once; nobody waits while
//! one is free.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::SessionId;
use crate::clock::Time;

/// Regular slots unless the operator says otherwise.
const DEFAULT_SLOTS: u32 = 8;
/// A turn at a seed: so many bytes or so much time, whichever comes first ...
pub const TURN_BYTES: u64 = 32 << 20;
const TURN_TIME: Duration = Duration::from_secs(30);
/// ... but at least one piece, unless the taker is so slow that others would wait for ever.
const LONGEST_TURN: Duration = Duration::from_secs(120);
/// Reciprocity looks back so far and decides so often (Cohen 2003).
const RATE_WINDOW: Duration = Duration::from_secs(20);
const ROUND: Duration = Duration::from_secs(10);
const OPTIMISTIC_ROUND: Duration = Duration::from_secs(30);
/// In the draw for the optimistic slot a newcomer holds so many lots; a newcomer is who came within one minute.
const NEWCOMER_LOTS: u32 = 3;
const NEWCOMER: Duration = Duration::from_secs(60);

/// How many are served at a time. One optimistic slot comes on top, unless there is only one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UploadSlots {
    Fixed(u32),
    Default,
}

/// What the choker knows of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionView {
    pub session: SessionId,
    /// We have all of its torrent.
    pub seeding: bool,
    /// The peer is interested in what we have.
    pub interested: bool,
    /// We do not choke it.
    pub unchoked: bool,
    /// Useful payload that it sent us in this session.
    pub received_bytes: u64,
    /// Payload that we sent it in this session.
    pub sent_bytes: u64,
    /// The ledger: verified bytes that its identity ever gave us.
    pub given_ever_bytes: u64,
    /// Of its torrent: no turn is shorter than one piece.
    pub piece_bytes: u32,
    pub since: Time,
    /// It keeps us waiting for blocks.
    pub snubbed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    pub session: SessionId,
    pub choke: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    None,
    /// Held by reciprocity, or for a turn that began then, when so much had been sent.
    Regular {
        since: Time,
        sent_bytes: u64,
    },
    Optimistic,
}

/// What is remembered of a session from one review to the next.
#[derive(Debug)]
struct Entry {
    view: SessionView,
    slot: Slot,
    /// Played in rounds, rather than by reciprocity.
    in_rounds: bool,
    had_turn: bool,
    /// Totals received, at most one a second, over [`RATE_WINDOW`].
    samples: VecDeque<(Time, u64)>,
}

pub struct Choker {
    slots: usize,
    entries: BTreeMap<SessionId, Entry>,
    rng: SmallRng,
    next_round: Time,
    next_optimistic: Time,
    next_turn_end: Option<Time>,
}

impl Choker {
    pub fn new(slots: UploadSlots, seed: u64) -> Choker {
        let slots = match slots {
            UploadSlots::Fixed(slots) => slots,
            UploadSlots::Default => DEFAULT_SLOTS,
        };
        Choker {
            slots: slots as usize,
            entries: BTreeMap::new(),
            rng: SmallRng::seed_from_u64(seed),
            next_round: Time::ZERO,
            next_optimistic: Time::ZERO,
            next_turn_end: None,
        }
    }

    /// Decides; `views` are all sessions there are. Appends only what changes. To be called when
    /// [`super::Effect::ReviewChoking`] says so and at [`Choker::next_timeout`].
    pub fn review(&mut self, now: Time, views: &[SessionView], out: &mut Vec<Decision>) {
        self.take_views(now, views);
        if now >= self.next_round {
            self.next_round = now + ROUND;
            self.rank_by_reciprocity(now);
        }
        self.end_turns(now);
        self.fill_free_slots(now);
        self.draw_optimistic(now);
        self.next_turn_end = self.find_turn_end();
        for entry in self.entries.values() {
            let choke = entry.slot == Slot::None;
            if choke == entry.view.unchoked {
                out.push(Decision { session: entry.view.session, choke });
            }
        }
    }

    /// When to review next; `None` while nobody is connected.
    pub fn next_timeout(&self) -> Option<Time> {
        if self.entries.is_empty() {
            return None;
        }
        let optimistic = (self.slots > 1).then_some(self.next_optimistic);
        [Some(self.next_round), optimistic, self.next_turn_end].into_iter().flatten().min()
    }

    /// Brings the entries in line with what is connected, and who holds a slot with who is unchoked.
    fn take_views(&mut self, now: Time, views: &[SessionView]) {
        let mut before = std::mem::take(&mut self.entries);
        for &view in views {
            let mut entry = before.remove(&view.session).unwrap_or_else(|| Entry::new(view));
            // With a single slot there is nothing to rank: everybody takes turns.
            let in_rounds = view.seeding || self.slots <= 1;
            if !view.unchoked || in_rounds != entry.in_rounds {
                entry.had_turn |= entry.in_rounds && entry.is_regular();
            }
            if !view.unchoked {
                entry.slot = Slot::None;
            }
            entry.in_rounds = in_rounds;
            entry.view = view;
            entry.sample(now);
            self.entries.insert(view.session, entry);
        }
    }

    /// The tit for tat round: the best senders get the slots that are theirs, all others lose them.
    fn rank_by_reciprocity(&mut self, now: Time) {
        let rounds_hold = self.entries.values().filter(|entry| entry.in_rounds && entry.is_regular()).count();
        let room = self.slots.saturating_sub(self.share_of_rounds().max(rounds_hold));
        let mut ranked: Vec<&mut Entry> = self.entries.values_mut().filter(|entry| !entry.in_rounds).collect();
        ranked.sort_by_key(|entry| entry.merit(now));
        let room = room.min(ranked.len());
        let (best, rest) = ranked.split_at_mut(room);
        for entry in best.iter_mut().filter(|entry| entry.slot == Slot::Optimistic && entry.view.interested) {
            entry.take_slot(now);
        }
        // Who stands among the best keeps its slot; the others make room only for those that stand before them.
        let waiting = best.iter().filter(|entry| entry.waits()).count();
        let held = best.iter().chain(rest.iter()).filter(|entry| entry.is_regular()).count();
        let surplus = (held + waiting).saturating_sub(room);
        for entry in rest.iter_mut().rev().filter(|entry| entry.is_regular()).take(surplus) {
            entry.slot = Slot::None;
        }
    }

    /// Turns that are over end when somebody waits, the largest taker's first; else they go on.
    fn end_turns(&mut self, now: Time) {
        for entry in self.entries.values_mut().filter(|entry| entry.in_rounds) {
            entry.had_turn |= entry.turn_is_over(now);
        }
        let free = self.slots.saturating_sub(self.regular_count());
        let waiting = self.entries.values().filter(|entry| entry.waits()).count();
        let mut over: Vec<&mut Entry> =
            self.entries.values_mut().filter(|entry| entry.in_rounds && entry.turn_is_over(now)).collect();
        over.sort_by_key(|entry| (entry.view.interested, Reverse(entry.taken_bytes()), entry.view.session));
        for entry in over.into_iter().take(waiting.saturating_sub(free)) {
            entry.slot = Slot::None;
        }
        // Who holds a slot and wants nothing makes room for who does.
        let free = self.slots.saturating_sub(self.regular_count());
        let idle = |entry: &&mut Entry| entry.is_regular() && !entry.view.interested;
        for entry in self.entries.values_mut().filter(idle).take(waiting.saturating_sub(free)) {
            entry.had_turn |= entry.in_rounds;
            entry.slot = Slot::None;
        }
    }

    fn fill_free_slots(&mut self, now: Time) {
        while self.regular_count() < self.slots {
            let Some(next) = self.next_for_slot(now) else { return };
            let Some(entry) = self.entries.get_mut(&next) else { return };
            entry.take_slot(now);
        }
    }

    /// Who gets a free slot: of the kind that has less than its share, the first in its order.
    fn next_for_slot(&mut self, now: Time) -> Option<SessionId> {
        let rounds_hold = self.entries.values().filter(|entry| entry.in_rounds && entry.is_regular()).count();
        let rounds_first = rounds_hold < self.share_of_rounds();
        let by_turn = self.next_by_turn();
        let waiting = self.entries.values().filter(|entry| !entry.in_rounds && entry.waits());
        let by_merit = waiting.min_by_key(|entry| entry.merit(now)).map(|entry| entry.view.session);
        let next = if rounds_first { by_turn.or(by_merit) } else { by_merit.or(by_turn) }?;
        if Some(next) == by_turn && self.entries.get(&next).is_some_and(|entry| entry.had_turn) {
            // Everybody who waits has had a turn: a new round begins.
            self.entries.values_mut().for_each(|entry| entry.had_turn = false);
        }
        Some(next)
    }

    /// Who is next in the round: who has given us most, then who came first.
    fn next_by_turn(&self) -> Option<SessionId> {
        let waiting = self.entries.values().filter(|entry| entry.in_rounds && entry.waits());
        let order = |entry: &&Entry| {
            (entry.had_turn, Reverse(entry.view.given_ever_bytes), entry.view.since, entry.view.session)
        };
        waiting.min_by_key(order).map(|entry| entry.view.session)
    }

    /// One slot more, drawn by lot each 30 s among those that wait, so that strangers can show what they give.
    fn draw_optimistic(&mut self, now: Time) {
        if self.slots < 2 {
            return;
        }
        let holder = self.entries.values().find(|entry| entry.slot == Slot::Optimistic);
        let waiting: Vec<(SessionId, u32)> = self
            .entries
            .values()
            .filter(|entry| entry.waits())
            .map(|entry| (entry.view.session, if entry.is_newcomer(now) { NEWCOMER_LOTS } else { 1 }))
            .collect();
        if holder.is_some_and(|holder| holder.view.interested) && now < self.next_optimistic {
            return;
        }
        if now >= self.next_optimistic || !waiting.is_empty() {
            self.next_optimistic = now + OPTIMISTIC_ROUND;
        }
        let lots: u32 = waiting.iter().map(|(_, lots)| lots).sum();
        if lots == 0 {
            return;
        }
        let mut drawn = self.rng.random_range(0..lots);
        let winner = waiting.iter().find(|(_, lots)| drawn.checked_sub(*lots).map(|left| drawn = left).is_none());
        let Some(&(winner, _)) = winner else { return };
        for entry in self.entries.values_mut() {
            if entry.view.session == winner {
                entry.slot = Slot::Optimistic;
            } else if entry.slot == Slot::Optimistic {
                entry.slot = Slot::None;
            }
        }
    }

    /// Who holds the optimistic slot.
    pub fn optimistic(&self) -> Option<SessionId> {
        self.entries.values().find(|entry| entry.slot == Slot::Optimistic).map(|entry| entry.view.session)
    }

    fn regular_count(&self) -> usize {
        self.entries.values().filter(|entry| entry.is_regular()).count()
    }

    /// The slots of those who take turns, where others are played by reciprocity: in proportion to how many want.
    fn share_of_rounds(&self) -> usize {
        let wants = |rounds: bool| {
            let kind = self.entries.values().filter(|entry| entry.in_rounds == rounds);
            kind.filter(|entry| entry.view.interested).count()
        };
        match (wants(true), wants(false)) {
            (0, _) => 0,
            (_, 0) => self.slots,
            (rounds, others) => {
                let share = (self.slots * rounds + (rounds + others) / 2) / (rounds + others);
                share.clamp(1, self.slots.saturating_sub(1).max(1))
            }
        }
    }

    /// The next moment at which a turn ends by time while somebody waits for it; its end by bytes is reported by
    /// [`super::Effect::ReviewChoking`].
    fn find_turn_end(&self) -> Option<Time> {
        if !self.entries.values().any(Entry::waits) {
            return None;
        }
        let holders = self.entries.values().filter(|entry| entry.in_rounds);
        holders.filter_map(|entry| entry.turn_end_by_time()).min()
    }
}

impl Entry {
    fn new(view: SessionView) -> Entry {
        Entry { view, slot: Slot::None, in_rounds: view.seeding, had_turn: false, samples: VecDeque::new() }
    }

    fn is_regular(&self) -> bool {
        matches!(self.slot, Slot::Regular { .. })
    }

    fn waits(&self) -> bool {
        self.slot == Slot::None && self.view.interested
    }

    fn is_newcomer(&self, now: Time) -> bool {
        now.since(self.view.since) < NEWCOMER
    }

    fn take_slot(&mut self, now: Time) {
        self.slot = Slot::Regular { since: now, sent_bytes: self.view.sent_bytes };
    }

    /// The order of reciprocity: smaller is better.
    fn merit(&self, now: Time) -> impl Ord + use<> {
        let view = &self.view;
        let rate = if view.snubbed { 0 } else { self.receive_bytes_per_s(now) };
        (!view.interested, Reverse(rate), view.snubbed, Reverse(view.given_ever_bytes), view.since, view.session)
    }

    fn receive_bytes_per_s(&self, now: Time) -> u64 {
        let Some(&(since, before)) = self.samples.front() else { return 0 };
        let span = now.since(since).max(Duration::from_secs(1));
        (u128::from(self.view.received_bytes.saturating_sub(before)) * 1_000 / span.as_millis()) as u64
    }

    fn sample(&mut self, now: Time) {
        if self.samples.back().is_none_or(|(last, _)| now.since(*last) >= Duration::from_secs(1)) {
            self.samples.push_back((now, self.view.received_bytes));
        }
        // One sample older than the window stays, so that the window is always covered.
        while self.samples.get(1).is_some_and(|(second, _)| now.since(*second) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes sent in the present turn.
    fn taken_bytes(&self) -> u64 {
        match self.slot {
            Slot::Regular { sent_bytes, .. } => self.view.sent_bytes.saturating_sub(sent_bytes),
            _ => 0,
        }
    }

    fn turn_is_over(&self, now: Time) -> bool {
        let Slot::Regular { since, .. } = self.slot else { return false };
        let (taken, piece, held) = (self.taken_bytes(), u64::from(self.view.piece_bytes), now.since(since));
        taken >= TURN_BYTES.max(piece) || (held >= TURN_TIME && taken >= piece) || held >= LONGEST_TURN
    }

    fn turn_end_by_time(&self) -> Option<Time> {
        let Slot::Regular { since, .. } = self.slot else { return None };
        let whole_piece = self.taken_bytes() >= u64::from(self.view.piece_bytes);
        Some(since + if whole_piece { TURN_TIME } else { LONGEST_TURN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Sessions on a virtual clock; decisions are applied as they fall.
    struct World {
        choker: Choker,
        now: Time,
        views: Vec<SessionView>,
        slots: usize,
    }

    impl World {
        fn new(slots: UploadSlots) -> World {
            let count = match slots {
                UploadSlots::Fixed(slots) => slots as usize,
                UploadSlots::Default => DEFAULT_SLOTS as usize,
            };
            World { choker: Choker::new(slots, 7), now: Time::from_secs(1_000), views: Vec::new(), slots: count }
        }

        fn join(&mut self, id: u32, seeding: bool, given_ever_bytes: u64) {
            self.views.push(SessionView {
                session: SessionId(id),
                seeding,
                interested: true,
                unchoked: false,
                received_bytes: 0,
                sent_bytes: 0,
                given_ever_bytes,
                piece_bytes: MIB as u32,
                since: self.now,
                snubbed: false,
            });
            self.review();
        }

        fn view(&mut self, id: u32) -> &mut SessionView {
            self.views.iter_mut().find(|view| view.session == SessionId(id)).unwrap()
        }

        fn review(&mut self) {
            let mut decisions = Vec::new();
            self.choker.review(self.now, &self.views, &mut decisions);
            for Decision { session, choke } in decisions {
                let view = self.view(session.0);
                assert_eq!(view.unchoked, choke, "a decision that changes nothing");
                view.unchoked = !choke;
            }
            assert!(self.choker.next_timeout().is_none_or(|at| at > self.now), "reviews without end");
            let most = self.slots + usize::from(self.slots > 1);
            let unchoked = self.unchoked();
            assert!(unchoked.len() <= most, "{unchoked:?} in {most} slots");
            let waiting = self.views.iter().filter(|view| view.interested && !view.unchoked).count();
            assert!(waiting == 0 || unchoked.len() == most, "{waiting} wait while a slot is free");
        }

        /// Time passes in steps of 100 ms; who is unchoked takes `up` and everybody of `gives` sends, in bytes/s.
        fn run(&mut self, seconds: u64, up: u64, gives: &[(u32, u64)]) {
            for _ in 0..seconds * 10 {
                self.now = self.now + Duration::from_millis(100);
                for view in self.views.iter_mut().filter(|view| view.unchoked && view.interested) {
                    view.sent_bytes += up / 10;
                }
                for &(id, bytes_per_s) in gives {
                    self.view(id).received_bytes += bytes_per_s / 10;
                }
                let over =
                    |view: &SessionView| view.sent_bytes / TURN_BYTES != (view.sent_bytes - up / 10) / TURN_BYTES;
                let quota = self.views.iter().any(|view| view.unchoked && view.sent_bytes >= up / 10 && over(view));
                if quota || self.choker.next_timeout().is_some_and(|at| self.now >= at) {
                    self.review();
                }
            }
        }

        fn unchoked(&self) -> Vec<u32> {
            self.views.iter().filter(|view| view.unchoked).map(|view| view.session.0).collect()
        }
    }

    #[test]
    fn a_free_slot_is_filled_at_once() {
        let mut world = World::new(UploadSlots::Default);
        for id in 0..9 {
            world.join(id, id % 2 == 0, 0);
            assert!(world.view(id).unchoked);
        }
        world.join(9, false, 0);
        assert!(!world.view(9).unchoked);
        world.view(3).interested = false;
        world.review();
        assert!(world.view(9).unchoked && !world.view(3).unchoked);
    }

    #[test]
    fn who_wants_nothing_keeps_its_slot_until_another_needs_it() {
        let mut world = World::new(UploadSlots::Fixed(1));
        world.join(0, true, 0);
        world.view(0).interested = false;
        world.run(60, 0, &[]);
        assert_eq!(world.unchoked(), [0]);
        world.join(1, true, 0);
        assert_eq!(world.unchoked(), [1]);
    }

    #[test]
    fn the_best_senders_hold_the_slots_of_a_leeching_torrent() {
        let mut world = World::new(UploadSlots::Fixed(2));
        for id in 0..5 {
            world.join(id, false, 0);
        }
        world.run(41, 1_000, &[(0, 10), (1, 500), (2, 20), (3, 9_000), (4, 100)]);
        let unchoked = world.unchoked();
        assert!(unchoked.contains(&1) && unchoked.contains(&3) && unchoked.len() == 3, "{unchoked:?}");
        // Who stops sending is replaced within two rounds and the memory of the rate.
        world.run(31, 1_000, &[(0, 10), (1, 500), (2, 20), (4, 100)]);
        let unchoked = world.unchoked();
        assert!(unchoked.contains(&1) && unchoked.contains(&4), "{unchoked:?}");
    }

    #[test]
    fn the_optimistic_slot_goes_round_and_favours_newcomers() {
        let mut lucky = 0;
        for seed in 0..300 {
            let mut world = World::new(UploadSlots::Fixed(2));
            world.choker = Choker::new(UploadSlots::Fixed(2), seed);
            for id in 0..6 {
                world.join(id, false, 0);
            }
            world.run(100, 0, &[(0, 900), (1, 900)]);
            let old = world.views.iter().find(|view| view.unchoked && view.session.0 > 1).unwrap().session;
            world.join(6, false, 0);
            world.run(31, 0, &[(0, 900), (1, 900)]);
            assert!(!world.view(old.0).unchoked, "the lot fell on the same peer twice");
            lucky += u32::from(world.view(6).unchoked);
        }
        // Three lots of six: three old ones wait beside the newcomer.
        assert!((120..180).contains(&lucky), "{lucky} of 300");
    }

    #[test]
    fn a_seed_serves_in_rounds_who_gave_most_first() {
        let mut world = World::new(UploadSlots::Fixed(1));
        world.join(9, true, 0);
        for (id, given) in [(0, 5), (1, 900), (2, 70)] {
            world.join(id, true, given);
        }
        let mut order = Vec::new();
        for _ in 0..100 {
            let now = world.unchoked()[0];
            if order.last() != Some(&now) {
                order.push(now);
            }
            world.run(2, 2 * MIB, &[]);
        }
        // 9 was there alone. Each turn takes 16 s: 32 MiB at 2 MiB/s.
        assert_eq!(order, [9, 1, 2, 0, 1, 2, 0, 9, 1, 2, 0]);
    }

    #[test]
    fn of_two_requesters_the_generous_one_starts_first_and_the_other_follows_when_the_quota_ends() {
        let mut world = World::new(UploadSlots::Fixed(1));
        let now = world.now;
        world.join(0, true, 0);
        // Both are there before anything was decided.
        world.views.clear();
        world.choker = Choker::new(UploadSlots::Fixed(1), 1);
        for (id, given) in [(0, 0), (1, MIB)] {
            world.views.push(SessionView {
                session: SessionId(id),
                seeding: true,
                interested: true,
                unchoked: false,
                received_bytes: 0,
                sent_bytes: 0,
                given_ever_bytes: given,
                piece_bytes: MIB as u32,
                since: now,
                snubbed: false,
            });
        }
        world.review();
        assert_eq!(world.unchoked(), [1]);
        world.run(7, 4 * MIB, &[]);
        assert_eq!(world.unchoked(), [1], "28 of 32 MiB");
        world.run(2, 4 * MIB, &[]);
        assert_eq!(world.unchoked(), [0]);
    }

    #[test]
    fn a_turn_that_ends_with_nobody_waiting_goes_on_and_yields_to_the_next_who_comes() {
        let mut world = World::new(UploadSlots::Fixed(1));
        world.join(0, true, 1_000);
        world.run(100, 10 * MIB, &[]);
        assert_eq!(world.unchoked(), [0]);
        world.join(1, true, 0);
        assert_eq!(world.unchoked(), [1]);
        world.run(3, 10 * MIB, &[]);
        assert_eq!(world.unchoked(), [1]);
        world.run(2, 10 * MIB, &[]);
        assert_eq!(world.unchoked(), [0]);
    }

    #[test]
    fn no_turn_is_shorter_than_a_piece_but_none_lasts_for_ever() {
        let mut world = World::new(UploadSlots::Fixed(1));
        world.join(0, true, 0);
        world.join(1, true, 0);
        world.run(50, MIB / 64, &[]);
        assert_eq!(world.unchoked(), [0], "50/64 of a piece");
        world.run(25, MIB / 64, &[]);
        assert_eq!(world.unchoked(), [1], "the piece is through");
        world.run(110, 0, &[]);
        assert_eq!(world.unchoked(), [1], "it takes nothing");
        world.run(15, 0, &[]);
        assert_eq!(world.unchoked(), [0]);
    }

    #[test]
    fn both_kinds_get_their_share() {
        let mut world = World::new(UploadSlots::Fixed(4));
        for id in 0..12 {
            world.join(id, id < 6, 0);
        }
        let gives: Vec<(u32, u64)> = (6..12).map(|id| (id, 1_000)).collect();
        world.run(120, MIB, &gives);
        let seeding = world.unchoked().iter().filter(|&&id| id < 6).count();
        assert!((2..=3).contains(&seeding), "{:?}", world.unchoked());
    }

    #[test]
    fn no_slots_serve_nobody() {
        let mut choker = Choker::new(UploadSlots::Fixed(0), 1);
        let mut world = World::new(UploadSlots::Fixed(1));
        world.join(0, true, 0);
        world.views[0].unchoked = false;
        let mut out = Vec::new();
        choker.review(world.now, &world.views, &mut out);
        assert_eq!(out, []);
    }
}
