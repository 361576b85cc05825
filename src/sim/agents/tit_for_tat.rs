//! The plain choker that cheaters are measured against, after Cohen 2003.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clock::Time;
use crate::sim::{Choking, Conduct};
use crate::swarm::choker::{Decision, SessionView};
use crate::swarm::{SessionId, Swarm};

const ROUND: Duration = Duration::from_secs(10);
const RATE_WINDOW: Duration = Duration::from_secs(20);
/// Rounds that the optimistic slot is held.
const OPTIMISTIC_ROUNDS: u64 = 3;

/// Every 10 s the peers that sent most in the last 20 s get the slots, and a stranger drawn by lot gets one more for
/// 30 s. Once it seeds, those that took most get them. A free slot is filled at once.
pub struct TitForTat {
    slots: usize,
    rng: SmallRng,
    rounds: u64,
    next_round: Time,
    optimistic: Option<SessionId>,
    /// By session: when looked at, bytes received and sent until then.
    samples: BTreeMap<SessionId, VecDeque<(Time, u64, u64)>>,
}

impl TitForTat {
    /// With so many slots beside the optimistic one.
    pub fn conduct(slots: usize) -> Conduct {
        Conduct::choking(move |seed| {
            Box::new(TitForTat {
                slots,
                rng: SmallRng::seed_from_u64(seed),
                rounds: 0,
                next_round: Time::ZERO,
                optimistic: None,
                samples: BTreeMap::new(),
            })
        })
    }

    /// Bytes that passed within the window: received, or sent once we seed.
    fn recent(&self, view: &SessionView) -> u64 {
        let first = self.samples.get(&view.session).and_then(VecDeque::front);
        let (_, received, sent) = first.copied().unwrap_or((Time::ZERO, view.received_bytes, view.sent_bytes));
        if view.seeding { view.sent_bytes - sent } else { view.received_bytes - received }
    }

    fn sample(&mut self, now: Time, views: &[SessionView]) {
        self.samples.retain(|id, _| views.iter().any(|view| view.session == *id));
        for view in views {
            let samples = self.samples.entry(view.session).or_default();
            samples.push_back((now, view.received_bytes, view.sent_bytes));
            while samples.front().is_some_and(|(at, _, _)| now.since(*at) > RATE_WINDOW) {
                samples.pop_front();
            }
        }
    }

    fn draw_optimistic(&mut self, due: bool, views: &[SessionView], best: &[SessionId]) {
        let stays = |id: SessionId| views.iter().any(|view| view.session == id && view.interested);
        let over = due && self.rounds.is_multiple_of(OPTIMISTIC_ROUNDS);
        if self.optimistic.is_some_and(stays) && !over {
            return;
        }
        let waiting: Vec<SessionId> = views
            .iter()
            .filter(|view| view.interested && !best.contains(&view.session))
            .map(|view| view.session)
            .collect();
        self.optimistic = (!waiting.is_empty()).then(|| waiting[self.rng.random_range(0..waiting.len())]);
    }
}

impl Choking for TitForTat {
    fn review(&mut self, now: Time, _swarm: &Swarm, views: &[SessionView], out: &mut Vec<Decision>) {
        let held = views.iter().filter(|view| view.unchoked && view.interested).count();
        let due = now >= self.next_round;
        if !due && held > self.slots {
            return;
        }
        if due {
            self.next_round = now + ROUND;
            self.sample(now, views);
        }
        let mut ranked: Vec<&SessionView> = views.iter().filter(|view| view.interested).collect();
        // Between rounds nobody loses a slot.
        ranked.sort_by_key(|view| (!due && !view.unchoked, Reverse(self.recent(view)), view.session));
        let best: Vec<SessionId> = ranked.iter().take(self.slots).map(|view| view.session).collect();
        self.draw_optimistic(due, views, &best);
        self.rounds += u64::from(due);
        for view in views {
            let choke = !best.contains(&view.session) && self.optimistic != Some(view.session);
            if choke == view.unchoked {
                out.push(Decision { session: view.session, choke });
            }
        }
    }

    fn next_timeout(&self) -> Option<Time> {
        Some(self.next_round)
    }
}
