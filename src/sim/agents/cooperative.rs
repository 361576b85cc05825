//! Serves whoever asks, without asking what it gets for it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clock::Time;
use crate::sim::{Choking, Conduct};
use crate::swarm::choker::{Decision, SessionView};
use crate::swarm::{SessionId, Swarm};
use crate::wire::layout::BLOCK_BYTES;

/// How often it looks how much is left to send.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Who asks for nothing for so long has nothing to ask for: more than a round trip.
const PATIENCE: Duration = Duration::from_millis(100);
/// ... and is not unchoked again before this.
const PENALTY: Duration = Duration::from_millis(200);
/// Who was just unchoked is taken to ask for so much: the first window is no larger, and some find nothing.
const FIRST_BYTES: u64 = 4 * BLOCK_BYTES as u64;
/// The next is the one that lacks most of so many drawn ones. If it were the one that lacks most of all, all would
/// choose the same.
const DRAWN: usize = 4;

/// A few are unchoked, one of them is served: a piece to each in turn, so that pieces are whole, and passed on, as early
/// as can be. The others' requests are there when the piece ends: the uplink does not wait for a round trip.
pub struct Cooperative {
    /// Most unchoked at a time.
    slots: usize,
    /// Another is unchoked when no more than this is left to send.
    ahead_bytes: u64,
    rng: SmallRng,
    next_look: Time,
    /// In the order in which they are served.
    turns: Vec<Turn>,
    /// Who had nothing to ask, until when.
    passed_over: BTreeMap<SessionId, Time>,
}

struct Turn {
    session: SessionId,
    /// What had been sent when it began.
    from_bytes: u64,
    /// When it began, or the peer last had a request with us.
    active: Time,
}

impl Cooperative {
    /// So many unchoked at most, another one as soon as no more than so many blocks of 16 KiB are left to send.
    pub fn conduct(slots: usize, ahead_blocks: u64) -> Conduct {
        Conduct::choking(move |seed| {
            Box::new(Cooperative {
                slots,
                ahead_bytes: ahead_blocks * u64::from(BLOCK_BYTES),
                rng: SmallRng::seed_from_u64(seed),
                next_look: Time::ZERO,
                turns: Vec::new(),
                passed_over: BTreeMap::new(),
            })
        })
    }

    /// Whose requests are served now: the first that has any, and has not had its piece; else the first that has any.
    fn served(&self, swarm: &Swarm) -> Option<SessionId> {
        let mut through = None;
        for turn in &self.turns {
            // The time matters for rates only.
            let Some(report) = swarm.report(Time::ZERO, turn.session).filter(|report| report.queued > 0) else {
                continue;
            };
            let piece_bytes = swarm.layout().piece_bytes();
            if !turn.is_over(report.sent_bytes, swarm.is_mid_piece(turn.session), piece_bytes) {
                return Some(turn.session);
            }
            through = through.or(Some(turn.session));
        }
        through
    }

    /// Ends the turns of who had a piece or asks for nothing; if nobody waits, they begin anew. Returns how much is
    /// still to be sent.
    fn end_turns(&mut self, now: Time, views: &[SessionView], others_wait: bool, out: &mut Vec<Decision>) -> u64 {
        let mut left_bytes = 0;
        let passed_over = &mut self.passed_over;
        self.turns.retain_mut(|turn| {
            let Some(view) = views.iter().find(|view| view.session == turn.session && view.unchoked) else {
                return false;
            };
            if view.asks {
                turn.active = now;
            }
            let idle = !view.asks && now.since(turn.active) >= PATIENCE;
            let over = turn.is_over(view.sent_bytes, view.mid_piece, view.piece_bytes);
            if (idle || over) && others_wait {
                if idle {
                    passed_over.insert(turn.session, now + PENALTY);
                }
                out.push(Decision { session: turn.session, choke: true });
                return false;
            }
            if over {
                turn.from_bytes = view.sent_bytes;
            }
            if idle {
                return true;
            }
            let taken = view.sent_bytes - turn.from_bytes;
            let piece_left = u64::from(view.piece_bytes).saturating_sub(taken).max(u64::from(BLOCK_BYTES));
            left_bytes += if view.asks { piece_left } else { FIRST_BYTES };
            true
        });
        left_bytes
    }

    /// Who may be next.
    fn waiting<'a>(&self, swarm: &Swarm, views: &'a [SessionView]) -> Vec<&'a SessionView> {
        let waits = |view: &&SessionView| {
            view.interested
                && !view.unchoked
                && !self.passed_over.contains_key(&view.session)
                && swarm.lacks(view.session) > 0
        };
        views.iter().filter(waits).collect()
    }

    /// Which of them is next: at a lone seed whoever had least, so that all come round.
    fn choose(&mut self, swarm: &Swarm, lone_seed: bool, waiting: &[&SessionView]) -> Option<usize> {
        if waiting.is_empty() {
            return None;
        }
        if lone_seed {
            let start = self.rng.random_range(0..waiting.len());
            let all = (0..waiting.len()).map(|at| (at + start) % waiting.len());
            return all.min_by_key(|at| waiting[*at].sent_bytes);
        }
        let drawn = (0..DRAWN).map(|_| self.rng.random_range(0..waiting.len()));
        drawn.max_by_key(|at| swarm.lacks(waiting[*at].session))
    }
}

impl Turn {
    /// At the end of a piece, unless that was the end of one which others had sent most of.
    fn is_over(&self, sent_bytes: u64, mid_piece: bool, piece_bytes: u32) -> bool {
        sent_bytes - self.from_bytes >= u64::from(piece_bytes / 2) && !mid_piece
    }
}

/// Whether it hides what it has, as the only one that has all (`superseed`).
fn is_lone_seed(swarm: &Swarm, views: &[SessionView]) -> bool {
    swarm.is_complete() && views.iter().any(|view| !swarm.is_open_to(view.session))
}

impl Choking for Cooperative {
    fn review(&mut self, now: Time, swarm: &Swarm, views: &[SessionView], out: &mut Vec<Decision>) {
        self.next_look = now + LOOK_EVERY;
        self.passed_over.retain(|_, until| *until > now);
        let mut waiting = self.waiting(swarm, views);
        let mut left_bytes = self.end_turns(now, views, !waiting.is_empty(), out);
        let lone_seed = is_lone_seed(swarm, views);
        while left_bytes < self.ahead_bytes && self.turns.len() < self.slots {
            let Some(next) = self.choose(swarm, lone_seed, &waiting) else { break };
            let view = waiting.swap_remove(next);
            out.push(Decision { session: view.session, choke: false });
            self.turns.push(Turn { session: view.session, from_bytes: view.sent_bytes, active: now });
            left_bytes += FIRST_BYTES;
        }
    }

    fn next_timeout(&self) -> Option<Time> {
        Some(self.next_look)
    }

    fn is_next(&mut self, swarm: &Swarm, session: SessionId) -> bool {
        self.served(swarm) == Some(session)
    }

    fn next(&mut self, swarm: &Swarm) -> Option<SessionId> {
        self.served(swarm)
    }
}
