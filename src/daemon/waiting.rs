//! Torrents that stop for a reason which may pass, and go on by themselves when it has.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::torrent::{Phase, Torrent};

/// How often is looked whether it has passed: a look costs a system call or two.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Whether a torrent may go on. It may block.
pub type MayGoOn = fn(&Core, &Torrent) -> bool;

impl Core {
    /// Stops a torrent with a message that says what it waits for.
    pub fn fail_until(self: &Arc<Self>, torrent: &Arc<Torrent>, message: String, may_go_on: MayGoOn) {
        if torrent.with_status(|status| matches!(&status.phase, Phase::Error(known) if *known == message)) {
            return;
        }
        self.fail(torrent, message.clone());
        self.tasks.spawn("wait", wait(self.clone(), torrent.clone(), Phase::Error(message), may_go_on));
    }
}

/// Until the torrent may go on, or is in another state than the one that it waits in.
async fn wait(core: Arc<Core>, torrent: Arc<Torrent>, waiting: Phase, may_go_on: MayGoOn) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if torrent.is_removed() || torrent.with_status(|status| status.phase != waiting) {
            return;
        }
        let (of_core, of) = (core.clone(), torrent.clone());
        let looked = tokio::task::spawn_blocking(move || may_go_on(&of_core, &of)).await;
        if !looked.is_ok_and(|may| may) {
            continue;
        }
        // What was opened before may be the wrong folder: a mount point without its disk.
        core.deactivate(&torrent, true).await;
        torrent.update(|status| {
            if status.phase == waiting {
                status.phase = if status.complete { Phase::Seeding } else { Phase::Downloading };
            }
        });
        tracing::info!(torrent = %torrent.summary.name, "it goes on");
        return core.start(&torrent).await;
    }
}
