//! Tests that move much data take turns, so that none of them measures its neighbours.

use std::sync::{Condvar, Mutex, PoisonError};

/// How many heavy tests run at once.
const SLOTS: u32 = 2;

static TAKEN: Mutex<u32> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// Held for as long as a test runs.
pub struct Turn(u32);

/// One of the two places for tests that use processes and links.
pub fn heavy() -> Turn {
    take(1)
}

/// Both places: for tests that measure time or memory under load.
pub fn alone() -> Turn {
    take(SLOTS)
}

fn take(count: u32) -> Turn {
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = FREED.wait_while(taken, |taken| *taken + count > SLOTS).unwrap_or_else(PoisonError::into_inner);
    *taken += count;
    Turn(count)
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        FREED.notify_all();
    }
}
