//! A seed as most clients are: it says at once that it has everything.

use crate::clock::Time;
use crate::sim::{Behaviour, Conduct};
use crate::swarm::SessionId;
use crate::swarm::choker::UploadSlots;
use crate::wire::message::Message;

/// Plays as the product does, but for super-seeding: what it has it shows to all from the start. Of what is asked for
/// all is served anyway.
pub struct ShowsAll;

impl ShowsAll {
    pub fn conduct() -> Conduct {
        Conduct::product(UploadSlots::Default).behaving(|_| Box::new(ShowsAll))
    }
}

impl Behaviour for ShowsAll {
    fn edits(&self) -> bool {
        true
    }

    fn says(&mut self, _now: Time, _session: SessionId, message: Message) -> Option<Message> {
        match message {
            Message::HaveNone => Some(Message::HaveAll),
            Message::Have(_) => None,
            other => Some(other),
        }
    }
}
