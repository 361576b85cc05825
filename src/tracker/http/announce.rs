//! `GET /announce` and `GET /scrape`. Refusals are answered 200 with a failure reason, as BEP 3 has it.

use std::cell::RefCell;
use std::net::SocketAddr;

use axum::http::StatusCode;
use rand::rngs::SmallRng;

use super::{Answer, Site, text};
use crate::tracker::announcer::{Announcer, Asker};
use crate::tracker::connection_id::seeded_rng;
use crate::tracker::metrics::{Refused, Served};
use crate::wire::announce::{AnnounceRequest, AnnounceResponse, ScrapeEntry};
use crate::wire::id::InfoHash;
use crate::wire::tracker_http::{
    PeerList, encode_announce_response, encode_failure, encode_scrape_response, parse_scrape_query,
};

thread_local! {
    /// What a thread uses again for every announce. No generator: the system gave no seed, and nobody is handed out.
    static SCRATCH: RefCell<(Option<SmallRng>, Vec<SocketAddr>)> = RefCell::new((seeded_rng().ok(), Vec::new()));
}

/// Calls `f` with this thread's generator.
pub(super) fn with_rng<R>(f: impl FnOnce(&mut SmallRng) -> R) -> Option<R> {
    SCRATCH.with_borrow_mut(|(rng, _)| rng.as_mut().map(f))
}

pub(super) fn announce(site: &Site, query: Option<&str>, asker: Asker) -> Answer {
    let announcer = &*site.announcer;
    announcer.metrics.serve(Served::HttpAnnounce);
    let request = match AnnounceRequest::from_query(query.unwrap_or_default()) {
        Ok(request) => request,
        Err(error) => return bad_query(site, Refused::BadAnnounce, asker, &error.to_string()),
    };
    let mut body = Vec::with_capacity(512);
    let answered = SCRATCH.with_borrow_mut(|(rng, peers)| {
        let rng = rng.as_mut()?;
        write_answer(announcer, site, &request, asker, rng, peers, &mut body);
        Some(())
    });
    if answered.is_none() {
        encode_failure("the tracker has no random numbers", &mut body);
    }
    text(StatusCode::OK, body)
}

fn write_answer(
    announcer: &Announcer,
    site: &Site,
    request: &AnnounceRequest,
    asker: Asker,
    rng: &mut SmallRng,
    peers: &mut Vec<SocketAddr>,
    body: &mut Vec<u8>,
) {
    peers.clear();
    match announcer.announce(site.clock.now(), request, asker, usize::MAX, rng, |peer| peers.push(peer)) {
        Ok(announced) => {
            let response = AnnounceResponse {
                interval_s: announced.interval_s,
                min_interval_s: Some(announced.min_interval_s),
                seeders: announced.seeders,
                leechers: announced.leechers,
                peers: std::mem::take(peers),
                warning: None,
                external_ip: Some(asker.ip),
            };
            let list = if request.compact { PeerList::Compact } else { PeerList::Dictionaries };
            encode_announce_response(&response, list, body);
            *peers = response.peers;
        }
        Err(refused) => encode_failure(refused.message(), body),
    }
}

pub(super) fn scrape(site: &Site, query: Option<&str>, asker: Asker) -> Answer {
    site.announcer.metrics.serve(Served::HttpScrape);
    let keys = match parse_scrape_query(query.unwrap_or_default()) {
        Ok(keys) if !keys.is_empty() => keys,
        Ok(_) => return bad_query(site, Refused::BadScrape, asker, "name the torrents: info_hash is missing"),
        Err(error) => return bad_query(site, Refused::BadScrape, asker, &error.to_string()),
    };
    let entries: Vec<(InfoHash, ScrapeEntry)> =
        keys.into_iter().map(|key| (key, site.announcer.swarms.scrape(&key))).collect();
    let mut body = Vec::new();
    encode_scrape_response(&entries, &mut body);
    text(StatusCode::OK, body)
}

fn bad_query(site: &Site, reason: Refused, asker: Asker, why: &str) -> Answer {
    site.announcer.metrics.refuse(reason);
    site.announcer.limits.charge(site.clock.now(), asker.ip);
    let mut body = Vec::new();
    encode_failure(why, &mut body);
    text(StatusCode::OK, body)
}
