//! Tables of a million small records, in few rows of the database. A row of sled costs some hundred bytes of memory and some
//! microseconds at every start, and a record under a key of random order is a page of sled's to rewrite.
//!
//! A record is added to the newest row. The one that it replaces stays where it lies, until its row is the oldest: then what
//! still holds of that row is added to the newest, and the row goes. That is done as long as more than half of all records
//! hold no more. In memory stands for each key the row that has its last record.
//!
//! In sled: table ‖ 1 ‖ row number u32 BE → a [`record`] of records, each key length u16 LE, value length u16 LE (`0xFFFF`:
//! deleted), key, value. What is too long for that lies by itself under table ‖ 2 ‖ key.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use super::{Batch, MAX_VALUE_BYTES, Op, StoreError, record};

/// Between a table's name and a key.
pub(super) const PLAIN: u8 = 0;
pub(super) const PACKED: u8 = 1;
pub(super) const BY_ITSELF: u8 = 2;

const VERSION: u8 = 1;
/// What a row has room for.
const ROW_BYTES: usize = MAX_VALUE_BYTES - record::HEADER_BYTES;
/// A longer record lies by itself: four of them still share a row.
const MAX_PACKED_BYTES: usize = ROW_BYTES / 4;
const HEAD_BYTES: usize = 4;
/// In place of a value's length.
const DELETED: u16 = u16::MAX;
/// Records that hold no more and are not worth the effort: a start reads them within milliseconds.
const SLACK: usize = 10_000;
/// Rows taken up with one batch, which may be of [`super::ATOMIC_KEYS`] records: more than it adds, so that the effort
/// catches up with whatever comes.
const MAX_TAKEN_UP: usize = 16;
/// The row of a key whose value lies by itself; true rows begin at 1.
const NO_ROW: u32 = 0;

/// One record, as rows and journals have it.
pub(super) fn put_record(key: &[u8], value: Option<&[u8]>, bytes: &mut Vec<u8>) {
    // Both are far below: a batch takes no longer ones.
    let value_bytes = value.map_or(DELETED, |value| value.len() as u16);
    bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&value_bytes.to_le_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value.unwrap_or_default());
}

/// The records that [`put_record`] put one behind the other, until one does not fit.
pub(super) struct Records<'a>(pub &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);
    fn next(&mut self) -> Option<Self::Item> {
        let (&[k0, k1, v0, v1], rest) = self.0.split_first_chunk::<HEAD_BYTES>()?;
        let value_bytes = u16::from_le_bytes([v0, v1]);
        let (key, rest) = rest.split_at_checked(u16::from_le_bytes([k0, k1]).into())?;
        if value_bytes == DELETED {
            self.0 = rest;
            return Some((key, None));
        }
        let (value, rest) = rest.split_at_checked(value_bytes.into())?;
        self.0 = rest;
        Some((key, Some(value)))
    }
}

/// The last value of a key in a row.
pub(super) fn find<'a>(row: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    Records(record::open(VERSION, row).ok()?).filter(|(other, _)| *other == key).last()?.1
}

/// Where the value of a key lies.
pub(super) enum Place {
    Nowhere,
    /// Under this key of sled's, as it is.
    Alone(Vec<u8>),
    /// In the row of this key.
    Row(Vec<u8>),
}

/// What is known of all packed tables; reading and writing share it.
#[derive(Default)]
pub(super) struct Packing {
    hasher: RandomState,
    logs: BTreeMap<Box<[u8]>, Log>,
}

/// One table's rows.
struct Log {
    /// By the hash of a key the row of its last record: two keys share one by chance once in 2^64, and nobody knows the
    /// hasher's secret.
    rows: HashMap<u64, u32, BuildHasherDefault<Taken>>,
    oldest: u32,
    /// The row that is being filled, and its records.
    newest: u32,
    content: Vec<u8>,
    /// In all rows, those that hold no more included.
    records: usize,
}

impl Default for Log {
    fn default() -> Log {
        Log { rows: HashMap::default(), oldest: 1, newest: 1, content: Vec::new(), records: 0 }
    }
}

/// A hash taken as it is: it is one already.
#[derive(Default)]
struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A full key's table, the mark behind it, and the key.
fn split(full_key: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let at = full_key.iter().position(|byte| *byte <= BY_ITSELF)?;
    Some((&full_key[..at], full_key[at], &full_key[at + 1..]))
}

/// The hash of a key, the key, and its value; none where it is deleted.
type Hashed<'a> = (u64, &'a [u8], Option<&'a [u8]>);

/// The records of a row, with their keys' hashes. All are hashed before the first is looked up: then a start waits for the
/// memory of several at once.
fn hashed<'a>(hasher: &RandomState, content: &'a [u8]) -> Vec<Hashed<'a>> {
    Records(content).map(|(key, value)| (hasher.hash_one(key), key, value)).collect()
}

fn row_key(table: &[u8], row: u32) -> Vec<u8> {
    [table, &[PACKED], &row.to_be_bytes()].concat()
}

pub(super) fn alone_key(table: &[u8], key: &[u8]) -> Vec<u8> {
    [table, &[BY_ITSELF], key].concat()
}

impl Packing {
    /// Learns one row of sled's as a start finds it. They come in the order of their keys.
    pub fn learn(&mut self, full_key: &[u8], value: &[u8]) {
        let Some((table, mark @ (PACKED | BY_ITSELF), key)) = split(full_key) else { return };
        let log = self.logs.entry(table.into()).or_default();
        if mark == BY_ITSELF {
            log.rows.insert(self.hasher.hash_one(key), NO_ROW);
            return;
        }
        let Some(row) = key.try_into().ok().map(u32::from_be_bytes) else { return };
        if log.records == 0 && log.newest == 1 {
            log.oldest = row;
        }
        log.newest = row + 1;
        let Ok(content) = record::open(VERSION, value) else {
            let table = String::from_utf8_lossy(table);
            tracing::error!(%table, row, "a row of the database is damaged: its records are lost");
            return;
        };
        let hashed = hashed(&self.hasher, content);
        log.records += hashed.len();
        for (hash, _, value) in hashed {
            match value {
                Some(_) => log.rows.insert(hash, row),
                None => log.rows.remove(&hash),
            };
        }
    }

    /// What to write into sled for these operations; those of plain tables as they are. `read` reads a row of sled's.
    pub fn pack(
        &mut self,
        ops: Vec<Op>,
        read: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Vec<Op>, StoreError> {
        let mut out = Vec::new();
        let mut touched: Vec<Box<[u8]>> = Vec::new();
        for (full_key, value) in ops {
            let Some((table, PACKED, key)) = split(&full_key) else {
                out.push((full_key, value));
                continue;
            };
            if !touched.iter().any(|known| **known == *table) {
                touched.push(table.into());
                self.logs.entry(table.into()).or_default();
            }
            if let Some(log) = self.logs.get_mut(table) {
                log.change(table, key, self.hasher.hash_one(key), value, &mut out);
            }
        }
        for table in touched {
            if let Some(log) = self.logs.get_mut(&table) {
                log.take_up(&table, |key| self.hasher.hash_one(key), &read, &mut out)?;
                out.push((row_key(&table, log.newest), Some(record::seal(VERSION, &log.content))));
            }
        }
        Ok(out)
    }

    /// Where a value of any table lies.
    pub fn place(&self, full_key: &[u8]) -> Place {
        let Some((table, PACKED, key)) = split(full_key) else { return Place::Alone(full_key.to_vec()) };
        let row = self.logs.get(table).and_then(|log| log.rows.get(&self.hasher.hash_one(key)));
        match row {
            None => Place::Nowhere,
            Some(&NO_ROW) => Place::Alone(alone_key(table, key)),
            Some(&row) => Place::Row(row_key(table, row)),
        }
    }

    /// The records of a row of sled's that hold still.
    pub fn holding<'a>(&self, full_row_key: &[u8], row: &'a [u8]) -> Vec<(&'a [u8], &'a [u8])> {
        let Some((table, PACKED, number)) = split(full_row_key) else { return Vec::new() };
        let number = number.try_into().ok().map(u32::from_be_bytes);
        let (Some(log), Some(number)) = (self.logs.get(table), number) else { return Vec::new() };
        let hashed = hashed(&self.hasher, record::open(VERSION, row).unwrap_or_default());
        let holding = hashed.into_iter().filter(|(hash, ..)| log.rows.get(hash) == Some(&number));
        holding.filter_map(|(_, key, value)| Some((key, value?))).collect()
    }

    /// Rows that the packed tables have, and the records in them.
    #[cfg(test)]
    fn size(&self) -> (u32, usize) {
        let rows = self.logs.values().map(|log| log.newest - log.oldest + 1).sum();
        (rows, self.logs.values().map(|log| log.records).sum())
    }
}

impl Log {
    fn change(&mut self, table: &[u8], key: &[u8], hash: u64, value: Option<Vec<u8>>, out: &mut Vec<Op>) {
        let known = self.rows.get(&hash).copied();
        match value {
            Some(value) if HEAD_BYTES + key.len() + value.len() <= MAX_PACKED_BYTES => {
                if known == Some(NO_ROW) {
                    out.push((alone_key(table, key), None));
                }
                self.add(table, key, hash, Some(&value), out);
            }
            Some(value) => {
                if known.is_some_and(|row| row != NO_ROW) {
                    self.add(table, key, hash, None, out);
                }
                self.rows.insert(hash, NO_ROW);
                out.push((alone_key(table, key), Some(value)));
            }
            None if known == Some(NO_ROW) => {
                self.rows.remove(&hash);
                out.push((alone_key(table, key), None));
            }
            None if known.is_some() => self.add(table, key, hash, None, out),
            // There is nothing to delete.
            None => {}
        }
    }

    /// Adds a record to the newest row.
    fn add(&mut self, table: &[u8], key: &[u8], hash: u64, value: Option<&[u8]>, out: &mut Vec<Op>) {
        if self.rows.get(&hash) == Some(&self.newest) {
            self.take_out(key);
        }
        if self.content.len() + HEAD_BYTES + key.len() + value.map_or(0, <[u8]>::len) > ROW_BYTES {
            out.push((row_key(table, self.newest), Some(record::seal(VERSION, &self.content))));
            self.content.clear();
            self.newest += 1;
        }
        put_record(key, value, &mut self.content);
        self.records += 1;
        match value {
            Some(_) => self.rows.insert(hash, self.newest),
            None => self.rows.remove(&hash),
        };
    }

    /// Takes the value of a key out of the newest row.
    fn take_out(&mut self, key: &[u8]) {
        let mut kept = Vec::with_capacity(ROW_BYTES);
        for (other, value) in Records(&self.content) {
            if other == key && value.is_some() {
                self.records -= 1;
            } else {
                put_record(other, value, &mut kept);
            }
        }
        self.content = kept;
    }

    /// Adds anew what the oldest rows have that holds still, and deletes them.
    fn take_up(
        &mut self,
        table: &[u8],
        hash: impl Fn(&[u8]) -> u64,
        read: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>,
        out: &mut Vec<Op>,
    ) -> Result<(), StoreError> {
        for _ in 0..MAX_TAKEN_UP {
            // Rows that this batch fills are not in sled yet: by then the oldest are far from the newest.
            if self.records <= 2 * self.rows.len() + SLACK || self.newest - self.oldest <= MAX_TAKEN_UP as u32 {
                return Ok(());
            }
            let (row, oldest_key) = (self.oldest, row_key(table, self.oldest));
            self.oldest += 1;
            let Some(stored) = read(&oldest_key)? else { continue };
            for (key, value) in Records(record::open(VERSION, &stored).unwrap_or_default()) {
                self.records -= 1;
                let hash = hash(key);
                if value.is_some() && self.rows.get(&hash) == Some(&row) {
                    self.add(table, key, hash, value, out);
                }
            }
            out.push((oldest_key, None));
        }
        Ok(())
    }
}

/// The operations of a batch as records, for a journal.
pub(super) fn put_batch(batch: &Batch, bytes: &mut Vec<u8>) {
    batch.ops.iter().for_each(|(key, value)| put_record(key, value.as_deref(), bytes));
}

/// What [`put_batch`] put.
pub(super) fn batch_of(bytes: &[u8]) -> Batch {
    let ops = Records(bytes).map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
    Batch { ops, too_large: None }
}

#[cfg(test)]
mod tests {
    use super::super::{SledStore, Store, Table};
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use std::ops::ControlFlow;

    const SMALL: Table = Table::packed("small");
    const OTHER: Table = Table::packed("other");

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn rows_of(store: &SledStore, table: Table, prefix: &[u8]) -> Model {
        let mut found = Model::new();
        store
            .for_each(table, prefix, &mut |key, value| {
                assert!(found.insert(key.to_vec(), value.to_vec()).is_none(), "shown twice");
                ControlFlow::Continue(())
            })
            .unwrap();
        found
    }

    fn agrees(store: &SledStore, model: &Model, seed: u64) {
        assert_eq!(rows_of(store, SMALL, b""), *model, "seed {seed}");
        let of_prefix = model.iter().filter(|(key, _)| key.starts_with(&[1]));
        assert_eq!(
            rows_of(store, SMALL, &[1]),
            of_prefix.map(|(k, v)| (k.clone(), v.clone())).collect(),
            "seed {seed}"
        );
        for key in 0..=u8::MAX {
            assert_eq!(
                store.get(SMALL, &[key, 7]).unwrap(),
                model.get(&[key, 7][..]).cloned(),
                "seed {seed}, key {key}"
            );
        }
    }

    /// Whatever is put, replaced, deleted and outgrows a row: it is what a map would have, before and after a restart.
    #[test]
    fn a_packed_table_is_a_table() {
        let seed = 5;
        let mut rng = SmallRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::new();
        for _ in 0..4 {
            let store = SledStore::open(dir.path()).unwrap();
            agrees(&store, &model, seed);
            for _ in 0..10 {
                let mut batch = Batch::new();
                for _ in 0..rng.random_range(1..90) {
                    let key = [rng.random_range(0..60), 7];
                    if rng.random_ratio(1, 4) {
                        batch.delete(SMALL, &key);
                        model.remove(&key[..]);
                    } else {
                        let len = if rng.random_ratio(1, 10) { rng.random_range(900..4_000) } else { 30 };
                        let value = vec![rng.random(); len];
                        batch.put(SMALL, &key, value.clone());
                        model.insert(key.to_vec(), value);
                    }
                }
                store.commit(batch).unwrap();
            }
            agrees(&store, &model, seed);
            assert_eq!(rows_of(&store, OTHER, b""), Model::new());
        }
    }

    /// 500 keys change again and again; the rows are few, and hold what was put last.
    #[test]
    fn what_holds_no_more_is_cleared_away() {
        let (mut packing, mut sled) = (Packing::default(), BTreeMap::<Vec<u8>, Vec<u8>>::new());
        let value = |key: &[u8], n: u32| [key, &n.to_le_bytes()].concat();
        for n in 0..1_500_u32 {
            let keys = (0..100_u32).map(|key| ((n * 100 + key) % 500).to_be_bytes());
            let ops = keys.map(|key| (SMALL.full_key(&key), Some(value(&key, n / 5)))).collect();
            let written = packing.pack(ops, |key| Ok(sled.get(key).cloned())).unwrap();
            for (key, value) in written {
                match value {
                    Some(value) => drop(sled.insert(key, value)),
                    None => drop(sled.remove(&key)),
                }
            }
        }
        let (rows, records) = packing.size();
        assert!((SLACK / 2..SLACK + 1_000).contains(&records), "{records}");
        assert_eq!(sled.len(), rows as usize);
        let mut again = Packing::default();
        sled.iter().for_each(|(key, value)| again.learn(key, value));
        for packing in [&packing, &again] {
            let holding: Vec<Vec<u8>> = sled
                .iter()
                .flat_map(|(key, row)| packing.holding(key, row))
                .map(|(key, held)| {
                    assert_eq!(held[..], value(key, 299));
                    key.to_vec()
                })
                .collect();
            assert_eq!(holding.len(), 500);
        }
    }

    #[test]
    fn a_damaged_row_costs_its_own_records_alone() {
        let (mut packing, mut again) = (Packing::default(), Packing::default());
        let ops = |key: u8| vec![(SMALL.full_key(&[key]), Some(vec![key; 900]))];
        let mut sled = BTreeMap::new();
        for key in 1..=9 {
            sled.extend(packing.pack(ops(key), |_| Ok(None)).unwrap());
        }
        for (n, (key, value)) in sled.iter().enumerate() {
            let mut value = value.clone().unwrap();
            value[50] ^= u8::from(n == 1);
            again.learn(key, &value);
        }
        let held = (1..=9_u8).filter(|key| !matches!(again.place(&SMALL.full_key(&[*key])), Place::Nowhere));
        assert_eq!(held.collect::<Vec<u8>>(), [1, 2, 3, 4, 9]);
    }
}
