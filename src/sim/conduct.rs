//! How a node plays: as the product does, or otherwise.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Time;
use crate::swarm::choker::{Choker, Decision, SessionView, UploadSlots};
use crate::swarm::{SessionId, Swarm};
use crate::wire::layout::{Block, PieceIndex};
use crate::wire::message::Message;

/// Who may be served: the product's [`Choker`], or another in its place.
pub trait Choking: Send {
    /// Decides; `views` are all sessions of the node. Appends only what changes.
    fn review(&mut self, now: Time, swarm: &Swarm, views: &[SessionView], out: &mut Vec<Decision>);

    /// When to review next, beside each time that the swarm asks for it.
    fn next_timeout(&self) -> Option<Time>;

    /// Whether it is the turn of this session, of those that are unchoked, to be given its next block.
    fn is_next(&mut self, _swarm: &Swarm, _session: SessionId) -> bool {
        true
    }

    /// The uplink has nothing to send: the session that was kept waiting by [`Choking::is_next`] and is next now.
    fn next(&mut self, _swarm: &Swarm) -> Option<SessionId> {
        None
    }
}

impl Choking for Choker {
    fn review(&mut self, now: Time, _swarm: &Swarm, views: &[SessionView], out: &mut Vec<Decision>) {
        Choker::review(self, now, views, out);
    }

    fn next_timeout(&self) -> Option<Time> {
        Choker::next_timeout(self)
    }
}

/// What a node does of its own accord, on top of what its swarm does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// Says this, whatever its swarm thinks of it.
    Say(SessionId, Message),
    /// Ends the session.
    Close(SessionId),
    /// Connects to the peer of this number, whatever its address book says.
    Dial(usize),
    /// Asks [`Behaviour::serves`] again.
    Serve(SessionId),
    /// Throws a piece away that it has, and wants it again.
    Forget(PieceIndex),
}

/// How a node differs from an honest one in what it says and serves. Whom it unchokes is for its [`Choking`].
pub trait Behaviour: Send {
    /// Whether a block may go to this session now. After a no it is asked again when anything happens in the session,
    /// and on [`Act::Serve`].
    fn serves(&mut self, _now: Time, _session: SessionId) -> bool {
        true
    }

    /// Whether this block goes out as noise.
    fn spoils(&mut self, _session: SessionId, _block: Block) -> bool {
        false
    }

    /// Whether [`Behaviour::says`] is to see every message.
    fn edits(&self) -> bool {
        false
    }

    /// What is said in place of a message of the swarm's; `None`: nothing.
    fn says(&mut self, _now: Time, _session: SessionId, message: Message) -> Option<Message> {
        Some(message)
    }

    /// How often [`Behaviour::act`] is called; `None`: never.
    fn acts_every(&self) -> Option<Duration> {
        None
    }

    /// Appends what it does of its own accord.
    fn act(&mut self, _now: Time, _swarm: &Swarm, _out: &mut Vec<Act>) {}
}

/// Says and serves what its swarm would.
pub struct Honest;

impl Behaviour for Honest {}

type Make<T> = Arc<dyn Fn(u64) -> Box<T> + Send + Sync>;

/// A way of playing, from which each node is given its own choker and behaviour.
#[derive(Clone)]
pub struct Conduct {
    choker: Make<dyn Choking>,
    behaviour: Make<dyn Behaviour>,
    /// Most sessions at a time; `None`: as many as the scenario allows to all.
    pub(super) neighbours: Option<usize>,
}

impl Conduct {
    /// As shipped, with so many upload slots.
    pub fn product(slots: UploadSlots) -> Conduct {
        Conduct::choking(move |seed| Box::new(Choker::new(slots, seed)))
    }

    /// Honest but for its choker, which is made from a seed.
    pub fn choking(choker: impl Fn(u64) -> Box<dyn Choking> + Send + Sync + 'static) -> Conduct {
        Conduct { choker: Arc::new(choker), behaviour: Arc::new(|_| Box::new(Honest)), neighbours: None }
    }

    /// The same with another behaviour, which is made from a seed.
    pub fn behaving(self, behaviour: impl Fn(u64) -> Box<dyn Behaviour> + Send + Sync + 'static) -> Conduct {
        Conduct { behaviour: Arc::new(behaviour), ..self }
    }

    /// The same with so many sessions at most: it asks the tracker for as many peers, and dials them all.
    pub fn with_neighbours(self, neighbours: usize) -> Conduct {
        Conduct { neighbours: Some(neighbours), ..self }
    }

    pub(super) fn make_choker(&self, seed: u64) -> Box<dyn Choking> {
        (self.choker)(seed)
    }

    pub(super) fn make_behaviour(&self, seed: u64) -> Box<dyn Behaviour> {
        (self.behaviour)(seed)
    }
}
