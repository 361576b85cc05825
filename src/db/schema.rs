//! The database's own notes, in table `meta`: which schema it was written with, and whether it was closed.
//!
//! `schema_version` (u32 BE) is written at the first open; until the first release any other version is refused, there is
//! no migration. `clean_shutdown` is `0` from open, `1` from close: whoever finds `0` was not closed, and what was written
//! since the last barrier may be gone. `dump_generation` (u64 BE) is that of the newest dump.

use std::path::Path;

use super::{Batch, StoreError, Table};

/// Of everything stored by this program. A change of any table's shape raises it.
pub const SCHEMA_VERSION: u32 = 2;

pub(super) const META: Table = Table::new("meta");
pub(super) const SCHEMA_KEY: &[u8] = b"schema_version";
pub(super) const CLEAN_KEY: &[u8] = b"clean_shutdown";
pub(super) const GENERATION_KEY: &[u8] = b"dump_generation";

/// Whether a database with this `schema_version` is ours to open; none stands for a new one.
pub(super) fn check_version(dir: &Path, stored: Option<&[u8]>) -> Result<(), StoreError> {
    let Some(stored) = stored else { return Ok(()) };
    match <[u8; 4]>::try_from(stored).map(u32::from_be_bytes) {
        Ok(SCHEMA_VERSION) => Ok(()),
        Ok(found) => Err(StoreError::Schema { dir: dir.to_path_buf(), found, known: SCHEMA_VERSION }),
        Err(_) => Err(StoreError::Corrupt { dir: dir.to_path_buf(), detail: "its schema version is no number".into() }),
    }
}

/// What is written first.
pub(super) fn opening() -> Batch {
    let mut batch = Batch::new();
    batch.put(META, SCHEMA_KEY, SCHEMA_VERSION.to_be_bytes().to_vec());
    batch.put(META, CLEAN_KEY, b"0".to_vec());
    batch
}

/// What is written before a dump of this generation gets its name.
pub(super) fn dumping(generation: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(META, GENERATION_KEY, generation.to_be_bytes().to_vec());
    batch
}

/// What is written last.
pub(super) fn closing() -> Batch {
    let mut batch = Batch::new();
    batch.put(META, CLEAN_KEY, b"1".to_vec());
    batch
}
