//! Our tracker's catalogue over HTTP (design, *The tracker's HTTP*): publish and withdraw, signed; search; fetch.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, Url};

use super::client::TrackerClient;
use super::http::{self, Reply};
use super::{OurTracker, TrackerError};
use crate::clock::Clock;
use crate::daemon::identity::Signer;
use crate::wire::catalogue::{MAX_REPLY_BYTES, PeersReply, SearchQuery, SearchReply};
use crate::wire::id::InfoHash;
use crate::wire::metainfo::MAX_TORRENT_BYTES;

/// Keys that the tracker takes in one question (design, *Limits*).
pub const MAX_KEYS_ASKED: usize = 10_000;
/// A clock is called off only beyond this: the tracker allows 10 min, and requests take a while.
const CLOCK_TOLERANCE_S: u64 = 60;

/// What became of a `.torrent` that was published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Published {
    New,
    /// Somebody, maybe this peer, had published it before.
    Known,
}

/// The catalogue of one tracker.
pub struct Catalogue {
    client: Arc<TrackerClient>,
    tracker: OurTracker,
    clock: Arc<dyn Clock>,
    /// Tracker's clock minus ours in seconds, once the tracker has complained.
    clock_offset_s: AtomicI64,
}

impl Catalogue {
    pub fn new(client: Arc<TrackerClient>, tracker: OurTracker, clock: Arc<dyn Clock>) -> Catalogue {
        Catalogue { client, tracker, clock, clock_offset_s: AtomicI64::new(0) }
    }

    pub fn tracker(&self) -> &OurTracker {
        &self.tracker
    }

    /// By how many seconds the tracker's clock is ahead of ours; 0 unless the tracker refused a signature for its time.
    pub fn clock_offset_s(&self) -> i64 {
        self.clock_offset_s.load(Ordering::Relaxed)
    }

    /// Publishes a `.torrent` in this peer's name.
    ///
    /// # Errors
    /// When the tracker is not there or declines.
    pub async fn publish(
        &self,
        torrent: &[u8],
        info_hash: InfoHash,
        signer: &Signer,
    ) -> Result<Published, TrackerError> {
        let url = self.tracker.http_url("/torrents")?;
        let post =
            |request: RequestBuilder| request.header(CONTENT_TYPE, "application/x-bittorrent").body(torrent.to_vec());
        let reply = self.signed(Method::POST, &url, info_hash, signer, post).await?.success()?;
        Ok(if reply.status == 201 { Published::New } else { Published::Known })
    }

    /// Takes back what this peer published.
    ///
    /// # Errors
    /// When the tracker is not there or declines; see [`TrackerError::is_not_found`].
    pub async fn withdraw(&self, info_hash: InfoHash, signer: &Signer) -> Result<(), TrackerError> {
        let url = self.tracker.http_url(&format!("/torrents/{info_hash}"))?;
        self.signed(Method::DELETE, &url, info_hash, signer, |request| request).await?.success().map(drop)
    }

    /// Which of these the tracker does not have.
    ///
    /// # Errors
    /// When the tracker is not there, declines, or answers something else than keys.
    pub async fn unknown(&self, info_hashes: &[InfoHash]) -> Result<Vec<InfoHash>, TrackerError> {
        let url = self.tracker.http_url("/torrents/unknown")?;
        let mut missing = Vec::new();
        for asked in info_hashes.chunks(MAX_KEYS_ASKED) {
            let body: Vec<u8> = asked.iter().flat_map(InfoHash::as_bytes).copied().collect();
            let post = self.request(Method::POST, &url).header(CONTENT_TYPE, "application/octet-stream").body(body);
            let reply = self.send(post, MAX_REPLY_BYTES).await?.success()?;
            if reply.body.len() % InfoHash::LEN != 0 {
                return Err(TrackerError::bad_reply(format!("{} bytes where keys of 20 are due", reply.body.len())));
            }
            let mut asked: HashSet<InfoHash> = asked.iter().copied().collect();
            let named = reply.body.chunks_exact(InfoHash::LEN).filter_map(InfoHash::from_slice);
            missing.extend(named.filter(|info_hash| asked.remove(info_hash)));
        }
        Ok(missing)
    }

    /// The bytes of a `.torrent`, as the tracker sends them: whether they hash to the key is the caller's to check.
    ///
    /// # Errors
    /// When the tracker is not there or does not have it; see [`TrackerError::is_not_found`].
    pub async fn fetch_torrent(&self, info_hash: InfoHash) -> Result<Vec<u8>, TrackerError> {
        self.get(&format!("/torrents/{info_hash}.torrent"), MAX_TORRENT_BYTES).await
    }

    /// # Errors
    /// When the tracker is not there, declines, or answers something else.
    pub async fn search(&self, query: &SearchQuery) -> Result<SearchReply, TrackerError> {
        let body = self.get(&format!("/search?{}", query.to_query_string()), MAX_REPLY_BYTES).await?;
        SearchReply::from_json(&body).map_err(TrackerError::bad_reply)
    }

    /// A sample of a torrent's swarm.
    ///
    /// # Errors
    /// When the tracker is not there, lists no peers, or does not know the torrent.
    pub async fn peers(&self, info_hash: InfoHash) -> Result<PeersReply, TrackerError> {
        let body = self.get(&format!("/torrents/{info_hash}/peers"), MAX_REPLY_BYTES).await?;
        PeersReply::from_json(&body).map_err(TrackerError::bad_reply)
    }

    async fn get(&self, path: &str, max_bytes: usize) -> Result<Vec<u8>, TrackerError> {
        let request = self.request(Method::GET, &self.tracker.http_url(path)?);
        Ok(self.send(request, max_bytes).await?.success()?.body)
    }

    fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        self.client.http().plain().request(method, url.clone())
    }

    async fn send(&self, request: RequestBuilder, max_bytes: usize) -> Result<Reply, TrackerError> {
        let request = request.build().map_err(|error| TrackerError::unreachable(error.without_url()))?;
        http::send(self.client.http().plain(), request, max_bytes).await
    }

    /// Sends with a signature. When the tracker refuses it and its clock is not ours, signs once more by the tracker's.
    async fn signed(
        &self,
        method: Method,
        url: &Url,
        info_hash: InfoHash,
        signer: &Signer,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Reply, TrackerError> {
        let host = host_header(url);
        let sign_and_send = async |unix_seconds: u64| {
            let header = signer.authorize(method.as_str(), &host, &info_hash, unix_seconds).to_string();
            let request = fill(self.request(method.clone(), url)).header(AUTHORIZATION, header);
            self.send(request, MAX_REPLY_BYTES).await
        };
        let signed_at = self.clock.unix_seconds().saturating_add_signed(self.clock_offset_s());
        let reply = sign_and_send(signed_at).await?;
        match reply.date {
            Some(date) if reply.status == 401 && date.abs_diff(signed_at) > CLOCK_TOLERANCE_S => {
                let offset_s = date.cast_signed().saturating_sub(self.clock.unix_seconds().cast_signed());
                self.clock_offset_s.store(offset_s, Ordering::Relaxed);
                sign_and_send(date).await
            }
            _ => Ok(reply),
        }
    }
}

/// The Host header as the HTTP client will send it: the port only when it is not the scheme's own.
fn host_header(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
