//! Keeps the swarms: a thread writes behind what has changed, a start enters everybody again.
//!
//! Only joins, leaves, completions and changes of role are written, packed per swarm ([`super::swarms::packed`]). A change
//! rests for [`SETTLE`], so that several of one swarm are one write, and waits at most 10 s while no more than 20,000
//! swarms change within 10 s; beyond that the oldest changes go first, and the lag is told.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::SmallRng;

use super::announcer::Announcer;
use super::catalogue::{RESERVE_BYTES, disk_is_full};
use super::keyed_hash::BuildKeyedHasher;
use super::swarms::packed::{Page, PageNumber, Pages};
use super::swarms::{Swarms, Unwritten};
use crate::clock::{Clock, Time};
use crate::db::{ATOMIC_KEYS, Batch, Store, StoreError, Table, record};
use crate::wire::id::InfoHash;

/// Info-hash ‖ family ‖ page number → a page of the swarm.
const SWARMS: Table = Table::packed("swarms");
const VERSION: u8 = 1;
/// How often changes are written.
const ROUND: Duration = Duration::from_secs(1);
/// Peers come in crowds: a swarm that has just changed will change again.
const SETTLE: Duration = Duration::from_secs(4);
/// Swarms written in one round: 20,000 that change at once are written in the first one after they have settled.
const MAX_PER_ROUND: usize = 20_000;
/// Puts and deletes that share a barrier: publications wait behind no more than this.
const MAX_COMMIT: usize = 1_000;

/// The checksums of a swarm's pages in the store, IPv4's and IPv6's; none where it is not known. Most swarms have one page
/// of IPv4 alone: of those nothing is remembered.
type Sums = [Vec<Option<u32>>; 2];

/// The handle of the thread.
pub struct Keeper {
    announcer: Arc<Announcer>,
    in_hand: Arc<InHand>,
    stop: Mutex<Option<SyncSender<()>>>,
    thread: Mutex<Option<JoinHandle<Result<(), StoreError>>>>,
}

/// Swarms that were taken to be written and are not yet.
struct InHand {
    swarms: AtomicUsize,
    oldest_s: AtomicU32,
}

impl Keeper {
    /// Enters into the tables what the store holds. Blocking.
    ///
    /// # Errors
    /// When the store cannot be read, or the thread cannot be made.
    pub fn start(
        announcer: &Arc<Announcer>,
        store: Arc<dyn Store>,
        state_dir: &Path,
        clock: Arc<dyn Clock>,
        rng: &mut SmallRng,
    ) -> Result<Keeper, KeeperError> {
        let mut desk = Desk::new(store);
        desk.restore(&announcer.swarms, clock.now(), rng)?;
        let in_hand = Arc::new(InHand { swarms: AtomicUsize::new(0), oldest_s: AtomicU32::new(u32::MAX) });
        let (stop, stopped) = sync_channel(0);
        let mut rounds = Rounds {
            desk,
            announcer: announcer.clone(),
            in_hand: in_hand.clone(),
            state_dir: state_dir.to_path_buf(),
            clock,
            troubled: false,
        };
        let run = move || {
            while stopped.recv_timeout(ROUND) == Err(RecvTimeoutError::Timeout) {
                // Told and tried again: there is nobody to answer to.
                let _ = rounds.write(Some(MAX_PER_ROUND));
            }
            rounds.write(None)
        };
        let thread = std::thread::Builder::new().name("tracker-keeper".into()).spawn(run)?;
        let (stop, thread) = (Mutex::new(Some(stop)), Mutex::new(Some(thread)));
        Ok(Keeper { announcer: announcer.clone(), in_hand, stop, thread })
    }

    /// Swarms whose last change the disk does not have yet, and how many seconds ago the first of them changed.
    pub fn lag(&self, now: Time) -> (usize, u32) {
        let (waiting, oldest_s) = self.announcer.swarms.unwritten();
        let oldest_s = oldest_s.min(self.in_hand.oldest_s.load(Ordering::Relaxed));
        let now_s = u32::try_from(now.as_nanos() / 1_000_000_000).unwrap_or(u32::MAX);
        (waiting + self.in_hand.swarms.load(Ordering::Relaxed), now_s.saturating_sub(oldest_s))
    }

    /// Writes everything that waits and ends the thread. Blocking. The second time there is nothing to do.
    ///
    /// # Errors
    /// When not everything could be written.
    pub fn stop(&self) -> Result<(), StoreError> {
        // Its end of the channel hears of it at once.
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let panicked = |_| Err(StoreError::Failed("the thread that keeps the swarms had panicked".into()));
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or_else(panicked))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "not every swarm was written");
        }
    }
}

/// Why the swarms are not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// What the thread does again and again.
struct Rounds {
    desk: Desk,
    announcer: Arc<Announcer>,
    in_hand: Arc<InHand>,
    state_dir: PathBuf,
    clock: Arc<dyn Clock>,
    /// Writing failed the last time: said once.
    troubled: bool,
}

impl Rounds {
    /// At most so many swarms that have settled, or all there are.
    fn write(&mut self, most: Option<usize>) -> Result<(), StoreError> {
        let now = self.clock.now();
        let settled = Time::from_nanos(now.as_nanos().saturating_sub(SETTLE.as_nanos() as u64));
        let until = if most.is_some() { settled } else { now };
        let swarms = &self.announcer.swarms;
        let (_, oldest_s) = swarms.unwritten();
        self.in_hand.oldest_s.store(oldest_s, Ordering::Relaxed);
        let result = if disk_is_full(&self.state_dir, RESERVE_BYTES) {
            Err(StoreError::Failed("the disk is full".into()))
        } else {
            let mut taken = swarms.take_unwritten(until, most.unwrap_or(usize::MAX));
            self.in_hand.swarms.store(taken.len(), Ordering::Relaxed);
            // In the order of their keys the store touches each of its own pages once.
            taken.sort_unstable_by_key(|unwritten| unwritten.key);
            self.desk.write(swarms, &taken)
        };
        self.in_hand.swarms.store(0, Ordering::Relaxed);
        self.in_hand.oldest_s.store(u32::MAX, Ordering::Relaxed);
        match &result {
            Err(error) if !self.troubled => {
                tracing::error!(%error, "who is in which swarm is not kept; a restart would forget what changed");
            }
            Ok(()) if self.troubled => tracing::info!("who is in which swarm is kept again"),
            _ => {}
        }
        self.troubled = result.is_err();
        result
    }
}

/// The store, and what is known to lie in it.
pub(super) struct Desk {
    store: Arc<dyn Store>,
    sums: HashMap<InfoHash, Sums, BuildKeyedHasher>,
    pages: Pages,
}

impl Desk {
    pub fn new(store: Arc<dyn Store>) -> Desk {
        Desk { store, sums: HashMap::default(), pages: Pages::default() }
    }

    /// Enters everybody who is kept.
    pub fn restore(&mut self, swarms: &Swarms, now: Time, rng: &mut SmallRng) -> Result<(), StoreError> {
        // The interval follows the number of peers, and how long each is kept follows the interval: they are counted first.
        let mut entries = 0;
        self.for_each_page(|_, page| entries += page.map_or(0, |(page, _)| page.count()))?;
        let mut damaged = Vec::new();
        let mut sums = Vec::new();
        self.for_each_page(|(key, number), page| {
            match page {
                Some((page, _)) => swarms.restore(now, key, &page, entries, rng),
                None => damaged.push(key),
            }
            if number.of_v6 || number.number > 0 {
                sums.push((key, number, page.map(|(_, sum)| sum)));
            }
        })?;
        for (key, PageNumber { of_v6, number }, sum) in sums {
            let of_swarm = self.sums.entry(key).or_default();
            let (of_family, number) = (&mut of_swarm[usize::from(of_v6)], usize::from(number));
            // The first one is written anew once something changes: its sum is not remembered here.
            of_family.resize(of_family.len().max(number + 1), None);
            of_family[number] = sum;
        }
        if !damaged.is_empty() {
            tracing::error!(pages = damaged.len(), "kept swarms were damaged: their clients will announce again");
        }
        damaged.iter().for_each(|key| swarms.rewrite(now, key));
        Ok(())
    }

    /// Shows each page that is kept and its checksum; none where it is damaged.
    pub fn for_each_page(
        &self,
        mut show: impl FnMut((InfoHash, PageNumber), Option<(Page<'_>, u32)>),
    ) -> Result<(), StoreError> {
        self.store.for_each(SWARMS, &[], &mut |key, value| {
            if let Some((key, number)) = PageNumber::from_key(key) {
                let content = record::open(VERSION, value).ok();
                let page =
                    content.and_then(|content| Some((Page::parse(number.of_v6, content)?, crc32c::crc32c(content))));
                show((key, number), page);
            }
            ControlFlow::Continue(())
        })
    }

    /// Writes these swarms as they are now. What could not be written is put back.
    pub fn write(&mut self, swarms: &Swarms, taken: &[Unwritten]) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        let mut written = 0;
        for (place, unwritten) in taken.iter().enumerate() {
            let mut of_swarm = Vec::new();
            swarms.pack(&unwritten.key, &mut self.pages);
            self.changes(&unwritten.key, &mut of_swarm);
            // A swarm is written whole or not at all, as long as it has no more pages than a batch has room for.
            let rest = ATOMIC_KEYS - batch.len() % ATOMIC_KEYS;
            if batch.len() >= MAX_COMMIT || (of_swarm.len() > rest && of_swarm.len() <= ATOMIC_KEYS) {
                self.commit(std::mem::take(&mut batch)).inspect_err(|_| self.put_back(swarms, &taken[written..]))?;
                written = place;
            }
            for (number, value) in of_swarm {
                match value {
                    Some(value) => batch.put(SWARMS, &number.key(&unwritten.key), value),
                    None => batch.delete(SWARMS, &number.key(&unwritten.key)),
                }
            }
        }
        self.commit(batch).inspect_err(|_| self.put_back(swarms, &taken[written..]))
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() { Ok(()) } else { self.store.commit(batch) }
    }

    /// The swarm's pages that differ from the store's, and those to delete. They count as written.
    fn changes(&mut self, key: &InfoHash, changes: &mut Vec<(PageNumber, Option<Vec<u8>>)>) {
        let were = self.sums.remove(key).unwrap_or_default();
        let mut are = Sums::default();
        for (number, content) in self.pages.iter() {
            let sum = crc32c::crc32c(content);
            let family = usize::from(number.of_v6);
            are[family].push(Some(sum));
            if were[family].get(usize::from(number.number)) != Some(&Some(sum)) {
                changes.push((number, Some(record::seal(VERSION, content))));
            }
        }
        // A first page of IPv4 may always be there.
        for (of_v6, were) in [(false, were[0].len().max(1)), (true, were[1].len())] {
            for number in are[usize::from(of_v6)].len()..were {
                let number = u16::try_from(number).unwrap_or(u16::MAX);
                changes.push((PageNumber { of_v6, number }, None));
            }
        }
        if are[0].len() > 1 || !are[1].is_empty() {
            self.sums.insert(*key, are);
        }
    }

    fn put_back(&mut self, swarms: &Swarms, unwritten: &[Unwritten]) {
        swarms.put_back(unwritten);
        // What the store holds of them is not known any more. A page that should have been deleted and was not is entered
        // at the next start, and expires.
        for Unwritten { key, .. } in unwritten {
            if let Some(sums) = self.sums.get_mut(key) {
                sums.iter_mut().flatten().for_each(|sum| *sum = None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{MemStore, Submitted, Visit};
    use crate::tracker::announcer::fixture;
    use crate::tracker::connection_id::seeded_rng;
    use crate::wire::announce::{AnnounceRequest, Event};
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::sync::atomic::AtomicBool;

    /// A store that can be told to fail, and counts what it is given.
    #[derive(Default)]
    struct Disk {
        store: MemStore,
        fails: AtomicBool,
        ops: AtomicUsize,
    }

    impl Store for Disk {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.get(table, key)
        }
        fn for_each(&self, table: Table, prefix: &[u8], f: &mut Visit<'_>) -> Result<(), StoreError> {
            self.store.for_each(table, prefix, f)
        }
        fn commit(&self, batch: Batch) -> Result<(), StoreError> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(StoreError::Stuck(30));
            }
            self.ops.fetch_add(batch.len(), Ordering::Relaxed);
            self.store.commit(batch)
        }
        fn submit(&self, batch: Batch) -> Submitted {
            self.store.submit(batch)
        }
    }

    struct Kept {
        disk: Arc<Disk>,
        desk: Desk,
        swarms: Swarms,
        rng: SmallRng,
    }

    fn key(n: u32) -> InfoHash {
        let [a, b, c, d] = n.to_be_bytes();
        let mut bytes = [7; 20];
        bytes[..4].copy_from_slice(&[a, b, c, d]);
        bytes[19] = d;
        InfoHash::new(bytes)
    }

    fn v4(n: u32) -> SocketAddr {
        (Ipv4Addr::from_bits(0x0A00_0000 + n), 6881).into()
    }

    fn v6(n: u32) -> SocketAddr {
        (Ipv6Addr::from_bits(0xFC << 120 | u128::from(n)), 6881).into()
    }

    impl Kept {
        fn open(disk: &Arc<Disk>, now_s: u64) -> Kept {
            let desk = Desk::new(disk.clone());
            let mut kept =
                Kept { disk: disk.clone(), desk, swarms: Swarms::new(1_000_000), rng: seeded_rng().unwrap() };
            kept.desk.restore(&kept.swarms, Time::from_secs(now_s), &mut kept.rng).unwrap();
            kept
        }

        fn announce(&mut self, now_s: u64, n: u32, from: SocketAddr, left: u64, event: Event) -> Vec<SocketAddr> {
            let request = AnnounceRequest { info_hash: key(n), ..fixture::request(from.port(), left, event) };
            let (now, mut peers) = (Time::from_secs(now_s), Vec::new());
            let rng = &mut self.rng;
            self.swarms.announce(now, &request, from.ip(), 200, rng, || true, |peer| peers.push(peer)).unwrap();
            peers.sort();
            peers
        }

        /// Writes what changed until then; the puts and deletes that it took.
        fn write(&mut self, until_s: u64) -> Result<usize, StoreError> {
            let before = self.disk.ops.load(Ordering::Relaxed);
            let taken = self.swarms.take_unwritten(Time::from_secs(until_s), usize::MAX);
            self.desk.write(&self.swarms, &taken)?;
            Ok(self.disk.ops.load(Ordering::Relaxed) - before)
        }

        fn pages(&self) -> usize {
            let mut pages = 0;
            self.desk.for_each_page(|_, page| pages += usize::from(page.is_some())).unwrap();
            pages
        }
    }

    #[test]
    fn a_restart_knows_everybody() {
        let disk = Arc::<Disk>::default();
        let mut kept = Kept::open(&disk, 100);
        for n in 0..100 {
            (0..n % 7).for_each(|peer| drop(kept.announce(100, n, v4(peer), u64::from(peer % 2), Event::Started)));
            kept.announce(100, n, v6(n), 5, Event::Started);
        }
        kept.announce(101, 6, v4(1), 0, Event::Completed);
        kept.announce(101, 6, v4(2), 0, Event::Stopped);
        kept.write(101).unwrap();
        let before: Vec<_> = (0..100).map(|n| kept.swarms.scrape(&key(n))).collect();

        let mut again = Kept::open(&disk, 5_000);
        let after: Vec<_> = (0..100).map(|n| again.swarms.scrape(&key(n))).collect();
        assert_eq!(before, after);
        assert_eq!(again.swarms.entries(), kept.swarms.entries());
        assert_eq!(again.announce(5_000, 6, v4(9), 5, Event::Started), [v4(0), v4(1), v4(3), v4(4), v4(5)]);
        assert_eq!(again.announce(5_000, 6, v6(9), 5, Event::Started), [v6(6)]);
        assert_eq!(again.swarms.scrape(&key(6)).completed, 1);
    }

    #[test]
    fn only_joins_leaves_and_completions_are_written() {
        let disk = Arc::<Disk>::default();
        let mut kept = Kept::open(&disk, 0);
        (0..5).for_each(|n| drop(kept.announce(0, n, v4(n), 5, Event::Started)));
        assert_eq!(kept.write(0).unwrap(), 5);
        (0..5).for_each(|n| drop(kept.announce(60, n, v4(n), 4, Event::None)));
        assert_eq!(kept.write(60).unwrap(), 0, "refreshed");
        kept.announce(61, 1, v4(1), 0, Event::Completed);
        kept.announce(61, 2, v4(2), 4, Event::Stopped);
        kept.announce(61, 3, v4(77), 4, Event::Started);
        assert_eq!(kept.write(61).unwrap(), 3);
        kept.swarms.expire(Time::from_secs(100_000));
        assert_eq!(kept.write(100_000).unwrap(), 5, "they expired, and their pages go");
        assert_eq!(kept.pages(), 0);
    }

    #[test]
    fn of_a_large_swarm_only_the_changed_pages_are_written_and_it_shrinks_in_the_store() {
        let disk = Arc::<Disk>::default();
        let mut kept = Kept::open(&disk, 0);
        (0..4_000).for_each(|n| drop(kept.announce(0, 1, v4(n), 5, Event::Started)));
        (0..400).for_each(|n| drop(kept.announce(0, 1, v6(n), 5, Event::Started)));
        assert_eq!(kept.write(0).unwrap(), 11 + 3);
        kept.announce(1, 1, v4(5_000), 5, Event::Started);
        assert_eq!(kept.write(1).unwrap(), 1);
        // After a restart the sums are known again, but for the first page.
        let mut kept = Kept::open(&disk, 2);
        kept.announce(2, 1, v4(6_000), 5, Event::Started);
        assert_eq!(kept.write(2).unwrap(), 2);
        (100..6_001).for_each(|n| drop(kept.announce(3, 1, v4(n), 5, Event::Stopped)));
        (0..400).for_each(|n| drop(kept.announce(3, 1, v6(n), 5, Event::Stopped)));
        assert_eq!(kept.write(3).unwrap(), 1 + 10 + 3);
        assert_eq!(kept.pages(), 1);
        assert_eq!(Kept::open(&disk, 4).swarms.scrape(&key(1)).leechers, 100);
    }

    #[test]
    fn the_oldest_changes_go_first() {
        let mut kept = Kept::open(&Arc::default(), 0);
        (0..3_000).for_each(|n| drop(kept.announce(u64::from(n / 100), n, v4(n), 5, Event::Started)));
        assert_eq!(kept.swarms.unwritten(), (3_000, 0));
        let taken = kept.swarms.take_unwritten(Time::from_secs(20), 1_000);
        assert!(taken.len() == 1_000 && taken.iter().all(|unwritten| unwritten.since_s < 10));
        assert_eq!(kept.swarms.unwritten(), (2_000, 10));
        assert_eq!(kept.swarms.take_unwritten(Time::from_secs(20), 9_999).len(), 1_100, "the others have not settled");
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let disk = Arc::<Disk>::default();
        let mut kept = Kept::open(&disk, 0);
        (0..3_000).for_each(|n| drop(kept.announce(7 - u64::from(n % 3), n, v4(n), 5, Event::Started)));
        disk.fails.store(true, Ordering::Relaxed);
        assert!(kept.write(8).is_err());
        assert_eq!(kept.swarms.unwritten(), (3_000, 5));
        disk.fails.store(false, Ordering::Relaxed);
        kept.write(8).unwrap();
        assert_eq!(Kept::open(&disk, 9).swarms.len(), 3_000);
    }

    #[test]
    fn a_damaged_page_costs_its_own_peers_alone_and_goes() {
        let disk = Arc::<Disk>::default();
        let mut kept = Kept::open(&disk, 0);
        (0..1_000).for_each(|n| drop(kept.announce(0, 1, v4(n), 5, Event::Started)));
        kept.announce(0, 2, v4(1), 5, Event::Started);
        kept.write(0).unwrap();
        let last = PageNumber { of_v6: false, number: 2 }.key(&key(1));
        let mut batch = Batch::new();
        batch.put(SWARMS, &last, vec![1; 50]);
        disk.commit(batch).unwrap();
        let mut kept = Kept::open(&disk, 1);
        assert_eq!((kept.swarms.scrape(&key(1)).leechers, kept.swarms.entries()), (742, 743));
        kept.write(1).unwrap();
        assert_eq!(disk.get(SWARMS, &last).unwrap(), None);
    }

    /// A client that comes every half hour is not dropped because the tracker was away.
    #[test]
    fn a_restored_client_keeps_its_rhythm() {
        let disk = Arc::<Disk>::default();
        let mut kept = Kept::open(&disk, 0);
        (0..3).for_each(|n| drop(kept.announce(n * 1_800, 1, v4(1), 5, Event::None)));
        kept.announce(3_601, 1, v4(2), 5, Event::Started);
        kept.announce(3_602, 1, v4(2), 5, Event::Stopped);
        kept.write(3_602).unwrap();
        // Started a moment before it comes again: that is no gap of its own.
        let mut kept = Kept::open(&disk, 9_000);
        kept.announce(9_010, 1, v4(1), 5, Event::None);
        kept.swarms.expire(Time::from_secs(9_010 + 1_800));
        assert_eq!(kept.swarms.scrape(&key(1)).leechers, 1);
        kept.swarms.expire(Time::from_secs(9_010 + 4_600));
        assert_eq!(kept.swarms.scrape(&key(1)).leechers, 0);
    }
}
