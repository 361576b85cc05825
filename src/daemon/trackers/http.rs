//! HTTP as trackers need it: no proxies, few redirects, bounded bodies, errors that say what happened.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::DATE;
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{Client, ClientBuilder, Request, Url};
use tokio::sync::OnceCell;

use super::TrackerError;
use super::resolve::HttpResolver;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte out to the last byte in.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(30);
/// From one tracker to another address of itself; more is a loop.
const MAX_REDIRECTS: usize = 5;
/// Connections kept open to one host: announces come in bursts of the schedule's concurrency.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Bytes of a page that are shown as the reason for a refusal.
const REASON_BYTES: usize = 200;

/// Why HTTP cannot be spoken at all.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client cannot be set up: {0}")]
pub struct HttpSetupError(#[from] reqwest::Error);

/// The client. Certificates are read from the system when an address first needs them: our own tracker never does, and
/// a machine without any can still share.
pub struct Http {
    plain: Client,
    secure: OnceCell<Client>,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Seconds since 1970, from the Date header.
    pub date: Option<u64>,
    /// Decompressed.
    pub body: Vec<u8>,
}

impl Http {
    /// # Errors
    /// When the client cannot be built: a fault of this program or machine.
    pub fn new() -> Result<Http, HttpSetupError> {
        // An error says that a provider is installed already, by an earlier call or by the program: as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Http { plain: builder().tls_certs_only([]).build()?, secure: OnceCell::new() })
    }

    /// A client that trusts no certificate, for plain HTTP.
    pub fn plain(&self) -> &Client {
        &self.plain
    }

    /// The client for addresses that others name: `https`, and `http` that may redirect there.
    ///
    /// # Errors
    /// When the address is `https` and this machine has no certificates to hold it against.
    pub async fn for_url(&self, url: &Url) -> Result<&Client, TrackerError> {
        let load = || async {
            let built = tokio::task::spawn_blocking(|| builder().build()).await;
            built.map_err(TrackerError::unreachable)?.map_err(|error| {
                let reason = format!("certificates of this machine: {}; install ca-certificates", innermost(&error));
                TrackerError::unreachable(reason)
            })
        };
        match self.secure.get_or_try_init(load).await {
            Err(_) if url.scheme() == "http" => Ok(&self.plain),
            client => client,
        }
    }
}

fn builder() -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .redirect(Policy::custom(redirected))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TOTAL_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .dns_resolver(HttpResolver::shared())
        .user_agent(concat!("peerd/", env!("CARGO_PKG_VERSION")))
}

/// Follows a tracker to another address of itself, and nobody to where it could not lead by itself: services that listen
/// on this machine, or on its link alone, trust whoever reaches them.
fn redirected(attempt: Attempt<'_>) -> Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("redirects without end");
    }
    if is_near(attempt.url()) && !attempt.previous().iter().all(is_near) {
        return attempt.error("a redirect to this machine or its link");
    }
    attempt.follow()
}

/// Whether an address names this machine, or what only its link knows. A name that is looked up says nothing.
pub fn is_near(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
        Err(_) => bare == "localhost" || bare.ends_with(".localhost"),
    }
}

/// Sends and reads the answer whatever its status, at most `max_bytes` of body after decompression.
///
/// # Errors
/// When there is no answer, or a longer one.
pub async fn send(client: &Client, request: Request, max_bytes: usize) -> Result<Reply, TrackerError> {
    let mut response = client.execute(request).await.map_err(failed)?;
    let status = response.status().as_u16();
    let date = response.headers().get(DATE).and_then(|date| http_date(date.to_str().ok()?));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > max_bytes {
            return Err(TrackerError::bad_reply(format!("longer than {max_bytes} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Reply { status, date, body })
}

impl Reply {
    /// # Errors
    /// Unless the status says success: then the first line of the body is the reason.
    pub fn success(self) -> Result<Reply, TrackerError> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(self.refusal()) }
    }

    /// The answer as a refusal.
    pub fn refusal(&self) -> TrackerError {
        let text = String::from_utf8_lossy(self.body.get(..REASON_BYTES).unwrap_or(&self.body));
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason was given");
        TrackerError::Refused { status: Some(self.status), reason: line.to_owned() }
    }
}

fn failed(error: reqwest::Error) -> TrackerError {
    if error.is_timeout() {
        return TrackerError::unreachable("no answer in time");
    }
    if error.is_redirect() {
        return TrackerError::bad_reply(innermost(&error));
    }
    // What has come and is no HTTP, or no gzip.
    if error.is_decode() {
        return TrackerError::bad_reply(innermost(&error));
    }
    // Our resolver's word is this already.
    let cause = innermost(&error);
    cause.downcast_ref().cloned().unwrap_or_else(|| TrackerError::unreachable(cause))
}

/// The cause at the bottom: the layers above repeat that a request failed, and the URL with its secrets.
fn innermost(error: &reqwest::Error) -> &(dyn Error + 'static) {
    let mut cause: &(dyn Error + 'static) = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7) as seconds since 1970.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, text) = text.split_once(", ")?;
    let mut words = text.split(' ');
    let (day, month, year, time, zone) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    if zone != "GMT" || !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    let mut seconds = 0;
    for part in time.splitn(3, ':') {
        seconds = seconds * 60 + part.parse::<u64>().ok().filter(|part| *part <= 60)?;
    }
    // Days since 1970 in a year that begins in March, so that the leap day is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    Some(days.checked_sub(719_468)? * 86_400 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_become_seconds() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        assert_eq!(http_date("Fri, 31 Dec 2100 00:00:00 GMT"), Some(4_133_894_400));
        for bad in ["", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 99 Nov 1994 1:1:1 GMT"]
        {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_of_this_machine_and_its_link_are_near() {
        let near = |text: &str| is_near(&Url::parse(text).unwrap());
        for text in ["http://127.9.9.9/", "http://[::1]:80/", "http://localhost/", "http://a.localhost/", "http://0/"] {
            assert!(near(text), "{text}");
        }
        for text in ["http://169.254.169.254/", "http://[fe80::1]/", "http://[::ffff:127.0.0.1]/", "http://2130706433/"]
        {
            assert!(near(text), "{text}");
        }
        for text in ["http://198.18.0.1/", "http://10.0.0.1/", "http://[2001:db8::1]/", "http://localhost.example/"] {
            assert!(!near(text), "{text}");
        }
    }

    #[test]
    fn a_refusal_shows_the_first_line_and_no_more() {
        let reply = |body: &str| Reply { status: 403, date: None, body: body.as_bytes().to_vec() };
        let reason = |body: &str| match reply(body).success() {
            Err(TrackerError::Refused { status: Some(403), reason }) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason("\n  not yours\nmore"), "not yours");
        assert_eq!(reason(""), "no reason was given");
        assert_eq!(reason(&"x".repeat(10_000)).len(), REASON_BYTES);
    }
}
