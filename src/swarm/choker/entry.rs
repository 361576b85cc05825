//! One session in the choker's book.

use std::time::Duration;

use super::SessionView;
use super::standing::Standing;
use crate::clock::Time;

/// A turn at a seed: so many bytes or so much time, whichever comes first. Short, so that a crowd gets what is new from
/// many sides at once, and who takes and wastes it has soon had its turn ...
pub const TURN_BYTES: u64 = 32 << 20;
const TURN_TIME: Duration = Duration::from_secs(5);
/// ... but at least one piece, unless the taker is so slow that others would wait for ever.
const LONGEST_TURN: Duration = Duration::from_secs(120);
/// Who holds a slot and asks for nothing for so long makes room: several round trips of a far peer.
const IDLE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    None,
    Regular,
    /// On top, drawn by lot.
    Optimistic,
}

/// What is remembered of a session from one review to the next.
#[derive(Debug)]
pub(super) struct Entry {
    pub view: SessionView,
    pub slot: Slot,
    /// Played in rounds, rather than by reciprocity.
    pub in_rounds: bool,
    /// When the present turn began, or when the last one ended.
    pub since: Time,
    /// What had been sent when the present turn began.
    before_bytes: u64,
    /// When it was last seen to take something, or to ask for it.
    active: Time,
    /// The last review that it was part of.
    pub seen_in: u64,
    /// Its identity's, as of now, and what follows from it for this torrent's pieces.
    pub standing: Standing,
    pub owed: i64,
    pub defaults: bool,
}

impl Entry {
    pub fn new(now: Time, view: SessionView) -> Entry {
        Entry {
            view,
            slot: Slot::None,
            in_rounds: view.seeding,
            since: Time::ZERO,
            before_bytes: view.sent_bytes,
            active: now,
            seen_in: 0,
            standing: Standing::default(),
            owed: 0,
            defaults: false,
        }
    }

    /// What is news in `view`.
    pub fn update(&mut self, now: Time, view: SessionView, in_rounds: bool, review: u64) {
        if view.asks || view.sent_bytes != self.view.sent_bytes {
            self.active = now;
        }
        if !view.unchoked {
            self.slot = Slot::None;
        }
        self.in_rounds = in_rounds;
        self.view = view;
        self.seen_in = review;
    }

    pub fn take_standing(&mut self, standing: Standing, many_give: bool) {
        self.standing = standing;
        self.owed = standing.owed_pieces(self.view.piece_bytes);
        self.defaults = standing.defaults(self.view.piece_bytes, many_give);
    }

    pub fn is_regular(&self) -> bool {
        self.slot == Slot::Regular
    }

    pub fn waits(&self) -> bool {
        self.slot == Slot::None && self.view.interested
    }

    /// A turn begins, or is renewed.
    pub fn begin_turn(&mut self, now: Time, slot: Slot) {
        self.slot = slot;
        self.since = now;
        self.active = now;
        self.before_bytes = self.view.sent_bytes;
    }

    pub fn end_turn(&mut self, now: Time) {
        self.slot = Slot::None;
        self.since = now;
    }

    /// Bytes sent in the present turn.
    pub fn taken_bytes(&self) -> u64 {
        self.view.sent_bytes.saturating_sub(self.before_bytes)
    }

    /// It holds a slot that it makes no use of.
    pub fn is_idle(&self, now: Time) -> bool {
        !self.view.interested || now.since(self.active) >= IDLE
    }

    /// `share_bytes` is what a slot carries in about a second.
    pub fn turn_is_over(&self, now: Time, share_bytes: u64) -> bool {
        let (taken, piece, held) = (self.taken_bytes(), u64::from(self.view.piece_bytes), now.since(self.since));
        let (most_bytes, most_time) = self.quota(share_bytes);
        let through = !self.view.mid_piece;
        (taken >= most_bytes && (through || taken >= most_bytes + piece))
            || (held >= most_time && taken >= piece && through)
            || held >= LONGEST_TURN.max(most_time)
    }

    /// The bytes and the time of a turn. In rounds credit lengthens it. By reciprocity it is as short as is useful, so
    /// that debts are settled piece by piece: whole pieces, about a second's worth.
    fn quota(&self, share_bytes: u64) -> (u64, Duration) {
        let piece = u64::from(self.view.piece_bytes).max(1);
        if self.in_rounds && self.slot == Slot::Regular {
            if self.view.keeps {
                return (piece, TURN_TIME);
            }
            let credit = self.view.account.credit();
            return (((TURN_BYTES as f64 * credit) as u64).max(piece), TURN_TIME.mul_f64(credit));
        }
        ((share_bytes / piece).max(1) * piece, TURN_TIME)
    }

    /// When the turn is over by time, or found to be idle.
    pub fn turn_end_by_time(&self, share_bytes: u64) -> Time {
        let (_, most_time) = self.quota(share_bytes);
        let whole_piece = self.taken_bytes() >= u64::from(self.view.piece_bytes);
        let end = self.since + if whole_piece { most_time } else { LONGEST_TURN.max(most_time) };
        end.min(self.active + IDLE)
    }
}
