//! The frame of every stored value: version u8, length u32 LE, CRC32C u32 LE (over version, length and payload), payload.
//!
//! A record that does not decode is an error the caller can skip and count: one flipped bit never costs the rest.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 9;

/// A type that is stored. It is written for storage alone, apart from the types the program works with, and a change of
/// its shape needs a higher version.
pub trait Record: Serialize + DeserializeOwned {
    const VERSION: u8;
}

/// Why stored bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record of {0} bytes, shorter than its header says")]
    Truncated(usize),
    #[error("a record of {got} bytes where its header says {expected}")]
    Length { got: usize, expected: usize },
    #[error("a record whose checksum is wrong")]
    Checksum,
    #[error("a record of version {found}, known is {known}")]
    Version { found: u8, known: u8 },
    #[error("a record whose content does not decode")]
    Content,
}

/// Frames a payload that is stored as it is.
pub fn seal(version: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(version);
    // A payload never comes near u32's end: values have at most 4 KiB.
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload of what [`seal`] made with this version.
///
/// # Errors
/// See [`RecordError`].
pub fn open(version: u8, bytes: &[u8]) -> Result<&[u8], RecordError> {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(RecordError::Truncated(bytes.len()));
    };
    let [found, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    let expected = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if payload.len() != expected {
        return Err(RecordError::Length { got: payload.len(), expected });
    }
    if crc32c::crc32c_append(crc32c::crc32c(&header[..5]), payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(RecordError::Checksum);
    }
    if found != version {
        return Err(RecordError::Version { found, known: version });
    }
    Ok(payload)
}

/// # Panics
/// Only for a type whose `Serialize` fails by itself, which no derived one does.
pub fn encode_record<R: Record>(record: &R) -> Vec<u8> {
    seal(R::VERSION, &postcard::to_stdvec(record).expect("a derived Serialize into memory does not fail"))
}

/// # Errors
/// See [`RecordError`].
pub fn decode_record<R: Record>(bytes: &[u8]) -> Result<R, RecordError> {
    match postcard::take_from_bytes(open(R::VERSION, bytes)?) {
        Ok((record, [])) => Ok(record),
        _ => Err(RecordError::Content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
    struct Row {
        name: String,
        bytes: u64,
    }
    impl Record for Row {
        const VERSION: u8 = 3;
    }

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct NewerRow {
        name: String,
        bytes: u64,
    }
    impl Record for NewerRow {
        const VERSION: u8 = 4;
    }

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct ShorterRow {
        name: String,
    }
    impl Record for ShorterRow {
        const VERSION: u8 = 3;
    }

    #[test]
    fn the_bytes_are_those_of_the_frame() {
        let bytes = encode_record(&Row { name: "ab".into(), bytes: 300 });
        // postcard: length 2, 'a', 'b', 300 as a varint.
        let payload = [2, b'a', b'b', 0xAC, 0x02];
        let checksum = crc32c::crc32c(&[&[3, 5, 0, 0, 0][..], &payload].concat());
        assert_eq!(bytes, [&[3, 5, 0, 0, 0][..], &checksum.to_le_bytes(), &payload].concat());
    }

    #[test]
    fn another_version_and_left_over_content_are_refused() {
        let row = encode_record(&Row { name: "x".into(), bytes: 1 });
        assert_eq!(decode_record::<NewerRow>(&row), Err(RecordError::Version { found: 3, known: 4 }));
        assert_eq!(decode_record::<ShorterRow>(&row), Err(RecordError::Content));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_round_trips_and_any_flipped_bit_or_cut_is_seen(name in ".{0,40}", bytes: u64, bit: prop::sample::Index) {
            let row = Row { name, bytes };
            let mut stored = encode_record(&row);
            prop_assert_eq!(decode_record(&stored), Ok(row));
            for cut in 0..stored.len() {
                prop_assert!(decode_record::<Row>(&stored[..cut]).is_err());
            }
            let bit = bit.index(stored.len() * 8);
            stored[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_record::<Row>(&stored).is_err());
        }
    }
}
