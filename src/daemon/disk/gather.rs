//! Pieces that are whole wait for each other, for as long as more come quickly, to be hashed side by side
//! ([`super::lanes`]).

use std::time::Duration;

use super::lanes::LANES;
use super::pool::DEFAULT_BUDGET_BYTES;
use crate::clock::Time;

/// A piece waits if one came no longer before it than this: then the next ones are near. 1 MiB in this time are 350 MB/s.
const NEAR: Duration = Duration::from_millis(3);
/// ... and for about this.
const WAIT: Duration = Duration::from_millis(3);
/// Nor while so much waits.
const MOST_BYTES: usize = DEFAULT_BUDGET_BYTES / 4;

/// What waits, each with its length.
#[derive(Debug)]
pub struct Gather<T> {
    waiting: Vec<T>,
    bytes: usize,
    /// While something waits.
    due: Option<Time>,
    last: Option<Time>,
}

/// What to do after [`Gather::push`].
#[derive(PartialEq, Eq, Debug)]
pub enum Next<T> {
    /// With these together, now.
    Hash(Vec<T>),
    /// Call [`Gather::take_due`] then.
    WaitUntil(Time),
    /// Somebody waits already.
    Nothing,
}

impl<T> Default for Gather<T> {
    fn default() -> Gather<T> {
        Gather { waiting: Vec::new(), bytes: 0, due: None, last: None }
    }
}

impl<T> Gather<T> {
    /// Another one came, of so many bytes.
    pub fn push(&mut self, now: Time, item: T, len: usize) -> Next<T> {
        let near = self.last.is_some_and(|last| now.since(last) <= NEAR);
        self.last = Some(now);
        self.waiting.push(item);
        self.bytes += len;
        if !near || self.waiting.len() >= LANES || self.bytes >= MOST_BYTES {
            return Next::Hash(self.take());
        }
        match self.due {
            Some(_) => Next::Nothing,
            None => Next::WaitUntil(*self.due.insert(now + WAIT)),
        }
    }

    /// What has waited long enough. Nothing, if it was taken in the meantime.
    pub fn take_due(&mut self, now: Time) -> Vec<T> {
        if self.due.is_some_and(|due| due <= now) { self.take() } else { Vec::new() }
    }

    fn take(&mut self) -> Vec<T> {
        self.due = None;
        self.bytes = 0;
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn us(us: u64) -> Time {
        Time::from_secs(9) + Duration::from_micros(us)
    }

    #[test]
    fn who_comes_alone_does_not_wait() {
        let mut gather = Gather::default();
        for n in 0..9 {
            assert_eq!(gather.push(us(3_100 * n), n, MIB), Next::Hash(vec![n]));
        }
    }

    #[test]
    fn those_that_come_quickly_wait_for_each_other() {
        let mut gather = Gather::default();
        assert_eq!(gather.push(us(0), 0, MIB), Next::Hash(vec![0]));
        assert_eq!(gather.push(us(1_000), 1, MIB), Next::WaitUntil(us(4_000)));
        assert_eq!(gather.push(us(2_000), 2, MIB), Next::Nothing);
        assert_eq!(gather.push(us(3_000), 3, MIB), Next::Nothing);
        assert_eq!(gather.push(us(3_500), 4, MIB), Next::Hash(vec![1, 2, 3, 4]));
        assert_eq!(gather.push(us(3_600), 5, MIB), Next::WaitUntil(us(6_600)));
        assert_eq!(gather.take_due(us(4_000)), Vec::<i32>::new(), "that was for those before");
        assert_eq!(gather.take_due(us(6_600)), [5]);
        assert_eq!(gather.take_due(us(9_999)), Vec::<i32>::new());
    }

    #[test]
    fn nothing_waits_where_much_waits() {
        let mut gather = Gather::default();
        gather.push(us(0), 0, MIB);
        assert_eq!(gather.push(us(2), 2, 4 * MIB), Next::WaitUntil(us(3_002)));
        assert_eq!(gather.push(us(3), 3, 4 * MIB), Next::Hash(vec![2, 3]));
    }
}
