//! What the user asked for: flags, then environment, then file, then defaults, made into one checked set.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Deserialize;

use crate::logging::LogFormat;
use crate::wire::rate::Rate;

/// The tracker's port where none is given.
pub const TRACKER_PORT: u16 = 6969;

/// Shares what lies in upload/ and fetches what peerctl asks for.
#[derive(Parser, Debug, Clone)]
#[command(name = "peerd", version, max_term_width = 100)]
pub struct Args {
    /// The tracker: an address or a host name (host:port is taken too). Without it: the one of the last start; if there
    /// was none, one inside this peerd
    pub tracker: Option<String>,
    /// The tracker's port
    pub port: Option<u16>,
    /// Run a tracker inside this peerd, on port 6969
    #[arg(long, conflicts_with = "tracker")]
    pub own_tracker: bool,
    /// Stay in the terminal, log to it
    #[arg(long)]
    pub foreground: bool,
    /// The folder that upload/, downloads/ and state/ lie in [default: the current folder]
    #[arg(long, env = "PEERD_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Where peerd keeps what it must remember [default: HOME/state]
    #[arg(long, env = "PEERD_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The folder whose files are shared [default: HOME/upload]
    #[arg(long, env = "PEERD_UPLOAD_DIR", value_name = "DIR")]
    pub upload_dir: Option<PathBuf>,
    /// Where fetched files go [default: HOME/downloads]
    #[arg(long, env = "PEERD_DOWNLOAD_DIR", value_name = "DIR")]
    pub download_dir: Option<PathBuf>,
    /// Where peers reach us; may be given again [default: all addresses, the port of the last run, else 6881-6889]
    #[arg(long, env = "PEERD_LISTEN", value_name = "IP:PORT", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
    /// The control socket [default: STATE/peerd.sock]
    #[arg(long, env = "PEERD_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// A further tracker (http://, https:// or udp://) for what we share; may be given again
    #[arg(long = "tracker", id = "trackers", env = "PEERD_TRACKER", value_name = "URL", value_delimiter = ',')]
    pub trackers: Vec<String>,
    /// Share what lies in upload/ publicly: not marked private
    #[arg(long, env = "PEERD_PUBLIC")]
    pub public: bool,
    /// How many peers are served at once
    #[arg(long, env = "PEERD_UPLOAD_SLOTS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub upload_slots: Option<u32>,
    /// How fast to send, over all peers, in bytes per second: 500K, 2M; 0 is no limit
    #[arg(long, env = "PEERD_LIMIT_UP", value_name = "RATE")]
    pub limit_up: Option<Rate>,
    /// How fast to fetch
    #[arg(long, env = "PEERD_LIMIT_DOWN", value_name = "RATE")]
    pub limit_down: Option<Rate>,
    /// A configuration file [default: HOME/peerd.toml, then /etc/peerd/peerd.toml]
    #[arg(long, env = "PEERD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look
    #[arg(long, env = "PEERD_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// The configuration file: the long flags' names, and what has no flag.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    tracker: Option<OneOrMany>,
    own_tracker: Option<bool>,
    state_dir: Option<PathBuf>,
    upload_dir: Option<PathBuf>,
    download_dir: Option<PathBuf>,
    listen: Option<Vec<SocketAddr>>,
    socket: Option<PathBuf>,
    public: Option<bool>,
    upload_slots: Option<u32>,
    limit_up: Option<Rate>,
    limit_down: Option<Rate>,
    #[serde(alias = "lan_exempt")]
    lan_exempt: Option<bool>,
    log_format: Option<LogFormat>,
    #[serde(alias = "control_group")]
    control_group: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Where our tracker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackerChoice {
    /// Inside this peerd.
    Own,
    /// Host (name or address) and port.
    At(String, u16),
    /// The one of the last start, else our own.
    AsBefore,
}

/// Checked and complete. Folders are absolute.
#[derive(Clone, Debug)]
pub struct Options {
    pub tracker: TrackerChoice,
    pub further_trackers: Vec<String>,
    pub foreground: bool,
    pub state_dir: PathBuf,
    pub upload_dir: PathBuf,
    pub download_dir: PathBuf,
    pub listen: Vec<SocketAddr>,
    pub socket: Option<PathBuf>,
    pub public: bool,
    pub upload_slots: Option<u32>,
    pub limit_up: Rate,
    pub limit_down: Rate,
    /// The limits do not hold for peers of our own subnets.
    pub lan_exempt: bool,
    pub control_group: Option<String>,
    pub log_format: LogFormat,
}

/// Why the options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String },
    #[error(
        "{0} is no tracker: give its address or host name, and its port if that is not {TRACKER_PORT}: peerd 10.0.0.5 {TRACKER_PORT}"
    )]
    Tracker(String),
    #[error("{0} is no tracker's URL: http://, https:// and udp:// are understood")]
    TrackerUrl(String),
    #[error("upload-slots = {0}: give 1 to 1000")]
    UploadSlots(u32),
}

impl Args {
    /// # Errors
    /// When a file cannot be read or holds what is not understood, or a tracker is none.
    pub fn resolve(self) -> Result<Options, OptionsError> {
        let current = std::env::current_dir().map_err(|source| OptionsError::Read { path: ".".into(), source })?;
        let home = absolute(&current, self.home.as_deref().unwrap_or(Path::new(".")));
        let file = load_file(self.config.as_deref(), &home)?;
        let folder = |flag: &Option<PathBuf>, file: &Option<PathBuf>, name: &str| match (flag, file) {
            (Some(path), _) => absolute(&current, path),
            (None, Some(path)) => absolute(&home, path),
            (None, None) => home.join(name),
        };
        let (file_tracker, file_urls) = split_file_trackers(&file);
        let tracker = choose_tracker(&self, file_tracker.as_deref(), file.own_tracker.unwrap_or(false))?;
        let further_trackers = if self.trackers.is_empty() { file_urls } else { self.trackers.clone() };
        if let Some(bad) = further_trackers.iter().find(|url| !is_tracker_url(url)) {
            return Err(OptionsError::TrackerUrl(bad.clone()));
        }
        let upload_slots = self.upload_slots.or(file.upload_slots);
        if let Some(bad) = upload_slots.filter(|slots| !(1..=1000).contains(slots)) {
            return Err(OptionsError::UploadSlots(bad));
        }
        Ok(Options {
            tracker,
            further_trackers,
            foreground: self.foreground,
            state_dir: folder(&self.state_dir, &file.state_dir, "state"),
            upload_dir: folder(&self.upload_dir, &file.upload_dir, "upload"),
            download_dir: folder(&self.download_dir, &file.download_dir, "downloads"),
            listen: if self.listen.is_empty() { file.listen.unwrap_or_default() } else { self.listen },
            socket: self
                .socket
                .map(|path| absolute(&current, &path))
                .or(file.socket.map(|path| absolute(&home, &path))),
            public: self.public || file.public.unwrap_or(false),
            upload_slots,
            limit_up: self.limit_up.or(file.limit_up).unwrap_or_default(),
            limit_down: self.limit_down.or(file.limit_down).unwrap_or_default(),
            lan_exempt: file.lan_exempt.unwrap_or(false),
            control_group: file.control_group,
            log_format: self.log_format.or(file.log_format).unwrap_or_default(),
        })
    }
}

fn split_file_trackers(file: &File) -> (Option<String>, Vec<String>) {
    let all = match &file.tracker {
        None => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one.clone()],
        Some(OneOrMany::Many(many)) => many.clone(),
    };
    let (urls, hosts): (Vec<_>, Vec<_>) = all.into_iter().partition(|text| text.contains("://"));
    (hosts.into_iter().next(), urls)
}

fn is_tracker_url(url: &str) -> bool {
    ["http://", "https://", "udp://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme))
}

fn choose_tracker(args: &Args, file: Option<&str>, file_own: bool) -> Result<TrackerChoice, OptionsError> {
    if args.own_tracker {
        return Ok(TrackerChoice::Own);
    }
    match args.tracker.as_deref().or(file) {
        Some(text) => parse_tracker(text, args.port),
        None if file_own => Ok(TrackerChoice::Own),
        None => Ok(TrackerChoice::AsBefore),
    }
}

/// `host`, `host:port`, `1.2.3.4`, `::1`, `[::1]:6969`.
pub fn parse_tracker(text: &str, port: Option<u16>) -> Result<TrackerChoice, OptionsError> {
    let wrong = || OptionsError::Tracker(text.to_owned());
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return match port {
            Some(other) if other != addr.port() => Err(wrong()),
            _ => Ok(TrackerChoice::At(addr.ip().to_string(), addr.port())),
        };
    }
    let (host, own_port) = match text.parse::<std::net::IpAddr>() {
        Ok(ip) => (ip.to_string(), None),
        Err(_) => match text.rsplit_once(':') {
            Some((host, digits)) => (host.to_owned(), Some(digits.parse::<u16>().map_err(|_| wrong())?)),
            None => (text.to_owned(), None),
        },
    };
    let is_name = host.parse::<std::net::IpAddr>().is_ok()
        || (!host.is_empty()
            && host.len() <= 253
            && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
            // A bare number is a port given without its tracker.
            && !host.chars().all(|c| c.is_ascii_digit()));
    let port = port.or(own_port).unwrap_or(TRACKER_PORT);
    if !is_name || port == 0 {
        return Err(wrong());
    }
    Ok(TrackerChoice::At(host, port))
}

impl fmt::Display for TrackerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrackerChoice::Own => f.write_str("own"),
            TrackerChoice::AsBefore => f.write_str("as before"),
            TrackerChoice::At(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            TrackerChoice::At(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

fn absolute(base: &Path, path: &Path) -> PathBuf {
    let joined = base.join(path);
    // Only what is certain without asking the disk: `.` goes, `..` stays as it may follow a link.
    joined.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}

fn load_file(given: Option<&Path>, home: &Path) -> Result<File, OptionsError> {
    let tried: Vec<PathBuf> = match given {
        Some(path) => vec![path.to_owned()],
        None => vec![home.join("peerd.toml"), "/etc/peerd/peerd.toml".into()],
    };
    for path in tried {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                return toml::from_str(&text).map_err(|error| OptionsError::File { path, message: error.to_string() });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && given.is_none() => {}
            Err(source) => return Err(OptionsError::Read { path, source }),
        }
    }
    Ok(File::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trackers_are_addresses_or_names_with_or_without_a_port() {
        let at = |host: &str, port| Some(TrackerChoice::At(host.to_owned(), port));
        for (text, port, expected) in [
            ("10.0.0.5", None, at("10.0.0.5", 6969)),
            ("10.0.0.5", Some(7000), at("10.0.0.5", 7000)),
            ("10.0.0.5:7000", None, at("10.0.0.5", 7000)),
            ("2001:2::1", None, at("2001:2::1", 6969)),
            ("[2001:2::1]:7000", None, at("2001:2::1", 7000)),
            ("tracker.example", Some(80), at("tracker.example", 80)),
            ("localhost:80", None, at("localhost", 80)),
            ("6969", None, None),
            ("10.0.0.5:7000", Some(7001), None),
            ("http://x", None, None),
            ("", None, None),
            ("a b", None, None),
            ("host:port", None, None),
        ] {
            assert_eq!(parse_tracker(text, port).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_flag_comes_before_the_file_and_unknown_keys_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("peerd.toml");
        std::fs::write(
            &file,
            "tracker = \"10.0.0.9\"\nupload-slots = 3\nlimit-up = \"2M\"\nlan_exempt = true\nupload-dir = \"shared\"\n",
        )
        .unwrap();
        let home_flag = format!("--home={}", home.path().display());
        let args =
            |more: &[&str]| Args::try_parse_from([&["peerd", home_flag.as_str()], more].concat()).unwrap().resolve();
        let options = args(&[]).unwrap();
        assert_eq!(options.tracker, TrackerChoice::At("10.0.0.9".into(), 6969));
        assert_eq!(options.upload_slots, Some(3));
        assert_eq!(options.upload_dir, home.path().join("shared"));
        assert_eq!(options.download_dir, home.path().join("downloads"));
        assert_eq!((options.limit_up, options.limit_down), (Rate::from_bytes_per_s(2 << 20), Rate::UNLIMITED));
        assert!(options.lan_exempt);
        let options = args(&["10.0.0.5", "--upload-slots", "1"]).unwrap();
        assert_eq!(options.tracker, TrackerChoice::At("10.0.0.5".into(), 6969));
        assert_eq!(options.upload_slots, Some(1));
        std::fs::write(&file, "upload_slotz = 3\n").unwrap();
        assert!(matches!(args(&[]), Err(OptionsError::File { .. })));
        assert!(matches!(args(&["--config", "/nonexistent.toml"]), Err(OptionsError::Read { .. })));
    }
}
