//! Search, publishing, withdrawing, the `.torrent`s, who is in a swarm.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_DISPOSITION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};

use super::announce::with_rng;
use super::body::{BodyError, FileBody};
use super::{Answer, Ends, Request, Site, host, text, with_type};
use crate::tracker::announcer::{AnnounceRefused, Asker};
use crate::tracker::auth::{AuthError, Checked, Freshness};
use crate::tracker::catalogue::{FoundTorrent, PublishError, Published, Signed, WithdrawError};
use crate::tracker::content_file::open_whole_lines;
use crate::tracker::metrics::{Refused, Served};
use crate::wire::catalogue::{Hit, MAX_PEERS, MAX_REPLY_BYTES, PeersReply, SearchQuery, SearchReply, SwarmPeer};
use crate::wire::id::InfoHash;
use crate::wire::metainfo::{MAX_TORRENT_BYTES, Metainfo};

/// Keys in one `POST /torrents/unknown`: a library is asked for in a few requests, and an answer takes milliseconds.
const MAX_UNKNOWN_KEYS: usize = 10_000;
/// The longest Host that is written into a `.torrent`: a DNS name and a port.
const MAX_HOST_BYTES: usize = 261;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TORRENT: HeaderValue = HeaderValue::from_static("application/x-bittorrent");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

pub(super) async fn search(site: Arc<Site>, request: Request) -> Answer {
    site.announcer.metrics.serve(Served::Search);
    let query = match SearchQuery::from_query_string(request.uri().query().unwrap_or_default()) {
        Ok(query) => query,
        Err(error) => return site.refuse(Refused::BadQuery, StatusCode::BAD_REQUEST, error.to_string()),
    };
    blocking(site, move |site| match site.catalogue.search(&query) {
        Ok((total, page)) => {
            // What was put on the deny list after it was published is known still, and not shown.
            let tracked = page.into_iter().filter(|found| site.announcer.gate.permits(&found.key));
            let hits = tracked.map(|found| hit(site, found)).collect();
            with_type(StatusCode::OK, JSON, within_reply(SearchReply { total, hits }))
        }
        Err(error) => site.refuse(Refused::BadQuery, StatusCode::BAD_REQUEST, error.to_string()),
    })
    .await
}

fn hit(site: &Site, found: FoundTorrent) -> Hit {
    let counts = site.announcer.swarms.scrape(&found.key);
    let FoundTorrent { key, summary, added, matched } = found;
    let file_type = summary.file_type().to_owned();
    Hit {
        torrent: format!("{key}.torrent"),
        name: summary.name.into(),
        file_type,
        path: summary.path.into(),
        key,
        size: summary.size,
        n_parts: summary.n_parts,
        seeders: counts.seeders,
        leechers: counts.leechers,
        added,
        matched,
    }
}

/// Long paths can carry 500 hits over the cap on replies: then the page is shorter, and the client asks for the rest.
fn within_reply(mut reply: SearchReply) -> Vec<u8> {
    loop {
        let json = serde_json::to_vec(&reply).unwrap_or_default();
        if json.len() <= MAX_REPLY_BYTES || reply.hits.is_empty() {
            return json;
        }
        reply.hits.truncate(reply.hits.len() * MAX_REPLY_BYTES / json.len());
    }
}

pub(super) async fn content_file(site: &Site) -> Answer {
    site.announcer.metrics.serve(Served::ContentFile);
    let path = site.catalogue.content_path();
    let opened = tokio::task::spawn_blocking(move || open_whole_lines(&path)).await;
    match opened.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok((file, bytes)) => text(StatusCode::OK, Body::new(FileBody::new(file.into(), bytes))),
        Err(error) => {
            tracing::error!(%error, "search_content.txt cannot be read");
            text(StatusCode::INTERNAL_SERVER_ERROR, "search_content.txt cannot be read\n")
        }
    }
}

pub(super) async fn publish(site: Arc<Site>, request: Request, ends: Ends) -> Answer {
    site.announcer.metrics.serve(Served::Publish);
    if !site.announcer.limits.charge(site.clock.now(), site.asker(request.headers(), ends).ip) {
        return too_many(&site);
    }
    let (head, body) = request.into_parts();
    let keeper = site.clone();
    let mut held = match keeper.bodies.read(body, MAX_TORRENT_BYTES).await {
        Ok(held) => held,
        Err(error) => return bad_body(&site, error),
    };
    let bytes = std::mem::take(&mut held.bytes);
    blocking(site, move |site| publish_bytes(site, &bytes, &head.headers)).await
}

/// Parses, checks the signature, enters. Blocking.
fn publish_bytes(site: &Site, bytes: &[u8], headers: &HeaderMap) -> Answer {
    let metainfo = match Metainfo::parse(bytes) {
        Ok(metainfo) => metainfo,
        Err(error) => return site.refuse(Refused::BadTorrent, StatusCode::BAD_REQUEST, error.to_string()),
    };
    let key = metainfo.info_hash();
    if let Some(answer) = not_tracked(site, &key) {
        return answer;
    }
    let now = site.clock.unix_seconds();
    let checked = match headers.get(AUTHORIZATION).map(|header| check(site, header, headers, &key, false)).transpose() {
        Ok(checked) => checked,
        Err(answer) => return *answer,
    };
    let signed = checked.map(|Checked { publisher, freshness, .. }| {
        let most = site.announcer.gate.torrents_of(&publisher);
        Signed { publisher, freshness, most }
    });
    match site.catalogue.publish(&metainfo, signed, now) {
        Ok(Published::New) => text(StatusCode::CREATED, format!("{key}\n")),
        Ok(Published::Known) => text(StatusCode::OK, format!("{key}\n")),
        Err(error) => {
            checked.iter().for_each(|checked| site.gatekeeper.refused(checked));
            let (reason, status) = match error {
                PublishError::Replayed => (Refused::Replayed, StatusCode::UNAUTHORIZED),
                PublishError::TooMany(_) => (Refused::PublisherFull, StatusCode::FORBIDDEN),
                PublishError::Full => (Refused::CatalogueFull, StatusCode::SERVICE_UNAVAILABLE),
                PublishError::Behind | PublishError::Disk(_) | PublishError::Journal(_) => {
                    (Refused::StoreBehind, StatusCode::SERVICE_UNAVAILABLE)
                }
                PublishError::DiskFull => (Refused::DiskFull, StatusCode::INSUFFICIENT_STORAGE),
            };
            site.refuse(reason, status, error.to_string())
        }
    }
}

/// The refusal of a torrent that the lists rule out.
fn not_tracked(site: &Site, key: &InfoHash) -> Option<Answer> {
    let refuse = || site.refuse(Refused::NotTracked, StatusCode::FORBIDDEN, AnnounceRefused::NotTracked.message());
    (!site.announcer.gate.permits(key)).then(refuse)
}

pub(super) async fn withdraw(site: Arc<Site>, key: InfoHash, request: Request, ends: Ends) -> Answer {
    site.announcer.metrics.serve(Served::Withdraw);
    if !site.announcer.limits.charge(site.clock.now(), site.asker(request.headers(), ends).ip) {
        return too_many(&site);
    }
    let (head, _) = request.into_parts();
    blocking(site, move |site| {
        let Some(header) = head.headers.get(AUTHORIZATION) else {
            return unauthorized(site, Refused::BadAuthorization, "withdrawing needs the publisher's signature");
        };
        let checked = match check(site, header, &head.headers, &key, true) {
            Ok(checked) => checked,
            Err(answer) => return *answer,
        };
        if checked.freshness == Freshness::Replayed {
            // What it asked for has happened; if it was published again since, it does not happen once more.
            return match site.catalogue.is_publisher(&key, &checked.publisher) {
                true => unauthorized(site, Refused::Replayed, "this signature was used before: sign again"),
                false => text(StatusCode::OK, format!("{key}\n")),
            };
        }
        match site.catalogue.withdraw(&key, &checked.publisher, site.clock.unix_seconds()) {
            Ok(()) => text(StatusCode::OK, format!("{key}\n")),
            Err(error) => {
                site.gatekeeper.refused(&checked);
                let (reason, status) = match error {
                    WithdrawError::Unknown => (Refused::NoSuchTorrent, StatusCode::NOT_FOUND),
                    WithdrawError::NotPublisher => (Refused::NotPublisher, StatusCode::FORBIDDEN),
                    WithdrawError::Behind => (Refused::StoreBehind, StatusCode::SERVICE_UNAVAILABLE),
                };
                site.refuse(reason, status, error.to_string())
            }
        }
    })
    .await
}

fn check(
    site: &Site,
    header: &HeaderValue,
    headers: &HeaderMap,
    key: &InfoHash,
    withdraws: bool,
) -> Result<Checked, Box<Answer>> {
    let header = header.to_str().unwrap_or_default();
    site.gatekeeper.check(header, host(headers), key, withdraws, site.clock.unix_seconds()).map_err(|error| {
        let reason = if error == AuthError::Clock { Refused::ClockOff } else { Refused::BadAuthorization };
        Box::new(unauthorized(site, reason, &error.to_string()))
    })
}

/// hyper adds Date, by which a peer whose clock is off signs again.
fn unauthorized(site: &Site, reason: Refused, why: &str) -> Answer {
    let mut answer = site.refuse(reason, StatusCode::UNAUTHORIZED, why);
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Peerd"));
    answer
}

fn too_many(site: &Site) -> Answer {
    let why = "too many publications from this address: slow down";
    let mut answer = site.refuse(Refused::PublishRate, StatusCode::TOO_MANY_REQUESTS, why);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn bad_body(site: &Site, error: BodyError) -> Answer {
    let (reason, status) = match error {
        BodyError::TooLarge(_) => (Refused::TooLarge, StatusCode::PAYLOAD_TOO_LARGE),
        BodyError::Timeout | BodyError::Broken => (Refused::BodyTimeout, StatusCode::REQUEST_TIMEOUT),
    };
    site.refuse(reason, status, error.to_string())
}

pub(super) async fn unknown(site: Arc<Site>, request: Request, ends: Ends) -> Answer {
    site.announcer.metrics.serve(Served::Unknown);
    let asker = site.asker(request.headers(), ends);
    let held = match site.bodies.read(request.into_body(), MAX_UNKNOWN_KEYS * InfoHash::LEN).await {
        Ok(held) => held,
        Err(error) => return bad_body(&site, error),
    };
    if !held.bytes.len().is_multiple_of(InfoHash::LEN) {
        site.announcer.limits.charge(site.clock.now(), asker.ip);
        return site.refuse(
            Refused::BadQuery,
            StatusCode::BAD_REQUEST,
            "the body is keys of 20 bytes, one after another",
        );
    }
    with_type(StatusCode::OK, BYTES, site.catalogue.unknown(&held.bytes))
}

pub(super) async fn torrent(site: Arc<Site>, key: InfoHash, request: Request, ends: Ends) -> Answer {
    site.announcer.metrics.serve(Served::Torrent);
    if let Some(answer) = not_tracked(&site, &key) {
        return answer;
    }
    let announce = announce_url(site.public_address.as_deref(), host(request.headers()), ends.local);
    blocking(site, move |site| match site.catalogue.torrent(&key) {
        Ok(Some(bytes)) => match Metainfo::parse(&bytes) {
            Ok(metainfo) => {
                let mut answer = with_type(StatusCode::OK, TORRENT, metainfo.with_announce(Some(&announce)));
                let name = HeaderValue::try_from(format!("attachment; filename=\"{key}.torrent\""));
                answer.headers_mut().extend(name.ok().map(|name| (CONTENT_DISPOSITION, name)));
                answer
            }
            Err(error) => unreadable(&key, &error.to_string()),
        },
        Ok(None) => site.refuse(Refused::NoSuchTorrent, StatusCode::NOT_FOUND, "no such torrent was published here"),
        Err(error) => unreadable(&key, &error.to_string()),
    })
    .await
}

fn unreadable(key: &InfoHash, error: &str) -> Answer {
    tracing::error!(%key, error, "a .torrent cannot be read");
    text(StatusCode::INTERNAL_SERVER_ERROR, "this .torrent cannot be read\n")
}

/// By the name that the asker knows this tracker by.
fn announce_url(public_address: Option<&str>, host: &str, local: SocketAddr) -> String {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let usable = !host.is_empty() && host.len() <= MAX_HOST_BYTES && host.bytes().all(harmless);
    match public_address.or(usable.then_some(host)) {
        Some(host) => format!("http://{host}/announce"),
        None => format!("http://{local}/announce"),
    }
}

pub(super) fn peers(site: &Site, key: &InfoHash, asker: Asker) -> Answer {
    site.announcer.metrics.serve(Served::Peers);
    if !site.list_peers {
        return site.refuse(Refused::PeersNotListed, StatusCode::FORBIDDEN, "this tracker does not list peers");
    }
    let sample = with_rng(|rng| site.announcer.swarms.sample(key, MAX_PEERS, rng));
    let (total, sample) = sample.unwrap_or_default();
    if total == 0 && !site.catalogue.contains(key) {
        return site.refuse(Refused::NoSuchTorrent, StatusCode::NOT_FOUND, "no such torrent is known here");
    }
    let names = site.announcer.own.names_for(asker.ip, asker.local);
    let shown = |(peer, seeder): (SocketAddr, bool)| {
        let peer = names.shown(peer)?;
        Some(SwarmPeer { ip: peer.ip(), port: peer.port(), seeder })
    };
    let reply = PeersReply { total: total as u64, peers: sample.into_iter().filter_map(shown).collect() };
    with_type(StatusCode::OK, JSON, serde_json::to_vec(&reply).unwrap_or_default())
}

/// Runs what takes milliseconds or reads the disk beside the runtime, and after the announces.
async fn blocking(site: Arc<Site>, work: impl FnOnce(&Site) -> Answer + Send + 'static) -> Answer {
    let of = site.clone();
    match site.behind.run(move || work(&of)).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::error!(%error, "a request was not answered");
            text(StatusCode::INTERNAL_SERVER_ERROR, "the tracker failed to answer\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announce_url_names_the_tracker_as_the_asker_does() {
        let local = "[2001:db8::1]:6969".parse().unwrap();
        assert_eq!(announce_url(None, "tracker.lan:6969", local), "http://tracker.lan:6969/announce");
        assert_eq!(announce_url(None, "[::1]:6969", local), "http://[::1]:6969/announce");
        assert_eq!(announce_url(Some("t.example:80"), "tracker.lan:6969", local), "http://t.example:80/announce");
        for host in ["", "a b", "x/../y", &"a".repeat(300), "a\"b", "user@host"] {
            assert_eq!(announce_url(None, host, local), "http://[2001:db8::1]:6969/announce");
        }
    }

    #[test]
    fn a_reply_keeps_to_its_cap() {
        let hit = Hit {
            name: "n".repeat(255),
            file_type: "-".into(),
            path: "\u{1}".repeat(4_000),
            torrent: String::new(),
            key: InfoHash::new([0; 20]),
            size: 1,
            n_parts: 1,
            seeders: 0,
            leechers: 0,
            added: 0,
            matched: crate::wire::catalogue::Match::Words,
        };
        let reply = SearchReply { total: 900, hits: vec![hit; 500] };
        let json = within_reply(reply);
        let read = SearchReply::from_json(&json).unwrap();
        assert_eq!(read.total, 900);
        assert!((30..500).contains(&read.hits.len()));
    }
}
