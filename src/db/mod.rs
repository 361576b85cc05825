//! What must survive: bitmaps, the ledger, credit, the share index, the tracker's registry.
//!
//! - [`Store`] is the narrow interface that the rest of the program sees; [`SledStore`] keeps it on disk, [`MemStore`] in
//!   memory for tests and simulations. A [`Batch`] is handed over and is durable, against power loss, once it is answered.
//! - `writer` is the one thread that writes: whatever waits is applied together and shares one barrier.
//! - [`record`] frames a value with version, length and CRC32C; [`chunks`] cuts what is longer than a value may be.
//! - [`schema`] refuses a database of another version and knows whether the last stop was clean.
//! - `packed` lays the records of tables that have a million of them into few rows.
//! - [`journal`] keeps what was promised until the store has it, for a process that is killed.
//! - `dump` is a copy of all rows, from which a damaged database is made anew.
//! - [`dirs`] makes folders whose names last.
//! - [`segments`] is the append-only log that holds `.torrent` bytes beside the database.
//!
//! sled is named in `sled_store` alone.

pub mod chunks;
pub mod dirs;
mod dump;
pub mod journal;
mod mem;
mod packed;
pub mod record;
pub mod schema;
pub mod segments;
mod sled_store;
mod writer;

pub use mem::MemStore;
pub use sled_store::{Restored, SledStore};

use std::future::Future;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// A value may be this long, its record's header included. sled rewrites 16 neighbours at once and moves what passes
/// 128 KiB to a side file that it never syncs, so values stay small; [`chunks`] holds what is longer.
pub const MAX_VALUE_BYTES: usize = 4 * 1024;
/// A key may be this long: a path of 64 names does not belong into a key, a hash and a number do.
pub const MAX_KEY_BYTES: usize = 512;
/// So many puts and deletes are atomic. sled keeps a whole batch pinned in memory: batches of 5,000 keys in random order
/// took gigabytes, of 100 some 74 MiB.
pub const ATOMIC_KEYS: usize = 100;

/// A named set of keys. Names are short, constant and free of control characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Table {
    name: &'static str,
    /// What stands between the name and a key.
    mark: u8,
}

impl Table {
    /// # Panics
    /// At compile time for a constant: when the name is empty, longer than 32 bytes or holds a control character.
    pub const fn new(name: &'static str) -> Table {
        Table::marked(name, packed::PLAIN)
    }

    /// For a million small records and more: many of them share a row on disk, and they are walked through in no order.
    ///
    /// # Panics
    /// As [`Table::new`].
    pub const fn packed(name: &'static str) -> Table {
        Table::marked(name, packed::PACKED)
    }

    const fn marked(name: &'static str, mark: u8) -> Table {
        assert!(!name.is_empty() && name.len() <= 32, "a table's name has 1 to 32 bytes");
        let mut at = 0;
        while at < name.len() {
            assert!(!name.as_bytes()[at].is_ascii_control(), "a table's name has no control characters");
            at += 1;
        }
        Table { name, mark }
    }

    pub const fn name(self) -> &'static str {
        self.name
    }

    /// The key as all tables' common key space has it: name, mark, key.
    fn full_key(self, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(self.name.len() + 1 + key.len());
        full.extend_from_slice(self.name.as_bytes());
        full.push(self.mark);
        full.extend_from_slice(key);
        full
    }

    /// Where what is too long to be packed lies, in the common key space; none for a plain table.
    fn by_itself(self, key: &[u8]) -> Option<Vec<u8>> {
        (self.mark == packed::PACKED).then(|| packed::alone_key(self.name.as_bytes(), key))
    }
}

/// One put (a value) or delete (none), its key already in the common key space.
type Op = (Vec<u8>, Option<Vec<u8>>);

/// Puts and deletes that belong together, in any tables. Up to [`ATOMIC_KEYS`] of them become durable together or not at
/// all; a longer batch does so in that many at a time, in order. Of two for the same key the later one holds.
#[derive(Default, Debug, Clone)]
pub struct Batch {
    ops: Vec<Op>,
    too_large: Option<TooLarge>,
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    /// A key over [`MAX_KEY_BYTES`] or a value over [`MAX_VALUE_BYTES`] makes the whole batch refused at commit.
    pub fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        if value.len() > MAX_VALUE_BYTES {
            self.too_large.get_or_insert(TooLarge { table, what: "value", bytes: value.len(), most: MAX_VALUE_BYTES });
        }
        self.push(table, key, Some(value));
    }

    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.push(table, key, None);
    }

    fn push(&mut self, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        if key.len() > MAX_KEY_BYTES {
            self.too_large.get_or_insert(TooLarge { table, what: "key", bytes: key.len(), most: MAX_KEY_BYTES });
        }
        self.ops.push((table.full_key(key), value));
    }

    /// How many puts and deletes.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Adds the other batch's operations behind its own.
    pub fn append(&mut self, other: Batch) {
        self.ops.extend(other.ops);
        self.too_large = self.too_large.or(other.too_large);
    }

    fn into_ops(self) -> Result<Vec<Op>, StoreError> {
        match self.too_large {
            Some(which) => Err(StoreError::TooLarge(which)),
            None => Ok(self.ops),
        }
    }
}

/// What a refused batch held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {what} of {bytes} bytes for table {}: at most {most} are kept", table.name())]
pub struct TooLarge {
    table: Table,
    what: &'static str,
    bytes: usize,
    most: usize,
}

/// Why the store did not do what was asked. After `Failed` nothing more is written until the store is opened again,
/// and reading may fail too.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{} is in use by process {pid}: stop that one first, or name another folder", dir.display())]
    Locked { dir: PathBuf, pid: String },
    #[error(
        "the database in {} has schema {found}, this program knows {known}: {hint}",
        dir.display(),
        hint = if found > known { "use the newer program that wrote it" } else { "move the folder aside to begin anew" }
    )]
    Schema { dir: PathBuf, found: u32, known: u32 },
    #[error("the database in {} is damaged ({detail}): move the folder aside to begin anew", dir.display())]
    Corrupt { dir: PathBuf, detail: String },
    #[error("{}: {detail}", path.display())]
    Io { path: PathBuf, detail: String },
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error("the database cannot be read: {0}")]
    Read(String),
    #[error("the database takes no more writes until it is opened again: {0}")]
    Failed(String),
    #[error("the disk has not finished a write to the database within {0} s")]
    Stuck(u64),
    #[error("too many writes to the database are waiting")]
    Busy,
    #[error("the database is closed")]
    Closed,
}

/// Is shown a key and its value and says whether to go on.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Where the program keeps what must survive.
pub trait Store: Send + Sync + 'static {
    /// # Errors
    /// When the disk fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Calls `f` with each key (without its table) that begins with `prefix`, and its value, in the order of the keys'
    /// bytes, until `f` breaks off. A packed table is walked through whole and in no order, and what is written to it
    /// meanwhile may be passed over.
    ///
    /// # Errors
    /// When the disk fails.
    fn for_each(&self, table: Table, prefix: &[u8], f: &mut Visit<'_>) -> Result<(), StoreError>;

    /// Writes and waits, on this thread, until power loss cannot undo it. Not for the async runtime's threads.
    ///
    /// # Errors
    /// When it may not have been written: too large, closed, stuck, or the disk failed.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// The same without waiting. [`StoreError::Busy`] when too many wait already.
    fn submit(&self, batch: Batch) -> Submitted;
}

/// The answer to come of a submitted batch; once it is `Ok`, power loss cannot undo the batch. Dropping it changes nothing.
#[must_use = "until it is answered the batch may be lost"]
pub struct Submitted(oneshot::Receiver<Result<(), StoreError>>);

impl Submitted {
    fn answered(answer: Result<(), StoreError>) -> Submitted {
        let (tell, told) = oneshot::channel();
        // The receiver is in hand: this cannot fail.
        let _ = tell.send(answer);
        Submitted(told)
    }
}

impl Future for Submitted {
    type Output = Result<(), StoreError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|told| told.unwrap_or(Err(StoreError::Closed)))
    }
}

/// What every store must do, run against each kind.
#[cfg(test)]
pub(crate) mod contract {
    use super::*;

    pub(crate) const A: Table = Table::new("a");
    pub(crate) const AB: Table = Table::new("ab");

    pub(crate) fn keys(store: &dyn Store, table: Table, prefix: &[u8]) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        store
            .for_each(table, prefix, &mut |key, _| {
                keys.push(key.to_vec());
                ControlFlow::Continue(())
            })
            .unwrap();
        keys
    }

    pub(crate) fn holds(store: &dyn Store) {
        let mut batch = Batch::new();
        for key in [&b"k2"[..], b"k1", b"k3", b"", b"\xFF"] {
            batch.put(A, key, key.repeat(2));
        }
        batch.put(AB, b"k1", b"other table".to_vec());
        batch.put(A, b"k3", b"old".to_vec());
        batch.put(A, b"k3", b"new".to_vec());
        store.commit(batch).unwrap();
        assert_eq!(store.get(A, b"k1").unwrap().as_deref(), Some(&b"k1k1"[..]));
        assert_eq!(store.get(A, b"k3").unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(store.get(AB, b"k1").unwrap().as_deref(), Some(&b"other table"[..]));
        assert_eq!(store.get(AB, b"k2").unwrap(), None);
        assert_eq!(keys(store, A, b""), [&b""[..], b"k1", b"k2", b"k3", b"\xFF"]);
        assert_eq!(keys(store, A, b"k"), [b"k1", b"k2", b"k3"]);
        assert_eq!(keys(store, AB, b""), [b"k1"]);

        let mut seen = 0;
        store.for_each(A, b"", &mut |_, _| (seen += 1, ControlFlow::Break(())).1).unwrap();
        assert_eq!(seen, 1, "Break ends the walk");

        let mut batch = Batch::new();
        batch.delete(A, b"k1");
        batch.put(A, b"k4", vec![0; MAX_VALUE_BYTES + 1]);
        assert!(matches!(store.commit(batch), Err(StoreError::TooLarge(_))));
        let mut batch = Batch::new();
        batch.delete(A, &[0; MAX_KEY_BYTES + 1]);
        assert!(matches!(store.commit(batch), Err(StoreError::TooLarge(_))));
        assert!(store.get(A, b"k1").unwrap().is_some(), "nothing of a refused batch is written");

        let mut batch = Batch::new();
        batch.delete(A, b"k1");
        batch.put(A, &[7; MAX_KEY_BYTES], vec![7; MAX_VALUE_BYTES]);
        store.commit(batch).unwrap();
        assert_eq!(store.get(A, b"k1").unwrap(), None);
        assert_eq!(store.get(A, &[7; MAX_KEY_BYTES]).unwrap(), Some(vec![7; MAX_VALUE_BYTES]));
        store.commit(Batch::new()).unwrap();
    }
}
