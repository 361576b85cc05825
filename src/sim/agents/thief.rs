//! A bandwidth thief, after Adamsky, Khayam, Jäger and Rajarajan 2014 (*Stealing Bandwidth from BitTorrent Seeders*):
//! it takes from a seed as fast as it can, so that others get less.

use std::collections::BTreeMap;
use std::time::Duration;

use super::FreeRider;
use crate::clock::Time;
use crate::sim::{Act, Behaviour, Conduct};
use crate::swarm::{SessionId, Swarm};
use crate::wire::message::Message;

/// Choked for so long, it connects anew, in the hope of being taken for a newcomer.
const PATIENCE: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_secs(1);

/// Gives nothing, says of no piece that it has it, throws away what it has to fetch it again, and comes back as a
/// stranger when it is choked.
#[derive(Default)]
pub struct Thief {
    choked_since: BTreeMap<SessionId, Time>,
    /// Peers number so many, the seed being the first; a peer that it left is dialled again.
    seed: usize,
}

impl Thief {
    /// Of the seed that is the scenario's peer of this number.
    pub fn conduct(seed: usize) -> Conduct {
        FreeRider::conduct().behaving(move |_| Box::new(Thief { seed, ..Thief::default() }))
    }
}

impl Behaviour for Thief {
    fn serves(&mut self, _now: Time, _session: SessionId) -> bool {
        false
    }

    fn edits(&self) -> bool {
        true
    }

    fn says(&mut self, _now: Time, _session: SessionId, message: Message) -> Option<Message> {
        match message {
            Message::Have(_) => None,
            Message::Bitfield(_) | Message::HaveAll => Some(Message::HaveNone),
            other => Some(other),
        }
    }

    fn acts_every(&self) -> Option<Duration> {
        Some(EVERY)
    }

    fn act(&mut self, now: Time, swarm: &Swarm, out: &mut Vec<Act>) {
        let mut choked_since = BTreeMap::new();
        for report in swarm.reports(now).filter(|report| report.peer_chokes) {
            let since = *self.choked_since.get(&report.session).unwrap_or(&now);
            if now.since(since) >= PATIENCE {
                out.push(Act::Close(report.session));
            } else {
                choked_since.insert(report.session, since);
            }
        }
        self.choked_since = choked_since;
        out.extend(swarm.have().iter_set(swarm.layout()).map(Act::Forget));
        out.push(Act::Dial(self.seed));
    }
}
