//! The memory that payload passes through: a budget, handed out as owned buffers that come back by being dropped.
//!
//! Buffers are recycled, so a steady transfer neither allocates nor zeroes. Who finds the budget used up waits in line;
//! that wait is what holds back the sockets when the disk is slow.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::wire::layout::{BLOCK_BYTES, MAX_BLOCK_BYTES};

/// Default budget in bytes: with it a leeching peerd stays under 64 MiB in all.
pub const DEFAULT_BUDGET_BYTES: usize = 32 << 20;
/// The two sizes that are kept: the block of strangers and the block between peerds.
const CLASS_BYTES: [usize; 2] = [BLOCK_BYTES as usize, MAX_BLOCK_BYTES as usize];
/// What the budget is counted in.
const UNIT_BYTES: usize = CLASS_BYTES[0];

/// Hands out [`Buffer`]s. A clone is the same pool.
#[derive(Clone)]
pub struct BufferPool {
    inner: Arc<Inner>,
}

struct Inner {
    units: usize,
    free: Arc<Semaphore>,
    /// Of what is handed out: on its way to the disk.
    leaving_bytes: AtomicUsize,
    idle: Mutex<[Vec<Box<[u8]>>; 2]>,
}

impl BufferPool {
    /// The budget is rounded up to one buffer of the larger size.
    pub fn new(budget_bytes: usize) -> BufferPool {
        let units = budget_bytes.max(CLASS_BYTES[1]).div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        BufferPool {
            inner: Arc::new(Inner {
                units,
                free: Arc::new(Semaphore::new(units)),
                leaving_bytes: AtomicUsize::new(0),
                idle: Mutex::default(),
            }),
        }
    }

    /// A buffer of `len` bytes with any content, if there is room for it now and nobody waits. `None` as well when `len`
    /// is over [`MAX_BLOCK_BYTES`].
    pub fn try_take(&self, len: usize) -> Option<Buffer> {
        let class = class_of(len)?;
        let permit = self.inner.free.clone().try_acquire_many_owned(units_of(class)).ok()?;
        Some(self.inner.buffer(class, len, Some(permit)))
    }

    /// The same, waiting for room; who came first is served first. Safe to cancel.
    pub async fn take(&self, len: usize) -> Option<Buffer> {
        let class = class_of(len)?;
        let permit = self.inner.free.clone().acquire_many_owned(units_of(class)).await.ok()?;
        Some(self.inner.buffer(class, len, Some(permit)))
    }

    /// A copy of what is already in memory elsewhere: beyond the budget if need be, for as long as it takes to write it.
    /// `None` when it is longer than any block.
    pub fn copy_of(&self, bytes: &[u8]) -> Option<Buffer> {
        let class = class_of(bytes.len())?;
        let permit = self.inner.free.clone().try_acquire_many_owned(units_of(class)).ok();
        let mut buffer = self.inner.buffer(class, bytes.len(), permit);
        buffer.copy_from_slice(bytes);
        Some(buffer)
    }

    /// Bytes handed out (and set aside for who waits), in whole buffers.
    pub fn in_use_bytes(&self) -> usize {
        self.inner.in_use_bytes()
    }

    /// So many of the bytes handed out are on their way to the disk until the answer is dropped.
    pub fn leave(&self, bytes: usize) -> Leaving {
        self.inner.leaving_bytes.fetch_add(bytes, Ordering::AcqRel);
        Leaving { bytes, pool: self.inner.clone() }
    }

    /// More than three quarters are handed out, and at least half of the budget is not on its way to the disk: whoever
    /// collects blocks should write what can be written. What is on its way comes back no sooner for writing more.
    pub fn is_short(&self) -> bool {
        let in_use = self.inner.in_use_bytes();
        let stays = in_use.saturating_sub(self.inner.leaving_bytes.load(Ordering::Acquire));
        in_use > self.inner.units * UNIT_BYTES / 4 * 3 && self.is_much(stays)
    }

    /// Whether so many bytes are half of the budget or more.
    pub fn is_much(&self, bytes: usize) -> bool {
        bytes >= self.inner.units * UNIT_BYTES / 2
    }

    /// Gives the memory of idle buffers back: for when nothing is being fetched.
    pub fn trim(&self) {
        *self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }
}

fn class_of(len: usize) -> Option<usize> {
    CLASS_BYTES.iter().position(|&bytes| len <= bytes)
}

fn units_of(class: usize) -> u32 {
    (CLASS_BYTES[class] / UNIT_BYTES) as u32
}

impl Inner {
    fn in_use_bytes(&self) -> usize {
        (self.units - self.free.available_permits()) * UNIT_BYTES
    }

    fn buffer(self: &Arc<Inner>, class: usize, len: usize, permit: Option<OwnedSemaphorePermit>) -> Buffer {
        let memory = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let recycled = idle[class].pop();
            if recycled.is_none() {
                // Idle buffers of the other size may not add to a whole budget in use.
                let other = 1 - class;
                let held: usize = idle.iter().zip(CLASS_BYTES).map(|(list, bytes)| list.len() * bytes).sum();
                let over = (held + self.in_use_bytes()).saturating_sub(self.units * UNIT_BYTES);
                let keep = idle[other].len().saturating_sub(over.div_ceil(CLASS_BYTES[other]));
                idle[other].truncate(keep);
            }
            recycled
        };
        let memory = memory.unwrap_or_else(|| vec![0; CLASS_BYTES[class]].into_boxed_slice());
        Buffer { memory, len, class, home: self.clone(), permit }
    }
}

/// See [`BufferPool::leave`].
#[must_use = "dropped, it says that they are back"]
pub struct Leaving {
    bytes: usize,
    pool: Arc<Inner>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.pool.leaving_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Bytes on loan from the pool; dropping gives them back.
pub struct Buffer {
    memory: Box<[u8]>,
    len: usize,
    class: usize,
    home: Arc<Inner>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    /// What it takes of the budget; nothing if it came beyond it.
    pub fn budget_bytes(&self) -> usize {
        if self.permit.is_some() { CLASS_BYTES[self.class] } else { 0 }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner)[self.class].push(memory);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: usize = CLASS_BYTES[0];
    const LARGE: usize = CLASS_BYTES[1];

    #[test]
    fn the_budget_holds_and_comes_back() {
        let pool = BufferPool::new(16 * SMALL);
        let mut held: Vec<Buffer> = std::iter::from_fn(|| pool.try_take(1)).collect();
        assert_eq!((held.len(), pool.in_use_bytes()), (16, 16 * SMALL));
        held.truncate(12);
        assert!(!pool.is_short(), "three quarters are not more than three quarters");
        held.push(pool.try_take(SMALL).unwrap());
        assert!(pool.is_short());
        let leaving = [pool.leave(5 * SMALL), pool.leave(SMALL)];
        assert!(!pool.is_short(), "7 of 16 stay");
        drop(leaving);
        assert!(pool.is_short());
        assert!(pool.try_take(LARGE).is_none());
        drop(held);
        assert_eq!(pool.in_use_bytes(), 0);
        assert_eq!(pool.try_take(LARGE).map(|b| b.len()), Some(LARGE));
        assert!(pool.try_take(LARGE + 1).is_none());
    }

    #[test]
    fn buffers_are_recycled_with_the_length_asked_for() {
        let pool = BufferPool::new(4 * LARGE);
        let mut buffer = pool.try_take(SMALL + 1).unwrap();
        assert_eq!(buffer.len(), SMALL + 1);
        buffer.fill(7);
        let at = buffer.as_ptr();
        drop(buffer);
        let again = pool.try_take(LARGE).unwrap();
        assert_eq!(again.as_ptr(), at);
        assert_eq!(again[..SMALL + 2], [&[7; SMALL + 1][..], &[0]].concat());
    }

    #[test]
    fn idle_buffers_of_one_size_make_way_for_the_other() {
        let pool = BufferPool::new(2 * LARGE);
        let small: Vec<Buffer> = std::iter::from_fn(|| pool.try_take(SMALL)).collect();
        drop(small);
        let large = [pool.try_take(LARGE).unwrap(), pool.try_take(LARGE).unwrap()];
        assert_eq!(pool.inner.idle.lock().unwrap().each_ref().map(Vec::len), [0, 0]);
        drop(large);
        let _small = pool.try_take(SMALL).unwrap();
        assert_eq!(pool.inner.idle.lock().unwrap().each_ref().map(Vec::len), [0, 1]);
        pool.trim();
        assert_eq!(pool.inner.idle.lock().unwrap().each_ref().map(Vec::len), [0, 0]);
    }

    #[tokio::test]
    async fn who_waits_for_much_is_not_overtaken_by_who_wants_little() {
        let pool = BufferPool::new(LARGE);
        let mut held: Vec<Buffer> = std::iter::from_fn(|| pool.try_take(SMALL)).collect();
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.take(LARGE).await.map(|b| b.len()) }
        });
        tokio::task::yield_now().await;
        held.pop();
        tokio::task::yield_now().await;
        assert!(pool.try_take(SMALL).is_none(), "the freed unit is set aside");
        drop(held);
        assert_eq!(waiting.await.unwrap(), Some(LARGE));
        assert_eq!(pool.in_use_bytes(), 0);
    }
}
