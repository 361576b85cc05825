//! `get` and `search`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Commands;
use super::choose::{Choice, choose};
use crate::clock::Time;
use crate::daemon::control::Reply;
use crate::daemon::torrent::{Phase, Torrent};
use crate::daemon::trackers::catalogue::CatalogueError;
use crate::wire::catalogue::{Match, SearchQuery};
use crate::wire::control::{Answer, Candidate, Done, Failure, Get, PathBytes, Search, SearchHit, Started, What};
use crate::wire::id::InfoHash;
use crate::wire::metainfo::Metainfo;

/// How often a waiting `get` says how far it is, at most: a progress bar that moves smoothly.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Hits looked at to find out what words mean.
const HITS_LOOKED_AT: u32 = 50;

/// A `.torrent` to fetch, or the answer that the words do not name one.
enum Resolved {
    Torrent { bytes: Vec<u8>, ours: bool },
    Here(Arc<Torrent>),
    Answer(Answer),
}

impl Commands {
    pub(super) async fn get(&self, get: Get, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let begun = self.core.clock.now();
        let torrent = match self.resolve(get.what).await? {
            Resolved::Answer(answer) => return Ok(answer),
            Resolved::Here(torrent) => torrent,
            Resolved::Torrent { bytes, ours } => {
                let folder = get.to.map_or_else(|| self.core.options.download_dir.clone(), |to| to.to_path());
                let added = self.core.add_fetched(bytes, folder, ours).await;
                added.map_err(|error| Failure::failed(error.to_string()))?
            }
        };
        if torrent.with_status(|status| status.paused || matches!(status.phase, Phase::Error(_) | Phase::Missing)) {
            self.core.resume(&torrent).await.map_err(|error| Failure::failed(error.to_string()))?;
        }
        let summary = &torrent.summary;
        let started = Started {
            name: summary.name.to_string_lossy().into_owned(),
            key: summary.key,
            size: summary.layout.total_bytes(),
            n_parts: summary.layout.piece_count(),
            path: PathBytes::from(self.core.data_path(&torrent)),
        };
        if get.detach {
            return Ok(Answer::Started(started));
        }
        reply.send(&Answer::Started(started)).await?;
        self.follow(&torrent, begun, reply).await
    }

    /// Tells how far it is until all pieces are verified and committed.
    async fn follow(&self, torrent: &Arc<Torrent>, begun: Time, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let received_before = torrent.downloaded_bytes.load(Ordering::Relaxed);
        let mut changes = torrent.watch();
        let mut told = Time::ZERO;
        loop {
            changes.mark_unchanged();
            let status = torrent.status();
            match status.phase {
                Phase::Seeding => {
                    reply.send(&Answer::Progress(self.progress(torrent))).await?;
                    let summary = &torrent.summary;
                    return Ok(Answer::Done(Done {
                        name: summary.name.to_string_lossy().into_owned(),
                        key: summary.key,
                        path: PathBytes::from(self.core.data_path(torrent)),
                        size: summary.layout.total_bytes(),
                        n_parts: summary.layout.piece_count(),
                        received_bytes: torrent.downloaded_bytes.load(Ordering::Relaxed) - received_before,
                        elapsed_ms: self.core.clock.now().since(begun).as_millis() as u64,
                    }));
                }
                Phase::Error(message) => return Err(Failure::failed(message)),
                _ if torrent.is_removed() => return Err(Failure::failed(format!("{} was removed", torrent.summary.name))),
                _ => {}
            }
            let now = self.core.clock.now();
            if now.since(told) >= PROGRESS_EVERY {
                told = now;
                reply.send(&Answer::Progress(self.progress(torrent))).await?;
            }
            let _ = tokio::time::timeout(PROGRESS_EVERY, changes.changed()).await;
        }
    }

    async fn resolve(&self, what: What) -> Result<Resolved, Failure> {
        match what {
            What::Torrent(bytes) => {
                let meta = Metainfo::parse(&bytes)
                    .map_err(|error| Failure::failed(format!("this is no usable .torrent: {error}")))?;
                let ours = self.core.names_our_tracker(&meta);
                Ok(self.here(meta.info_hash()).unwrap_or(Resolved::Torrent { bytes, ours }))
            }
            What::InfoHash(key) => match self.here(key) {
                Some(here) => Ok(here),
                None => self.fetch(key).await,
            },
            What::Words(words) => self.resolve_words(&words).await,
        }
    }

    fn here(&self, key: InfoHash) -> Option<Resolved> {
        self.core.torrent(key).map(Resolved::Here)
    }

    async fn fetch(&self, key: InfoHash) -> Result<Resolved, Failure> {
        let bytes = self.core.catalogue().fetch_torrent(key).await.map_err(|error| match error {
            CatalogueError::NotFound => Failure::not_found(format!("the tracker knows no torrent {key}")),
            error => self.tracker_failure(&error),
        })?;
        match Metainfo::parse(&bytes) {
            Ok(meta) if meta.info_hash() == key => Ok(Resolved::Torrent { bytes, ours: true }),
            Ok(meta) => Err(Failure::failed(format!("the tracker gave {} for {key}: nothing was fetched", meta.info_hash()))),
            Err(error) => Err(Failure::failed(format!("the tracker's .torrent for {key} is not usable: {error}"))),
        }
    }

    async fn resolve_words(&self, words: &str) -> Result<Resolved, Failure> {
        let query = SearchQuery { q: words.to_owned(), limit: HITS_LOOKED_AT, ..SearchQuery::default() };
        let found = self.core.catalogue().search(&query).await.map_err(|error| self.tracker_failure(&error))?;
        let matches = |matched: Match| matched != Match::Typo;
        match choose(words, found.hits.iter().map(|hit| (hit.name.as_str(), matches(hit.matched)))) {
            Choice::One(index) => {
                let key = found.hits[index].key;
                match self.here(key) {
                    Some(here) => Ok(here),
                    None => self.fetch(key).await,
                }
            }
            Choice::Several(indices) => {
                let all: Vec<Candidate> =
                    indices.into_iter().map(|index| SearchHit::from(found.hits[index].clone()).into()).collect();
                Ok(Resolved::Answer(Answer::Ambiguous(all)))
            }
            Choice::None if found.hits.is_empty() => Err(Failure::not_found(format!(
                "nobody shares anything named {words}: peerctl search shows what there is"
            ))),
            Choice::None => {
                let near = found.hits.into_iter().map(|hit| SearchHit::from(hit).into()).collect();
                Ok(Resolved::Answer(Answer::DidYouMean(near)))
            }
        }
    }

    pub(super) async fn search(&self, search: Search, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let query =
            SearchQuery { q: search.words, limit: search.limit, offset: search.offset, ..SearchQuery::default() };
        let found = self.core.catalogue().search(&query).await.map_err(|error| self.tracker_failure(&error))?;
        reply.send(&Answer::SearchTotal(found.total)).await?;
        reply.send_rows(found.hits.into_iter().map(SearchHit::from), Answer::SearchHits).await?;
        Ok(Answer::End)
    }

    pub(super) fn tracker_failure(&self, error: &CatalogueError) -> Failure {
        Failure::failed(format!("the tracker {}: {error}", self.core.catalogue().address()))
    }
}
