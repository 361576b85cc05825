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

    /// Whether the tracker answers and says that it works.
    ///
    /// # Errors
    /// When the tracker is not there, or its disk has failed.
    pub async fn is_there(&self) -> Result<(), TrackerError> {
        self.get("/health", MAX_REPLY_BYTES).await.map(drop)
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

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, VerifyingKey};

    use super::super::client::Patience;
    use super::super::testing::{Heard, Server, answer};
    use super::*;
    use crate::clock::Time;
    use crate::wire::auth::{Authorization, signing_text};

    const KEY: InfoHash = InfoHash::new([0xAB; 20]);
    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const TRACKERS_TIME: u64 = 784_111_777;
    const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

    struct StoppedClock(u64);

    impl Clock for StoppedClock {
        fn now(&self) -> Time {
            Time::ZERO
        }
        fn unix_seconds(&self) -> u64 {
            self.0
        }
    }

    fn catalogue(server: &Server, unix_seconds: u64) -> Catalogue {
        let client = Arc::new(TrackerClient::new(Patience::default()).unwrap());
        let tracker = OurTracker::new("127.0.0.1", server.address.port());
        Catalogue::new(client, tracker, Arc::new(StoppedClock(unix_seconds)))
    }

    /// When the request was signed, if it was, as the tracker checks it.
    fn signed_at(heard: &Heard, method: &str) -> u64 {
        let header: Authorization = heard.header("authorization").unwrap().parse().unwrap();
        let text = signing_text(method, heard.header("host").unwrap(), &KEY, header.unix_seconds);
        let key = VerifyingKey::from_bytes(&header.key).unwrap();
        assert!(key.verify_strict(&text, &Signature::from_bytes(&header.signature)).is_ok());
        header.unix_seconds
    }

    #[tokio::test]
    async fn publishing_is_signed_for_the_host_that_is_asked() {
        let server = Server::http(|heard| {
            let status = if heard.body == b"d4:info...e" { "201 Created" } else { "200 OK" };
            answer(status, "", KEY.to_hex().as_bytes())
        })
        .await;
        let (catalogue, signer) = (catalogue(&server, 1_000), Signer::from_seed(&[1; 32]));
        assert_eq!(catalogue.publish(b"d4:info...e", KEY, &signer).await, Ok(Published::New));
        assert_eq!(catalogue.publish(b"d4:other..e", KEY, &signer).await, Ok(Published::Known));
        assert_eq!(catalogue.withdraw(KEY, &signer).await, Ok(()));
        let heard = server.heard();
        assert_eq!(heard[0].line, "POST /torrents");
        assert_eq!(heard[0].header("content-type"), Some("application/x-bittorrent"));
        assert_eq!(heard[0].header("host"), Some(catalogue.tracker().to_string().as_str()));
        assert_eq!(
            (signed_at(&heard[0], "POST"), heard[2].line.as_str()),
            (1_000, &*format!("DELETE /torrents/{KEY}"))
        );
        assert_eq!(signed_at(&heard[2], "DELETE"), 1_000);
        assert_eq!(catalogue.clock_offset_s(), 0);
    }

    #[tokio::test]
    async fn a_refusal_for_time_is_answered_once_by_the_trackers_clock() {
        let server = Server::http(|heard| {
            let on_time = signed_at(heard, "POST").abs_diff(TRACKERS_TIME) < 600;
            answer(if on_time { "201 Created" } else { "401 Unauthorized" }, DATE, b"the time is off")
        })
        .await;
        let (catalogue, signer) = (catalogue(&server, TRACKERS_TIME + 7_200), Signer::from_seed(&[1; 32]));
        assert_eq!(catalogue.publish(b"x", KEY, &signer).await, Ok(Published::New));
        assert_eq!((server.heard().len(), catalogue.clock_offset_s()), (2, -7_200));
        assert_eq!(catalogue.publish(b"x", KEY, &signer).await, Ok(Published::New));
        assert_eq!(server.heard().len(), 3, "the offset is remembered");
    }

    #[tokio::test]
    async fn another_refusal_is_not_tried_again() {
        let server = Server::http(|_| answer("401 Unauthorized", DATE, b"not your publication\n")).await;
        let signer = Signer::from_seed(&[1; 32]);
        let refused = TrackerError::Refused { status: Some(401), reason: "not your publication".into() };
        assert_eq!(catalogue(&server, TRACKERS_TIME + 30).withdraw(KEY, &signer).await, Err(refused.clone()));
        assert_eq!(server.heard().len(), 1);
        assert_eq!(catalogue(&server, 0).withdraw(KEY, &signer).await, Err(refused));
        assert_eq!(server.heard().len(), 3, "once more, and no more");
    }

    #[tokio::test]
    async fn unknown_asks_in_portions_and_believes_only_what_it_asked() {
        let server = Server::http(|heard| {
            assert_eq!(heard.line, "POST /torrents/unknown");
            let first = &heard.body[..20];
            answer("200 OK", "", &[first, first, [0xEE; 20].as_slice()].concat())
        })
        .await;
        let hash = |n: u32| {
            let mut bytes = [0; 20];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            InfoHash::new(bytes)
        };
        let asked: Vec<InfoHash> = (0..MAX_KEYS_ASKED as u32 + 1).map(hash).collect();
        let missing = catalogue(&server, 0).unknown(&asked).await;
        assert_eq!(missing, Ok(vec![hash(0), hash(MAX_KEYS_ASKED as u32)]));
        let sizes: Vec<usize> = server.heard().iter().map(|heard| heard.body.len()).collect();
        assert_eq!(sizes, [MAX_KEYS_ASKED * 20, 20]);

        let odd = Server::http(|_| answer("200 OK", "", b"[]")).await;
        assert!(matches!(catalogue(&odd, 0).unknown(&asked).await, Err(TrackerError::BadReply { .. })));
    }

    #[tokio::test]
    async fn torrents_searches_and_peers_are_fetched() {
        let server = Server::http(|heard| match heard.line.as_str() {
            "GET /search?q=got%205&limit=50&offset=0" => answer("200 OK", "", br#"{"total":3,"hits":[]}"#),
            line if line.ends_with("/peers") => {
                let peers = br#"{"total":1,"peers":[{"ip":"10.0.0.1","port":6881,"seeder":true}]}"#;
                answer("200 OK", "", peers)
            }
            line if line == format!("GET /torrents/{KEY}.torrent") => answer("200 OK", "", b"d4:infodee"),
            _ => answer("404 Not Found", "", b"no such torrent"),
        })
        .await;
        let catalogue = catalogue(&server, 0);
        assert_eq!(catalogue.search(&SearchQuery::words("got 5")).await.map(|reply| reply.total), Ok(3));
        let other = catalogue.search(&SearchQuery::words("other")).await.unwrap_err();
        assert!(other.is_not_found());
        let peers = catalogue.peers(KEY).await.unwrap();
        assert_eq!((peers.total, peers.peers[0].port), (1, 6881));
        assert_eq!(catalogue.fetch_torrent(KEY).await, Ok(b"d4:infodee".to_vec()));
        let missing = catalogue.fetch_torrent(InfoHash::new([0; 20])).await.unwrap_err();
        assert!(missing.is_not_found() && missing.to_string() == "refused (404): no such torrent", "{missing}");
    }

    #[tokio::test]
    async fn a_torrent_beyond_the_cap_and_a_page_in_place_of_json_are_bad_replies() {
        let server = Server::http(|heard| {
            let page = b"<html>".to_vec();
            answer("200 OK", "", &if heard.line.contains("/search") { page } else { vec![0; MAX_TORRENT_BYTES + 1] })
        })
        .await;
        let catalogue = catalogue(&server, 0);
        let bad = |error: TrackerError| matches!(error, TrackerError::BadReply { .. });
        assert!(bad(catalogue.fetch_torrent(KEY).await.unwrap_err()));
        assert!(bad(catalogue.search(&SearchQuery::words("")).await.unwrap_err()));
    }
}
