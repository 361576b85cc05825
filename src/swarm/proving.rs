//! The proof of identity on one session: who says what, in which order, and what of it is believed. The layout is
//! [`crate::wire::identity`]'s; keys are used by the shell, which signs and verifies when it is told to.
//!
//! Both ends do the same: *waiting* (for the peer's extension handshake) → *due* (it made an offer; our proof goes out, its
//! proof is awaited) → *proven*. A peer that offers nothing, or our own key, is *unproven* for good: the session goes on,
//! and it earns by its address like any other client. Whoever offers and then sends anything but one right proof has
//! lied: the session ends.

use crate::wire::handshake::Handshake;
use crate::wire::identity::{End, KEY_BYTES, NotAProof, Offer, Proof, Role, signing_text};

/// A peer's lie about its identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error("it sent a proof of identity before it had said which")]
    BeforeOffer,
    #[error("it sent a proof of an identity that it did not offer, or that is ours")]
    Unasked,
    #[error("it sent a second proof of identity")]
    Twice,
    #[error("it sent {0}")]
    Layout(#[from] NotAProof),
    #[error("its proof of identity is wrong: another key, another connection or another torrent signed it")]
    Signature,
    #[error("it offered another identity than before")]
    Changed,
}

/// A text to be signed with our key; the signature is the proof to be sent under `proof_id`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ToSign {
    pub text: Vec<u8>,
    pub proof_id: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Unproven,
    Due(Offer),
    Proven(Offer),
}

/// One session's proof, both ways.
#[derive(Debug)]
pub struct Proving {
    role: Role,
    ours: End,
    their_handshake: Handshake,
    state: State,
}

impl Proving {
    /// Right after the handshakes. The nonce in `ours` must have been drawn for this connection alone, from the
    /// operating system.
    pub fn new(role: Role, ours: End, their_handshake: Handshake) -> Proving {
        Proving { role, ours, their_handshake, state: State::Waiting }
    }

    /// What we offer in our extension handshake.
    pub fn offer(&self) -> Offer {
        self.ours.offer
    }

    /// The peer's extension handshake came: its offer, and the id under which it wants to hear proofs. It may be repeated
    /// (BEP 10); only the first one can make an offer.
    ///
    /// # Errors
    /// When it offers another identity than before.
    pub fn introduced(&mut self, theirs: Option<Offer>, proof_id: Option<u8>) -> Result<Option<ToSign>, Refused> {
        match (self.state, theirs) {
            (State::Waiting, Some(theirs)) if theirs.key != self.ours.offer.key => {
                let Some(proof_id) = proof_id else {
                    self.state = State::Unproven;
                    return Ok(None);
                };
                self.state = State::Due(theirs);
                Ok(Some(ToSign { text: self.text(self.role, theirs), proof_id }))
            }
            (State::Waiting, _) => {
                self.state = State::Unproven;
                Ok(None)
            }
            (State::Due(before) | State::Proven(before), Some(now)) if before != now => Err(Refused::Changed),
            _ => Ok(None),
        }
    }

    /// The peer's proof came. `verify` says whether a signature over a text was made with a key. Returns the key that is
    /// proven now.
    ///
    /// # Errors
    /// When it is not the one right proof that is due.
    pub fn proof(
        &mut self,
        payload: &[u8],
        verify: impl FnOnce(&[u8; KEY_BYTES], &[u8], &Proof) -> bool,
    ) -> Result<[u8; KEY_BYTES], Refused> {
        let theirs = match self.state {
            State::Due(theirs) => theirs,
            State::Waiting => return Err(Refused::BeforeOffer),
            State::Unproven => return Err(Refused::Unasked),
            State::Proven(_) => return Err(Refused::Twice),
        };
        let proof = Proof::decode(payload)?;
        if !verify(&theirs.key, &self.text(self.role.other(), theirs), &proof) {
            return Err(Refused::Signature);
        }
        self.state = State::Proven(theirs);
        Ok(theirs.key)
    }

    fn text(&self, signer: Role, theirs: Offer) -> Vec<u8> {
        let theirs = End { handshake: self.their_handshake, offer: theirs };
        match self.role {
            Role::Dialler => signing_text(signer, &self.ours, &theirs),
            Role::Listener => signing_text(signer, &theirs, &self.ours),
        }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, VerifyingKey};

    use super::*;
    use crate::wire::id::InfoHash;
    use crate::wire::identity::samples::{DIALLER_SEED, LISTENER_SEED, end, ends, public, sign};

    const ID: Option<u8> = Some(7);

    fn verify(key: &[u8; KEY_BYTES], text: &[u8], proof: &Proof) -> bool {
        let key = VerifyingKey::from_bytes(key);
        key.is_ok_and(|key| key.verify_strict(text, &Signature::from_bytes(&proof.0)).is_ok())
    }

    /// Both ends of one connection, each knowing what the other opened with.
    fn connect(dialler: End, listener: End) -> (Proving, Proving) {
        (
            Proving::new(Role::Dialler, dialler, listener.handshake),
            Proving::new(Role::Listener, listener, dialler.handshake),
        )
    }

    /// The peer's offer goes in, our signed proof comes out.
    fn proof_of(proving: &mut Proving, theirs: Offer, seed: &[u8; 32]) -> Vec<u8> {
        let to_sign = proving.introduced(Some(theirs), ID).unwrap().unwrap();
        assert_eq!(to_sign.proof_id, 7);
        sign(seed, &to_sign.text).encode()
    }

    #[test]
    fn two_peers_prove_their_keys_to_each_other() {
        let (dialler, listener) = ends();
        let (mut a, mut b) = connect(dialler, listener);
        let from_a = proof_of(&mut a, b.offer(), &DIALLER_SEED);
        let from_b = proof_of(&mut b, a.offer(), &LISTENER_SEED);
        assert_eq!(a.proof(&from_b, verify), Ok(public(&LISTENER_SEED)));
        assert_eq!(b.proof(&from_a, verify), Ok(public(&DIALLER_SEED)));
        // A handshake may be repeated, with the offer and without it; a proof may not.
        assert_eq!(a.introduced(Some(b.offer()), ID), Ok(None));
        assert_eq!(a.introduced(None, None), Ok(None));
        assert_eq!(a.proof(&from_b, verify), Err(Refused::Twice));
        assert_eq!(a.introduced(Some(dialler.offer), ID), Err(Refused::Changed));
    }

    #[test]
    fn a_proof_of_another_connection_is_worth_nothing() {
        let (dialler, listener) = ends();
        let (mut a, _) = connect(dialler, listener);
        let overheard = proof_of(&mut a, listener.offer, &DIALLER_SEED);
        let other_nonce = End { offer: Offer { nonce: [9; 32], ..listener.offer }, ..listener };
        let other_id = end(b'x', listener.offer.key, 0x15);
        let mut other_torrent = (dialler, listener);
        other_torrent.0.handshake.info_hash = InfoHash::new([0x22; 20]);
        other_torrent.1.handshake.info_hash = InfoHash::new([0x22; 20]);
        for (what, dialler, listener) in [
            ("another nonce of the listener's", dialler, other_nonce),
            ("another handshake of the listener's", dialler, other_id),
            ("another torrent", other_torrent.0, other_torrent.1),
            ("the thief's own handshake", End { offer: dialler.offer, ..end(b'T', [0; 32], 0) }, listener),
        ] {
            let (_, mut victim) = connect(dialler, listener);
            victim.introduced(Some(dialler.offer), ID).unwrap();
            assert_eq!(victim.proof(&overheard, verify), Err(Refused::Signature), "{what}");
        }
        // All the same, byte for byte: then it is the same connection.
        let (_, mut again) = connect(dialler, listener);
        again.introduced(Some(dialler.offer), ID).unwrap();
        assert_eq!(again.proof(&overheard, verify), Ok(public(&DIALLER_SEED)));
    }

    #[test]
    fn what_we_signed_does_not_prove_anything_to_us() {
        let (dialler, listener) = ends();
        // The reflector says our key is its own.
        let (mut a, _) = connect(dialler, listener);
        assert_eq!(a.introduced(Some(dialler.offer), ID), Ok(None), "nothing is signed for our own key");
        assert_eq!(a.proof(&[0; 64], verify), Err(Refused::Unasked));
        // A thief dials two peers and hands each what the other says: both are listeners, and neither is fooled.
        let victim = end(b'V', public(&[5; 32]), 0x77);
        let mut a = Proving::new(Role::Listener, listener, victim.handshake);
        let mut b = Proving::new(Role::Listener, victim, listener.handshake);
        let (from_a, from_b) = (proof_of(&mut a, b.offer(), &LISTENER_SEED), proof_of(&mut b, a.offer(), &[5; 32]));
        assert_eq!(a.proof(&from_b, verify), Err(Refused::Signature));
        assert_eq!(b.proof(&from_a, verify), Err(Refused::Signature));
    }

    #[test]
    fn the_role_is_signed() {
        let (dialler, listener) = ends();
        let (mut a, mut b) = connect(dialler, listener);
        a.introduced(Some(listener.offer), ID).unwrap();
        b.introduced(Some(dialler.offer), ID).unwrap();
        let as_the_other = sign(&LISTENER_SEED, &signing_text(Role::Dialler, &dialler, &listener)).encode();
        assert_eq!(a.proof(&as_the_other, verify), Err(Refused::Signature));
        let turned_round = sign(&DIALLER_SEED, &signing_text(Role::Dialler, &listener, &dialler)).encode();
        assert_eq!(b.proof(&turned_round, verify), Err(Refused::Signature));
    }

    #[test]
    fn a_key_that_did_not_sign_is_not_believed() {
        let (dialler, listener) = ends();
        let (_, mut b) = connect(dialler, listener);
        b.introduced(Some(dialler.offer), ID).unwrap();
        let text = signing_text(Role::Dialler, &dialler, &listener);
        assert_eq!(b.proof(&sign(&[3; 32], &text).encode(), verify), Err(Refused::Signature));
        // A key of small order would make any signature right.
        let weak = Offer { key: [0; 32], ..dialler.offer };
        let (_, mut b) = connect(dialler, listener);
        b.introduced(Some(weak), ID).unwrap();
        let mut signature = [0; 64];
        signature[0] = 1;
        assert_eq!(b.proof(&signature, verify), Err(Refused::Signature));
    }

    #[test]
    fn proofs_out_of_order_or_out_of_shape_are_lies_and_silence_is_not() {
        let (dialler, listener) = ends();
        let (mut a, mut b) = connect(dialler, listener);
        let right = proof_of(&mut b, dialler.offer, &LISTENER_SEED);
        assert_eq!(a.proof(&right, verify), Err(Refused::BeforeOffer));
        a.introduced(Some(listener.offer), ID).unwrap();
        for cut in 0..right.len() {
            assert_eq!(a.proof(&right[..cut], verify), Err(Refused::Layout(NotAProof(cut))));
        }
        assert_eq!(a.proof(&[0xAB; 64], verify), Err(Refused::Signature));
        for (theirs, id) in [(None, ID), (None, None), (Some(listener.offer), None)] {
            let (mut a, _) = connect(dialler, listener);
            assert_eq!(a.introduced(theirs, id), Ok(None));
            assert_eq!(a.introduced(Some(listener.offer), ID), Ok(None), "only the first handshake can offer");
            assert_eq!(a.proof(&right, verify), Err(Refused::Unasked));
        }
    }
}
