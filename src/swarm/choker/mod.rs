//! Who may be served, over all sessions of all torrents.
//!
//! Torrents that we lack something of are played by reciprocity: whom we owe most is served, piece by piece. Torrents
//! that we seed are served in rounds: everybody who wants gets one turn, who has given us most first; a turn has a
//! quota, which credit stretches. One optimistic slot on top gives strangers a chance. A free slot is filled at once;
//! nobody waits while one is free, except who takes and does not give.
//!
//! # Why debts and not rates
//!
//! Both were played in the simulator: FairTorrent's deficit (Sherman, Nieh and Stein 2009) within choke and unchoke, and
//! rate tit-for-tat (Cohen 2003, four slots, rounds of 10 s). Debts need no round to be decided by: who returns nothing
//! is found out after one piece, and who gives four times as much as others is owed four times as much. Rates feed
//! whoever asks. Seed 1 of each, 127 leechers, 256 pieces of 256 KiB, 10 Mbit/s:
//!
//! | scenario | debts | rates |
//! |---|---|---|
//! | last finish / block bound | 1.17 | 1.20 |
//! | a fifth free riders: what the median one has when the median contributor is complete | 0.18 | 0.89 |

mod account;
mod entry;
mod slots;
mod standing;
mod why;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Identity, SessionId};
use crate::clock::Time;

pub use account::Account;
pub use entry::TURN_BYTES;
pub use slots::UploadSlots;
pub use why::Why;

use entry::{Entry, Slot};
use slots::SlotCount;
use standing::{Standing, Standings};

/// The optimistic slot is given away anew so often, if its holder has not had its piece before.
const OPTIMISTIC_TIME: Duration = Duration::from_secs(30);
/// Who takes and does not give gets no more than a piece in so long, by the optimistic slot.
const TRICKLE: Duration = Duration::from_secs(20);
/// Where so many have given us something, a newcomer finds enough who give it a first piece: whoever never gave gets no
/// second one. Among fewer it may have nothing that we lack.
const MANY: usize = 4;
/// A turn that is over may be let go on: that is not looked at again before this.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often those are forgotten who have been away for long.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// In the draw for the optimistic slot a newcomer holds so many lots; a newcomer is who came within one minute and
/// never got a piece.
const NEWCOMER_LOTS: u32 = 3;
const NEWCOMER: Duration = Duration::from_secs(60);

/// What the choker knows of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionView {
    pub session: SessionId,
    pub identity: Identity,
    /// We have all of its torrent.
    pub seeding: bool,
    /// The peer is interested in what we have.
    pub interested: bool,
    /// We do not choke it.
    pub unchoked: bool,
    /// Requests of it wait or are being answered.
    pub asks: bool,
    /// It has had a part of a piece and not the end of it.
    pub mid_piece: bool,
    /// Payload of pieces that passed their hash, of what it sent us in this session.
    pub received_bytes: u64,
    /// Payload that we sent it in this session.
    pub sent_bytes: u64,
    /// The ledger's account of its identity.
    pub account: Account,
    /// Of its torrent: no turn is shorter than one piece.
    pub piece_bytes: u32,
    pub since: Time,
    /// We are the one seed of a crowd, and it does not pass on what we sent it alone.
    pub keeps: bool,
    /// It has what we want and does not give it: it chokes us, or keeps us waiting.
    pub denies: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    pub session: SessionId,
    pub choke: bool,
}

pub struct Choker {
    slots: SlotCount,
    entries: BTreeMap<SessionId, Entry>,
    standings: Standings,
    /// The present round of those that take turns.
    round: u64,
    rng: SmallRng,
    /// Reviews so far, and the time of the last.
    reviews: u64,
    reviewed: Time,
    /// At the last review [`MANY`] or more had given us something.
    many_give: bool,
    forgot: Time,
    /// When the optimistic slot was last given away.
    drawn: Time,
    next_optimistic: Time,
    next_turn_end: Option<Time>,
}

impl Choker {
    pub fn new(slots: UploadSlots, seed: u64) -> Choker {
        Choker {
            slots: SlotCount::new(slots),
            entries: BTreeMap::new(),
            standings: Standings::default(),
            round: 1,
            rng: SmallRng::seed_from_u64(seed),
            reviews: 0,
            reviewed: Time::ZERO,
            many_give: false,
            forgot: Time::ZERO,
            drawn: Time::ZERO,
            next_optimistic: Time::ZERO,
            next_turn_end: None,
        }
    }

    /// Decides; `views` are all sessions there are. Appends only what changes. To be called when
    /// [`super::Effect::ReviewChoking`] says so and at [`Choker::next_timeout`].
    pub fn review(&mut self, now: Time, views: &[SessionView], out: &mut Vec<Decision>) {
        self.take_views(now, views);
        self.end_turns(now);
        self.fill_free_slots(now);
        self.draw_optimistic(now);
        self.next_turn_end = self.find_turn_end().map(|end| end.max(now + LOOK_AGAIN));
        for entry in self.entries.values() {
            let choke = entry.slot == Slot::None;
            if choke == entry.view.unchoked {
                out.push(Decision { session: entry.view.session, choke });
            }
        }
    }

    /// When to review next; `None` while nobody waits.
    pub fn next_timeout(&self) -> Option<Time> {
        let waits = self.entries.values().any(Entry::waits);
        let optimistic = (waits && self.has_optimistic_slot()).then_some(self.next_optimistic);
        [optimistic, self.next_turn_end].into_iter().flatten().min()
    }

    /// Brings the entries in line with what is connected, and who holds a slot with who is unchoked.
    fn take_views(&mut self, now: Time, views: &[SessionView]) {
        let Choker { entries, standings, .. } = self;
        let since_last = now.since(self.reviewed);
        self.reviews += 1;
        let many_give = self.many_give;
        let (mut sent, mut wanting, mut piece_bytes, mut givers) = (0, 0, 0, 0);
        // A standing changed after one of its entries had taken it.
        let mut stale = false;
        for &view in views {
            let mut known = true;
            let entry = entries.entry(view.session).or_insert_with(|| {
                known = false;
                Entry::new(now, view)
            });
            let took = view.sent_bytes.saturating_sub(entry.view.sent_bytes);
            let gave = view.received_bytes.saturating_sub(entry.view.received_bytes);
            let (standing, met) = standings.meet(now, view.identity, self.reviews);
            stale |= met;
            let denied = if known && entry.view.denies { since_last } else { Duration::ZERO };
            standing.book(took, gave, denied, &entry.view);
            // With a single slot there is nothing to rank: everybody takes turns.
            entry.update(now, view, view.seeding || self.slots.get() <= 1, self.reviews);
            standing.slots += u32::from(entry.is_regular());
            entry.take_standing(*standing, many_give);
            givers += usize::from(standing.received_bytes > 0);
            sent += took;
            wanting += u64::from(view.interested);
            piece_bytes += if view.interested { u64::from(view.piece_bytes) } else { 0 };
        }
        // Who goes in the middle of its turn has had it.
        for (_, gone) in entries.extract_if(.., |_, entry| entry.seen_in != self.reviews) {
            if gone.is_regular() && gone.in_rounds {
                standings.touch(now, gone.view.identity).round = self.round;
                stale = true;
            }
        }
        if stale {
            entries.values_mut().for_each(|entry| entry.take_standing(standings.get(&entry.view.identity), many_give));
        }
        if now.since(self.forgot) >= FORGET_EVERY {
            self.forgot = now;
            standings.forget(now);
        }
        self.reviewed = now;
        self.many_give = givers >= MANY;
        let crowded = self.free_slots() == 0 && self.entries.values().any(Entry::waits);
        self.slots.measure(now, sent, piece_bytes / u64::max(wanting, 1), crowded);
    }

    /// Turns that are over end when somebody waits who comes before the holder; else they are renewed.
    fn end_turns(&mut self, now: Time) {
        self.drop_idle(now);
        let share = self.slots.share_bytes();
        let over = |entry: &&Entry| entry.is_regular() && entry.turn_is_over(now, share);
        let (round, reciprocal): (Vec<&Entry>, Vec<&Entry>) =
            self.entries.values().filter(over).partition(|entry| entry.in_rounds);
        let mut rounds: Vec<_> = round.iter().map(|entry| (Reverse(entry.taken_bytes()), entry.view.session)).collect();
        rounds.sort_unstable();
        let mut debts: Vec<_> = reciprocal.iter().map(|entry| (entry.owed, entry.view.session)).collect();
        debts.sort_unstable();
        for &(_, session) in &rounds {
            self.mark_turn(now, session);
        }
        let waiting = self.entries.values().filter(|entry| entry.waits()).count();
        let spare = self.slots.get().saturating_sub(self.regular_count());
        for (_, session) in rounds.into_iter().take(waiting.saturating_sub(spare)) {
            self.end_turn(now, session);
        }
        self.settle_debts(now, debts);
    }

    /// Of those whose turn is over, `debts` in rising order of what we owe: each yields to somebody whom we owe more.
    fn settle_debts(&mut self, now: Time, debts: Vec<(i64, SessionId)>) {
        let waiting = self.entries.values().filter(|entry| !entry.in_rounds && entry.waits() && !entry.defaults);
        let mut owed: Vec<i64> = waiting.map(|entry| entry.owed).collect();
        owed.sort_unstable();
        let rounds_hold = self.entries.values().filter(|entry| entry.in_rounds && entry.is_regular()).count();
        let rounds_wait = self.entries.values().filter(|entry| entry.in_rounds && entry.waits()).count();
        let mut to_rounds = self.share_of_rounds().saturating_sub(rounds_hold).min(rounds_wait);
        let mut surplus = self.regular_count().saturating_sub(self.slots.get());
        for (holder, session) in debts {
            let defaults = self.entries.get(&session).is_some_and(|entry| entry.defaults);
            let yields = if defaults {
                surplus = surplus.saturating_sub(1);
                true
            } else if surplus > 0 {
                surplus -= 1;
                true
            } else if to_rounds > 0 {
                to_rounds -= 1;
                true
            } else {
                owed.pop_if(|waiting| *waiting > holder).is_some()
            };
            if yields {
                self.end_turn(now, session);
            } else if let Some(entry) = self.entries.get_mut(&session) {
                entry.begin_turn(now, Slot::Regular);
            }
        }
    }

    /// Who holds a slot and makes no use of it makes room for who does.
    fn drop_idle(&mut self, now: Time) {
        let waiting = self.entries.values().filter(|entry| entry.waits()).count();
        let spare = self.slots.get().saturating_sub(self.regular_count());
        let idle = self.entries.values().filter(|entry| entry.is_regular() && entry.is_idle(now));
        let idle: Vec<SessionId> = idle.map(|entry| entry.view.session).take(waiting.saturating_sub(spare)).collect();
        for session in idle {
            self.mark_turn(now, session);
            self.end_turn(now, session);
        }
    }

    /// The identity has had its turn in this round.
    fn mark_turn(&mut self, now: Time, session: SessionId) {
        let Some(entry) = self.entries.get(&session).filter(|entry| entry.in_rounds) else { return };
        let (identity, round) = (entry.view.identity, self.round);
        self.change_standing(now, identity, |standing| standing.round = round);
    }

    fn end_turn(&mut self, now: Time, session: SessionId) {
        let Some(entry) = self.entries.get_mut(&session) else { return };
        entry.end_turn(now);
        let identity = entry.view.identity;
        self.change_standing(now, identity, |standing| standing.slots = standing.slots.saturating_sub(1));
    }

    fn change_standing(&mut self, now: Time, who: Identity, change: impl Fn(&mut Standing)) {
        let standing = self.standings.touch(now, who);
        change(standing);
        for entry in self.entries.values_mut().filter(|entry| entry.view.identity == who) {
            entry.take_standing(*standing, self.many_give);
        }
    }

    fn fill_free_slots(&mut self, now: Time) {
        while self.regular_count() < self.slots.get() {
            let Some(next) = self.next_for_slot() else { return };
            let Some(entry) = self.entries.get_mut(&next) else { return };
            entry.begin_turn(now, Slot::Regular);
            let identity = entry.view.identity;
            self.change_standing(now, identity, |standing| standing.slots += 1);
        }
    }

    /// Who gets a free slot: of the kind that has less than its share, the first in its order.
    fn next_for_slot(&mut self) -> Option<SessionId> {
        let rounds_hold = self.entries.values().filter(|entry| entry.in_rounds && entry.is_regular()).count();
        let rounds_first = rounds_hold < self.share_of_rounds();
        let by_turn = self.next_by_turn();
        let waiting = self.entries.values().filter(|entry| !entry.in_rounds && entry.waits() && !entry.defaults);
        let by_debt = waiting.min_by_key(|entry| self.merit(entry)).map(|entry| entry.view.session);
        let next = if rounds_first { by_turn.or(by_debt) } else { by_debt.or(by_turn) }?;
        if Some(next) == by_turn && self.entries.get(&next).is_some_and(|entry| self.had_turn(entry)) {
            // Everybody who waits has had a turn: a new round begins.
            self.round += 1;
        }
        Some(next)
    }

    fn had_turn(&self, entry: &Entry) -> bool {
        entry.standing.round == self.round
    }

    /// Who is next in the round: who has given us most, then who came first. Who holds a slot over another connection
    /// has its turn; who keeps to itself what others wait for comes last.
    fn next_by_turn(&self) -> Option<SessionId> {
        let waiting = self.entries.values().filter(|entry| entry.in_rounds && entry.waits());
        waiting.min_by_key(|entry| self.turn_order(entry)).map(|entry| entry.view.session)
    }

    fn turn_order(&self, entry: &Entry) -> impl Ord + use<> {
        let view = &entry.view;
        let had_turn = self.had_turn(entry);
        (
            entry.standing.slots,
            view.keeps,
            had_turn,
            Reverse(view.account.given_bytes),
            entry.since,
            view.since,
            view.session,
        )
    }

    /// The order of reciprocity: smaller is better.
    fn merit(&self, entry: &Entry) -> impl Ord + use<> {
        let view = &entry.view;
        let owed = Reverse(entry.owed);
        (owed, Reverse(view.account.given_bytes), entry.since, view.since, view.session)
    }

    fn has_optimistic_slot(&self) -> bool {
        self.slots.get() > 1
    }

    /// One slot more, drawn by lot, so that strangers can show what they give.
    fn draw_optimistic(&mut self, now: Time) {
        if !self.has_optimistic_slot() {
            return;
        }
        let holder = self.entries.values().find(|entry| entry.slot == Slot::Optimistic);
        let share = self.slots.share_bytes();
        let stays = |holder: &Entry| {
            let over = holder.turn_is_over(now, share);
            !holder.is_idle(now) && now < self.next_optimistic && !over
        };
        if holder.is_some_and(stays) {
            return;
        }
        let trickle = now.since(self.drawn) >= TRICKLE;
        let candidates = self.entries.values().filter(|entry| entry.waits());
        let waiting: Vec<(SessionId, u32)> = candidates
            .filter(|entry| entry.in_rounds || trickle || !entry.defaults)
            .map(|entry| (entry.view.session, self.lots(now, entry)))
            .collect();
        let lots: u32 = waiting.iter().map(|(_, lots)| lots).sum();
        if lots == 0 {
            // Whoever waits owes us: the holder has had enough, too.
            if let Some(entry) = self.entries.values_mut().find(|e| e.slot == Slot::Optimistic && !e.in_rounds) {
                entry.end_turn(now);
            }
            self.next_optimistic = self.drawn + TRICKLE;
            return;
        }
        self.drawn = now;
        let mut drawn = self.rng.random_range(0..lots);
        let winner = waiting.iter().find(|(_, lots)| drawn.checked_sub(*lots).map(|left| drawn = left).is_none());
        let Some(&(winner, _)) = winner else { return };
        self.next_optimistic = now + OPTIMISTIC_TIME;
        for entry in self.entries.values_mut() {
            if entry.view.session == winner {
                entry.begin_turn(now, Slot::Optimistic);
            } else if entry.slot == Slot::Optimistic {
                entry.end_turn(now);
            }
        }
    }

    fn lots(&self, now: Time, entry: &Entry) -> u32 {
        let taken = entry.standing.taken_bytes;
        let newcomer = taken < u64::from(entry.view.piece_bytes) && now.since(entry.view.since) < NEWCOMER;
        if newcomer { NEWCOMER_LOTS } else { 1 }
    }

    fn regular_count(&self) -> usize {
        self.entries.values().filter(|entry| entry.is_regular()).count()
    }

    fn free_slots(&self) -> usize {
        self.slots.get().saturating_sub(self.regular_count())
    }

    /// The slots of those who take turns, where others are played by reciprocity: in proportion to how many want.
    fn share_of_rounds(&self) -> usize {
        let slots = self.slots.get();
        let wants = |rounds: bool| {
            let kind = self.entries.values().filter(|entry| entry.in_rounds == rounds);
            kind.filter(|entry| entry.view.interested).count()
        };
        match (wants(true), wants(false)) {
            (0, _) => 0,
            (_, 0) => slots,
            (rounds, others) => {
                let share = (slots * rounds + (rounds + others) / 2) / (rounds + others);
                share.clamp(1, slots.saturating_sub(1).max(1))
            }
        }
    }

    /// The next moment at which a turn ends by time while somebody waits for it; its end by bytes is reported by
    /// [`super::Effect::ReviewChoking`].
    fn find_turn_end(&self) -> Option<Time> {
        if !self.entries.values().any(Entry::waits) {
            return None;
        }
        let share = self.slots.share_bytes();
        let holders = self.entries.values().filter(|entry| entry.is_regular());
        holders.map(|entry| entry.turn_end_by_time(share)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    const MIB: u64 = 1 << 20;

    fn host(n: u32) -> Identity {
        Identity::Address(IpAddr::V4(Ipv4Addr::from(n)))
    }

    fn view(id: u32, since: Time, seeding: bool) -> SessionView {
        SessionView {
            session: SessionId(id),
            identity: host(id),
            seeding,
            interested: true,
            unchoked: false,
            asks: false,
            mid_piece: false,
            received_bytes: 0,
            sent_bytes: 0,
            account: Account::default(),
            piece_bytes: MIB as u32,
            since,
            keeps: false,
            denies: false,
        }
    }

    /// Sessions on a virtual clock; decisions are applied as they fall.
    struct World {
        choker: Choker,
        now: Time,
        views: Vec<SessionView>,
    }

    impl World {
        fn new(slots: UploadSlots) -> World {
            World { choker: Choker::new(slots, 7), now: Time::from_secs(1_000), views: Vec::new() }
        }

        fn join(&mut self, id: u32, seeding: bool, given_bytes: u64) {
            let account = Account { given_bytes, taken_bytes: 0 };
            self.views.push(SessionView { account, ..view(id, self.now, seeding) });
            self.review();
        }

        fn leave(&mut self, id: u32) {
            self.views.retain(|view| view.session != SessionId(id));
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
            assert_eq!(self.choker.reasons().len(), self.views.len());
        }

        /// No more are served than there are slots, and nobody waits while one is free.
        fn check_slots(&self) {
            let slots = self.choker.slots.get();
            let most = slots + usize::from(slots > 1);
            let unchoked = self.unchoked();
            assert!(unchoked.len() <= most, "{unchoked:?} in {most} slots");
            let waiting = self.views.iter().filter(|view| view.interested && !view.unchoked).count();
            assert!(waiting == 0 || unchoked.len() == most, "{waiting} wait while a slot is free");
        }

        /// Time passes in steps of 100 ms; who is unchoked takes `up` and everybody of `gives` sends, in bytes/s.
        fn run(&mut self, seconds: u64, up: u64, gives: &[(u32, u64)]) {
            for _ in 0..seconds * 10 {
                self.now = self.now + Duration::from_millis(100);
                let mut lap = false;
                for view in self.views.iter_mut().filter(|view| view.unchoked && view.interested) {
                    lap |= (view.sent_bytes + up / 10) / MIB != view.sent_bytes / MIB;
                    view.sent_bytes += up / 10;
                }
                for &(id, bytes_per_s) in gives {
                    self.view(id).received_bytes += bytes_per_s / 10;
                }
                if lap || self.choker.next_timeout().is_some_and(|at| self.now >= at) {
                    self.review();
                }
            }
        }

        fn unchoked(&self) -> Vec<u32> {
            self.views.iter().filter(|view| view.unchoked).map(|view| view.session.0).collect()
        }

        fn why(&self, id: u32) -> Why {
            self.choker.reasons().into_iter().find(|(session, _)| *session == SessionId(id)).unwrap().1
        }
    }

    #[test]
    fn a_free_slot_is_filled_at_once() {
        let mut world = World::new(UploadSlots::Fixed(8));
        for id in 0..9 {
            world.join(id, id % 2 == 0, 0);
            assert!(world.view(id).unchoked);
            world.check_slots();
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
    fn who_asks_for_nothing_makes_room_soon() {
        for seeding in [false, true] {
            let mut world = World::new(UploadSlots::Fixed(1));
            world.join(0, seeding, 0);
            world.join(1, seeding, 0);
            world.run(1, 0, &[]);
            assert_eq!(world.unchoked(), [0]);
            world.run(2, 0, &[]);
            assert_eq!(world.unchoked(), [1]);
            world.view(1).asks = true;
            world.run(20, 0, &[]);
            assert_eq!(world.unchoked(), [1], "it asks, and our uplink is slow");
        }
    }

    #[test]
    fn whom_we_owe_most_holds_the_slots_of_a_leeching_torrent() {
        let mut world = World::new(UploadSlots::Fixed(2));
        for id in 0..6 {
            world.join(id, false, 0);
        }
        world.run(41, MIB / 2, &[(1, MIB), (3, 2 * MIB)]);
        let unchoked = world.unchoked();
        assert!(unchoked.contains(&1) && unchoked.contains(&3) && unchoked.len() == 3, "{unchoked:?}");
        assert_eq!((world.why(1), world.why(3)), (Why::Reciprocity, Why::Reciprocity));
        // What is owed is paid back before others are served again, however long ago it was given.
        let before = [4, 0].map(|id| world.view(id).sent_bytes / MIB);
        world.run(60, MIB / 2, &[(4, MIB / 8)]);
        let unchoked = world.unchoked();
        assert!(unchoked.contains(&3), "{unchoked:?}");
        let [gave, gave_nothing] = [4, 0].map(|id| world.view(id).sent_bytes / MIB);
        assert!(gave - before[0] > gave_nothing - before[1], "{gave} and {gave_nothing} MiB, before {before:?}");
    }

    #[test]
    fn strangers_get_a_piece_each_before_anybody_gets_two() {
        let mut world = World::new(UploadSlots::Fixed(3));
        for id in 0..12 {
            world.join(id, false, 0);
        }
        world.run(30, MIB / 8, &[]);
        let mut pieces: Vec<u64> = world.views.iter().map(|view| view.sent_bytes / MIB).collect();
        pieces.sort_unstable();
        assert!(pieces[0] >= 1 && pieces[11] <= 2, "{pieces:?}");
    }

    #[test]
    fn who_takes_and_does_not_give_is_left_with_a_trickle() {
        let mut world = World::new(UploadSlots::Fixed(3));
        for id in 0..4 {
            world.join(id, false, 0);
        }
        world.view(2).denies = true;
        world.view(3).denies = true;
        world.run(100, MIB, &[(0, MIB / 2), (1, MIB / 2)]);
        let trickle = world.views[2].sent_bytes + world.views[3].sent_bytes;
        assert!(world.views[2].sent_bytes.min(world.views[3].sent_bytes) > MIB);
        assert!(trickle < 40 * MIB, "{} MiB", trickle / MIB);
        // One of them may have the trickle just now.
        assert!([2, 3].map(|id| world.why(id)).contains(&Why::Defaults));
        // It gives, and is forgiven.
        world.view(2).denies = false;
        world.run(30, MIB, &[(0, MIB / 2), (1, MIB / 2), (2, 2 * MIB)]);
        assert_ne!(world.why(2), Why::Defaults);
        assert!(world.view(2).unchoked);
    }

    #[test]
    fn who_gives_nothing_because_it_has_nothing_is_served_while_there_is_room() {
        let mut world = World::new(UploadSlots::Fixed(3));
        world.join(0, false, 0);
        world.join(1, false, 0);
        world.run(60, MIB, &[]);
        assert!(world.views.iter().all(|view| view.sent_bytes > 55 * MIB));
    }

    #[test]
    fn among_many_who_give_nobody_gets_a_second_piece_for_nothing() {
        let sent_to_the_last = |givers: u32| {
            let mut world = World::new(UploadSlots::Fixed(3));
            for id in 0..=givers {
                world.join(id, false, 0);
            }
            let gives: Vec<(u32, u64)> = (0..givers).map(|id| (id, MIB / 2)).collect();
            world.run(60, MIB, &gives);
            world.view(givers).sent_bytes / MIB
        };
        let (few, many) = (sent_to_the_last(MANY as u32 - 1), sent_to_the_last(MANY as u32));
        assert!(many <= 5 && few > 2 * many, "{many} MiB among many, {few} among few");
    }

    #[test]
    fn the_optimistic_slot_goes_round_and_favours_newcomers() {
        let mut lucky = 0;
        for seed in 0..300 {
            let mut world = World::new(UploadSlots::Fixed(2));
            world.choker = Choker::new(UploadSlots::Fixed(2), seed);
            // All have had a piece, 3 has the optimistic slot or one of the others.
            for id in 0..6 {
                world.join(id, true, 0);
                world.view(id).asks = true;
            }
            for id in 0..6 {
                world.view(id).sent_bytes += MIB;
            }
            let drawn = |world: &World| {
                let drawn = world.choker.reasons().into_iter().find(|(_, why)| *why == Why::Optimistic);
                drawn.map(|(session, _)| session.0)
            };
            let old = drawn(&world);
            world.join(6, true, 0);
            while drawn(&world) == old {
                world.run(1, 0, &[]);
                world.views.iter_mut().for_each(|view| view.asks = true);
            }
            assert!(drawn(&world).is_some());
            lucky += u32::from(drawn(&world) == Some(6));
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
        assert_eq!(world.why(2), Why::InLine { place: 2, generous: false });
        let mut order = Vec::new();
        for _ in 0..100 {
            let now = world.unchoked()[0];
            if order.last() != Some(&now) {
                order.push(now);
            }
            world.run(2, 2 * MIB, &[]);
        }
        // 9 was there alone. Each turn takes 16 s: 32 MiB at 2 MiB/s.
        assert_eq!(order[..11], [9, 1, 2, 0, 1, 2, 0, 9, 1, 2, 0]);
    }

    #[test]
    fn of_two_requesters_the_generous_one_starts_first_and_the_other_follows_when_the_quota_ends() {
        let mut world = World::new(UploadSlots::Fixed(1));
        for (id, given_bytes) in [(0, 0), (1, 2 * MIB)] {
            let account = Account { given_bytes, taken_bytes: 0 };
            world.views.push(SessionView { account, ..view(id, world.now, true) });
        }
        world.review();
        assert_eq!(world.unchoked(), [1]);
        assert_eq!(
            (world.why(0), world.why(1)),
            (Why::InLine { place: 1, generous: false }, Why::Turn { generous: true })
        );
        // Its credit is sqrt(2 + 2): a turn of 64 MiB.
        world.run(6, 10 * MIB, &[]);
        assert_eq!(world.unchoked(), [1], "60 of 64 MiB");
        world.run(1, 10 * MIB, &[]);
        assert_eq!(world.unchoked(), [0]);
        world.run(2, 10 * MIB, &[]);
        assert_eq!(world.unchoked(), [0], "less than 32 MiB");
        world.run(1, 10 * MIB, &[]);
        assert_eq!(world.unchoked(), [1]);
    }

    #[test]
    fn who_keeps_what_a_crowd_waits_for_comes_last_and_has_a_piece_a_turn() {
        let mut world = World::new(UploadSlots::Fixed(2));
        for id in 0..6 {
            world.join(id, true, 0);
        }
        world.view(0).keeps = true;
        world.run(60, MIB, &[]);
        let sent: Vec<u64> = world.views.iter().map(|view| view.sent_bytes / MIB).collect();
        let others = sent[1..].iter().sum::<u64>() / 5;
        // The optimistic slot may still fall to it.
        assert!(sent[0] * 3 < others * 2, "{sent:?} MiB");
        for id in 1..6 {
            world.view(id).interested = false;
        }
        world.review();
        assert!(world.unchoked().contains(&0), "it gets what nobody else wants");
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
        world.view(0).asks = true;
        world.view(1).asks = true;
        world.run(50, MIB / 64, &[]);
        assert_eq!(world.unchoked(), [0], "50/64 of a piece");
        world.run(25, MIB / 64, &[]);
        assert_eq!(world.unchoked(), [1], "the piece is through");
        world.run(100, 0, &[]);
        assert_eq!(world.unchoked(), [1], "it has had nothing yet");
        world.run(25, 0, &[]);
        assert_eq!(world.unchoked(), [0]);
    }

    #[test]
    fn neither_new_connections_nor_many_bring_more_turns() {
        let mut world = World::new(UploadSlots::Fixed(1));
        for id in 0..4 {
            world.join(id, true, 0);
        }
        // Host 3 comes over five connections, one of which is made again whenever it has had a turn.
        for id in 10..14 {
            world.join(id, true, 0);
            world.view(id).identity = host(3);
        }
        let mut taken = BTreeMap::<Identity, u64>::new();
        let mut next = 20;
        for _ in 0..400 {
            let served = world.unchoked()[0];
            let who = world.view(served).identity;
            world.run(1, 8 * MIB, &[]);
            *taken.entry(who).or_default() += 1;
            if who == host(3) && world.unchoked()[0] != served {
                world.leave(served);
                world.views.push(SessionView { identity: host(3), ..view(next, world.now, true) });
                world.review();
                next += 1;
            }
        }
        let (most, sum) = (taken[&host(3)], taken.values().sum::<u64>());
        assert!(most * 4 <= sum + 4 * 4, "{most} of {sum} turns");
    }

    #[test]
    fn a_debt_outlives_the_session() {
        let mut world = World::new(UploadSlots::Fixed(2));
        for id in 0..4 {
            world.join(id, false, 0);
        }
        world.run(60, MIB, &[]);
        let before = world.choker.standings.get(&host(0)).owed_pieces(MIB as u32);
        world.leave(0);
        world.views.push(SessionView { identity: host(0), ..view(50, world.now, false) });
        world.review();
        assert!(before < -10);
        assert_eq!(world.choker.standings.get(&host(0)).owed_pieces(MIB as u32), before);
        assert_eq!(world.choker.lots(world.now, &world.choker.entries[&SessionId(50)]), 1, "it is no newcomer");
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
