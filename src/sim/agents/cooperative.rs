//! Serves whoever asks, without asking what it gets for it.

use crate::clock::Time;
use crate::sim::{Choking, Conduct};
use crate::swarm::choker::{Decision, SessionView};

/// Everybody who is interested holds a slot, up to a number of slots; who came first keeps it as long as it wants.
pub struct Cooperative {
    slots: usize,
}

impl Cooperative {
    pub fn conduct(slots: usize) -> Conduct {
        Conduct::choking(move |_| Box::new(Cooperative { slots }))
    }
}

impl Choking for Cooperative {
    fn review(&mut self, _now: Time, views: &[SessionView], out: &mut Vec<Decision>) {
        let done = views.iter().filter(|view| view.unchoked && !view.interested);
        out.extend(done.map(|view| Decision { session: view.session, choke: true }));
        let held = views.iter().filter(|view| view.unchoked && view.interested).count();
        let waiting = views.iter().filter(|view| !view.unchoked && view.interested);
        let served = waiting.take(self.slots.saturating_sub(held));
        out.extend(served.map(|view| Decision { session: view.session, choke: false }));
    }

    fn next_timeout(&self) -> Option<Time> {
        None
    }
}
