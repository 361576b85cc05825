//! Announce and scrape, whichever way the tracker speaks. Our own tracker is asked by UDP; by HTTP when UDP stays silent,
//! because some networks let nothing else through.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::{Client, Url};
use tokio::time::Instant;

use super::http::{self, Http, HttpSetupError};
use super::resolve::resolve;
use super::udp::UdpClient;
use super::{OurTracker, TrackerError, TrackerUrl};
use crate::wire::announce::{AnnounceRequest, AnnounceResponse, MAX_SCRAPE_HASHES, ScrapeEntry};
use crate::wire::id::InfoHash;
use crate::wire::tracker_http::{
    MAX_REPLY_BYTES, ReplyError, decode_announce_response, decode_scrape_response, failure_reason, scrape_query,
};

/// Addresses of a UDP tracker's host are looked up again after this: announces come several times a second, and hosts
/// move rarely.
const ADDRESS_LIFE: Duration = Duration::from_secs(300);
/// Hosts whose addresses are kept: far more than the torrents of one person name.
const MAX_HOSTS: usize = 1024;

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Our tracker: UDP's silence before HTTP is tried.
    pub udp_before_http: Duration,
    /// Our tracker: how long HTTP is used before UDP is tried again.
    pub http_before_udp: Duration,
    /// Other UDP trackers: for one announce or scrape in all.
    pub udp: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            udp_before_http: Duration::from_secs(3),
            http_before_udp: Duration::from_secs(30 * 60),
            udp: Duration::from_secs(15),
        }
    }
}

/// The client of all trackers. Cheap to ask from many tasks at once; how many that are is the schedule's affair.
pub struct TrackerClient {
    http: Http,
    udp: UdpClient,
    patience: Patience,
    /// Until when our tracker is asked by HTTP alone.
    http_until: Mutex<HashMap<OurTracker, Instant>>,
    addresses: Mutex<HashMap<(String, u16), (Vec<SocketAddr>, Instant)>>,
}

impl TrackerClient {
    /// # Errors
    /// When HTTP cannot be set up.
    pub fn new(patience: Patience) -> Result<TrackerClient, HttpSetupError> {
        Ok(TrackerClient {
            http: Http::new()?,
            udp: UdpClient::new(),
            patience,
            http_until: Mutex::default(),
            addresses: Mutex::default(),
        })
    }

    /// One announce; takes at most about half a minute.
    ///
    /// # Errors
    /// When the tracker does not answer, declines, or answers nonsense.
    pub async fn announce(
        &self,
        tracker: &TrackerUrl,
        request: &AnnounceRequest,
    ) -> Result<AnnounceResponse, TrackerError> {
        match tracker {
            TrackerUrl::Http(url) => self.announce_http(self.http.for_url(url).await?, url, request).await,
            TrackerUrl::Udp { host, port } => self.announce_udp(host, *port, request, self.patience.udp).await,
            TrackerUrl::Ours(ours) => self.announce_ours(ours, request).await,
        }
    }

    async fn announce_ours(
        &self,
        ours: &OurTracker,
        request: &AnnounceRequest,
    ) -> Result<AnnounceResponse, TrackerError> {
        let udp_is_due = lock(&self.http_until).get(ours).is_none_or(|until| Instant::now() >= *until);
        if udp_is_due {
            let answer = self.announce_udp(ours.host(), ours.port(), request, self.patience.udp_before_http).await;
            if !matches!(answer, Err(TrackerError::Unreachable { .. })) {
                return answer;
            }
        }
        let answer = self.announce_http(self.http.plain(), &ours.http_url("/announce")?, request).await;
        let mut http_until = lock(&self.http_until);
        match answer {
            // Neither answers: the tracker is down, and that says nothing about UDP.
            Err(TrackerError::Unreachable { .. }) => drop(http_until.remove(ours)),
            _ if udp_is_due => drop(http_until.insert(ours.clone(), Instant::now() + self.patience.http_before_udp)),
            _ => {}
        }
        answer
    }

    async fn announce_udp(
        &self,
        host: &str,
        port: u16,
        request: &AnnounceRequest,
        limit: Duration,
    ) -> Result<AnnounceResponse, TrackerError> {
        let addresses = self.addresses(host, port).await?;
        let answer = self.udp.announce(&addresses, request, limit).await;
        self.heed(host, port, answer)
    }

    /// The counts of any number of torrents; those that the tracker does not know are missing.
    ///
    /// # Errors
    /// As for [`TrackerClient::announce`]; [`TrackerError::Refused`] too when the address has no scrape (BEP 48).
    pub async fn scrape(
        &self,
        tracker: &TrackerUrl,
        info_hashes: &[InfoHash],
    ) -> Result<Vec<(InfoHash, ScrapeEntry)>, TrackerError> {
        let mut all = Vec::with_capacity(info_hashes.len());
        for chunk in info_hashes.chunks(MAX_SCRAPE_HASHES) {
            match tracker {
                TrackerUrl::Http(url) => {
                    all.extend(self.scrape_http(self.http.for_url(url).await?, url, chunk).await?);
                }
                TrackerUrl::Ours(ours) => {
                    all.extend(self.scrape_http(self.http.plain(), &ours.http_url("/announce")?, chunk).await?);
                }
                TrackerUrl::Udp { host, port } => {
                    let addresses = self.addresses(host, *port).await?;
                    let answer = self.udp.scrape(&addresses, chunk, self.patience.udp).await;
                    all.extend(chunk.iter().copied().zip(self.heed(host, *port, answer)?));
                }
            }
        }
        Ok(all)
    }

    /// The HTTP side, for the catalogue.
    pub fn http(&self) -> &Http {
        &self.http
    }

    async fn announce_http(
        &self,
        client: &Client,
        url: &Url,
        request: &AnnounceRequest,
    ) -> Result<AnnounceResponse, TrackerError> {
        let body = fetch(client, with_query(url, &request.to_query())).await?;
        decode_announce_response(&body).map_err(from_reply)
    }

    async fn scrape_http(
        &self,
        client: &Client,
        url: &Url,
        info_hashes: &[InfoHash],
    ) -> Result<Vec<(InfoHash, ScrapeEntry)>, TrackerError> {
        let url = scrape_url(url).ok_or_else(|| TrackerError::Refused {
            status: None,
            reason: "its address does not end in /announce..., so it has no scrape".to_owned(),
        })?;
        let body = fetch(client, with_query(&url, &scrape_query(info_hashes))).await?;
        decode_scrape_response(&body).map_err(from_reply)
    }

    /// Addresses by look-up, or as looked up not long ago.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, TrackerError> {
        let key = (host.to_owned(), port);
        let known = lock(&self.addresses).get(&key).filter(|(_, since)| since.elapsed() < ADDRESS_LIFE).cloned();
        if let Some((addresses, _)) = known {
            return Ok(addresses);
        }
        let addresses = resolve(host, port).await?;
        let mut kept = lock(&self.addresses);
        if kept.len() >= MAX_HOSTS {
            kept.clear();
        }
        kept.insert(key, (addresses.clone(), Instant::now()));
        Ok(addresses)
    }

    /// A host that does not answer may have moved: its addresses are looked up again next time.
    fn heed<T>(&self, host: &str, port: u16, answer: Result<T, TrackerError>) -> Result<T, TrackerError> {
        if let Err(TrackerError::Unreachable { .. }) = answer {
            lock(&self.addresses).remove(&(host.to_owned(), port));
        }
        answer
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

async fn fetch(client: &Client, url: Url) -> Result<Vec<u8>, TrackerError> {
    let request = client.get(url).build().map_err(|error| TrackerError::unreachable(error.without_url()))?;
    let reply = http::send(client, request, MAX_REPLY_BYTES).await?;
    // Some trackers send their bencoded reason with a status of failure.
    if let Some(reason) = failure_reason(&reply.body) {
        return Err(TrackerError::Refused { status: None, reason });
    }
    reply.success().map(|reply| reply.body)
}

fn from_reply(error: ReplyError) -> TrackerError {
    match error {
        ReplyError::Failure(reason) => TrackerError::Refused { status: None, reason },
        other => TrackerError::bad_reply(other),
    }
}

/// The announce's own parameters come after those that the address has already (passkeys).
fn with_query(url: &Url, query: &str) -> Url {
    let mut url = url.clone();
    let all = match url.query() {
        Some(known) if !known.is_empty() => format!("{known}&{query}"),
        _ => query.to_owned(),
    };
    url.set_query(Some(&all));
    url
}

/// `.../announce<rest>` becomes `.../scrape<rest>` (BEP 48).
fn scrape_url(url: &Url) -> Option<Url> {
    let (folder, page) = url.path().rsplit_once('/')?;
    let path = format!("{folder}/scrape{}", page.strip_prefix("announce")?);
    let mut url = url.clone();
    url.set_path(&path);
    Some(url)
}
