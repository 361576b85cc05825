//! Asks the choker when it is time and passes its decisions on.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::torrent::Status;
use crate::swarm::choker::{Decision, SessionView};

/// Turns are counted in bytes too, which no timer of the choker's knows: look so often while anybody is unchoked.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Runs until the daemon stops.
pub async fn run(core: Arc<Core>) {
    loop {
        let busy = review(&core);
        tokio::select! {
            () = core.choking.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY), if busy => {}
        }
    }
}

/// Returns whether there is anybody to decide about.
fn review(core: &Arc<Core>) -> bool {
    let (now, today) = (core.clock.now(), core.clock.unix_seconds());
    let live: Vec<_> =
        core.live_torrents().into_iter().filter_map(|torrent| Some((torrent.active()?, torrent))).collect();
    let mut views: Vec<SessionView> = Vec::new();
    for (active, torrent) in &live {
        if torrent.with_status(Status::is_live) {
            active.lock().swarm.choker_views(|identity| core.ledger.account(*identity, today), &mut views);
        }
    }
    let mut decisions: Vec<Decision> = Vec::new();
    core.choker().review(now, &views, &mut decisions);
    // Slots are given back before they are given out: at no moment are there more than there should be.
    decisions.sort_by_key(|decision| !decision.choke);
    for decision in decisions {
        for (active, torrent) in &live {
            let mut inner = active.lock();
            if inner.sessions.contains_key(&decision.session) {
                inner.swarm.set_choke(decision.session, decision.choke);
                drop(inner);
                torrent.pass_effects(core, active);
                break;
            }
        }
    }
    !views.is_empty()
}
