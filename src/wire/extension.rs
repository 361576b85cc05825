//! The extension handshake (BEP 10): the payload of an extended message with id 0.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::bencode::{self, BencodeError, DictEncoder, Encoder, Limits, Value};
use super::identity::{self, Offer};
use super::name::text_within;

/// Other clients send 100 to 500 bytes; a handshake may be repeated at will, so each must be cheap.
pub const MAX_HANDSHAKE_BYTES: usize = 16 * 1024;
/// Extensions remembered of one peer: the richest clients name about ten.
pub const MAX_MESSAGES: usize = 64;
/// An extension's name is kept up to this length; longer ones are nobody's.
pub const MAX_MESSAGE_NAME_BYTES: usize = 64;
/// Bytes kept of the client's name: it is shown in one column of `peerctl peers`.
pub const MAX_CLIENT_BYTES: usize = 64;

const LIMITS: Limits = Limits { max_bytes: MAX_HANDSHAKE_BYTES, max_depth: 16, max_tokens: 1_000 };

/// What a peer says of itself after the plain handshake. All of it is hearsay and optional.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExtensionHandshake {
    /// `v`: name and version of the client, not yet fit for a terminal.
    pub client: Option<String>,
    /// `p`: where the sender listens, TCP.
    pub port: Option<u16>,
    /// `reqq`: requests that the sender keeps in its queue before it drops some.
    pub reqq: Option<u32>,
    /// `yourip`: the receiver's address as the sender sees it.
    pub yourip: Option<IpAddr>,
    /// `upload_only` (BEP 21): the sender wants nothing.
    pub upload_only: Option<bool>,
    /// `max_block`, ours: the longest block in bytes that the sender serves and accepts.
    pub max_block: Option<u32>,
    /// `peerd_key` and `peerd_nonce`, ours: the identity that the sender is ready to prove ([`super::identity`]).
    pub identity: Option<Offer>,
    /// `m`: the id under which the sender wants to hear each extension; 0 turns it off.
    pub messages: BTreeMap<String, u8>,
}

/// Why a payload is no extension handshake. It does not end a session: BEP 10 asks for nothing in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExtensionError {
    #[error("an extension handshake that is no bencode: {0}")]
    Bencode(#[from] BencodeError),
    #[error("an extension handshake that is no dictionary")]
    NotADictionary,
}

impl ExtensionHandshake {
    /// The payload for [`super::message::Message::Extended`] with id 0.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        Encoder::new(&mut out).dict(|dict| {
            dict.dict(b"m", |messages| {
                for (name, id) in &self.messages {
                    messages.int(name.as_bytes(), i64::from(*id));
                }
            });
            optional_int(dict, b"max_block", self.max_block);
            optional_int(dict, b"p", self.port);
            if let Some(offer) = &self.identity {
                dict.bytes(b"peerd_key", &offer.key);
                dict.bytes(b"peerd_nonce", &offer.nonce);
            }
            optional_int(dict, b"reqq", self.reqq);
            optional_int(dict, b"upload_only", self.upload_only);
            if let Some(client) = &self.client {
                dict.bytes(b"v", client.as_bytes());
            }
            match self.yourip {
                Some(IpAddr::V4(ip)) => dict.bytes(b"yourip", &ip.octets()),
                Some(IpAddr::V6(ip)) => dict.bytes(b"yourip", &ip.octets()),
                None => {}
            }
        });
        out
    }

    /// Fields of the wrong type or out of range count as not sent; bytes after the dictionary are ignored.
    ///
    /// # Errors
    /// When the payload is no dictionary or passes [`MAX_HANDSHAKE_BYTES`].
    pub fn decode(payload: &[u8]) -> Result<ExtensionHandshake, ExtensionError> {
        let (value, _) = bencode::decode_prefix(payload, &LIMITS)?;
        let dict = value.as_dict().ok_or(ExtensionError::NotADictionary)?;
        let [m, max_block, p, key, nonce, reqq, upload_only, v, yourip] = dict.get_many([
            b"m",
            b"max_block",
            b"p",
            b"peerd_key",
            b"peerd_nonce",
            b"reqq",
            b"upload_only",
            b"v",
            b"yourip",
        ]);
        Ok(ExtensionHandshake {
            client: v.and_then(Value::as_bytes).map(|name| text_within(name, MAX_CLIENT_BYTES)),
            port: int(p).filter(|&port| port != 0),
            reqq: int(reqq),
            yourip: yourip.and_then(Value::as_bytes).and_then(address),
            upload_only: int::<u64>(upload_only).map(|flag| flag != 0),
            max_block: int(max_block),
            identity: exactly(key).zip(exactly(nonce)).map(|(key, nonce)| Offer { key, nonce }),
            messages: m.map(decode_messages).unwrap_or_default(),
        })
    }

    /// The id under which the sender wants to hear proofs of identity, if it does.
    pub fn proof_id(&self) -> Option<u8> {
        self.messages.get(identity::EXTENSION).copied().filter(|&id| id != 0)
    }
}

fn decode_messages(m: Value<'_>) -> BTreeMap<String, u8> {
    let Some(m) = m.as_dict() else { return BTreeMap::new() };
    let known = m.iter().filter_map(|(name, id)| {
        let name = std::str::from_utf8(name).ok().filter(|name| name.len() <= MAX_MESSAGE_NAME_BYTES)?;
        Some((name.to_owned(), int(Some(id))?))
    });
    known.take(MAX_MESSAGES).collect()
}

/// A byte string of this length and no other.
fn exactly<const N: usize>(value: Option<Value<'_>>) -> Option<[u8; N]> {
    value.and_then(Value::as_bytes).and_then(|bytes| bytes.try_into().ok())
}

fn int<T: TryFrom<i64>>(value: Option<Value<'_>>) -> Option<T> {
    value.and_then(Value::as_int).and_then(|int| T::try_from(int).ok())
}

fn optional_int(dict: &mut DictEncoder<'_>, key: &[u8], value: Option<impl Into<i64>>) {
    if let Some(value) = value {
        dict.int(key, value.into());
    }
}

/// An address as 4 or 16 bytes.
pub(in crate::wire) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_bep_10() {
        let sent = ExtensionHandshake {
            client: Some("peerd 0.1".into()),
            port: Some(6881),
            reqq: Some(2000),
            yourip: Some("10.0.0.1".parse().unwrap()),
            upload_only: Some(true),
            max_block: Some(131_072),
            identity: None,
            messages: BTreeMap::from([("ut_pex".into(), 1), ("ut_metadata".into(), 2)]),
        };
        let expected = b"d1:md11:ut_metadatai2e6:ut_pexi1ee9:max_blocki131072e1:pi6881e4:reqqi2000e\
            11:upload_onlyi1e1:v9:peerd 0.16:yourip4:\x0a\x00\x00\x01e";
        assert_eq!(sent.encode(), expected);
        assert_eq!(ExtensionHandshake::decode(expected), Ok(sent));
    }

    #[test]
    fn an_offer_has_both_fields_at_their_length() {
        let sent = ExtensionHandshake {
            identity: Some(Offer { key: [b'k'; 32], nonce: [b'n'; 32] }),
            messages: BTreeMap::from([(identity::EXTENSION.into(), 7)]),
            ..ExtensionHandshake::default()
        };
        let (k, n) = ("k".repeat(32), "n".repeat(32));
        let expected = format!("d1:md8:peerd_idi7ee9:peerd_key32:{k}11:peerd_nonce32:{n}e");
        assert_eq!(sent.encode(), expected.as_bytes());
        assert_eq!(
            ExtensionHandshake::decode(expected.as_bytes()).map(|read| (read.proof_id(), read)),
            Ok((Some(7), sent))
        );
        for bad in [
            expected.replace("32:k", "31:"),
            expected.replace("peerd_nonce", "peerd_nonse"),
            format!("d9:peerd_key32:{k}11:peerd_noncei5ee"),
            format!("d9:peerd_key33:{k}k11:peerd_nonce32:{n}e"),
        ] {
            assert_eq!(ExtensionHandshake::decode(bad.as_bytes()).ok().and_then(|read| read.identity), None, "{bad}");
        }
        let off = ExtensionHandshake::decode(b"d1:md8:peerd_idi0eee").unwrap();
        assert_eq!(off.proof_id(), None);
    }

    #[test]
    fn fields_of_the_wrong_kind_count_as_not_sent() {
        let odd = b"d1:mle9:max_blocki-1e1:pi65536e4:reqq3:abc11:upload_onlyle1:vi1e6:yourip3:abce trailing";
        assert_eq!(ExtensionHandshake::decode(odd), Ok(ExtensionHandshake::default()));
        assert_eq!(ExtensionHandshake::decode(b"de"), Ok(ExtensionHandshake::default()));
        assert_eq!(ExtensionHandshake::decode(b"d1:pi0ee"), Ok(ExtensionHandshake::default()));
        assert_eq!(ExtensionHandshake::decode(b"le"), Err(ExtensionError::NotADictionary));
    }

    #[test]
    fn what_a_peer_can_make_us_keep_is_bounded() {
        let mut many = b"d1:md".to_vec();
        for n in 0..200 {
            many.extend(format!("4:x{n:03}i5e").bytes());
        }
        many.extend(format!("65:{}i5ee1:v200:{}e", "z".repeat(65), "v".repeat(200)).bytes());
        let read = ExtensionHandshake::decode(&many).unwrap();
        assert_eq!(read.messages.len(), MAX_MESSAGES);
        assert_eq!(read.client.map(|client| client.len()), Some(MAX_CLIENT_BYTES));
        let long = [b"d1:v16400:".as_slice(), &[b'a'; 16_400], b"e"].concat();
        assert!(matches!(
            ExtensionHandshake::decode(&long),
            Err(ExtensionError::Bencode(BencodeError::TooLarge { .. }))
        ));
    }

    #[test]
    fn truncation_at_every_byte_is_an_error() {
        let identity = Some(Offer { key: [1; 32], nonce: [2; 32] });
        let whole = ExtensionHandshake { client: Some("c".into()), reqq: Some(1), identity, ..Default::default() };
        let whole = whole.encode();
        for cut in 0..whole.len() {
            assert!(matches!(ExtensionHandshake::decode(&whole[..cut]), Err(ExtensionError::Bencode(_))), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(
            client in prop::option::of("[ -~]{0,60}"), port in prop::option::of(1u16..),
            reqq: Option<u32>, upload_only: Option<bool>, max_block: Option<u32>,
            v4: Option<[u8; 4]>, offer: Option<([u8; 32], [u8; 32])>, messages in prop::collection::btree_map("[a-zA-Z_]{0,20}", any::<u8>(), 0..20),
        ) {
            let yourip = v4.map(IpAddr::from);
            let identity = offer.map(|(key, nonce)| Offer { key, nonce });
            let sent = ExtensionHandshake { client, port, reqq, yourip, upload_only, max_block, identity, messages };
            prop_assert_eq!(ExtensionHandshake::decode(&sent.encode()), Ok(sent));
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ExtensionHandshake::decode(&bytes);
            let _ = ExtensionHandshake::decode(&[b"d1:m".as_slice(), &bytes].concat());
        }
    }
}
