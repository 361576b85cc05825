//! The signature on publishing and withdrawing: what is signed, and the header that carries it. Signing and verifying
//! (Ed25519) are the shells' work; whether the time is near enough and the signature new is the tracker's.

use std::fmt;
use std::str::FromStr;

use super::id::{InfoHash, from_hex, to_hex};

/// The bytes under the signature: `peerd-publish-1 METHOD HOST INFO-HASH-HEX UNIX-SECONDS`. `host` is the request's Host
/// header as it was sent, so that a signature is worth nothing at another tracker.
pub fn signing_text(method: &str, host: &str, info_hash: &InfoHash, unix_seconds: u64) -> Vec<u8> {
    format!("peerd-publish-1 {method} {host} {} {unix_seconds}", info_hash.to_hex()).into_bytes()
}

/// The value of an `Authorization` header: `Peerd KEY-HEX.UNIX-SECONDS.SIGNATURE-HEX`.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The publisher's public key (Ed25519).
    pub key: [u8; 32],
    /// When it was signed.
    pub unix_seconds: u64,
    /// Over [`signing_text`].
    pub signature: [u8; 64],
}

/// The header is not of our scheme or not well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an Authorization that is not `Peerd <key>.<unix seconds>.<signature>`, key and signature in hex")]
pub struct NotAnAuthorization;

impl fmt::Display for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peerd {}.{}.{}", to_hex(&self.key), self.unix_seconds, to_hex(&self.signature))
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorization of {} at {}", to_hex(&self.key), self.unix_seconds)
    }
}

impl FromStr for Authorization {
    type Err = NotAnAuthorization;

    /// The scheme's case does not matter (RFC 9110, section 11.1); all else is exact.
    fn from_str(header: &str) -> Result<Authorization, NotAnAuthorization> {
        let (scheme, credentials) = header.split_once(' ').ok_or(NotAnAuthorization)?;
        let mut parts = credentials.split('.');
        let (Some(key), Some(seconds), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAnAuthorization);
        };
        let digits = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
        if !scheme.eq_ignore_ascii_case("Peerd") || !digits {
            return Err(NotAnAuthorization);
        }
        Ok(Authorization {
            key: from_hex(key).ok_or(NotAnAuthorization)?,
            unix_seconds: seconds.parse().map_err(|_| NotAnAuthorization)?,
            signature: from_hex(signature).ok_or(NotAnAuthorization)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_signed_text_is_spelled_out() {
        let text = signing_text("POST", "192.168.1.7:6969", &InfoHash::new([0xAB; 20]), 1_790_000_000);
        let expected = format!("peerd-publish-1 POST 192.168.1.7:6969 {} 1790000000", "ab".repeat(20));
        assert_eq!(text, expected.as_bytes());
    }

    #[test]
    fn the_header_is_spelled_out() {
        let header = format!("Peerd {}.1790000000.{}", "0f".repeat(32), "e1".repeat(64));
        let parsed: Authorization = header.parse().unwrap();
        assert_eq!((parsed.key, parsed.unix_seconds, parsed.signature), ([0x0F; 32], 1_790_000_000, [0xE1; 64]));
        assert_eq!(parsed.to_string(), header);
        assert_eq!(header.replace("Peerd", "peerd").parse(), Ok(parsed));
        for end in 0..header.len() {
            assert_eq!(header[..end].parse::<Authorization>(), Err(NotAnAuthorization), "cut at {end}");
        }
        for bad in [
            header.replace("Peerd", "Bearer"),
            header.replace(".179", ".+179"),
            header.replace(".1790000000", "."),
            header.replace(".1790000000", ".99999999999999999999"),
            format!("{header}.x"),
            format!("{header} "),
            header.replace("0f0f", "0f0g"),
        ] {
            assert_eq!(bad.parse::<Authorization>(), Err(NotAnAuthorization), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_header_round_trips(key: [u8; 32], unix_seconds: u64, low: [u8; 32], high: [u8; 32]) {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&low);
            signature[32..].copy_from_slice(&high);
            let header = Authorization { key, unix_seconds, signature };
            prop_assert_eq!(header.to_string().parse(), Ok(header));
        }
    }
}
