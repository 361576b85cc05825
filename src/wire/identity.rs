//! The proof of identity between two peerds: what is offered in the extension handshake (BEP 10), what is signed, and the
//! message that carries the signature. docs/identity.md tells the whole of it. Signing and verifying (Ed25519, RFC 8032)
//! are the shell's work, the order of things is `swarm::proving`'s.
//!
//! An offer is three fields of the extension handshake: `m` names [`EXTENSION`], `peerd_key` is the sender's public key,
//! `peerd_nonce` are bytes made for this one connection. The proof is an extended message, sent under the id that the
//! receiver gave to [`EXTENSION`], whose payload is the signature and nothing else.

use super::handshake::{self, Handshake};
use super::id::{InfoHash, to_hex};

/// The extension's name in `m`. Another version of the proof gets another name.
pub const EXTENSION: &str = "peerd_id";
/// The id under which we want to hear proofs.
pub const PROOF_ID: u8 = 1;
/// Bytes of a public key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;
/// Bytes of a signature, and so of a proof.
pub const PROOF_BYTES: usize = 64;
/// Bytes of [`signing_text`].
pub const TEXT_BYTES: usize = PREFIX.len() + 1 + InfoHash::LEN + 2 * handshake::LEN + 2 * NONCE_BYTES + 2 * KEY_BYTES;

const PREFIX: &[u8; 10] = b"peerd-id-1";

/// Who the sender says it is, and its bytes for this connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub key: [u8; KEY_BYTES],
    pub nonce: [u8; NONCE_BYTES],
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Offer of {}", to_hex(&self.key))
    }
}

/// Who opened the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Dialler,
    Listener,
}

impl Role {
    pub const fn other(self) -> Role {
        match self {
            Role::Dialler => Role::Listener,
            Role::Listener => Role::Dialler,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Role::Dialler => b'D',
            Role::Listener => b'L',
        }
    }
}

/// One end of a connection: the 68 bytes it opened with, and its offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub handshake: Handshake,
    pub offer: Offer,
}

/// What the end of role `signer` signs: `peerd-id-1`, its role (`D` or `L`), the info-hash, then the dialler's and the
/// listener's handshake, nonce and key, pair by pair. Every field has a fixed length, so no two texts are alike.
pub fn signing_text(signer: Role, dialler: &End, listener: &End) -> Vec<u8> {
    let mut text = Vec::with_capacity(TEXT_BYTES);
    text.extend_from_slice(PREFIX);
    text.push(signer.byte());
    text.extend_from_slice(dialler.handshake.info_hash.as_bytes());
    for end in [dialler, listener] {
        text.extend_from_slice(&end.handshake.encode());
    }
    for end in [dialler, listener] {
        text.extend_from_slice(&end.offer.nonce);
    }
    for end in [dialler, listener] {
        text.extend_from_slice(&end.offer.key);
    }
    text
}

/// A signature over [`signing_text`]: the payload of the proof message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof(pub [u8; PROOF_BYTES]);

/// A payload that is no proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a proof of identity of {0} bytes: it has {PROOF_BYTES}")]
pub struct NotAProof(pub usize);

impl Proof {
    pub fn encode(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// # Errors
    /// When the payload is not as long as a proof.
    pub fn decode(payload: &[u8]) -> Result<Proof, NotAProof> {
        payload.try_into().map(Proof).map_err(|_| NotAProof(payload.len()))
    }
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof")
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;
    use crate::wire::handshake::Reserved;
    use crate::wire::id::PeerId;

    /// The secret keys of the two ends of docs/identity.md.
    pub const DIALLER_SEED: [u8; 32] = [0x01; 32];
    pub const LISTENER_SEED: [u8; 32] = [0x02; 32];

    pub fn public(seed: &[u8; 32]) -> [u8; KEY_BYTES] {
        SigningKey::from_bytes(seed).verifying_key().to_bytes()
    }

    pub fn sign(seed: &[u8; 32], text: &[u8]) -> Proof {
        Proof(SigningKey::from_bytes(seed).sign(text).to_bytes())
    }

    /// An end whose peer id ends in twelve times `letter`.
    pub fn end(letter: u8, key: [u8; KEY_BYTES], nonce: u8) -> End {
        let mut peer_id = *b"-PY0100-............";
        peer_id[8..].fill(letter);
        let info_hash = InfoHash::new([0x11; 20]);
        End {
            handshake: Handshake { reserved: Reserved::ours(), info_hash, peer_id: PeerId(peer_id) },
            offer: Offer { key, nonce: [nonce; NONCE_BYTES] },
        }
    }

    /// The two ends of docs/identity.md.
    pub fn ends() -> (End, End) {
        (end(b'D', public(&DIALLER_SEED), 0xD1), end(b'L', public(&LISTENER_SEED), 0x15))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOCUMENT: &str = include_str!("../../docs/identity.md");

    /// Each value stands in docs/identity.md, cut into lines at will: another program can be written after it.
    fn documented(bytes: &[u8]) -> bool {
        let digits: String = DOCUMENT.chars().filter(|c| !c.is_whitespace()).collect();
        digits.contains(&to_hex(bytes))
    }

    #[test]
    fn the_test_vectors_of_the_document() {
        let (dialler, listener) = samples::ends();
        let ends =
            [(Role::Dialler, samples::DIALLER_SEED, dialler), (Role::Listener, samples::LISTENER_SEED, listener)];
        for (role, seed, end) in ends {
            let text = signing_text(role, &dialler, &listener);
            assert_eq!(text.len(), TEXT_BYTES);
            let proof = samples::sign(&seed, &text);
            for (what, bytes) in [
                ("key", &end.offer.key[..]),
                ("handshake", &end.handshake.encode()),
                ("text", &text),
                ("proof", &proof.0),
            ] {
                assert!(documented(bytes), "the {what} of {role:?} is not in docs/identity.md: {}", to_hex(bytes));
            }
        }
    }

    #[test]
    fn every_field_is_signed_and_where_it_stands() {
        let (dialler, listener) = samples::ends();
        let text = signing_text(Role::Listener, &dialler, &listener);
        assert!(text.starts_with(b"peerd-id-1L") && text[11..31] == [0x11; 20]);
        assert_eq!(
            (&text[31..99], &text[99..167]),
            (&dialler.handshake.encode()[..], &listener.handshake.encode()[..])
        );
        assert_eq!((&text[167..199], &text[199..231]), (&dialler.offer.nonce[..], &listener.offer.nonce[..]));
        assert_eq!((&text[231..263], &text[263..]), (&dialler.offer.key[..], &listener.offer.key[..]));
        let same_but_the_role = signing_text(Role::Dialler, &dialler, &listener);
        assert_eq!(text.iter().zip(&same_but_the_role).filter(|(a, b)| a != b).count(), 1);
    }

    #[test]
    fn a_proof_cut_anywhere_or_too_long_is_none() {
        let whole = [7; PROOF_BYTES];
        for cut in 0..PROOF_BYTES {
            assert_eq!(Proof::decode(&whole[..cut]), Err(NotAProof(cut)));
        }
        assert_eq!(Proof::decode(&[7; PROOF_BYTES + 1]), Err(NotAProof(65)));
        assert_eq!(Proof::decode(&whole), Ok(Proof(whole)));
    }

    proptest! {
        #[test]
        fn round_trip(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            match Proof::decode(&payload) {
                Ok(proof) => prop_assert_eq!(proof.encode(), payload),
                Err(error) => prop_assert_eq!(error, NotAProof(payload.len())),
            }
        }
    }
}
