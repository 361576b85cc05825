//! Dials the peers that the torrents' books name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::greet::{self, GreetError};
use crate::daemon::core::{Core, MAX_SESSIONS_PER_TORRENT};
use crate::daemon::neighbours;
use crate::daemon::torrent::{Active, Torrent};
use crate::swarm::dial::Ended;
use crate::swarm::neighbours::Step;

/// Dials under way at once over all torrents: a list of dead addresses must not use up the descriptors.
const DIALS_AT_ONCE: usize = 32;
/// Back-offs end without an event.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Dials until the daemon stops.
pub async fn run(core: Arc<Core>) {
    let places = Arc::new(Semaphore::new(DIALS_AT_ONCE));
    loop {
        let live = core.live_torrents();
        for torrent in &live {
            dial_some(&core, torrent, &places);
        }
        tokio::select! {
            () = core.dialling.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY), if !live.is_empty() => {}
        }
    }
}

fn dial_some(core: &Arc<Core>, torrent: &Arc<Torrent>, places: &Arc<Semaphore>) {
    if !torrent.with_status(|status| status.is_live()) {
        return;
    }
    let Some(active) = torrent.active() else { return };
    active.lock().look_at_neighbours(core.clock.now());
    loop {
        let Ok(place) = places.clone().try_acquire_owned() else { return };
        let Some(to) = whom_to_dial(core, torrent, &active) else { return };
        core.tasks.spawn("dial", dial(core.clone(), torrent.clone(), active.clone(), to, place));
    }
}

/// The next address to dial, if one more neighbour is wanted and there is a place for it.
fn whom_to_dial(core: &Core, torrent: &Torrent, active: &Active) -> Option<SocketAddr> {
    let now = core.clock.now();
    let mut inner = active.lock();
    let (connected, dialling) = (inner.live_sessions(), inner.book.dialling_count());
    let step = inner.neighbours.step(now, connected, dialling, MAX_SESSIONS_PER_TORRENT);
    if step == Step::Enough {
        return None;
    }
    if !inner.book.has_due(now) {
        if !torrent.with_status(|status| status.complete) && inner.neighbours.in_want(now) {
            core.announcer.wants_peers(torrent.key());
        }
        return None;
    }
    match step {
        // Its place is free at the next look.
        Step::Replace(id) => inner.send_away(id),
        _ if core.session_permits.available_permits() > 0 => {
            while let Some(to) = inner.book.next_dial(now) {
                if core.bouncer.may_dial(to, now) {
                    return Some(to);
                }
                inner.book.ended(to, Ended::Fault, now);
            }
        }
        _ => {
            drop(inner);
            neighbours::make_room_anywhere(core, now);
        }
    }
    None
}

async fn dial(
    core: Arc<Core>,
    torrent: Arc<Torrent>,
    active: Arc<Active>,
    to: SocketAddr,
    place: OwnedSemaphorePermit,
) {
    let greeted = greet::outgoing(&core, &torrent, &active, to).await;
    drop(place);
    core.dialling.notify_one();
    match greeted {
        Ok(greeted) => greeted.run(core).await,
        Err(error) => {
            tracing::debug!(torrent = %torrent.summary.name, peer = %to, %error, "dialling came to nothing");
            // One that is connected already has been noted by whoever found it out.
            if !matches!(error, GreetError::Twice) {
                active.lock().book.ended(to, Ended::Failed, core.clock.now());
            }
        }
    }
}
