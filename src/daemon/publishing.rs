//! Keeps our tracker's catalogue true to what we share: publishes, withdraws, and fills a tracker that lost everything.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::core::Core;
use super::records::WITHDRAWALS;
use super::torrent::Torrent;
use super::trackers::TrackerError;
use crate::db::{Batch, StoreError};
use crate::clock::Time;
use crate::wire::id::InfoHash;

/// Requests to the tracker at once: keep-alive connections, so that 20,000 files take seconds.
const AT_ONCE: usize = 8;
/// A tracker that is down is tried again after so long, doubling ...
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// ... to so long.
const RETRY_MOST: Duration = Duration::from_secs(60);
/// A few keys are asked for so often: a tracker that came back empty is noticed, whether or not we saw it down.
const PROBE_EVERY: Duration = Duration::from_secs(30);
const PROBE_KEYS: usize = 16;
/// All keys are asked for so often (design.md *Trackers*).
const ASK_ALL_EVERY: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    Publish,
    Withdraw,
}

/// Refusals remembered for `peerctl share`: as many as anybody looks at.
const MAX_REFUSALS: usize = 1_000;

/// How the catalogue answered last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reached {
    NotYet,
    Yes,
    No { error: String, retry_at: Time },
}

/// What the tracker is still to be told. One wish a torrent: the last one counts.
pub struct Publisher {
    reached: Mutex<Reached>,
    wishes: Mutex<BTreeMap<InfoHash, Wish>>,
    refused: Mutex<HashSet<InfoHash>>,
    some: Notify,
    /// Counts wishes that came true.
    done: watch::Sender<u64>,
}

impl Default for Publisher {
    fn default() -> Self {
        Publisher {
            reached: Mutex::new(Reached::NotYet),
            wishes: Mutex::default(),
            refused: Mutex::default(),
            some: Notify::new(),
            done: watch::Sender::new(0),
        }
    }
}

impl Publisher {
    pub fn publish(&self, key: InfoHash) {
        self.wish(key, Wish::Publish);
    }

    pub fn withdraw(&self, key: InfoHash) {
        self.wish(key, Wish::Withdraw);
    }

    fn refusals(&self) -> MutexGuard<'_, HashSet<InfoHash>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wish(&self, key: InfoHash, wish: Wish) {
        self.refusals().remove(&key);
        self.lock().insert(key, wish);
        self.some.notify_one();
    }

    /// Waits until the tracker has taken this torrent; false if it declined, or does not answer within `limit`.
    pub async fn wait_published(&self, key: InfoHash, limit: Duration) -> bool {
        let mut done = self.done.subscribe();
        let settled = done.wait_for(|_| !self.lock().contains_key(&key));
        matches!(tokio::time::timeout(limit, settled).await, Ok(Ok(_))) && !self.refusals().contains(&key)
    }

    /// The tracker is back after it was down: what it forgot is published again.
    pub fn tracker_is_back(&self) {
        self.some.notify_one();
    }

    pub fn reached(&self) -> Reached {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_reached(&self, reached: Reached) {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = reached;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InfoHash, Wish>> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn some_wishes(&self) -> Vec<(InfoHash, Wish)> {
        self.lock().iter().take(AT_ONCE * 16).map(|(key, wish)| (*key, *wish)).collect()
    }

    /// The wish came true, or never can; unless it has changed meanwhile.
    fn settle(&self, key: InfoHash, wish: Wish) {
        let mut wishes = self.lock();
        if wishes.get(&key) == Some(&wish) {
            wishes.remove(&key);
        }
        drop(wishes);
        self.done.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Publishes until the daemon stops.
pub async fn run(core: Arc<Core>) {
    let mut retry = RETRY_FIRST;
    let mut ask_all_at = core.clock.now();
    let mut probe = 0;
    loop {
        let reached = round(&core, &mut ask_all_at, &mut probe).await;
        if let Err(error) = &reached {
            tracing::debug!(%error, "the tracker's catalogue");
            // Whatever happened to it meanwhile, all is asked once it answers.
            ask_all_at = core.clock.now();
            core.publisher.set_reached(Reached::No { error: error.to_string(), retry_at: ask_all_at + retry });
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY_MOST);
            continue;
        }
        core.publisher.set_reached(Reached::Yes);
        retry = RETRY_FIRST;
        if core.publisher.lock().is_empty() {
            tokio::select! {
                () = core.publisher.some.notified() => {}
                () = tokio::time::sleep(PROBE_EVERY) => {}
            }
        }
    }
}

async fn round(core: &Arc<Core>, ask_all_at: &mut Time, probe: &mut usize) -> Result<(), TrackerError> {
    let wishes = core.publisher.some_wishes();
    if !wishes.is_empty() {
        fulfil(core, wishes).await?;
        if !core.publisher.lock().is_empty() {
            return Ok(());
        }
    }
    let keys: Vec<InfoHash> =
        core.torrents().iter().filter(|t| t.with_status(|s| s.publish && s.complete)).map(|t| t.key()).collect();
    if keys.is_empty() {
        // With nothing to share, `status` still says whether there is a tracker to search.
        return core.catalogue().is_there().await;
    }
    let now = core.clock.now();
    let asked: Vec<InfoHash> = if *ask_all_at <= now {
        keys.clone()
    } else {
        *probe = (*probe + PROBE_KEYS) % keys.len();
        keys.iter().cycle().skip(*probe).take(PROBE_KEYS.min(keys.len())).copied().collect()
    };
    let all = asked.len() == keys.len();
    let mut unknown = core.catalogue().unknown(&asked).await?;
    if !all && !unknown.is_empty() {
        unknown = core.catalogue().unknown(&keys).await?;
    }
    *ask_all_at = if all || !unknown.is_empty() { now + ASK_ALL_EVERY } else { *ask_all_at };
    if !unknown.is_empty() {
        tracing::info!(torrents = unknown.len(), "the tracker does not know them: published again");
        let unknown: HashSet<InfoHash> = unknown.into_iter().collect();
        let mut wishes = core.publisher.lock();
        for key in unknown {
            // What is to be withdrawn stays so.
            wishes.entry(key).or_insert(Wish::Publish);
        }
        drop(wishes);
        core.publisher.some.notify_one();
    }
    Ok(())
}

/// Carries out the wishes, several at once; stops at the first that the tracker is not there for.
async fn fulfil(core: &Arc<Core>, wishes: Vec<(InfoHash, Wish)>) -> Result<(), TrackerError> {
    let mut waiting = wishes.into_iter();
    let mut under_way = JoinSet::new();
    let mut result = Ok(());
    loop {
        while result.is_ok() && under_way.len() < AT_ONCE {
            let Some((key, wish)) = waiting.next() else { break };
            let core = core.clone();
            under_way.spawn(async move { (key, wish, tell(&core, key, wish).await) });
        }
        let Some(told) = under_way.join_next().await else { return result };
        let Ok((key, wish, told)) = told else { continue };
        match told {
            Ok(()) => {
                core.publisher.settle(key, wish);
                forget_withdrawal(core, key, wish);
            }
            Err(error) if is_final(&error) => {
                tracing::warn!(%key, ?wish, %error, "the tracker declined");
                core.warn(format!("the tracker declined {key}: {error}"));
                let mut refused = core.publisher.refusals();
                if refused.len() < MAX_REFUSALS {
                    refused.insert(key);
                }
                drop(refused);
                core.publisher.settle(key, wish);
                forget_withdrawal(core, key, wish);
            }
            Err(error) => result = Err(error),
        }
    }
}

/// The tracker has heard it. If the record of it outlives a crash it is only told again.
fn forget_withdrawal(core: &Core, key: InfoHash, wish: Wish) {
    if wish == Wish::Withdraw {
        let mut batch = Batch::new();
        batch.delete(WITHDRAWALS, key.as_bytes());
        drop(core.store.submit(batch));
    }
}

/// Takes up what an earlier run was to tell the tracker and did not.
///
/// # Errors
/// When the store cannot be read.
pub fn load(core: &Core) -> Result<(), StoreError> {
    core.store.for_each(WITHDRAWALS, &[], &mut |key, _| {
        if let Some(key) = InfoHash::from_slice(key).filter(|key| core.torrent(*key).is_none()) {
            core.publisher.withdraw(key);
        }
        std::ops::ControlFlow::Continue(())
    })
}

/// A refusal of the thing itself; everything else is tried again.
fn is_final(error: &TrackerError) -> bool {
    matches!(error, TrackerError::Refused { status: Some(400 | 401 | 403 | 404 | 409 | 413 | 415), .. })
}

async fn tell(core: &Arc<Core>, key: InfoHash, wish: Wish) -> Result<(), TrackerError> {
    let catalogue = core.catalogue();
    if wish == Wish::Withdraw {
        return match catalogue.withdraw(key, &core.identity).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        };
    }
    let Some(torrent) = core.torrent(key).filter(|torrent| torrent.with_status(|status| status.publish)) else {
        return Ok(());
    };
    match read_back(core, &torrent).await {
        Some(bytes) => catalogue.publish(&bytes, key, &core.identity).await.map(drop),
        None => Ok(()),
    }
}

async fn read_back(core: &Arc<Core>, torrent: &Arc<Torrent>) -> Option<Vec<u8>> {
    let (of, position) = (core.clone(), torrent.summary.position);
    match tokio::task::spawn_blocking(move || of.segments.read(position)).await {
        Ok(Ok(bytes)) => Some(bytes),
        Ok(Err(error)) => {
            core.warn(format!("the .torrent of {} cannot be read back: {error}", torrent.summary.name));
            None
        }
        Err(_) => None,
    }
}
