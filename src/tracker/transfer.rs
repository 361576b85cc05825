//! Export and import: what a tracker keeps, as JSON lines, while it is stopped.
//!
//! The first line names the form's version; then a line for each published torrent, with its `.torrent`, and for each page
//! of each swarm. An import adds to what is there; what is known already gains publishers and peers.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

use super::auth::Publisher;
use super::catalogue::seedless::Seedless;
use super::connection_id::seeded_rng;
use super::keeper::Desk;
use super::keyed_hash::BuildKeyedHasher;
use super::registry::{self, Entry, JournalError, Loaded, MAX_PUBLISHERS, Summary};
use super::swarms::Swarms;
use super::swarms::packed::{Kept, Page, content};
use super::{SEGMENTS_DIR, STORE_DIR};
use crate::clock::Time;
use crate::db::segments::{SegmentError, SegmentLog};
use crate::db::{ATOMIC_KEYS, Batch, SledStore, Store, StoreError};
use crate::wire::id::{InfoHash, from_hex, to_hex};
use crate::wire::metainfo::{MAX_TORRENT_BYTES, Metainfo};

/// A line that an older program could not read has a higher one.
const VERSION: u32 = 1;
/// A `.torrent` in hex, its publishers, and what stands around them.
const MAX_LINE_BYTES: usize = 2 * MAX_TORRENT_BYTES + MAX_PUBLISHERS * 70 + 4_096;
/// Nothing is compared with it: whoever is imported counts as just seen at the next start.
const NOW: Time = Time::from_secs(3_600);

/// Why nothing more was exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("{}: no tracker keeps its state here", .0.display())]
    NoTracker(PathBuf),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Segments(#[from] SegmentError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("this is no export of a tracker: its first line names no version")]
    NoExport,
    #[error("the export has version {0}, this program knows {VERSION}: use a newer one")]
    Version(u32),
    #[error("line {line}: {why}; what stands before it was imported")]
    Line { line: usize, why: String },
}

/// What was exported, or imported as new.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Transferred {
    pub torrents: usize,
    pub peers: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Export {
        version: u32,
    },
    Torrent {
        /// Unix seconds.
        added: u64,
        /// Unix seconds.
        withdrawn_at: Option<u64>,
        /// Public keys in hex.
        publishers: Vec<String>,
        /// The whole file in hex.
        torrent: String,
    },
    Swarm {
        key: String,
        completed: u32,
        seeders: Vec<SocketAddr>,
        leechers: Vec<SocketAddr>,
    },
}

/// Writes everything that the state folder holds. Blocking.
///
/// # Errors
/// See [`TransferError`]; a torrent that is damaged is left out, and logged.
pub fn export(state_dir: &Path, out: &mut impl Write) -> Result<Transferred, TransferError> {
    if !state_dir.join(STORE_DIR).exists() {
        return Err(TransferError::NoTracker(state_dir.to_path_buf()));
    }
    let store = Arc::new(SledStore::open(&state_dir.join(STORE_DIR))?);
    let segments = SegmentLog::open(&state_dir.join(SEGMENTS_DIR))?;
    let mut done = Transferred::default();
    write_line(out, &Line::Export { version: VERSION })?;
    registry::open_journal(state_dir, &*store)?;
    let mut publishers: HashMap<InfoHash, Vec<String>> = HashMap::new();
    registry::for_each_publisher(&*store, |key, publisher| {
        publishers.entry(*key).or_default().push(to_hex(publisher));
    })?;
    let skipped = |key: &InfoHash, error| tracing::error!(%key, %error, "a published torrent is left out");
    for stored in registry::stored(&*store, skipped)? {
        if let Some(Loaded { key, entry, .. }) = stored.load(|position| segments.read(position), skipped) {
            let publishers = publishers.remove(&key).unwrap_or_default();
            export_torrent(&segments, &entry, publishers, out)?;
            done.torrents += 1;
        }
    }
    let mut failed = Ok(());
    Desk::new(store.clone()).for_each_page(|(key, _), page| {
        let Some((page, _)) = page else { return };
        if failed.is_ok() {
            done.peers += page.count();
            failed = write_line(out, &swarm_line(&key, &page));
        }
    })?;
    failed?;
    out.flush()?;
    store.close()?;
    Ok(done)
}

fn export_torrent(
    segments: &SegmentLog,
    entry: &Entry,
    mut publishers: Vec<String>,
    out: &mut impl Write,
) -> Result<(), TransferError> {
    let torrent = to_hex(&segments.read(entry.position)?);
    publishers.sort_unstable();
    let Entry { added, withdrawn_at, .. } = *entry;
    Ok(write_line(out, &Line::Torrent { added, withdrawn_at, publishers, torrent })?)
}

fn swarm_line(key: &InfoHash, page: &Page<'_>) -> Line {
    let (mut seeders, mut leechers) = (Vec::new(), Vec::new());
    page.peers(|at, kept| if kept.seeder { seeders.push(at) } else { leechers.push(at) });
    Line::Swarm { key: key.to_hex(), completed: page.completed(), seeders, leechers }
}

fn write_line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Adds what an export holds to the state folder, which is made if there is none. Blocking.
///
/// # Errors
/// See [`TransferError`].
pub fn import(state_dir: &Path, input: &mut impl BufRead) -> Result<Transferred, TransferError> {
    std::fs::create_dir_all(state_dir)?;
    let store = Arc::new(SledStore::open(&state_dir.join(STORE_DIR))?);
    let segments = SegmentLog::open(&state_dir.join(SEGMENTS_DIR))?;
    registry::open_journal(state_dir, &*store)?;
    let mut import = Import {
        store: store.clone(),
        segments,
        batch: Batch::new(),
        new: HashSet::new(),
        swarms: Swarms::default(),
        done: Transferred::default(),
    };
    let mut desk = Desk::new(store.clone());
    let mut rng = seeded_rng()?;
    desk.restore(&import.swarms, NOW, &mut rng)?;
    let peers_before = import.swarms.entries();
    let read = import.read(input, &mut rng);
    // What stands before a line that is none is kept.
    import.commit()?;
    let changed = import.swarms.take_unwritten(NOW, usize::MAX);
    desk.write(&import.swarms, &changed)?;
    store.close()?;
    read?;
    import.done.peers = import.swarms.entries() - peers_before;
    Ok(import.done)
}

struct Import {
    store: Arc<dyn Store>,
    segments: SegmentLog,
    batch: Batch,
    /// New ones that are in the batch.
    new: HashSet<InfoHash>,
    swarms: Swarms,
    done: Transferred,
}

impl Import {
    fn read(&mut self, input: &mut impl BufRead, rng: &mut SmallRng) -> Result<(), TransferError> {
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            if io::Read::take(&mut *input, MAX_LINE_BYTES as u64).read_until(b'\n', &mut text)? == 0 {
                return if line == 1 { Err(TransferError::NoExport) } else { Ok(()) };
            }
            match (line, serde_json::from_slice(&text)) {
                (1, Ok(Line::Export { version: VERSION })) => {}
                (1, Ok(Line::Export { version })) => return Err(TransferError::Version(version)),
                (1, _) => return Err(TransferError::NoExport),
                (_, Ok(parsed)) => self.take(parsed, line, rng)?,
                (_, Err(error)) => return Err(TransferError::Line { line, why: error.to_string() }),
            }
        }
        Ok(())
    }

    fn take(&mut self, parsed: Line, line: usize, rng: &mut SmallRng) -> Result<(), TransferError> {
        let bad = |why: &str| TransferError::Line { line, why: why.to_owned() };
        match parsed {
            Line::Export { .. } => Err(bad("a second beginning")),
            Line::Torrent { added, withdrawn_at, publishers, torrent } => {
                let bytes = hex_bytes(&torrent).ok_or_else(|| bad("the .torrent is not in hex"))?;
                let metainfo = Metainfo::parse(&bytes).map_err(|error| bad(&error.to_string()))?;
                let publishers: Option<Vec<Publisher>> =
                    publishers.iter().take(MAX_PUBLISHERS).map(|text| from_hex(text)).collect();
                let publishers = publishers.ok_or_else(|| bad("a publisher is 64 hex digits"))?;
                self.add(&metainfo, added, withdrawn_at, &publishers)
            }
            Line::Swarm { key, completed, seeders, leechers } => {
                let key: InfoHash = key.parse().map_err(|_| bad("a key is 40 hex digits"))?;
                let peer = |seeder| move |at: &SocketAddr| (*at, Kept { seeder, gap_s: 0, id_tag: unknown_tag(at) });
                let peers: Vec<_> = leechers.iter().map(peer(false)).chain(seeders.iter().map(peer(true))).collect();
                for of_v6 in [false, true] {
                    let of_family = peers.iter().filter(|(at, _)| at.is_ipv6() == of_v6).copied();
                    if let Some(page) = Page::parse(of_v6, &content(completed, of_family)) {
                        self.swarms.restore(NOW, key, &page, 0, rng);
                    }
                }
                self.swarms.rewrite(NOW, &key);
                Ok(())
            }
        }
    }

    fn add(
        &mut self,
        metainfo: &Metainfo,
        added: u64,
        withdrawn_at: Option<u64>,
        publishers: &[Publisher],
    ) -> Result<(), TransferError> {
        let key = metainfo.info_hash();
        if !registry::is_known(&*self.store, &key)? && self.new.insert(key) {
            let position = self.segments.append(metainfo.raw())?;
            let (summary, seedless) = (Summary::of(metainfo), Seedless::default());
            let entry = Entry { summary, position, added, publishers: Vec::new(), withdrawn_at, seedless };
            entry.put(&key, &mut self.batch);
            self.done.torrents += 1;
        }
        for publisher in publishers {
            registry::put_publisher(&key, publisher, added, &mut self.batch);
        }
        if self.batch.len() >= ATOMIC_KEYS { self.commit() } else { Ok(()) }
    }

    /// The `.torrent`s before the records that point to them.
    fn commit(&mut self) -> Result<(), TransferError> {
        self.segments.sync()?;
        self.new.clear();
        Ok(self.store.commit(std::mem::take(&mut self.batch))?)
    }
}

/// Which addresses are one client's is not exported: until they announce, each is one of its own.
fn unknown_tag(at: &SocketAddr) -> u32 {
    BuildKeyedHasher.hash_one(at.ip()) as u32 ^ u32::from(at.port())
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let bytes = pairs.iter().map(|[high, low]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok());
    if rest.is_empty() { bytes.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::catalogue::tests::{by, content as content_file, found, torrent};
    use crate::tracker::catalogue::{Caps, Catalogue};

    fn key(n: u8) -> InfoHash {
        InfoHash::new([n; 20])
    }

    #[test]
    fn what_is_exported_can_be_imported_elsewhere() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(matches!(export(from.path(), &mut Vec::new()), Err(TransferError::NoTracker(_))));
        let store = Arc::new(SledStore::open(&from.path().join(STORE_DIR)).unwrap());
        let catalogue = Catalogue::open(from.path(), store.clone(), Caps::default(), 0).unwrap();
        let (single, folder, gone) = (torrent("a.txt", &[]), torrent("b", &["1.flac", "2.flac"]), torrent("c", &[]));
        for (at, metainfo) in [(5, &single), (6, &folder), (7, &gone)] {
            catalogue.publish(metainfo, by(1), at).unwrap();
        }
        catalogue.withdraw(&gone.info_hash(), &[1; 32], 8).unwrap();
        catalogue.stop();
        let lines_of = |catalogue: &Catalogue| {
            let mut lines: Vec<String> = content_file(catalogue).lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let expected = lines_of(&catalogue);
        store.close().unwrap();
        drop((catalogue, store));
        let swarm = |seeders: &str, leechers: &str| {
            let key = key(3).to_hex();
            format!(
                "{{\"kind\":\"swarm\",\"key\":\"{key}\",\"completed\":4,\"seeders\":[{seeders}],\"leechers\":[{leechers}]}}\n"
            )
        };
        let head = "{\"kind\":\"export\",\"version\":1}\n".to_owned();
        let peers = head.clone() + &swarm("\"10.0.0.1:1\"", "\"10.0.0.2:2\",\"[fc00::1]:3\"");
        assert_eq!(import(from.path(), &mut peers.as_bytes()).unwrap(), Transferred { torrents: 0, peers: 3 });

        let mut lines = Vec::new();
        assert_eq!(export(from.path(), &mut lines).unwrap(), Transferred { torrents: 3, peers: 3 });
        assert_eq!(import(to.path(), &mut &lines[..]).unwrap(), Transferred { torrents: 3, peers: 3 });
        assert_eq!(import(to.path(), &mut &lines[..]).unwrap(), Transferred::default(), "all of it is known");
        let mut again = Vec::new();
        export(to.path(), &mut again).unwrap();
        let sorted = |lines: Vec<u8>| {
            let mut lines: Vec<String> = String::from_utf8(lines).unwrap().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(lines), sorted(again));

        let store = Arc::new(SledStore::open(&to.path().join(STORE_DIR)).unwrap());
        let catalogue = Catalogue::open(to.path(), store, Caps::default(), 0).unwrap();
        assert_eq!(found(&catalogue, "flac"), ["b"]);
        assert_eq!(lines_of(&catalogue), expected);
        catalogue.withdraw(&single.info_hash(), &[1; 32], 9).unwrap();
    }

    #[test]
    fn what_is_no_export_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |text: &str| import(dir.path(), &mut text.as_bytes()).unwrap_err().to_string();
        let head = "{\"kind\":\"export\",\"version\":1}\n";
        for (text, said) in [
            ("", "no export"),
            ("hello\n", "no export"),
            ("{\"kind\":\"export\",\"version\":2}\n", "version 2"),
            (&format!("{head}{{\"kind\":\"torrent\"}}\n"), "line 2"),
            (&format!("{head}{head}"), "line 2"),
            (
                &format!("{head}{{\"kind\":\"torrent\",\"added\":1,\"publishers\":[],\"torrent\":\"6x\"}}\n"),
                "line 2: the .torrent is not in hex",
            ),
        ] {
            let message = refused(text);
            assert!(message.contains(said), "{message}");
        }
    }
}
