//! The kinds of frames: one list for requests, one for answers.

use super::{
    Candidate, Changed, Done, Failure, FileRow, Get, LedgerRow, Left, Limits, PeerIdentity, PeerRow, Progress, Remove,
    Removed, Search, SearchHit, SetLimits, Share, Shared, Shown, Started, Status, Swarm, TorrentRow, Unsupported,
    Verified, What,
};

/// Makes an enum whose variants know their kind's number and payload. Numbers are never used again for another payload.
macro_rules! kinds {
    (
        $(#[$meta:meta])* enum $enum:ident
        empty { $($(#[$empty_meta:meta])* $empty:ident = $empty_kind:literal,)* }
        payload { $($(#[$name_meta:meta])* $name:ident($payload:ty) = $kind:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum $enum {
            $($(#[$empty_meta])* $empty,)*
            $($(#[$name_meta])* $name($payload),)*
        }

        impl $enum {
            /// The number on the wire.
            pub const fn kind(&self) -> u16 {
                match self {
                    $($enum::$empty => $empty_kind,)*
                    $($enum::$name(_) => $kind,)*
                }
            }

            /// Appends the payload.
            pub(super) fn encode_payload(&self, out: Vec<u8>) -> Result<Vec<u8>, postcard::Error> {
                match self {
                    $($enum::$empty => Ok(out),)*
                    $($enum::$name(payload) => postcard::to_extend(payload, out),)*
                }
            }

            /// `None` for an unknown kind.
            pub(super) fn decode(kind: u16, payload: &[u8]) -> Option<Result<$enum, postcard::Error>> {
                match kind {
                    $($empty_kind => Some(if payload.is_empty() {
                        Ok($enum::$empty)
                    } else {
                        Err(postcard::Error::DeserializeBadEncoding)
                    }),)*
                    $($kind => Some(whole(payload).map($enum::$name)),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// What `peerctl` asks.
    enum Request
    empty {
        /// What this peer shares, fetches and has: [`Answer::Torrents`].
        List = 0x0002,
        /// [`Answer::Status`]
        Status = 0x0005,
        /// [`Answer::Ledger`], who gave most first.
        Ledger = 0x0007,
        /// Tell the trackers, commit, exit: [`Answer::Left`].
        Leave = 0x000D,
    }
    payload {
        Get(Get) = 0x0001,
        Search(Search) = 0x0003,
        /// [`Answer::Shown`], [`Answer::Files`], [`Answer::Swarm`].
        Show(What) = 0x0004,
        /// The sessions of one torrent, or all: [`Answer::PeerIdentities`], [`Answer::Peers`].
        Peers(Option<What>) = 0x0006,
        /// [`Answer::Changed`]
        Pause(What) = 0x0008,
        /// [`Answer::Changed`]
        Resume(What) = 0x0009,
        /// Hash what is there: [`Answer::Progress`], [`Answer::Verified`].
        Verify(What) = 0x000A,
        Remove(Remove) = 0x000B,
        Share(Share) = 0x000C,
        /// As [`Request::Get`], its pieces in file order instead of rarest first.
        GetInOrder(Get) = 0x000E,
        /// [`Answer::Limits`]
        Limit(SetLimits) = 0x000F,
    }
}

kinds! {
    /// What `peerd` answers.
    enum Answer
    empty {
        /// Nothing follows the rows that came.
        End = 0x0103,
        /// All connections are taken: try again in a moment.
        Busy = 0x0104,
    }
    payload {
        Failed(Failure) = 0x0101,
        Unsupported(Unsupported) = 0x0102,
        /// Several match, one must be named.
        Ambiguous(Vec<Candidate>) = 0x0105,
        /// Nothing matches, these nearly do.
        DidYouMean(Vec<Candidate>) = 0x0106,
        Started(Started) = 0x0107,
        Progress(Progress) = 0x0108,
        Done(Done) = 0x0109,
        Torrents(Vec<TorrentRow>) = 0x010A,
        /// Torrents that match, of which the hits are a part.
        SearchTotal(u64) = 0x010B,
        SearchHits(Vec<SearchHit>) = 0x010C,
        Shown(Shown) = 0x010D,
        Files(Vec<FileRow>) = 0x010E,
        Swarm(Swarm) = 0x010F,
        Status(Status) = 0x0110,
        Changed(Changed) = 0x0113,
        Verified(Verified) = 0x0114,
        Removed(Removed) = 0x0115,
        Shared(Shared) = 0x0116,
        Left(Left) = 0x0117,
        Limits(Limits) = 0x0118,
        PeerIdentities(Vec<PeerIdentity>) = 0x0119,
        // 0x0111 and 0x0112 were these two without their reasons.
        Peers(Vec<PeerRow>) = 0x011A,
        Ledger(Vec<LedgerRow>) = 0x011B,
    }
}

impl Request {
    /// The torrent it speaks of.
    pub fn what(&self) -> Option<&What> {
        match self {
            Request::Get(Get { what, .. })
            | Request::GetInOrder(Get { what, .. })
            | Request::Remove(Remove { what, .. }) => Some(what),
            Request::Show(what) | Request::Pause(what) | Request::Resume(what) | Request::Verify(what) => Some(what),
            Request::Peers(what) => what.as_ref(),
            _ => None,
        }
    }

    pub(super) fn what_mut(&mut self) -> Option<&mut What> {
        match self {
            Request::Get(Get { what, .. })
            | Request::GetInOrder(Get { what, .. })
            | Request::Remove(Remove { what, .. }) => Some(what),
            Request::Show(what) | Request::Pause(what) | Request::Resume(what) | Request::Verify(what) => Some(what),
            Request::Peers(what) => what.as_mut(),
            _ => None,
        }
    }
}

/// All of `bytes` must be one value: what is left over would be a field that we do not know.
fn whole<T: for<'de> serde::Deserialize<'de>>(bytes: &[u8]) -> Result<T, postcard::Error> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AnswerDecoder, RequestDecoder, encode_answer, encode_request, samples};
    use super::*;
    use crate::wire::id::to_hex;
    use std::collections::BTreeSet;

    /// Kind and payload of a frame in hex.
    fn hex(frame: &[u8]) -> String {
        format!("{} {}", to_hex(&frame[10..12]), to_hex(&frame[12..])).trim_end().to_owned()
    }

    /// If this fails, a peerctl and a peerd of different ages no longer understand each other: add a kind instead.
    #[test]
    fn the_bytes_of_every_kind_stand() {
        let requests = samples::requests();
        let got: Vec<String> = requests.iter().map(|r| hex(&encode_request(1, r).unwrap())).collect();
        assert_eq!(got.join("\n"), include_str!("requests.hex").trim_end());
        let answers = samples::answers();
        let got: Vec<String> = answers.iter().map(|a| hex(&encode_answer(1, a, false).unwrap())).collect();
        assert_eq!(got.join("\n"), include_str!("answers.hex").trim_end());
    }

    #[test]
    fn a_request_and_an_answer_byte_by_byte() {
        let get = &samples::requests()[1];
        let bytes = [
            &[0x80, 0x01][..], // get, the last frame
            &[1, 20],          // what: the info-hash, of 20 bytes
            &[0xAB; 20],
            &[1, 4, b'/', b'a', b' ', b'b'], // to
            &[1],                            // detach
        ];
        assert_eq!(encode_request(1, get).unwrap()[10..], bytes.concat());
        let failed = &samples::answers()[0];
        let bytes = [&[0x81, 0x01, 2, 16][..], b"nobody shares it"].concat();
        assert_eq!(encode_answer(1, failed, true).unwrap()[10..], bytes);
    }

    #[test]
    fn every_kind_round_trips_and_has_its_own_number() {
        let mut kinds = BTreeSet::new();
        let mut decoder = RequestDecoder::default();
        for request in samples::requests() {
            kinds.insert(request.kind());
            decoder.push(&encode_request(1, &request).unwrap());
            assert_eq!(decoder.next_request().unwrap().unwrap().request, Ok(request));
        }
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), (1..=0x0F).collect::<Vec<_>>());

        let mut kinds = BTreeSet::new();
        let mut decoder = AnswerDecoder::default();
        for answer in samples::answers() {
            kinds.insert(answer.kind());
            decoder.push(&encode_answer(1, &answer, true).unwrap());
            let got = decoder.next_answer().unwrap().unwrap();
            assert_eq!((got.answer, got.last), (Some(answer), true));
        }
        assert_eq!(
            kinds.into_iter().collect::<Vec<_>>(),
            (0x0101..=0x011B).filter(|kind| ![0x0111, 0x0112].contains(kind)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_payload_cut_anywhere_is_no_payload() {
        for answer in samples::answers() {
            let payload = answer.encode_payload(Vec::new()).unwrap();
            for cut in 0..payload.len() {
                assert!(matches!(Answer::decode(answer.kind(), &payload[..cut]), Some(Err(_))), "{answer:?} at {cut}");
            }
        }
    }
}
