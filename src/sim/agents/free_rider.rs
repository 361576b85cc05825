//! Takes and never gives.

use crate::clock::Time;
use crate::sim::{Behaviour, Choking, Conduct};
use crate::swarm::SessionId;
use crate::swarm::choker::{Decision, SessionView};

/// Unchokes nobody and serves nothing; else it plays as the product does.
pub struct FreeRider;

impl FreeRider {
    pub fn conduct() -> Conduct {
        Conduct::choking(|_| Box::new(FreeRider)).behaving(|_| Box::new(FreeRider))
    }
}

impl Choking for FreeRider {
    fn review(&mut self, _now: Time, _views: &[SessionView], _out: &mut Vec<Decision>) {}

    fn next_timeout(&self) -> Option<Time> {
        None
    }
}

impl Behaviour for FreeRider {
    fn serves(&mut self, _now: Time, _session: SessionId) -> bool {
        false
    }
}
