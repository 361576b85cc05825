//! Who publishes and who withdraws: the signature, its time, and that it counts once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ed25519_dalek::{Signature, VerifyingKey};

use crate::wire::auth::{Authorization, signing_text};
use crate::wire::id::InfoHash;

/// A publisher's public key (Ed25519).
pub type Publisher = [u8; 32];

/// Either way: clocks of machines at home are off by minutes.
pub const MAX_CLOCK_OFF_S: u64 = 600;
/// Signatures remembered: more publications than the largest library has at once. The oldest are forgotten first; one that
/// is used again then does what it did before.
const MAX_REMEMBERED: usize = 500_000;

/// Why a signature does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the Authorization header is not `Peerd <key>.<unix seconds>.<signature>`")]
    Malformed,
    #[error("the signature is not of this key, this host and this torrent")]
    Signature,
    #[error("the signature's time is more than 10 minutes from this tracker's clock: see Date, and sign again")]
    Clock,
}

/// Whether a signature was seen before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freshness {
    New,
    Replayed,
}

/// What one signature is for: publisher, torrent, whether it withdraws, and when it was made.
type SignedFor = (Publisher, InfoHash, bool, u64);

/// A request whose signature is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    pub publisher: Publisher,
    pub freshness: Freshness,
    signed: SignedFor,
}

/// Checks signatures; remembers those that still could be sent again.
#[derive(Default)]
pub struct Gatekeeper {
    /// The value is the time.
    seen: Mutex<HashMap<SignedFor, u64>>,
}

impl Gatekeeper {
    /// Whose request it is. `header` is the Authorization as sent, `host` the Host as sent; `withdraws` tells DELETE from
    /// POST.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub fn check(
        &self,
        header: &str,
        host: &str,
        key: &InfoHash,
        withdraws: bool,
        unix_seconds: u64,
    ) -> Result<Checked, AuthError> {
        let given: Authorization = header.parse().map_err(|_| AuthError::Malformed)?;
        let method = if withdraws { "DELETE" } else { "POST" };
        let text = signing_text(method, host, key, given.unix_seconds);
        let verifying = VerifyingKey::from_bytes(&given.key).map_err(|_| AuthError::Signature)?;
        verifying.verify_strict(&text, &Signature::from_bytes(&given.signature)).map_err(|_| AuthError::Signature)?;
        if given.unix_seconds.abs_diff(unix_seconds) > MAX_CLOCK_OFF_S {
            return Err(AuthError::Clock);
        }
        let signed = (given.key, *key, withdraws, given.unix_seconds);
        Ok(Checked { publisher: given.key, freshness: self.remember(signed, unix_seconds), signed })
    }

    /// The request was refused and has done nothing: its signature is good once more. One that was used before stays used.
    pub fn refused(&self, checked: &Checked) {
        if checked.freshness == Freshness::New {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&checked.signed);
        }
    }

    fn remember(&self, signed: SignedFor, unix_seconds: u64) -> Freshness {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_REMEMBERED {
            seen.retain(|_, at| at.abs_diff(unix_seconds) <= MAX_CLOCK_OFF_S);
        }
        if seen.len() >= MAX_REMEMBERED {
            let mut times: Vec<u64> = seen.values().copied().collect();
            let (_, median, _) = times.select_nth_unstable(MAX_REMEMBERED / 2);
            let median = *median;
            seen.retain(|_, at| *at > median);
        }
        match seen.insert(signed, signed.3) {
            None => Freshness::New,
            Some(_) => Freshness::Replayed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    const NOW: u64 = 1_700_000_000;

    fn header(signer: &SigningKey, method: &str, host: &str, key: &InfoHash, at: u64) -> String {
        let signature = signer.sign(&signing_text(method, host, key, at)).to_bytes();
        Authorization { key: signer.verifying_key().to_bytes(), unix_seconds: at, signature }.to_string()
    }

    #[test]
    fn what_was_signed_is_what_counts() {
        let (gate, signer, key) = (Gatekeeper::default(), SigningKey::from_bytes(&[3; 32]), InfoHash::new([1; 20]));
        let publisher = signer.verifying_key().to_bytes();
        let good = header(&signer, "POST", "t:6969", &key, NOW);
        let check = |header: &str, host: &str, key: &InfoHash, withdraws, now| {
            gate.check(header, host, key, withdraws, now).map(|checked| (checked.publisher, checked.freshness))
        };
        assert_eq!(check(&good, "t:6969", &key, false, NOW), Ok((publisher, Freshness::New)));
        assert_eq!(check(&good, "t:6969", &key, false, NOW + 5), Ok((publisher, Freshness::Replayed)));
        assert_eq!(check(&good, "other:6969", &key, false, NOW), Err(AuthError::Signature));
        assert_eq!(check(&good, "t:6969", &InfoHash::new([2; 20]), false, NOW), Err(AuthError::Signature));
        assert_eq!(check(&good, "t:6969", &key, true, NOW), Err(AuthError::Signature));
        let withdrawal = header(&signer, "DELETE", "t:6969", &key, NOW);
        assert_eq!(check(&withdrawal, "t:6969", &key, true, NOW), Ok((publisher, Freshness::New)));
        assert_eq!(check("Bearer x", "t:6969", &key, false, NOW), Err(AuthError::Malformed));
    }

    #[test]
    fn what_was_refused_may_be_sent_again_and_what_was_done_may_not() {
        let (gate, signer, key) = (Gatekeeper::default(), SigningKey::from_bytes(&[3; 32]), InfoHash::new([1; 20]));
        let header = header(&signer, "POST", "t", &key, NOW);
        let check = || gate.check(&header, "t", &key, false, NOW).unwrap();
        gate.refused(&check());
        assert_eq!(check().freshness, Freshness::New);
        let replayed = check();
        assert_eq!(replayed.freshness, Freshness::Replayed);
        gate.refused(&replayed);
        assert_eq!(check().freshness, Freshness::Replayed, "the first one was done");
    }

    #[test]
    fn ten_minutes_either_way() {
        let (gate, signer, key) = (Gatekeeper::default(), SigningKey::from_bytes(&[3; 32]), InfoHash::new([1; 20]));
        for (at, accepted) in [(NOW - 600, true), (NOW - 601, false), (NOW + 600, true), (NOW + 601, false), (0, false)]
        {
            let header = header(&signer, "POST", "h", &key, at);
            let checked = gate.check(&header, "h", &key, false, NOW);
            assert_eq!(checked.err(), (!accepted).then_some(AuthError::Clock), "{at}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let gate = Gatekeeper::default();
        let signed = |n: u64| ([0; 32], InfoHash::new([0; 20]), false, NOW + n);
        for n in 0..MAX_REMEMBERED as u64 + 10 {
            assert_eq!(gate.remember(signed(n % 1_000_000), NOW), Freshness::New);
        }
        assert!(gate.seen.lock().unwrap().len() <= MAX_REMEMBERED);
        assert_eq!(gate.remember(signed(MAX_REMEMBERED as u64), NOW), Freshness::Replayed);
    }
}
