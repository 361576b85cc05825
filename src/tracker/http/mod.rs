//! The tracker's HTTP: announce and scrape, the catalogue, metrics.
//!
//! `server` accepts and watches connections; this module routes; `announce` and `catalogue` answer. Nothing here blocks
//! the runtime: what reads the disk or searches runs on threads of its own.

mod announce;
mod behind;
mod body;
mod catalogue;
pub mod server;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;

pub use self::behind::Behind;
pub use self::body::BodyBudget;
use super::announcer::{Announcer, Asker};
use super::auth::Gatekeeper;
use super::catalogue::Catalogue;
use super::keeper::Keeper;
use super::metrics::{Gauges, Refused, Served};
use crate::clock::Clock;
use crate::wire::id::InfoHash;

type Request = axum::http::Request<Incoming>;
type Answer = Response<Body>;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What every request is answered from.
pub struct Site {
    pub announcer: Arc<Announcer>,
    pub catalogue: Arc<Catalogue>,
    pub keeper: Arc<Keeper>,
    pub clock: Arc<dyn Clock>,
    /// Whether `/torrents/<key>/peers` names anybody.
    pub list_peers: bool,
    /// `host` or `host:port` that stands in for what the request says.
    pub public_address: Option<String>,
    /// In which trusted proxies say who asks.
    pub proxy_header: HeaderName,
    pub gatekeeper: Gatekeeper,
    pub bodies: BodyBudget,
    pub behind: Behind,
    /// Connections open now.
    pub connections: AtomicUsize,
}

/// The two ends of a connection, both canonical.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub remote: SocketAddr,
    pub local: SocketAddr,
}

impl Site {
    /// Answers one request.
    async fn answer(self: Arc<Site>, request: Request, ends: Ends) -> Answer {
        // HEAD is answered as GET; hyper leaves the body out.
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        let path = request.uri().path();
        match path {
            "/announce" if get => announce::announce(&self, request.uri().query(), self.asker(request.headers(), ends)),
            "/scrape" if get => announce::scrape(&self, request.uri().query(), self.asker(request.headers(), ends)),
            "/search" if get => catalogue::search(self, request).await,
            "/search_content.txt" if get => catalogue::content_file(&self).await,
            "/metrics" if get => self.metrics(),
            "/health" if get => self.health(),
            "/torrents" if request.method() == Method::POST => catalogue::publish(self, request, ends).await,
            "/torrents/unknown" if request.method() == Method::POST => catalogue::unknown(self, request, ends).await,
            "/announce" | "/scrape" | "/search" | "/search_content.txt" | "/metrics" | "/health" => {
                self.not_allowed("GET, HEAD")
            }
            "/torrents" | "/torrents/unknown" => self.not_allowed("POST"),
            _ => self.answer_about_torrent(request, ends).await,
        }
    }

    /// `/torrents/<key>.torrent`, `/torrents/<key>/peers`, `/torrents/<key>`.
    async fn answer_about_torrent(self: Arc<Site>, request: Request, ends: Ends) -> Answer {
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        let Some(rest) = request.uri().path().strip_prefix("/torrents/") else {
            return self.refuse(Refused::NoSuchPath, StatusCode::NOT_FOUND, "no such page");
        };
        let digits = rest.split(['.', '/']).next().unwrap_or_default();
        let Ok(key) = digits.parse::<InfoHash>() else {
            return self.refuse(Refused::NoSuchPath, StatusCode::NOT_FOUND, "no such page: a key is 40 hex digits");
        };
        match rest.get(digits.len()..).unwrap_or_default() {
            ".torrent" if get => catalogue::torrent(self, key, request, ends).await,
            "/peers" if get => {
                let asker = self.asker(request.headers(), ends);
                catalogue::peers(&self, &key, asker)
            }
            "" if request.method() == Method::DELETE => catalogue::withdraw(self, key, request, ends).await,
            "" => self.not_allowed("DELETE"),
            ".torrent" | "/peers" => self.not_allowed("GET, HEAD"),
            _ => self.refuse(Refused::NoSuchPath, StatusCode::NOT_FOUND, "no such page"),
        }
    }

    /// Who asks: behind a trusted proxy the last address that it added to its header.
    fn asker(&self, headers: &HeaderMap, ends: Ends) -> Asker {
        let mut ip = ends.remote.ip();
        if self.announcer.trusted_proxies.contains(&ip) {
            let forwarded = headers.get_all(&self.proxy_header).iter().next_back();
            let last = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
            ip = last.map_or(ip, |last: IpAddr| last.to_canonical());
        }
        Asker { ip, local: ends.local.ip() }
    }

    fn metrics(&self) -> Answer {
        self.announcer.metrics.serve(Served::Metrics);
        let (unwritten_swarms, unwritten_swarms_s) = self.keeper.lag(self.clock.now());
        let gauges = Gauges {
            swarms: self.announcer.swarms.len(),
            peers: self.announcer.swarms.entries(),
            torrents: self.catalogue.len(),
            connections: self.connections.load(std::sync::atomic::Ordering::Relaxed),
            unwritten: self.catalogue.unwritten(),
            unwritten_swarms,
            unwritten_swarms_s,
        };
        let mut answer = text(StatusCode::OK, self.announcer.metrics.render(gauges));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
        answer
    }

    fn health(&self) -> Answer {
        self.announcer.metrics.serve(Served::Health);
        if self.catalogue.is_healthy() {
            text(StatusCode::OK, "ok\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "the disk takes no more publications\n")
        }
    }

    /// An answer that says no, counted.
    fn refuse(&self, reason: Refused, status: StatusCode, why: impl Into<String>) -> Answer {
        self.announcer.metrics.refuse(reason);
        text(status, why.into() + "\n")
    }

    fn not_allowed(&self, allowed: &'static str) -> Answer {
        let mut answer = self.refuse(Refused::BadMethod, StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}"));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        answer
    }
}

fn text(status: StatusCode, body: impl Into<Body>) -> Answer {
    with_type(status, TEXT, body)
}

fn with_type(status: StatusCode, content_type: HeaderValue, body: impl Into<Body>) -> Answer {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

/// The Host as sent, which is what publishers sign.
fn host(headers: &HeaderMap) -> &str {
    headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}
