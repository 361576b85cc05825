//! The store of tests and simulations: the same rules, in memory, gone with the value.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Batch, Store, StoreError, Submitted, Table, Visit};

/// Keeps nothing but what was committed; a batch is applied whole, or, when it is refused, not at all.
#[derive(Default)]
pub struct MemStore {
    entries: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemStore {
    pub fn new() -> MemStore {
        MemStore::default()
    }
}

impl Store for MemStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(entries.get(&table.full_key(key)).cloned())
    }

    fn for_each(&self, table: Table, prefix: &[u8], f: &mut Visit<'_>) -> Result<(), StoreError> {
        let first = table.full_key(prefix);
        // Copied, so that `f` may use the store.
        let found: Vec<_> = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            let from_first = entries.range(first.clone()..);
            from_first.take_while(|(key, _)| key.starts_with(&first)).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        let table_bytes = table.name().len() + 1;
        for (key, value) in found {
            if f(&key[table_bytes..], &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch.into_ops()? {
            match value {
                Some(value) => entries.insert(key, value),
                None => entries.remove(&key),
            };
        }
        Ok(())
    }

    fn submit(&self, batch: Batch) -> Submitted {
        Submitted::answered(self.commit(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::*;

    #[test]
    fn it_keeps_the_contract() {
        contract::holds(&MemStore::new());
    }

    #[tokio::test]
    async fn a_submitted_batch_is_answered() {
        let store = MemStore::new();
        let mut batch = Batch::new();
        batch.put(contract::A, b"k", b"v".to_vec());
        store.submit(batch).await.unwrap();
        assert_eq!(store.get(contract::A, b"k").unwrap().as_deref(), Some(&b"v"[..]));
    }
}
