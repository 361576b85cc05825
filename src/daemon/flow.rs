//! What flows between the rules of a torrent's swarm and the rest of the daemon: effects out, finished disk work in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::banning;
use super::core::Core;
use super::disk::assembly::{Done, Outcome};
use super::disk::digest;
use super::disk::storage::StorageError;
use super::torrent::{Active, Torrent};
use crate::swarm::{Effect, Given, Identity, SessionId};
use crate::wire::layout::{Block, PieceIndex};

impl Torrent {
    /// Wakes the sessions that have something to do and passes on what the rules decided.
    pub fn pass_effects(&self, core: &Core, active: &Active) {
        let mut wakes: Vec<SessionId> = Vec::new();
        let mut culprits = Vec::new();
        let mut inner = active.lock();
        inner.swarm.take_wakes(&mut wakes);
        for id in wakes {
            if let Some(session) = inner.sessions.get(&id) {
                session.wake.notify_one();
            }
        }
        while let Some(effect) = inner.swarm.poll_effect() {
            match effect {
                Effect::Close(id, why) => {
                    if let Some(session) = inner.sessions.get(&id) {
                        session.close(why.to_string());
                    }
                }
                Effect::Ban(culprit, piece) => culprits.push((culprit, piece)),
                Effect::ReviewChoking => core.choking.notify_one(),
                // The last piece goes through its commit like every other.
                Effect::Complete => core.commits.hurry(),
            }
        }
        drop(inner);
        for (culprit, piece) in culprits {
            banning::shut_out(core, self, &culprit, piece);
        }
    }

    /// Blocks that were to be served and could not be read: the peer is told, and the data is looked at.
    pub fn uploads_failed(self: &Arc<Self>, core: &Arc<Core>, active: &Arc<Active>, id: SessionId, blocks: Vec<Block>) {
        if blocks.is_empty() {
            return;
        }
        {
            let mut inner = active.lock();
            if inner.retired {
                return;
            }
            for block in blocks {
                inner.swarm.upload_failed(id, block);
            }
        }
        core.data_is_suspect(self);
    }

    /// A piece, or a part of it, was hashed and written, or could not be.
    pub(super) fn disk_work_done(
        self: &Arc<Self>,
        core: &Arc<Core>,
        active: &Arc<Active>,
        piece: PieceIndex,
        done: Result<Done, StorageError>,
    ) {
        let (mut next, mut written) = (None, None);
        let mut given = Vec::new();
        let mut suspect = false;
        let mut done = match done {
            Ok(done) => done,
            Err(error) => {
                let mut inner = active.lock();
                if inner.retired {
                    return;
                }
                inner.assembly.abandon(piece);
                inner.swarm.piece_dropped(piece);
                drop(inner);
                core.disk_failed(self, &error);
                return;
            }
        };
        // Dropped when a piece has been queued: at no moment are its bytes counted nowhere.
        let buffers = done.take_buffers();
        {
            let mut inner = active.lock();
            match inner.assembly.done(done) {
                Outcome::Pending(piece) => next = inner.assembly.next_work(piece, core.pool.is_short()),
                Outcome::Stale(_) => {}
                Outcome::Wrong { piece, digests } => {
                    tracing::info!(torrent = %self.summary.name, piece = piece.get(), "a piece came wrong and is fetched again");
                    inner.swarm.piece_failed(piece, &digests);
                }
                Outcome::Verified(piece) => {
                    // Queued before the rules hear of it: what is announced complete must be on its way to its commit.
                    let bytes = u64::from(self.summary.layout.piece_len(piece));
                    core.commits.add(self, active, piece, bytes);
                    given = inner.swarm.piece_verified(piece);
                    suspect = inner.swarm.is_suspect(piece);
                    written = Some(piece);
                }
            }
        }
        drop(buffers);
        if let Some(work) = next {
            self.start_disk_work(core, active, work);
        }
        if suspect {
            let right = digest::of_piece(&active.storage, active.meta.layout(), piece, &active.meta.piece_check(piece));
            active.lock().swarm.judge(piece, &right);
        }
        if let Some(piece) = written {
            core.journal.add(self.key(), piece);
        }
        self.thank(core, &given);
        self.pass_effects(core, active);
        self.touch();
    }

    /// Payload went out to somebody.
    pub fn count_sent(&self, core: &Core, to: Identity, bytes: u64) {
        let name = self.summary.name.to_string_lossy();
        core.ledger.sent(to, self.key(), &name, bytes, core.clock.unix_seconds());
        self.uploaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Only verified payload earns.
    fn thank(&self, core: &Core, given: &[Given]) {
        let now = core.clock.unix_seconds();
        let name = self.summary.name.to_string_lossy();
        for giver in given {
            let bytes = u64::from(giver.bytes);
            core.ledger.received(giver.identity, self.key(), &name, bytes, now);
            self.downloaded_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}
