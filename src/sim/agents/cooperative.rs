//! Serves whoever asks, without asking what it gets for it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clock::Time;
use crate::sim::{Choking, Conduct};
use crate::swarm::SessionId;
use crate::swarm::choker::{Decision, SessionView};

/// How often it looks whose turn is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A fixed number of slots; whoever had least of us is next, and keeps the slot for a few pieces.
pub struct Cooperative {
    slots: usize,
    turn_pieces: u64,
    rng: SmallRng,
    next_look: Time,
    /// By session: what had been sent when its turn began.
    turns: BTreeMap<SessionId, u64>,
}

impl Cooperative {
    /// So many slots, and turns of so many pieces.
    pub fn conduct(slots: usize, turn_pieces: u64) -> Conduct {
        Conduct::choking(move |seed| {
            let rng = SmallRng::seed_from_u64(seed);
            Box::new(Cooperative { slots, turn_pieces, rng, next_look: Time::ZERO, turns: BTreeMap::new() })
        })
    }

    fn is_over(&self, view: &SessionView) -> bool {
        let taken = view.sent_bytes - self.turns.get(&view.session).copied().unwrap_or(view.sent_bytes);
        taken >= self.turn_pieces * u64::from(view.piece_bytes) && !view.mid_piece
    }
}

impl Choking for Cooperative {
    fn review(&mut self, now: Time, views: &[SessionView], out: &mut Vec<Decision>) {
        self.next_look = now + LOOK_EVERY;
        self.turns.retain(|id, _| views.iter().any(|view| view.session == *id && view.unchoked));
        let mut waiting: Vec<&SessionView> = views.iter().filter(|view| view.interested && !view.unchoked).collect();
        // Drawn anew each time: else all would favour those who came first, who would have what the others wait for.
        let lots = self.rng.random::<u64>() | 1;
        waiting.sort_by_key(|view| (view.sent_bytes, u64::from(view.session.0 + 1).wrapping_mul(lots)));
        let mut holders: Vec<&SessionView> = views.iter().filter(|view| view.unchoked).collect();
        holders.sort_by_key(|view| (view.interested, view.session));
        let mut free = self.slots.saturating_sub(holders.len());
        for holder in holders.into_iter().filter(|holder| !holder.interested || self.is_over(holder)) {
            if free >= waiting.len() {
                break;
            }
            out.push(Decision { session: holder.session, choke: true });
            free += 1;
        }
        for next in waiting.into_iter().take(free) {
            self.turns.insert(next.session, next.sent_bytes);
            out.push(Decision { session: next.session, choke: false });
        }
    }

    fn next_timeout(&self) -> Option<Time> {
        Some(self.next_look)
    }
}
