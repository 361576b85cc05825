//! How fast bytes move, over the last two seconds.

use std::time::Duration;

use crate::clock::Time;

/// Long enough to ride out TCP's bursts, short enough that a request window follows a link that changes.
const BUCKETS: usize = 20;
const BUCKET: Duration = Duration::from_millis(100);

/// A windowed byte-rate estimator: a ring of 100 ms buckets over 2 s. Before the window has filled, the time since the
/// first byte counts, so that a new session's rate is right from its first tenth of a second.
#[derive(Clone, Debug, Default)]
pub struct ByteRate {
    buckets: [u64; BUCKETS],
    sum: u64,
    /// Number of the newest bucket, counted from time zero.
    newest: u64,
    /// When the current run of traffic began; `None` after a silence of a whole window.
    started: Option<Time>,
}

impl ByteRate {
    pub fn new() -> ByteRate {
        ByteRate::default()
    }

    pub fn add(&mut self, now: Time, bytes: u64) {
        self.roll(now);
        if self.sum == 0 {
            self.started = Some(now);
        }
        self.buckets[self.newest as usize % BUCKETS] += bytes;
        self.sum += bytes;
    }

    /// Bytes per second over the window that ends `now`.
    pub fn bytes_per_s(&self, now: Time) -> u64 {
        let newest = bucket_of(now);
        let stale = newest.saturating_sub(self.newest).min(BUCKETS as u64);
        let gone: u64 = (1..=stale).map(|n| self.buckets[(self.newest + n) as usize % BUCKETS]).sum();
        let sum = self.sum - gone;
        let Some(started) = self.started.filter(|_| sum > 0) else { return 0 };
        let into_bucket = Duration::from_nanos(now.as_nanos() % BUCKET.as_nanos() as u64);
        let window = BUCKET * (BUCKETS as u32 - 1) + into_bucket;
        let span = now.since(started).clamp(BUCKET, window);
        (u128::from(sum) * 1_000_000_000 / span.as_nanos()) as u64
    }

    fn roll(&mut self, now: Time) {
        let newest = bucket_of(now);
        let steps = newest.saturating_sub(self.newest).min(BUCKETS as u64);
        for n in 1..=steps {
            let bucket = &mut self.buckets[(self.newest + n) as usize % BUCKETS];
            self.sum -= std::mem::take(bucket);
        }
        self.newest = self.newest.max(newest);
        if steps == BUCKETS as u64 {
            // The ring is empty: its slots may be renumbered.
            self.started = None;
        }
    }
}

fn bucket_of(now: Time) -> u64 {
    now.as_nanos() / BUCKET.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_steady_stream_reads_as_its_rate_from_the_first_moments_on() {
        let mut rate = ByteRate::new();
        for t in 0..10_000 {
            rate.add(ms(t), 1_000);
            if t >= 300 {
                let got = rate.bytes_per_s(ms(t)) as f64;
                assert!((got / 1e6 - 1.0).abs() < 0.06, "{got} after {t} ms");
            }
        }
    }

    #[test]
    fn it_follows_a_change_within_the_window_and_falls_to_zero_after_it() {
        let mut rate = ByteRate::new();
        for t in 0..3_000 {
            rate.add(ms(t), 1_000);
        }
        for t in 3_000..5_100 {
            rate.add(ms(t), 5_000);
        }
        let got = rate.bytes_per_s(ms(5_100)) as f64;
        assert!((got / 5e6 - 1.0).abs() < 0.1, "{got}");
        assert!(rate.bytes_per_s(ms(6_100)) < 3_000_000);
        assert_eq!(rate.bytes_per_s(ms(7_200)), 0);
        assert_eq!(rate.bytes_per_s(ms(60_000)), 0);
    }

    #[test]
    fn a_long_silence_does_not_dilute_what_follows() {
        let mut rate = ByteRate::new();
        rate.add(ms(0), 500);
        rate.add(ms(3_600_000), 100_000);
        assert_eq!(rate.bytes_per_s(ms(3_600_100)), 1_000_000);
    }
}
