//! `pause`, `resume`, `verify`, `remove`, `limit`, `leave`.

use std::sync::Arc;
use std::time::Duration;

use super::rows::state_of;
use super::{Commands, Found};
use crate::daemon::checking::Asked;
use crate::daemon::control::Reply;
use crate::daemon::torrent::{Origin, Phase, Torrent};
use crate::db::Batch;
use crate::wire::control::{
    Answer, Changed, Failure, Left, Limits, NotTold, PathBytes, Remove, Removed, SetLimits, Verified, What,
};
use crate::wire::rate::Rate;

/// design.md *Leave*: the trackers have so long to hear it.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

impl Commands {
    pub(super) async fn pause(&self, what: What) -> Result<Answer, Failure> {
        match self.find(&what)? {
            Found::Answer(answer) => Ok(*answer),
            Found::One(torrent) => {
                self.core.pause(&torrent).await.map_err(|error| Failure::failed(error.to_string()))?;
                Ok(changed(&torrent))
            }
        }
    }

    pub(super) async fn resume(&self, what: What) -> Result<Answer, Failure> {
        match self.find(&what)? {
            Found::Answer(answer) => Ok(*answer),
            Found::One(torrent) => {
                self.core.resume(&torrent).await.map_err(|error| Failure::failed(error.to_string()))?;
                Ok(changed(&torrent))
            }
        }
    }

    pub(super) async fn verify(&self, what: What, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let torrent = match self.find(&what)? {
            Found::Answer(answer) => return Ok(*answer),
            Found::One(torrent) => torrent,
        };
        self.core.begin_verify(&torrent, Asked::ByUser);
        let mut changes = torrent.watch();
        while torrent.with_status(|status| status.phase == Phase::Checking) && !torrent.is_removed() {
            changes.mark_unchanged();
            reply.send(&Answer::Progress(self.progress(&torrent))).await?;
            let _ = tokio::time::timeout(PROGRESS_EVERY, changes.changed()).await;
        }
        let progress = self.progress(&torrent);
        Ok(Answer::Verified(Verified {
            name: progress.name,
            key: torrent.key(),
            state: progress.state,
            path: PathBytes::from(self.core.data_path(&torrent)),
            size: progress.total_bytes,
            have_bytes: progress.have_bytes,
            pieces_have: progress.pieces_have,
            pieces_total: progress.pieces_total,
        }))
    }

    pub(super) async fn remove(&self, remove: Remove) -> Result<Answer, Failure> {
        let torrent = match self.find(&remove.what)? {
            Found::Answer(answer) => return Ok(*answer),
            Found::One(torrent) => torrent,
        };
        let path = self.core.data_path(&torrent);
        let origin = torrent.with_status(|status| status.origin.clone());
        let fetched = matches!(origin, Origin::Download { .. });
        if remove.data && !fetched && !remove.yes {
            return Err(Failure::usage(format!(
                "{} was not fetched by peerd but put there by its owner: peerctl remove --data --yes {} deletes it all the same",
                path.display(),
                torrent.key()
            )));
        }
        let lies_in_upload = !self.core.shares.paths_of(torrent.key()).is_empty();
        let declined = lies_in_upload && !remove.data;
        if declined {
            let mut batch = Batch::new();
            self.core.shares.decline(torrent.key(), &mut batch);
            self.core.submit(batch).await.map_err(|error| Failure::failed(error.to_string()))?;
        }
        self.core.remove(&torrent, remove.data).await.map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Answer::Removed(Removed {
            name: torrent.summary.name.to_string_lossy().into_owned(),
            key: torrent.key(),
            path: PathBytes::from(path),
            data_deleted: remove.data,
            declined,
        }))
    }

    /// From now on, until the daemon ends.
    pub(super) fn limit(&self, set: &SetLimits) -> Answer {
        let (limits, now) = (&self.core.limits, self.core.clock.now());
        for (direction, bytes_per_s) in [(&limits.up, set.up_bytes_per_s), (&limits.down, set.down_bytes_per_s)] {
            if let Some(bytes_per_s) = bytes_per_s {
                direction.set_rate(now, Rate::from_bytes_per_s(bytes_per_s));
            }
        }
        Answer::Limits(Limits {
            up_bytes_per_s: limits.up.rate().bytes_per_s(),
            down_bytes_per_s: limits.down.rate().bytes_per_s(),
            lan_exempt: self.core.options.lan_exempt,
        })
    }

    pub(super) async fn leave(&self) -> Result<Answer, Failure> {
        let farewell = self.core.announcer.leave(&self.core, LEAVE_WITHIN).await;
        self.core.leave.notify_one();
        Ok(Answer::Left(Left {
            torrents: farewell.torrents,
            told: farewell.told,
            not_told: farewell.not_told.into_iter().map(|(url, error)| NotTold { url, error }).collect(),
        }))
    }
}

fn changed(torrent: &Arc<Torrent>) -> Answer {
    Answer::Changed(Changed {
        name: torrent.summary.name.to_string_lossy().into_owned(),
        key: torrent.key(),
        state: state_of(&torrent.status()),
    })
}
