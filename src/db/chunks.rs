//! Bytes longer than one value may be (bitmaps), cut into chunks under `key ‖ u32 BE number`. Each chunk is a record of its
//! own, so a change of one bit rewrites 4 KB.

use super::record::{self, RecordError};
use super::{Batch, Store, StoreError, Table};

/// Payload of one chunk; with its header it stays under [`super::MAX_VALUE_BYTES`]. 32,000 pieces' bits.
pub const CHUNK_BYTES: usize = 4_000;
const VERSION: u8 = 1;

/// Why chunks do not give the bytes back.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChunkError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("chunk {number}: {why}")]
    Record { number: u32, why: RecordError },
    #[error("{got} bytes were kept where {expected} are due")]
    Length { got: usize, expected: usize },
}

fn chunk_key(key: &[u8], number: u32) -> Vec<u8> {
    [key, &number.to_be_bytes()].concat()
}

/// Puts all of `bytes`.
pub fn put_chunks(batch: &mut Batch, table: Table, key: &[u8], bytes: &[u8]) {
    for (number, chunk) in (0..).zip(bytes.chunks(CHUNK_BYTES)) {
        batch.put(table, &chunk_key(key, number), record::seal(VERSION, chunk));
    }
}

/// Puts those chunks of `bytes` that hold one of the byte positions `changed`; positions past the end are ignored.
pub fn put_changed_chunks(
    batch: &mut Batch,
    table: Table,
    key: &[u8],
    bytes: &[u8],
    changed: impl IntoIterator<Item = usize>,
) {
    let numbers: std::collections::BTreeSet<usize> = changed.into_iter().map(|at| at / CHUNK_BYTES).collect();
    for number in numbers {
        if let Some(chunk) = bytes.chunks(CHUNK_BYTES).nth(number) {
            batch.put(table, &chunk_key(key, number as u32), record::seal(VERSION, chunk));
        }
    }
}

/// The `len` bytes that were put, or `None` where no chunk is.
///
/// # Errors
/// When the store fails, a chunk is damaged or missing, or other than `len` bytes were kept.
pub fn get_chunks(store: &dyn Store, table: Table, key: &[u8], len: usize) -> Result<Option<Vec<u8>>, ChunkError> {
    let mut bytes = Vec::with_capacity(len);
    for number in 0..len.div_ceil(CHUNK_BYTES) as u32 {
        let Some(stored) = store.get(table, &chunk_key(key, number))? else {
            break;
        };
        bytes.extend_from_slice(record::open(VERSION, &stored).map_err(|why| ChunkError::Record { number, why })?);
    }
    match bytes.len() {
        0 if len > 0 => Ok(None),
        got if got == len => Ok(Some(bytes)),
        got => Err(ChunkError::Length { got, expected: len }),
    }
}

/// Deletes the chunks of `len` bytes.
pub fn delete_chunks(batch: &mut Batch, table: Table, key: &[u8], len: usize) {
    for number in 0..len.div_ceil(CHUNK_BYTES) as u32 {
        batch.delete(table, &chunk_key(key, number));
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{A, keys};
    use super::super::{MAX_VALUE_BYTES, MemStore};
    use super::*;

    const _: () = assert!(CHUNK_BYTES + record::HEADER_BYTES <= MAX_VALUE_BYTES);

    fn stored(bytes: &[u8]) -> MemStore {
        let store = MemStore::new();
        let mut batch = Batch::new();
        put_chunks(&mut batch, A, b"k", bytes);
        store.commit(batch).unwrap();
        store
    }

    #[test]
    fn bytes_of_any_length_come_back_and_go() {
        for len in [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let store = stored(&bytes);
            assert_eq!(get_chunks(&store, A, b"k", len).unwrap(), Some(bytes));
            let mut batch = Batch::new();
            delete_chunks(&mut batch, A, b"k", len);
            store.commit(batch).unwrap();
            assert_eq!(keys(&store, A, b""), Vec::<Vec<u8>>::new());
            assert_eq!(get_chunks(&store, A, b"k", len).unwrap(), None);
        }
    }

    #[test]
    fn only_the_changed_chunk_is_written() {
        let mut bytes = vec![0; 3 * CHUNK_BYTES];
        let store = stored(&bytes);
        bytes[CHUNK_BYTES] = 0x80;
        let mut batch = Batch::new();
        put_changed_chunks(&mut batch, A, b"k", &bytes, [CHUNK_BYTES, CHUNK_BYTES + 5, 99 * CHUNK_BYTES]);
        assert_eq!(batch.len(), 1);
        store.commit(batch).unwrap();
        assert_eq!(get_chunks(&store, A, b"k", bytes.len()).unwrap(), Some(bytes));
    }

    #[test]
    fn damage_a_gap_and_another_length_are_errors() {
        let store = stored(&vec![1; 2 * CHUNK_BYTES]);
        assert!(matches!(get_chunks(&store, A, b"k", CHUNK_BYTES + 1), Err(ChunkError::Length { .. })));
        assert!(matches!(get_chunks(&store, A, b"k", 3 * CHUNK_BYTES), Err(ChunkError::Length { .. })));
        let mut damaged = store.get(A, &chunk_key(b"k", 1)).unwrap().unwrap();
        damaged[50] ^= 4;
        let mut batch = Batch::new();
        batch.put(A, &chunk_key(b"k", 1), damaged);
        store.commit(batch).unwrap();
        let got = get_chunks(&store, A, b"k", 2 * CHUNK_BYTES);
        assert!(matches!(got, Err(ChunkError::Record { number: 1, why: RecordError::Checksum })));
    }
}
