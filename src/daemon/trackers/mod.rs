//! peerd as a client of trackers: when to announce ([`schedule`], pure), how ([`client`], [`udp`], [`http`]), and our own
//! tracker's catalogue ([`catalogue`]).

pub mod catalogue;
pub mod client;
pub mod http;
pub mod resolve;
pub mod schedule;
#[cfg(test)]
mod testing;
pub mod udp;

use std::fmt;
use std::net::Ipv6Addr;

use reqwest::Url;

/// A tracker's address is kept, shown and sent up to this length: passkeys make them long, nothing makes them longer.
pub const MAX_URL_BYTES: usize = 2048;

/// The tracker of our network: HTTP and UDP on one port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OurTracker {
    host: String,
    port: u16,
}

impl OurTracker {
    /// `host`: a name or an address, IPv6 with or without brackets.
    pub fn new(host: &str, port: u16) -> OurTracker {
        OurTracker { host: bare_host(host), port }
    }

    /// Without brackets, in lower case.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of one of its pages.
    ///
    /// # Errors
    /// When the host is no host.
    pub fn http_url(&self, path_and_query: &str) -> Result<Url, TrackerError> {
        Url::parse(&format!("http://{self}{path_and_query}"))
            .map_err(|error| TrackerError::Unreachable { reason: format!("{self} is no address: {error}") })
    }
}

/// `host:port`, IPv6 in brackets.
impl fmt::Display for OurTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OurTracker { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Where announces go.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TrackerUrl {
    /// UDP first, HTTP when UDP stays silent.
    Ours(OurTracker),
    /// `http` or `https`.
    Http(Url),
    Udp {
        host: String,
        port: u16,
    },
}

/// Why a text is no tracker that peerd can ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotATracker {
    #[error("a tracker's address of {0} bytes: at most {MAX_URL_BYTES} are taken")]
    TooLong(usize),
    #[error("not a URL: {0}")]
    Url(String),
    #[error("a tracker by {0}: only http, https and udp are spoken")]
    Scheme(String),
    #[error("a tracker's address without a host and port")]
    Host,
}

impl TrackerUrl {
    /// Reads `http://`, `https://` and `udp://` addresses.
    ///
    /// # Errors
    /// When it is nothing that peerd can ask.
    pub fn parse(text: &str) -> Result<TrackerUrl, NotATracker> {
        if text.len() > MAX_URL_BYTES {
            return Err(NotATracker::TooLong(text.len()));
        }
        let mut url = Url::parse(text.trim()).map_err(|error| NotATracker::Url(error.to_string()))?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(NotATracker::Host)?;
        match url.scheme() {
            "http" | "https" => {
                url.set_fragment(None);
                Ok(TrackerUrl::Http(url))
            }
            "udp" => {
                let port = url.port().filter(|&port| port != 0).ok_or(NotATracker::Host)?;
                Ok(TrackerUrl::Udp { host: bare_host(host), port })
            }
            other => Err(NotATracker::Scheme(other.to_owned())),
        }
    }

    pub fn is_ours(&self) -> bool {
        matches!(self, TrackerUrl::Ours(_))
    }

    /// Host (lower case, no brackets) and port: two addresses with the same ones are the same tracker.
    pub fn endpoint(&self) -> (String, u16) {
        match self {
            TrackerUrl::Ours(ours) => (ours.host.clone(), ours.port),
            TrackerUrl::Http(url) => {
                (bare_host(url.host_str().unwrap_or_default()), url.port_or_known_default().unwrap_or(0))
            }
            TrackerUrl::Udp { host, port } => (host.clone(), *port),
        }
    }

    /// Whether it names our tracker, by whichever protocol.
    pub fn names(&self, ours: &OurTracker) -> bool {
        let (host, port) = self.endpoint();
        host == ours.host && port == ours.port
    }
}

/// As a person would write it; a query, where passkeys travel, is left out.
impl fmt::Display for TrackerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrackerUrl::Ours(ours) => write!(f, "{ours}"),
            TrackerUrl::Http(url) => f.write_str(url.as_str().split('?').next().unwrap_or_default()),
            TrackerUrl::Udp { host, port } => write!(f, "udp://{}", OurTracker { host: host.clone(), port: *port }),
        }
    }
}

/// Without brackets, in lower case; an IPv6 address in its one canonical form.
fn bare_host(host: &str) -> String {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<Ipv6Addr>() {
        Ok(ip) => ip.to_string(),
        Err(_) => bare.to_ascii_lowercase(),
    }
}

/// Why a tracker gave no answer that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrackerError {
    /// No answer at all: it may be down, or the way to it.
    #[error("cannot be reached: {reason}")]
    Unreachable { reason: String },
    /// It answered, and declined. Over HTTP with a status, over UDP and in a bencoded failure without.
    #[error("refused{}: {reason}", status.map(|status| format!(" ({status})")).unwrap_or_default())]
    Refused { status: Option<u16>, reason: String },
    /// It answered with something that is no answer.
    #[error("sent a bad reply: {reason}")]
    BadReply { reason: String },
}

impl TrackerError {
    fn unreachable(reason: impl fmt::Display) -> TrackerError {
        TrackerError::Unreachable { reason: reason.to_string() }
    }

    fn bad_reply(reason: impl fmt::Display) -> TrackerError {
        TrackerError::BadReply { reason: reason.to_string() }
    }

    /// Whether it says that what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, TrackerError::Refused { status: Some(404), .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        let shown = |text: &str| TrackerUrl::parse(text).map(|url| url.to_string());
        assert_eq!(shown("http://T.example:80/announce?key=secret#x"), Ok("http://t.example/announce".into()));
        assert_eq!(shown(" udp://T.example:6969/announce "), Ok("udp://t.example:6969".into()));
        assert_eq!(shown("udp://[2001:DB8::1]:6969"), Ok("udp://[2001:db8::1]:6969".into()));
        assert_eq!(shown("udp://t.example"), Err(NotATracker::Host));
        assert_eq!(shown("udp://t.example:0"), Err(NotATracker::Host));
        assert_eq!(shown("wss://t.example"), Err(NotATracker::Scheme("wss".into())));
        assert_eq!(shown("file:///etc/passwd"), Err(NotATracker::Host));
        assert!(matches!(shown("announce"), Err(NotATracker::Url(_))));
        assert_eq!(shown(&"x".repeat(3000)), Err(NotATracker::TooLong(3000)));
    }

    #[test]
    fn our_tracker_is_known_by_host_and_port() {
        let ours = OurTracker::new("[2001:DB8:0::1]", 6969);
        assert_eq!(ours.to_string(), "[2001:db8::1]:6969");
        for (text, same) in [
            ("http://[2001:db8::1]:6969/announce", true),
            ("udp://[2001:db8::1]:6969", true),
            ("udp://[2001:db8::1]:6968", false),
            ("http://[2001:db8::1]/announce", false),
            ("http://t.example:6969/announce", false),
        ] {
            assert_eq!(TrackerUrl::parse(text).map(|url| url.names(&ours)), Ok(same), "{text}");
        }
        let named = OurTracker::new("Tracker.LAN", 80);
        assert_eq!(TrackerUrl::parse("http://tracker.lan/announce").map(|url| url.names(&named)), Ok(true));
    }

    #[test]
    fn errors_say_who_failed() {
        let refused = |status| TrackerError::Refused { status, reason: "no such torrent".into() }.to_string();
        assert_eq!(refused(Some(404)), "refused (404): no such torrent");
        assert_eq!(refused(None), "refused: no such torrent");
    }
}
