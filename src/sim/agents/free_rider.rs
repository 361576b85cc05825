//! Takes and never gives.

use crate::clock::Time;
use crate::sim::{Behaviour, Choking, Conduct};
use crate::swarm::choker::{Decision, SessionView};
use crate::swarm::{SessionId, Swarm};

/// More than the peers of any scenario that it plays in.
const LARGE_VIEW: usize = 1_000;

/// Unchokes nobody and serves nothing; else it plays as the product does.
pub struct FreeRider;

impl FreeRider {
    pub fn conduct() -> Conduct {
        Conduct::choking(|_| Box::new(FreeRider)).behaving(|_| Box::new(FreeRider))
    }

    /// The same with as many neighbours as it can get (Sirivianos et al. 2007, the large view exploit).
    pub fn with_large_view() -> Conduct {
        FreeRider::conduct().with_neighbours(LARGE_VIEW)
    }
}

impl Choking for FreeRider {
    fn review(&mut self, _now: Time, _swarm: &Swarm, _views: &[SessionView], _out: &mut Vec<Decision>) {}

    fn next_timeout(&self) -> Option<Time> {
        None
    }
}

impl Behaviour for FreeRider {
    fn serves(&mut self, _now: Time, _session: SessionId) -> bool {
        false
    }
}
