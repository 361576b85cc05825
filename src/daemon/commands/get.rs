//! `get` and `search`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Commands;
use super::choose::{Choice, choose};
use crate::clock::Time;
use crate::daemon::control::Reply;
use crate::daemon::torrent::{Phase, Torrent};
use crate::daemon::trackers::TrackerError;
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
    Answer(Box<Answer>),
}

impl Commands {
    pub(super) async fn get(&self, get: Get, in_order: bool, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let begun = self.core.clock.now();
        let torrent = match self.resolve(get.what).await? {
            Resolved::Answer(answer) => return Ok(*answer),
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
        if in_order {
            torrent.fetch_in_order();
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
                Phase::Missing => {
                    return Err(Failure::failed(format!(
                        "{} is shared from upload/, and its file is being changed or is gone",
                        torrent.summary.name
                    )));
                }
                _ if torrent.is_removed() => {
                    return Err(Failure::failed(format!("{} was removed", torrent.summary.name)));
                }
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
                let meta = Metainfo::parse(&bytes).map_err(|error| Failure::failed(error.to_string()))?;
                let ours = self.core.names_our_tracker(&meta);
                Ok(self.here(meta.info_hash()).unwrap_or(Resolved::Torrent { bytes, ours }))
            }
            What::InfoHash(key) => self.here_or_fetched(key).await,
            What::Words(words) => match self.key_of_words(&words).await? {
                Ok(key) => self.here_or_fetched(key).await,
                Err(answer) => Ok(Resolved::Answer(Box::new(answer))),
            },
        }
    }

    async fn here_or_fetched(&self, key: InfoHash) -> Result<Resolved, Failure> {
        match self.here(key) {
            Some(here) => Ok(here),
            None => self.fetch(key).await,
        }
    }

    fn here(&self, key: InfoHash) -> Option<Resolved> {
        self.core.torrent(key).map(Resolved::Here)
    }

    pub(super) async fn fetch_meta(&self, key: InfoHash) -> Result<(Metainfo, Vec<u8>), Failure> {
        let bytes = self.core.catalogue().fetch_torrent(key).await.map_err(|error| match error {
            error if error.is_not_found() => Failure::not_found(format!("the tracker knows no torrent {key}")),
            error => self.tracker_failure(&error),
        })?;
        match Metainfo::parse(&bytes) {
            Ok(meta) if meta.info_hash() == key => Ok((meta, bytes)),
            Ok(meta) => {
                Err(Failure::failed(format!("the tracker gave {} for {key}: nothing was fetched", meta.info_hash())))
            }
            Err(error) => Err(Failure::failed(format!("the tracker's .torrent for {key} is not usable: {error}"))),
        }
    }

    async fn fetch(&self, key: InfoHash) -> Result<Resolved, Failure> {
        self.fetch_meta(key).await.map(|(_, bytes)| Resolved::Torrent { bytes, ours: true })
    }

    /// What words mean at the tracker: one key, or the answer that they do not name one.
    pub(super) async fn key_of_words(&self, words: &str) -> Result<Result<InfoHash, Answer>, Failure> {
        let query = query_of(words.to_owned(), HITS_LOOKED_AT, 0);
        let found = self.core.catalogue().search(&query).await.map_err(|error| self.tracker_failure(&error))?;
        let offered = found.hits.iter().map(|hit| (hit.name.as_str(), hit.matched != Match::Typo));
        match choose(words, offered) {
            Choice::One(index) => Ok(Ok(found.hits[index].key)),
            Choice::Several(indices) => {
                let all: Vec<Candidate> =
                    indices.into_iter().map(|index| SearchHit::from(found.hits[index].clone()).into()).collect();
                Ok(Err(Answer::Ambiguous(all)))
            }
            Choice::None if found.hits.is_empty() => Err(Failure::not_found(format!(
                "nobody shares anything named {words}: peerctl search shows what there is"
            ))),
            Choice::None => {
                let near = found.hits.into_iter().map(|hit| SearchHit::from(hit).into()).collect();
                Ok(Err(Answer::DidYouMean(near)))
            }
        }
    }

    pub(super) async fn search(&self, search: Search, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
        let query = query_of(search.words, search.limit, search.offset);
        let found = self.core.catalogue().search(&query).await.map_err(|error| self.tracker_failure(&error))?;
        reply.send(&Answer::SearchTotal(found.total)).await?;
        reply.send_rows(found.hits.into_iter().map(SearchHit::from), Answer::SearchHits).await?;
        Ok(Answer::End)
    }

    pub(super) fn tracker_failure(&self, error: &TrackerError) -> Failure {
        Failure::failed(format!("the tracker {}: {error}", self.core.catalogue().tracker()))
    }
}

fn query_of(q: String, limit: u32, offset: u32) -> SearchQuery {
    SearchQuery { q, file_type: None, min_size: None, max_size: None, limit, offset }
}
