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

/// A host's addresses, and since when they are known.
type LookedUp = (Vec<SocketAddr>, Instant);

/// The client of all trackers. Cheap to ask from many tasks at once; how many that are is the schedule's affair.
pub struct TrackerClient {
    http: Http,
    udp: UdpClient,
    patience: Patience,
    /// Until when our tracker is asked by HTTP alone.
    http_until: Mutex<HashMap<OurTracker, Instant>>,
    addresses: Mutex<HashMap<(String, u16), LookedUp>>,
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
            // Whoever wrote a `.torrent` may not have us ask for just any page of a service that trusts this machine.
            TrackerUrl::Http(url) if http::is_near(url) && scrape_url(url).is_none() => Err(TrackerError::Refused {
                status: None,
                reason: "on this machine and its link only pages called announce are asked for".to_owned(),
            }),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::{TcpListener, UdpSocket};

    use super::super::testing::{Server, answer, gzip_of_zeros, request};
    use super::*;
    use crate::wire::tracker_udp::{Family, Request, Response};

    const PEER: &str = "10.1.2.3:6881";

    fn client() -> TrackerClient {
        client_that_waits(Duration::from_secs(3), Duration::from_secs(1800))
    }

    fn client_that_waits(udp_before_http: Duration, http_before_udp: Duration) -> TrackerClient {
        TrackerClient::new(Patience { udp_before_http, http_before_udp, ..Patience::default() }).unwrap()
    }

    fn good(interval_s: u32) -> AnnounceResponse {
        AnnounceResponse { interval_s, peers: vec![PEER.parse().unwrap()], ..AnnounceResponse::default() }
    }

    fn good_body(interval_s: u32) -> Vec<u8> {
        let mut body = Vec::new();
        let list = crate::wire::tracker_http::PeerList::Compact;
        crate::wire::tracker_http::encode_announce_response(&good(interval_s), list, &mut body);
        body
    }

    fn udp_url(server: &Server) -> TrackerUrl {
        TrackerUrl::parse(&format!("udp://{}", server.address)).unwrap()
    }

    /// What an honest UDP tracker says.
    fn honest(request: &Request) -> Response {
        match request {
            Request::Connect { transaction_id } => {
                Response::Connect { transaction_id: *transaction_id, connection_id: 0xC0FFEE }
            }
            Request::Announce { transaction_id, connection_id, .. } => {
                assert_eq!(*connection_id, 0xC0FFEE);
                Response::Announce { transaction_id: *transaction_id, announce: good(1800) }
            }
            Request::Scrape { transaction_id, info_hashes, .. } => {
                let entry = |hash: &InfoHash| ScrapeEntry { seeders: hash.as_bytes()[0].into(), ..Default::default() };
                Response::Scrape { transaction_id: *transaction_id, entries: info_hashes.iter().map(entry).collect() }
            }
        }
    }

    async fn http_answer(reply: Vec<u8>) -> Result<AnnounceResponse, TrackerError> {
        let server = Server::http(move |_| reply.clone()).await;
        client().announce(&TrackerUrl::parse(&server.url("/announce")).unwrap(), &request()).await
    }

    #[tokio::test]
    async fn udp_connects_once_for_many_announces_at_once() {
        let connects = Arc::new(AtomicUsize::new(0));
        let counted = connects.clone();
        let server = Server::udp(move |request, send| {
            counted.fetch_add(usize::from(matches!(request, Request::Connect { .. })), Ordering::Relaxed);
            send(honest(&request));
        })
        .await;
        let (client, url) = (Arc::new(client()), udp_url(&server));
        assert_eq!(client.announce(&url, &request()).await, Ok(good(1800)));
        let mut many = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (client, url) = (client.clone(), url.clone());
            many.spawn(async move { client.announce(&url, &request()).await });
        }
        assert!(many.join_all().await.into_iter().all(|answer| answer == Ok(good(1800))));
        assert_eq!(connects.load(Ordering::Relaxed), 1);
        let hashes: Vec<InfoHash> = (0..100).map(|n| InfoHash::new([n; 20])).collect();
        let counts = client.scrape(&url, &hashes).await.unwrap();
        assert_eq!(counts.len(), 100);
        assert!(counts.iter().all(|(hash, entry)| entry.seeders == u32::from(hash.as_bytes()[0])));
    }

    #[tokio::test]
    async fn replies_with_another_id_or_from_elsewhere_are_ignored() {
        let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let url = TrackerUrl::parse(&format!("udp://{}", socket.local_addr().unwrap())).unwrap();
        let mut tracker = tokio::task::JoinSet::new();
        tracker.spawn(async move {
            let encode = |response: Response| {
                let mut datagram = Vec::new();
                response.encode(Family::V4, &mut datagram);
                datagram
            };
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let request = Request::decode(&buffer[..length]).unwrap();
                if let Request::Announce { transaction_id, .. } = request {
                    let forged = |transaction_id| Response::Announce { transaction_id, announce: good(666) };
                    socket.send_to(&encode(forged(transaction_id ^ 1)), from).await.unwrap();
                    elsewhere.send_to(&encode(forged(transaction_id)), from).unwrap();
                    socket.send_to(&[0; 3], from).await.unwrap();
                }
                socket.send_to(&encode(honest(&request)), from).await.unwrap();
            }
        });
        assert_eq!(client().announce(&url, &request()).await, Ok(good(1800)));
    }

    #[tokio::test]
    async fn a_lost_datagram_is_sent_again_and_a_stale_connection_is_made_anew() {
        let seen = AtomicUsize::new(0);
        let server = Server::udp(move |request, send| match (seen.fetch_add(1, Ordering::Relaxed), &request) {
            (0, _) => {}
            (3, Request::Announce { transaction_id, .. }) => {
                send(Response::Error { transaction_id: *transaction_id, message: "connection id mismatch".into() });
            }
            _ => send(honest(&request)),
        })
        .await;
        let (client, url) = (client(), udp_url(&server));
        assert_eq!(client.announce(&url, &request()).await, Ok(good(1800)), "the first connect was lost");
        assert_eq!(client.announce(&url, &request()).await, Ok(good(1800)), "the connection id was refused");
    }

    #[tokio::test]
    async fn a_udp_error_is_a_refusal() {
        let server = Server::udp(|request, send| match request {
            Request::Announce { transaction_id, .. } => {
                send(Response::Error { transaction_id, message: "unregistered".into() });
            }
            other => send(honest(&other)),
        })
        .await;
        let refused = TrackerError::Refused { status: None, reason: "unregistered".into() };
        assert_eq!(client().announce(&udp_url(&server), &request()).await, Err(refused));
    }

    /// Our tracker, with an HTTP side that answers and a UDP side that a test may answer for.
    async fn our_tracker() -> (OurTracker, Server, UdpSocket) {
        loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = udp.local_addr().unwrap();
            if let Ok(listener) = TcpListener::bind(address).await {
                let server = Server::http_on(listener, |_| answer("200 OK", "", &good_body(60)));
                return (OurTracker::new("127.0.0.1", address.port()), server, udp);
            }
        }
    }

    #[tokio::test]
    async fn our_tracker_is_asked_by_http_when_udp_is_silent_and_by_udp_again_later() {
        let (ours, server, udp) = our_tracker().await;
        let url = TrackerUrl::Ours(ours);
        let datagrams = || std::iter::from_fn(|| udp.try_recv_from(&mut [0; 2048]).ok()).count();

        let patient = client_that_waits(Duration::from_millis(50), Duration::from_secs(1800));
        assert_eq!(patient.announce(&url, &request()).await, Ok(good(60)));
        udp.readable().await.unwrap();
        assert!(datagrams() > 0);
        assert_eq!(patient.announce(&url, &request()).await, Ok(good(60)));
        assert_eq!(datagrams(), 0, "UDP is left alone for half an hour");

        let hasty = client_that_waits(Duration::from_millis(50), Duration::ZERO);
        for _ in 0..2 {
            assert_eq!(hasty.announce(&url, &request()).await, Ok(good(60)));
            udp.readable().await.unwrap();
            assert!(datagrams() > 0, "its time is over at once");
        }
        assert_eq!(server.heard().len(), 4);
        assert!(server.heard().iter().all(|heard| heard.line.starts_with("GET /announce?info_hash=%07")));
    }

    #[tokio::test]
    async fn our_tracker_down_altogether_says_nothing_about_udp() {
        let (ours, server, udp) = our_tracker().await;
        drop(server);
        let client = client_that_waits(Duration::from_millis(50), Duration::from_secs(1800));
        let url = TrackerUrl::Ours(ours);
        for _ in 0..2 {
            let down = client.announce(&url, &request()).await;
            assert!(matches!(down, Err(TrackerError::Unreachable { .. })), "{down:?}");
            udp.readable().await.unwrap();
            assert!(std::iter::from_fn(|| udp.try_recv_from(&mut [0; 2048]).ok()).count() > 0);
        }
    }

    #[tokio::test]
    async fn http_answers_are_told_apart() {
        assert_eq!(http_answer(answer("200 OK", "", &good_body(9))).await, Ok(good(9)));
        let refused = |status, reason: &str| Err(TrackerError::Refused { status, reason: reason.into() });
        let failure = b"d14:failure reason12:unregisterede";
        assert_eq!(http_answer(answer("200 OK", "", failure)).await, refused(None, "unregistered"));
        assert_eq!(http_answer(answer("400 Bad Request", "", failure)).await, refused(None, "unregistered"));
        assert_eq!(http_answer(answer("403 Forbidden", "", b"go away\n")).await, refused(Some(403), "go away"));
        let bad = |answer: Result<_, TrackerError>| matches!(answer, Err(TrackerError::BadReply { .. }));
        assert!(bad(http_answer(answer("200 OK", "", b"<!DOCTYPE html><html>")).await));
        assert!(bad(http_answer(answer("200 OK", "", b"")).await));
        assert!(bad(http_answer(answer("302 Found", "Location: /announce\r\n", b"")).await), "a loop");
        let cut_short = answer("200 OK", "", &good_body(9));
        let cut_short = http_answer(cut_short[..cut_short.len() - 1].to_vec()).await;
        assert!(cut_short.is_err(), "{cut_short:?}");
        let no_http = http_answer(b"220 smtp.example ESMTP\r\n".to_vec()).await;
        assert!(no_http.is_err(), "{no_http:?}");
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_cap_after_decompression() {
        let too_long = TrackerError::bad_reply(format!("longer than {MAX_REPLY_BYTES} bytes"));
        let bomb = gzip_of_zeros(1 << 20);
        assert!(bomb.len() < 2 << 20, "270 MB in less than 2 MiB");
        assert_eq!(http_answer(answer("200 OK", "Content-Encoding: gzip\r\n", &bomb)).await, Err(too_long.clone()));
        assert_eq!(http_answer(answer("200 OK", "", &vec![b' '; MAX_REPLY_BYTES + 1])).await, Err(too_long));
        let broken = http_answer(answer("200 OK", "Content-Encoding: gzip\r\n", b"no gzip")).await;
        assert!(matches!(broken, Err(TrackerError::BadReply { .. })), "{broken:?}");
    }

    #[tokio::test]
    async fn the_query_of_the_address_is_kept_and_scrape_follows_from_it() {
        let entry = ScrapeEntry { seeders: 5, completed: 6, leechers: 7 };
        let key = request().info_hash;
        let server = Server::http(move |heard| {
            let mut body = Vec::new();
            crate::wire::tracker_http::encode_scrape_response(&[(key, entry)], &mut body);
            answer("200 OK", "", if heard.line.starts_with("GET /x/scrape.php") { &body } else { b"de" })
        })
        .await;
        let client = client();
        let url = TrackerUrl::parse(&server.url("/x/announce.php?passkey=s%20t")).unwrap();
        assert!(client.announce(&url, &request()).await.is_ok());
        assert_eq!(client.scrape(&url, &[key]).await, Ok(vec![(key, entry)]));
        let lines: Vec<String> = server.heard().into_iter().map(|heard| heard.line).collect();
        assert!(lines[0].starts_with("GET /x/announce.php?passkey=s%20t&info_hash=%07%07"), "{lines:?}");
        assert!(lines[1].starts_with("GET /x/scrape.php?passkey=s%20t&info_hash=%07%07"), "{lines:?}");
        let none = TrackerUrl::parse(&server.url("/a")).unwrap();
        assert!(matches!(client.scrape(&none, &[key]).await, Err(TrackerError::Refused { .. })));
    }

    #[tokio::test]
    async fn of_services_on_this_machine_only_announce_pages_are_asked_for() {
        let server = Server::http(|_| answer("200 OK", "", &good_body(9))).await;
        let ask = async |path| client().announce(&TrackerUrl::parse(&server.url(path)).unwrap(), &request()).await;
        assert_eq!(ask("/announce").await, Ok(good(9)));
        for path in ["/", "/admin?announce", "/announce/x"] {
            assert!(matches!(ask(path).await, Err(TrackerError::Refused { .. })), "{path}");
        }
        assert_eq!(server.heard().len(), 1);
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_unreachable_and_no_secret_is_told() {
        let closed = Server::http(|_| Vec::new()).await.url("/announce?passkey=secret");
        let error = client().announce(&TrackerUrl::parse(&closed).unwrap(), &request()).await.unwrap_err();
        assert!(matches!(error, TrackerError::Unreachable { .. }), "{error}");
        assert!(!error.to_string().contains("secret") && error.to_string().contains("refused"), "{error}");
    }
}
