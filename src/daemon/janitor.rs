//! What only needs to be looked at now and then: the rules' own timers, and active halves that nobody needs.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::torrent::Torrent;

/// The rules' timers are a second and more; this is how exactly they are met.
const TICK: Duration = Duration::from_millis(100);
/// While no torrent is active there is nothing to look at.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// An active half that has had no session for so many looks is let go: it has been idle for half a minute ...
const LET_GO_AFTER_TICKS: u32 = 300;
/// ... unless somebody is to be dialled before long. Who is to be dialled later will be named by the tracker again.
const DIALLED_SOON: Duration = Duration::from_secs(30);

/// Runs until the daemon stops.
pub async fn run(core: Arc<Core>) {
    let mut idle: std::collections::HashMap<crate::wire::id::InfoHash, u32> = std::collections::HashMap::new();
    loop {
        let live = core.live_torrents();
        for torrent in &live {
            if look_after(&core, torrent) {
                let ticks = idle.entry(torrent.key()).or_default();
                *ticks += 1;
                if *ticks > LET_GO_AFTER_TICKS {
                    idle.remove(&torrent.key());
                    core.deactivate(torrent, false).await;
                }
            } else {
                idle.remove(&torrent.key());
            }
        }
        if live.is_empty() {
            // Nothing is being fetched: the blocks' memory goes back.
            core.pool.trim();
        }
        tokio::time::sleep(if live.is_empty() { IDLE_TICK } else { TICK }).await;
    }
}

/// Returns whether nobody needs the active half just now.
fn look_after(core: &Arc<Core>, torrent: &Arc<Torrent>) -> bool {
    let Some(active) = torrent.active() else { return false };
    let now = core.clock.now();
    let unused = {
        let mut inner = active.lock();
        if inner.swarm.next_timeout().is_some_and(|at| at <= now) {
            inner.swarm.handle_timeout(now);
        }
        inner.sessions.is_empty() && inner.book.next_timeout().is_none_or(|at| at > now + DIALLED_SOON)
    };
    // Blocks of pieces that nobody completes just now must not hold the memory that others wait for.
    while core.pool.is_short() {
        let Some(work) = active.lock().assembly.relieve() else { break };
        torrent.start_disk_work(core, &active, work);
    }
    torrent.pass_effects(core, &active);
    unused && (torrent.is_removed() || torrent.with_status(|status| status.complete))
}
