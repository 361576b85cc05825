//! BEP 15's connection ids: proof that who asks receives at the address it writes from. A keyed hash of address and time,
//! so that nothing is stored; the secret lies in the state folder, so that a restart voids none.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use sha1::{Digest, Sha1};

/// An id is made anew this often and taken through the next window: clients may use one for a minute, trackers should
/// take it for two (BEP 15).
const WINDOW_S: u64 = 120;
const SECRET_FILE: &str = "secret";
/// With address and time it fills one block of SHA-1 together.
const SECRET_BYTES: usize = 16;

pub struct ConnectionIds {
    secret: [u8; SECRET_BYTES],
}

impl ConnectionIds {
    pub fn new(secret: [u8; SECRET_BYTES]) -> ConnectionIds {
        ConnectionIds { secret }
    }

    /// With the secret of this state folder, drawn from the system if there is none yet.
    ///
    /// # Errors
    /// When the file can neither be read nor made.
    pub fn load(state_dir: &Path) -> io::Result<ConnectionIds> {
        let path = state_dir.join(SECRET_FILE);
        let mut secret = [0; SECRET_BYTES];
        match File::open(&path).and_then(|mut file| file.read_exact(&mut secret)) {
            Ok(()) => Ok(ConnectionIds { secret }),
            // A file cut short by a crash is as good as none.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                fill_from_os(&mut secret)?;
                let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
                file.write_all(&secret)?;
                Ok(ConnectionIds { secret })
            }
            Err(error) => Err(error),
        }
    }

    /// The id for this address, now.
    pub fn issue(&self, ip: IpAddr, unix_seconds: u64) -> u64 {
        self.of_window(ip, unix_seconds / WINDOW_S)
    }

    /// Whether the id was issued to this address within the last two to four minutes.
    pub fn proves(&self, id: u64, ip: IpAddr, unix_seconds: u64) -> bool {
        let window = unix_seconds / WINDOW_S;
        id == self.of_window(ip, window) || id == self.of_window(ip, window.wrapping_sub(1))
    }

    fn of_window(&self, ip: IpAddr, window: u64) -> u64 {
        let octets = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let digest: [u8; 20] = Sha1::new()
            .chain_update(self.secret)
            .chain_update(octets)
            .chain_update(window.to_be_bytes())
            .finalize()
            .into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Random bytes from the system: secrets and seeds.
///
/// # Errors
/// When the system has none to give.
pub fn fill_from_os(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|error| io::Error::other(error.to_string()))
}

/// A generator that is fast and not for secrets, seeded by the system.
///
/// # Errors
/// As [`fill_from_os`].
pub fn seeded_rng() -> io::Result<SmallRng> {
    let mut seed = <SmallRng as SeedableRng>::Seed::default();
    fill_from_os(&mut seed)?;
    Ok(SmallRng::from_seed(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_proves_its_address_for_two_to_four_minutes() {
        let ids = ConnectionIds::new([1; 16]);
        let (ip, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for issued_at in [1_200, 1_319] {
            let id = ids.issue(ip, issued_at);
            assert!(ids.proves(id, ip, issued_at) && ids.proves(id, ip, issued_at + 120));
            assert!(!ids.proves(id, ip, issued_at + 240));
            assert!(!ids.proves(id, other, issued_at));
            assert!(!ConnectionIds::new([2; 16]).proves(id, ip, issued_at));
        }
        assert_ne!(ids.issue(ip, 1_200), ids.issue(ip, 1_320));
        assert!(!ids.proves(0, ip, 0));
    }

    #[test]
    fn a_restart_voids_none() {
        let dir = tempfile::tempdir().unwrap();
        let ip = "10.0.0.1".parse().unwrap();
        let id = ConnectionIds::load(dir.path()).unwrap().issue(ip, 1_000);
        assert!(ConnectionIds::load(dir.path()).unwrap().proves(id, ip, 1_000));
        std::fs::write(dir.path().join(SECRET_FILE), b"short").unwrap();
        assert!(!ConnectionIds::load(dir.path()).unwrap().proves(id, ip, 1_000));
        assert!(ConnectionIds::load(&dir.path().join("missing")).is_err());
    }
}
