//! Dials the peers that the torrents' books name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::greet::{self, GreetError};
use crate::daemon::core::{Core, MAX_SESSIONS_PER_TORRENT};
use crate::daemon::torrent::{Active, Torrent};
use crate::swarm::dial::{Ended, Source};

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
    loop {
        let Ok(place) = places.clone().try_acquire_owned() else { return };
        let now = core.clock.now();
        let to = {
            let mut inner = active.lock();
            if inner.sessions.len() >= MAX_SESSIONS_PER_TORRENT || core.session_permits.available_permits() == 0 {
                return;
            }
            let to = inner.book.next_dial(now);
            if let Some(banned) = to.filter(|&to| !core.bouncer.may_dial(to, now)) {
                inner.book.ended(banned, Ended::Fault, now);
                continue;
            }
            to
        };
        let Some(to) = to else { return };
        core.tasks.spawn("dial", dial(core.clone(), torrent.clone(), active.clone(), to, place));
    }
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
        Ok(greeted) => {
            active.lock().book.connected(to, Source::Tracker, core.clock.now());
            greeted.run(core).await;
        }
        Err(error) => {
            tracing::debug!(torrent = %torrent.summary.name, peer = %to, %error, "dialling came to nothing");
            let how = if matches!(error, GreetError::Twice) { Ended::NoUse } else { Ended::Failed };
            active.lock().book.ended(to, how, core.clock.now());
        }
    }
}
