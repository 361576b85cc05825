//! The configuration file (TOML): the long flags, and what has no flag.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::catalogue::seedless::Patience;

/// A configuration file is written by hand.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What a file may say; an unknown key is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    pub listen: Option<Vec<SocketAddr>>,
    #[serde(alias = "state-dir")]
    pub state_dir: Option<PathBuf>,
    pub foreground: Option<bool>,
    /// Whether `/torrents/<key>/peers` names anybody; it does by default.
    pub list_peers: Option<bool>,
    /// `host` or `host:port` by which this tracker is known outside.
    pub public_address: Option<String>,
    /// Proxies whose word on who asks, and whose clients' `ip=`, are believed.
    #[serde(default)]
    pub trusted_proxies: Vec<IpAddr>,
    /// The header in which they say who asks: the last address in it; X-Forwarded-For by default.
    pub proxy_header: Option<String>,
    /// A file of info-hashes, a line each: nothing else is tracked. Read again on SIGHUP, as the next one.
    pub allow_list: Option<PathBuf>,
    /// A file of info-hashes that are not tracked.
    pub deny_list: Option<PathBuf>,
    /// A file of public keys and the number of torrents that each may publish; `*` stands for the others.
    pub publisher_list: Option<PathBuf>,
    /// Days after which a published torrent without a seeder is no longer found by searches; 30 by default.
    pub hide_seedless_after_days: Option<u32>,
    /// Days after which it is forgotten; 180 by default.
    pub drop_seedless_after_days: Option<u32>,
}

/// Why a configuration file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Content { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: longer than 1 MiB, which is no configuration", path.display())]
    TooLong { path: PathBuf },
}

impl FileConfig {
    /// How long what nobody seeds stays in the catalogue.
    pub fn patience(&self) -> Patience {
        const DAY_S: u64 = 86_400;
        let Patience { hide_after_s, drop_after_s } = Patience::default();
        let seconds = |days: Option<u32>, default_s| days.map_or(default_s, |days| u64::from(days) * DAY_S);
        Patience {
            hide_after_s: seconds(self.hide_seedless_after_days, hide_after_s),
            drop_after_s: seconds(self.drop_seedless_after_days, drop_after_s),
        }
    }

    /// # Errors
    /// When the file cannot be read, or says something that is not known.
    pub fn read(path: &Path) -> Result<FileConfig, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_path_buf(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE_BYTES {
            return Err(ConfigError::TooLong { path: path.to_path_buf() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let content = |source| ConfigError::Content { path: path.to_path_buf(), source: Box::new(source) };
        toml::from_str(&text).map_err(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<FileConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trackerd.toml");
        std::fs::write(&path, text).unwrap();
        FileConfig::read(&path)
    }

    #[test]
    fn every_key() {
        let text = "listen = [\"0.0.0.0:80\", \"[::]:80\"]\nstate-dir = \"a b\"\nforeground = true\nlist_peers = false\n\
            public_address = \"t.example:80\"\ntrusted_proxies = [\"10.0.0.1\", \"::1\"]\n\
            proxy_header = \"X-Real-IP\"\nallow_list = \"allow\"\ndeny_list = \"deny\"\npublisher_list = \"who\"\n\
            hide_seedless_after_days = 7\ndrop_seedless_after_days = 70\n";
        let expected = FileConfig {
            listen: Some(vec!["0.0.0.0:80".parse().unwrap(), "[::]:80".parse().unwrap()]),
            state_dir: Some("a b".into()),
            foreground: Some(true),
            list_peers: Some(false),
            public_address: Some("t.example:80".into()),
            trusted_proxies: vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
            proxy_header: Some("X-Real-IP".into()),
            allow_list: Some("allow".into()),
            deny_list: Some("deny".into()),
            publisher_list: Some("who".into()),
            hide_seedless_after_days: Some(7),
            drop_seedless_after_days: Some(70),
        };
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("").unwrap(), FileConfig::default());
    }

    #[test]
    fn a_slip_of_the_pen_is_named() {
        for (text, named) in [
            ("list_pears = true", "list_pears"),
            ("listen = [\"6969\"]", "listen"),
            ("foreground = 1", "foreground"),
            ("public_address", "line 1"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains("trackerd.toml") && message.contains(named), "{message}");
        }
        let missing = FileConfig::read(Path::new("/nonexistent/trackerd.toml")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/trackerd.toml"));
    }
}
