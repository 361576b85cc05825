//! Entries that nobody seeds: after a while hidden from search, in the end dropped. A seeder that comes brings one back.
//!
//! Since when nobody seeds an entry is written down, so that restarts do not begin the time anew; of an entry that is
//! seeded nothing is written.

use std::collections::HashMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::registry::{self, Entry};
use super::{Catalogue, Tables};
use crate::db::record::{Record, decode_record, encode_record};
use crate::db::{Batch, Store, StoreError, Table};
use crate::tracker::search::Prepared;
use crate::wire::id::InfoHash;
use crate::wire::metainfo::Metainfo;

/// Info-hash → [`SeedlessRecord`].
const SEEDLESS: Table = Table::packed("seedless");
/// A first seeder needs a moment after the publication: until then nothing is written down.
const RECORDED_AFTER_S: u64 = 600;
/// Entries dealt with at once: the tables are held for a millisecond or so.
const MAX_AT_ONCE: usize = 1_000;

/// How long an entry stays without a seeder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Found by a search for so long.
    pub hide_after_s: u64,
    /// Known for so long.
    pub drop_after_s: u64,
}

impl Default for Patience {
    /// People go on holiday, and have their machine off; after half a year they are not expected.
    fn default() -> Patience {
        const DAY_S: u64 = 86_400;
        Patience { hide_after_s: 30 * DAY_S, drop_after_s: 180 * DAY_S }
    }
}

/// What is known of an entry's seeders.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seedless {
    /// Unix seconds since when nobody seeds it; none while somebody does.
    pub since: Option<u64>,
    pub hidden: bool,
    /// Whether the store has it.
    recorded: bool,
}

impl Seedless {
    pub fn since(unix_seconds: u64) -> Seedless {
        Seedless { since: Some(unix_seconds), hidden: false, recorded: false }
    }

    fn lasts_s(&self, unix_seconds: u64) -> u64 {
        self.since.map_or(0, |since| unix_seconds.saturating_sub(since))
    }
}

#[derive(Serialize, Deserialize)]
struct SeedlessRecord {
    since: u64,
    hidden: bool,
}

impl Record for SeedlessRecord {
    const VERSION: u8 = 1;
}

/// What the store knows; damaged records count from now on, as if there were none.
pub(super) fn load(store: &dyn Store) -> Result<HashMap<InfoHash, Seedless>, StoreError> {
    let mut found = HashMap::new();
    store.for_each(SEEDLESS, &[], &mut |key, value| {
        if let (Some(key), Ok(SeedlessRecord { since, hidden })) = (InfoHash::from_slice(key), decode_record(value)) {
            found.insert(key, Seedless { since: Some(since), hidden, recorded: true });
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Takes what is kept of an entry out of the store.
pub(super) fn forget(key: &InfoHash, entry: &Entry, batch: &mut Batch) {
    if entry.seedless.recorded {
        batch.delete(SEEDLESS, key.as_bytes());
    }
}

fn put(key: &InfoHash, entry: &mut Entry, batch: &mut Batch) {
    if let Seedless { since: Some(since), hidden, .. } = entry.seedless {
        entry.seedless.recorded = true;
        batch.put(SEEDLESS, key.as_bytes(), encode_record(&SeedlessRecord { since, hidden }));
    }
}

/// What is due of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Record,
    Hide,
    Drop,
}

impl Patience {
    fn due(self, entry: &Entry, unix_seconds: u64) -> Option<Due> {
        let Seedless { since, hidden, recorded } = entry.seedless;
        if since.is_none() || entry.withdrawn_at.is_some() {
            return None;
        }
        match entry.seedless.lasts_s(unix_seconds) {
            lasts_s if lasts_s >= self.drop_after_s => Some(Due::Drop),
            lasts_s if lasts_s >= self.hide_after_s && !hidden => Some(Due::Hide),
            lasts_s if lasts_s >= RECORDED_AFTER_S && !recorded => Some(Due::Record),
            _ => None,
        }
    }
}

impl Catalogue {
    /// All numbers of seeders, for the order of hits alone: a start tells them before the first search.
    pub fn rank_by(&self, seeders: impl Fn(&InfoHash) -> u32) {
        self.write().index.set_all_seeders(seeders);
    }

    /// The numbers of seeders that changed: for the order of hits, and for the time without any. Blocking: what was
    /// hidden is read again.
    pub fn set_seeders(&self, mut counts: Vec<(InfoHash, u32)>, unix_seconds: u64) {
        let mut hidden = Vec::new();
        {
            // Most swarms may be of torrents that were never published here.
            let tables = self.read();
            counts.retain(|(key, seeders)| {
                let live = tables.live(key);
                hidden.extend(live.filter(|entry| *seeders > 0 && entry.seedless.hidden).map(|_| *key));
                live.is_some()
            });
        }
        if counts.is_empty() {
            return;
        }
        let returned: Vec<(Prepared, String)> = hidden.iter().filter_map(|key| self.prepare_hidden(key)).collect();
        let _turn = self.turn();
        let mut tables = self.write();
        let mut pending = self.scribe.pending();
        let Tables { entries, index, .. } = &mut *tables;
        let mut change = Batch::new();
        for (prepared, lines) in returned {
            let key = prepared.key();
            if let Some(entry) = entries.get_mut(&key).filter(|entry| entry.seedless.hidden) {
                entry.seedless.hidden = false;
                index.insert(prepared);
                pending.add_lines(&key, &lines);
            }
        }
        for (key, seeders) in counts {
            let Some(entry) = entries.get_mut(&key) else { continue };
            if seeders == 0 {
                entry.seedless.since.get_or_insert(unix_seconds);
            } else if !entry.seedless.hidden {
                forget(&key, entry, &mut change);
                entry.seedless = Seedless::default();
            }
            index.set_seeders(&key, seeders);
        }
        pending.add(change);
    }

    /// The words and the lines of a hidden entry.
    fn prepare_hidden(&self, key: &InfoHash) -> Option<(Prepared, String)> {
        let (summary, position) = {
            let tables = self.read();
            let entry = tables.entries.get(key).filter(|entry| entry.seedless.hidden)?;
            (entry.summary.clone(), entry.position)
        };
        let metainfo = self.segments.read(position).ok().and_then(|bytes| Metainfo::parse(&bytes).ok())?;
        Some((summary.document(*key, Some(&metainfo), Prepared::new), registry::content_lines(&metainfo)))
    }

    /// Hides and drops what nobody has seeded for so long, a part of it at a time. To be called every minute or so.
    pub fn tidy_seedless(&self, patience: Patience, unix_seconds: u64) {
        let due: Vec<InfoHash> = {
            let tables = self.read();
            let due = tables.entries.iter().filter(|(_, entry)| patience.due(entry, unix_seconds).is_some());
            due.map(|(key, _)| *key).take(MAX_AT_ONCE).collect()
        };
        if due.is_empty() || !self.scribe.has_room() {
            return;
        }
        let _turn = self.turn();
        let mut tables = self.write();
        let mut pending = self.scribe.pending();
        let mut change = Batch::new();
        for key in due {
            let Tables { entries, index, .. } = &mut *tables;
            let Some(entry) = entries.get_mut(&key) else { continue };
            let Some(due) = patience.due(entry, unix_seconds) else { continue };
            if due != Due::Record && !entry.seedless.hidden {
                entry.seedless.hidden = true;
                index.remove(&key);
                pending.remove_lines(key);
            }
            if due == Due::Drop {
                tables.delete(&key, &mut change);
            } else {
                put(&key, entry, &mut change);
            }
        }
        pending.add(change);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{by, content, found, torrent};
    use super::*;
    use crate::db::MemStore;
    use crate::tracker::catalogue::{Caps, Published};
    use std::sync::Arc;

    const PATIENCE: Patience = Patience { hide_after_s: 1_000, drop_after_s: 5_000 };

    #[test]
    fn without_a_seeder_it_is_hidden_then_dropped_and_a_seeder_brings_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(MemStore::new());
        let catalogue = Catalogue::open(dir.path(), store.clone(), Caps::default(), 0).unwrap();
        let (single, folder) = (torrent("one tale.txt", &[]), torrent("two tale", &["a.flac", "b.flac"]));
        for metainfo in [&single, &folder] {
            catalogue.publish(metainfo, by(1), 100).unwrap();
        }
        catalogue.set_seeders(vec![(single.info_hash(), 3)], 150);
        for now in [200, 1_099] {
            catalogue.tidy_seedless(PATIENCE, now);
            assert_eq!(found(&catalogue, "tale").len(), 2, "{now}");
        }
        catalogue.tidy_seedless(PATIENCE, 1_100);
        assert_eq!(found(&catalogue, "tale"), ["one tale.txt"]);
        catalogue.set_seeders(vec![(single.info_hash(), 0)], 2_000);
        catalogue.tidy_seedless(PATIENCE, 2_700);
        catalogue.stop();
        assert_eq!(content(&catalogue), registry::content_lines(&single));
        drop(catalogue);

        // A restart begins no time anew.
        let catalogue = Catalogue::open(dir.path(), store.clone(), Caps::default(), 0).unwrap();
        assert_eq!(found(&catalogue, "tale"), ["one tale.txt"]);
        assert_eq!(content(&catalogue), registry::content_lines(&single));
        catalogue.tidy_seedless(PATIENCE, 3_000);
        assert_eq!(found(&catalogue, "tale"), [""; 0]);
        assert!(catalogue.contains(&folder.info_hash()), "known still, and served");
        assert_eq!(catalogue.publish(&folder, by(1), 3_001).unwrap(), Published::Known);
        catalogue.set_seeders(vec![(folder.info_hash(), 1)], 3_002);
        assert_eq!(found(&catalogue, "b flac"), ["two tale"]);
        catalogue.tidy_seedless(PATIENCE, 7_000);
        assert!(!catalogue.contains(&single.info_hash()));
        catalogue.tidy_seedless(PATIENCE, 99_000);
        assert!(catalogue.contains(&folder.info_hash()), "it is seeded");
        catalogue.stop();
        assert_eq!(content(&catalogue), registry::content_lines(&folder));
        drop(catalogue);
        let catalogue = Catalogue::open(dir.path(), store, Caps::default(), 0).unwrap();
        assert_eq!((catalogue.len(), catalogue.contains(&single.info_hash())), (1, false));
    }
}
