//! What passed between us and every peer, either way, for good. Counted in memory, written every 60 s and at a clean
//! stop, so that a crash costs at most a minute of statistics and a transfer costs the disk nothing.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::core::Core;
use super::records::{LEDGER, LEDGER_FILES, LedgerFileRecord, LedgerRecord};
use crate::db::record::{decode_record, encode_record};
use crate::db::{Batch, Store, StoreError};
use crate::swarm::{Identity, choker};
use crate::wire::id::InfoHash;

/// Decision 7: the ledger is written so often.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// design.md *Remember*: whoever moved less than this is a passer-by ...
const PASSER_BY_BYTES: u64 = 1 << 20;
/// ... of whom so many are kept ...
const PASSERS_BY: usize = 10_000;
/// ... for so long.
const PASSER_BY_SECONDS: u64 = 30 * 24 * 3_600;
/// Others are kept up to this number; beyond, those that gave least and were seen longest ago go.
const PEERS: usize = 100_000;
/// Rows of one peer and one file, at most.
const FILE_ROWS: usize = 200_000;

/// An address can change hands: what came from one counts as credit up to this only.
const ADDRESS_CREDIT_BYTES: u64 = 1 << 30;
/// Who was sent so much in a day (UTC) is served as a stranger until the next: the most that a stolen key, or a relay
/// that passes a proof on, can take before others in a day. More than most links carry to one peer.
const CREDIT_BYTES_PER_DAY: u64 = 64 << 30;

const SECONDS_PER_DAY: u64 = 24 * 3_600;

/// The key of the row of those that were folded together.
const OTHERS: &[u8] = b"o";
/// A proven peer that gave so much is never folded.
const NEVER_FOLDED_BYTES: u64 = 1 << 30;

/// One peer's account.
#[derive(Clone, Debug)]
pub struct Account {
    /// None for those that were folded together to keep the ledger small.
    pub identity: Option<Identity>,
    pub totals: LedgerRecord,
    pub files: Vec<(InfoHash, LedgerFileRecord)>,
}

pub struct Ledger {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peers: HashMap<Identity, LedgerRecord>,
    files: HashMap<(Identity, InfoHash), LedgerFileRecord>,
    /// The sum of those that were folded together.
    others: LedgerRecord,
    changed: HashSet<Identity>,
    changed_files: HashSet<(Identity, InfoHash)>,
    gone: Vec<Identity>,
    gone_files: Vec<(Identity, InfoHash)>,
    /// What was sent to whom on the last day on which anything was; as many rows as `peers` at most.
    day: u64,
    sent_today: HashMap<Identity, u64>,
}

impl Ledger {
    /// Reads what earlier runs wrote; damaged rows are skipped and counted in the log.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn load(store: &dyn Store) -> Result<Ledger, StoreError> {
        let mut state = State::default();
        let mut damaged = 0_u32;
        store.for_each(LEDGER, &[], &mut |key, value| {
            match (decode_identity(key), decode_record::<LedgerRecord>(value)) {
                (_, Ok(record)) if key == OTHERS => state.others = record,
                (Some((identity, [])), Ok(record)) => drop(state.peers.insert(identity, record)),
                _ => damaged += 1,
            }
            std::ops::ControlFlow::Continue(())
        })?;
        store.for_each(LEDGER_FILES, &[], &mut |key, value| {
            let identity = decode_identity(key).and_then(|(id, rest)| Some((id, InfoHash::from_slice(rest)?)));
            match (identity, decode_record::<LedgerFileRecord>(value)) {
                (Some(row), Ok(record)) => drop(state.files.insert(row, record)),
                _ => damaged += 1,
            }
            std::ops::ControlFlow::Continue(())
        })?;
        if damaged > 0 {
            tracing::warn!(damaged, "rows of the ledger could not be read and were skipped");
        }
        Ok(Ledger { state: Mutex::new(state) })
    }

    /// Verified payload that this peer gave.
    pub fn received(&self, from: Identity, key: InfoHash, name: &str, bytes: u64, unix_seconds: u64) {
        self.count(from, key, name, bytes, 0, unix_seconds);
    }

    /// Payload that was sent to this peer.
    pub fn sent(&self, to: Identity, key: InfoHash, name: &str, bytes: u64, unix_seconds: u64) {
        self.count(to, key, name, 0, bytes, unix_seconds);
    }

    fn count(&self, who: Identity, key: InfoHash, name: &str, received: u64, sent: u64, unix_seconds: u64) {
        let mut state = self.lock();
        let total = state.peers.entry(who).or_default();
        if total.first_seen == 0 {
            total.first_seen = unix_seconds;
        }
        total.received_bytes = total.received_bytes.saturating_add(received);
        total.sent_bytes = total.sent_bytes.saturating_add(sent);
        total.last_seen = unix_seconds;
        state.spend(who, sent, unix_seconds / SECONDS_PER_DAY);
        let file = state.files.entry((who, key)).or_default();
        if file.name.is_empty() {
            file.name = name.to_owned();
        }
        file.received_bytes = file.received_bytes.saturating_add(received);
        file.sent_bytes = file.sent_bytes.saturating_add(sent);
        file.last_seen = unix_seconds;
        state.changed.insert(who);
        state.changed_files.insert((who, key));
    }

    /// Verified bytes that this identity gave us, over all time.
    pub fn given_bytes(&self, who: Identity) -> u64 {
        self.lock().peers.get(&who).map_or(0, |record| record.received_bytes)
    }

    /// What the choker goes by: what this identity gave and took, as far as it counts now.
    pub fn account(&self, who: Identity, unix_seconds: u64) -> choker::Account {
        let state = self.lock();
        let Some(record) = state.peers.get(&who) else { return choker::Account::default() };
        let today = state.day == unix_seconds / SECONDS_PER_DAY;
        let spent = today && state.sent_today.get(&who).is_some_and(|sent| *sent >= CREDIT_BYTES_PER_DAY);
        let counts = match who {
            _ if spent => 0,
            Identity::Key(_) => u64::MAX,
            Identity::Address(_) => ADDRESS_CREDIT_BYTES,
        };
        choker::Account { given_bytes: record.received_bytes.min(counts), taken_bytes: record.sent_bytes }
    }

    /// Bytes received and sent, over all peers and all time.
    pub fn totals(&self) -> (u64, u64) {
        let sum = |total: (u64, u64), record: &LedgerRecord| {
            (total.0.saturating_add(record.received_bytes), total.1.saturating_add(record.sent_bytes))
        };
        self.lock().peers.values().fold((0, 0), sum)
    }

    /// All accounts, the most generous first.
    pub fn accounts(&self) -> Vec<Account> {
        let state = self.lock();
        let mut files: HashMap<Identity, Vec<(InfoHash, LedgerFileRecord)>> = HashMap::new();
        for ((identity, key), row) in &state.files {
            files.entry(*identity).or_default().push((*key, row.clone()));
        }
        let mut all: Vec<Account> = state
            .peers
            .iter()
            .map(|(identity, totals)| {
                let mut rows = files.remove(identity).unwrap_or_default();
                rows.sort_by(|a, b| b.1.received_bytes.cmp(&a.1.received_bytes).then(a.1.name.cmp(&b.1.name)));
                Account { identity: Some(*identity), totals: totals.clone(), files: rows }
            })
            .collect();
        if state.others != LedgerRecord::default() {
            all.push(Account { identity: None, totals: state.others.clone(), files: Vec::new() });
        }
        all.sort_by_key(|account| (std::cmp::Reverse(account.totals.received_bytes), account.identity));
        all
    }

    /// What changed since the last call, as a batch; forgets whom the caps no longer hold.
    pub fn take_changes(&self, unix_seconds: u64) -> Batch {
        let mut state = self.lock();
        state.forget(unix_seconds);
        let mut batch = Batch::new();
        for identity in std::mem::take(&mut state.changed) {
            if let Some(record) = state.peers.get(&identity) {
                batch.put(LEDGER, &encode_identity(&identity), encode_record(record));
            }
        }
        for row in std::mem::take(&mut state.changed_files) {
            if let Some(record) = state.files.get(&row) {
                batch.put(LEDGER_FILES, &row_key(&row), encode_record(record));
            }
        }
        let gone = std::mem::take(&mut state.gone);
        if !gone.is_empty() {
            batch.put(LEDGER, OTHERS, encode_record(&state.others));
        }
        for identity in gone {
            batch.delete(LEDGER, &encode_identity(&identity));
        }
        for row in std::mem::take(&mut state.gone_files) {
            batch.delete(LEDGER_FILES, &row_key(&row));
        }
        batch
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn spend(&mut self, who: Identity, sent: u64, day: u64) {
        if self.day != day {
            self.day = day;
            self.sent_today.clear();
        }
        if sent > 0 {
            let today = self.sent_today.entry(who).or_default();
            *today = today.saturating_add(sent);
        }
    }

    fn forget(&mut self, unix_seconds: u64) {
        let moved = |record: &LedgerRecord| record.received_bytes + record.sent_bytes;
        let mut passers: Vec<(u64, Identity)> = self
            .peers
            .iter()
            .filter(|(_, record)| moved(record) < PASSER_BY_BYTES)
            .map(|(identity, record)| (record.last_seen, *identity))
            .collect();
        passers.sort_unstable_by_key(|(seen, _)| std::cmp::Reverse(*seen));
        let stale = |seen: u64| unix_seconds.saturating_sub(seen) > PASSER_BY_SECONDS;
        for (rank, (seen, identity)) in passers.iter().enumerate() {
            if rank >= PASSERS_BY || stale(*seen) {
                self.drop_peer(*identity);
            }
        }
        if self.peers.len() > PEERS + PASSERS_BY {
            let mut kept: Vec<(u64, u64, Identity)> = self
                .peers
                .iter()
                .filter(|(id, r)| may_fold(id, r))
                .map(|(id, r)| (r.received_bytes, r.last_seen, *id))
                .collect();
            kept.sort_unstable_by_key(|(given, seen, _)| (*given, *seen));
            for (_, _, identity) in kept.iter().take(self.peers.len() - PEERS) {
                self.drop_peer(*identity);
            }
        }
        if self.files.len() > FILE_ROWS {
            let mut rows: Vec<(u64, u64, (Identity, InfoHash))> =
                self.files.iter().map(|(row, r)| (r.received_bytes, r.last_seen, *row)).collect();
            rows.sort_unstable_by_key(|(given, seen, _)| (*given, *seen));
            for (_, _, row) in rows.iter().take(self.files.len() - FILE_ROWS) {
                self.files.remove(row);
                self.gone_files.push(*row);
            }
        }
    }

    fn drop_peer(&mut self, identity: Identity) {
        if let Some(record) = self.peers.remove(&identity) {
            let others = &mut self.others;
            let first_seen = if others.first_seen == 0 { record.first_seen } else { others.first_seen };
            *others = LedgerRecord {
                received_bytes: others.received_bytes.saturating_add(record.received_bytes),
                sent_bytes: others.sent_bytes.saturating_add(record.sent_bytes),
                first_seen: first_seen.min(record.first_seen),
                last_seen: others.last_seen.max(record.last_seen),
            };
        }
        self.sent_today.remove(&identity);
        self.gone.push(identity);
        let gone: Vec<_> = self.files.keys().filter(|(id, _)| *id == identity).copied().collect();
        for row in gone {
            self.files.remove(&row);
            self.gone_files.push(row);
        }
    }
}

fn may_fold(identity: &Identity, record: &LedgerRecord) -> bool {
    !matches!(identity, Identity::Key(_)) || record.received_bytes < NEVER_FOLDED_BYTES
}

/// Writes until the daemon stops, and once more then.
pub async fn run(core: Arc<Core>) {
    while !core.tasks.is_stopping() {
        tokio::select! {
            () = tokio::time::sleep(WRITE_EVERY) => {}
            () = core.tasks.stopping() => {}
        }
        let changes = core.ledger.take_changes(core.clock.unix_seconds());
        if let Err(error) = core.submit(changes).await {
            tracing::error!(%error, "the ledger could not be written: the last minute's figures may be lost");
        }
    }
}

fn row_key(row: &(Identity, InfoHash)) -> Vec<u8> {
    let mut key = encode_identity(&row.0);
    key.extend_from_slice(row.1.as_bytes());
    key
}

fn encode_identity(identity: &Identity) -> Vec<u8> {
    match identity {
        Identity::Address(IpAddr::V4(ip)) => [&b"4"[..], &ip.octets()].concat(),
        Identity::Address(IpAddr::V6(ip)) => [&b"6"[..], &ip.octets()].concat(),
        Identity::Key(key) => [&b"k"[..], key].concat(),
    }
}

/// The identity at the front of a key, and what follows it.
fn decode_identity(key: &[u8]) -> Option<(Identity, &[u8])> {
    let (kind, rest) = key.split_first()?;
    match kind {
        b'4' => rest.split_first_chunk::<4>().map(|(ip, rest)| (Identity::Address(Ipv4Addr::from(*ip).into()), rest)),
        b'6' => rest.split_first_chunk::<16>().map(|(ip, rest)| (Identity::Address(Ipv6Addr::from(*ip).into()), rest)),
        b'k' => rest.split_first_chunk::<32>().map(|(key, rest)| (Identity::Key(*key), rest)),
        _ => None,
    }
}

/// How people see an identity.
pub fn identity_text(identity: Option<&Identity>) -> String {
    match identity {
        None => "others".to_owned(),
        Some(Identity::Address(ip)) => ip.to_string(),
        Some(Identity::Key(key)) => format!("key {}", crate::wire::id::to_hex(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::MemStore;

    fn peer(n: u8) -> Identity {
        Identity::Address(IpAddr::from([198, 18, 0, n]))
    }

    #[test]
    fn what_was_written_is_read_back_and_counted_on() {
        let store = MemStore::default();
        let key = InfoHash::new([7; 20]);
        let ledger = Ledger::load(&store).unwrap();
        ledger.received(peer(1), key, "got5.mp4", 5 << 20, 1_000);
        ledger.sent(peer(2), key, "got5.mp4", 2 << 20, 1_001);
        store.commit(ledger.take_changes(1_002)).unwrap();
        let ledger = Ledger::load(&store).unwrap();
        ledger.received(peer(1), key, "got5.mp4", 1 << 20, 2_000);
        assert_eq!(ledger.given_bytes(peer(1)), 6 << 20);
        let accounts = ledger.accounts();
        assert_eq!(accounts.len(), 2);
        assert_eq!(
            accounts[0].totals,
            LedgerRecord { received_bytes: 6 << 20, sent_bytes: 0, first_seen: 1_000, last_seen: 2_000 }
        );
        assert_eq!(accounts[1].files[0].1.sent_bytes, 2 << 20);
    }

    #[test]
    fn passers_by_are_forgotten_after_a_month_and_givers_are_not() {
        let store = MemStore::default();
        let key = InfoHash::new([7; 20]);
        let ledger = Ledger::load(&store).unwrap();
        ledger.received(peer(1), key, "a", 5 << 20, 1_000);
        ledger.received(peer(2), key, "a", 5, 1_000);
        store.commit(ledger.take_changes(1_000)).unwrap();
        store.commit(ledger.take_changes(1_000 + PASSER_BY_SECONDS + 1)).unwrap();
        let ledger = Ledger::load(&store).unwrap();
        let accounts = ledger.accounts();
        assert_eq!(accounts.len(), 2);
        assert_eq!((accounts[0].identity, accounts[0].totals.received_bytes), (Some(peer(1)), 5 << 20));
        assert_eq!((accounts[1].identity, accounts[1].totals.received_bytes), (None, 5));
        assert_eq!(ledger.given_bytes(peer(2)), 0);
    }

    #[test]
    fn credit_counts_up_to_a_bound_for_an_address_and_for_a_day() {
        let ledger = Ledger::load(&MemStore::default()).unwrap();
        let (key, day) = (InfoHash::new([7; 20]), SECONDS_PER_DAY);
        let proven = Identity::Key([1; 32]);
        for who in [proven, peer(1)] {
            ledger.received(who, key, "a", 5 << 30, 10 * day);
            ledger.sent(who, key, "a", CREDIT_BYTES_PER_DAY - 1, 10 * day);
        }
        assert_eq!(ledger.account(proven, 10 * day).given_bytes, 5 << 30);
        assert_eq!(ledger.account(peer(1), 10 * day).given_bytes, ADDRESS_CREDIT_BYTES);
        assert_eq!(ledger.account(peer(2), 10 * day), choker::Account::default());
        ledger.sent(proven, key, "a", 1, 11 * day - 1);
        assert_eq!(ledger.account(proven, 11 * day - 1).given_bytes, 0);
        assert_eq!(ledger.account(proven, 11 * day).given_bytes, 5 << 30);
        ledger.sent(proven, key, "a", 1, 11 * day);
        assert_eq!(ledger.account(proven, 11 * day).given_bytes, 5 << 30);
        assert_eq!(ledger.given_bytes(peer(1)), 5 << 30, "what is shown is all of it");
    }

    #[test]
    fn identities_round_trip() {
        for identity in [peer(9), Identity::Address(IpAddr::from([1_u16, 2, 3, 4, 5, 6, 7, 8])), Identity::Key([3; 32])]
        {
            let mut key = encode_identity(&identity);
            key.extend_from_slice(&[9; 20]);
            assert_eq!(decode_identity(&key), Some((identity, &[9; 20][..])));
        }
        assert_eq!(decode_identity(b"4abc"), None);
    }
}
