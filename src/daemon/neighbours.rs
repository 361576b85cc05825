//! Places for sessions, and what a restart must know of the peers: the rules are [`crate::swarm::neighbours`]'.
//!
//! Peers of unfinished torrents are remembered in the store, so that a download goes on after a restart even if no tracker
//! answers. Of what is complete nobody is remembered: a seed is found by those who need it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::core::{Core, MAX_SESSIONS_PER_TORRENT};
use super::records::{PEERS, PeersRecord};
use super::torrent::{Active, Inner, Torrent};
use crate::clock::Time;
use crate::db::record::{decode_record, encode_record};
use crate::db::{Batch, StoreError};
use crate::swarm::SessionId;
use crate::swarm::dial::{KnownPeers, Source};

/// As often as what was downloaded is committed: there is nothing to go on with before that. Nothing is written while the
/// peers stay the same.
const REMEMBER_EVERY: Duration = Duration::from_secs(5);
/// A session that was told to end gives its place back within this.
const PLACE_WITHIN: Duration = Duration::from_secs(2);
const MAKES_ROOM: &str = "of no use for minutes, and another wants its place";

/// A place for a peer that dialled us. When all are taken, a neighbour that has been of no use for long makes room: one of
/// the same torrent if that is full, else one of any. `None` when nobody can be sent away.
pub async fn place_for_incoming(core: &Core, active: &Active) -> Option<OwnedSemaphorePermit> {
    let now = core.clock.now();
    {
        let mut inner = active.lock();
        if inner.live_sessions() >= MAX_SESSIONS_PER_TORRENT {
            inner.look_at_neighbours(now);
            let (useless, _) = inner.neighbours.least_useful(now)?;
            inner.send_away(useless);
        }
    }
    if let Ok(place) = core.session_permits.clone().try_acquire_owned() {
        return Some(place);
    }
    make_room_anywhere(core, now);
    tokio::time::timeout(PLACE_WITHIN, core.session_permits.clone().acquire_owned()).await.ok()?.ok()
}

/// All sessions that there may be are up: the one of any torrent that has been of no use for longest ends.
pub fn make_room_anywhere(core: &Core, now: Time) {
    let live = core.live_torrents();
    let useless = live.iter().filter_map(|torrent| {
        let active = torrent.active()?;
        let (id, since) = {
            let mut inner = active.lock();
            inner.look_at_neighbours(now);
            inner.neighbours.least_useful(now)?
        };
        Some((since, id, active))
    });
    if let Some((_, id, active)) = useless.min_by_key(|(since, id, _)| (*since, *id)) {
        active.lock().send_away(id);
    }
}

impl Inner {
    pub fn look_at_neighbours(&mut self, now: Time) {
        self.neighbours.look(now, self.swarm.reports(now));
        self.book.set_useless(self.live_sessions().saturating_sub(self.neighbours.useful()));
    }

    /// Ends a session to the benefit of another.
    pub fn send_away(&self, id: SessionId) {
        if let Some(session) = self.sessions.get(&id) {
            session.close(MAKES_ROOM);
        }
    }
}

/// Puts the peers of the last run into the book of a torrent that is being set up. Returns what the store has.
///
/// # Errors
/// When the store cannot be read.
pub fn recall(core: &Core, torrent: &Torrent, book: &mut KnownPeers) -> Result<Vec<std::net::SocketAddr>, StoreError> {
    let Some(bytes) = core.store.get(PEERS, torrent.key().as_bytes())? else { return Ok(Vec::new()) };
    let PeersRecord(peers) = decode_record(&bytes).unwrap_or_else(|error| {
        tracing::warn!(torrent = %torrent.summary.name, %error, "the peers of the last run cannot be read; others will be found");
        PeersRecord::default()
    });
    if !torrent.with_status(|status| status.complete) {
        book.add(peers.iter().copied(), Source::Remembered, core.clock.now());
    }
    Ok(peers)
}

/// Remembers peers until the daemon stops, and once more then.
pub async fn run(core: Arc<Core>) {
    while !core.tasks.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(REMEMBER_EVERY) => {}
            () = core.tasks.stopping() => {}
        }
        if let Err(error) = core.submit(news(&core)).await {
            tracing::warn!(%error, "peers could not be remembered: after a restart they come from the tracker");
        }
    }
}

/// What has changed since the store was last told.
fn news(core: &Core) -> Batch {
    let mut batch = Batch::new();
    for torrent in core.live_torrents() {
        let Some(active) = torrent.active().filter(|_| !torrent.is_removed()) else { continue };
        let complete = torrent.with_status(|status| status.complete);
        let mut inner = active.lock();
        let peers = if complete { Vec::new() } else { inner.book.worth_remembering() };
        if peers == inner.remembered {
            continue;
        }
        if peers.is_empty() {
            batch.delete(PEERS, torrent.key().as_bytes());
        } else {
            batch.put(PEERS, torrent.key().as_bytes(), encode_record(&PeersRecord(peers.clone())));
        }
        inner.remembered = peers;
    }
    batch
}
