//! What is remembered of an identity, over all its sessions and from one session to the next: a new connection brings
//! neither a new turn nor a clean slate.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::Identity;
use super::SessionView;
use crate::clock::Time;

/// An identity without a session is forgotten after so long: what it owes is then too old to matter.
const REMEMBERED: Duration = Duration::from_secs(3_600);
/// Who owes us a piece and has what we want may take so long to give: it has others to serve.
const PATIENCE: Duration = Duration::from_secs(1);
/// More identities than this are not remembered at a time: twenty times what can be connected.
const MOST_REMEMBERED: usize = 4_096;

/// One identity's dealings with us.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// Verified, in torrents that we leech.
    pub received_bytes: u64,
    /// In torrents that we leech.
    pub sent_bytes: u64,
    /// For so long it owed us, had what we wanted and gave us nothing; since it last gave.
    pub denied: Duration,
    /// In all torrents: who never got anything is a newcomer.
    pub taken_bytes: u64,
    /// The last round in which it had its turn.
    pub round: u64,
    /// Regular slots that its sessions hold.
    pub slots: u32,
    last_seen: Time,
    /// The last review that one of its sessions was part of.
    seen_in: u64,
}

impl Standing {
    /// So much passed in a session; and for so long it gave us nothing that we wanted. In torrents that we seed nobody
    /// can give us anything, nor owes it.
    pub fn book(&mut self, took_bytes: u64, gave_bytes: u64, denied: Duration, view: &SessionView) {
        self.taken_bytes += took_bytes;
        if view.seeding {
            return;
        }
        self.sent_bytes += took_bytes;
        self.received_bytes += gave_bytes;
        if gave_bytes > 0 {
            self.denied = Duration::ZERO;
        } else if self.received_bytes < self.sent_bytes {
            self.denied += denied;
        }
    }

    /// It takes and does not give, though it could; among many who give it is enough that it never did.
    pub fn defaults(&self, piece_bytes: u32, many_give: bool) -> bool {
        let never_gave = many_give && self.received_bytes == 0;
        (self.denied >= PATIENCE || never_gave) && self.owed_pieces(piece_bytes) < 0
    }

    /// FairTorrent's deficit with the sign of a balance: what we owe it, in whole pieces, rounded down.
    pub fn owed_pieces(&self, piece_bytes: u32) -> i64 {
        let owed = self.received_bytes.cast_signed().saturating_sub(self.sent_bytes.cast_signed());
        owed.div_euclid(i64::from(piece_bytes.max(1)))
    }
}

#[derive(Debug, Default)]
pub(super) struct Standings {
    of: BTreeMap<Identity, Standing>,
}

impl Standings {
    pub fn get(&self, who: &Identity) -> Standing {
        self.of.get(who).copied().unwrap_or_default()
    }

    /// Of an identity that is here.
    pub fn touch(&mut self, now: Time, who: Identity) -> &mut Standing {
        let standing = self.of.entry(who).or_default();
        standing.last_seen = now;
        standing
    }

    /// Of an identity with a session in this review: the first one finds no slots counted. Returns whether another came
    /// before.
    pub fn meet(&mut self, now: Time, who: Identity, review: u64) -> (&mut Standing, bool) {
        let standing = self.touch(now, who);
        let met = std::mem::replace(&mut standing.seen_in, review) == review;
        if !met {
            standing.slots = 0;
        }
        (standing, met)
    }

    /// Forgets who has been away for long, and who has been away longest when there are too many.
    pub fn forget(&mut self, now: Time) {
        self.of.retain(|_, standing| now.since(standing.last_seen) < REMEMBERED);
        while self.of.len() > MOST_REMEMBERED {
            let oldest = self.of.iter().min_by_key(|(who, standing)| (standing.last_seen, **who)).map(|(who, _)| *who);
            let Some(oldest) = oldest else { return };
            self.of.remove(&oldest);
        }
    }
}
