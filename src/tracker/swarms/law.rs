//! When to announce again, and when silence means gone.

/// An interval is never below this: a swarm of ten has no use for more, and it bounds what one client costs.
pub const MIN_INTERVAL_S: u32 = 60;
/// Nor above this: newcomers would find too many who left.
pub const MAX_INTERVAL_S: u32 = 30 * 60;
/// Announces a second that the interval steers towards: a small part of what one core answers.
const TARGET_ANNOUNCES_PER_S: usize = 100;
/// A client's own minimum can be longer than our interval (libtorrent 300 s, rTorrent 600 s), and one announce does not
/// tell; peerd keeps to what it is given.
pub const UNKNOWN_CLIENT_LEASE_S: u32 = 660;
/// Two and a half times the longest interval: a client cannot stretch its stay by announcing ever more rarely.
pub const MAX_LEASE_S: u32 = MAX_INTERVAL_S * 5 / 2;

/// Seconds between announces when the tables hold `entries` peers, before the spread of ± 10 %.
pub fn interval_s(entries: usize) -> u32 {
    let seconds = u32::try_from(entries / TARGET_ANNOUNCES_PER_S).unwrap_or(MAX_INTERVAL_S);
    seconds.clamp(MIN_INTERVAL_S, MAX_INTERVAL_S)
}

/// `interval_s` ± 10 %, so that those who came together do not come together for ever.
pub fn spread(interval_s: u32, rng: &mut impl rand::Rng) -> u32 {
    let tenth = interval_s / 10;
    rng.random_range(interval_s - tenth..=interval_s + tenth)
}

/// `min interval`: who asks sooner than this wastes both ends' time.
pub fn min_interval_s(interval_s: u32) -> u32 {
    interval_s / 2
}

/// How long a peer may be silent: 2.5 × the interval it was given or 2.5 × its own last gap, whichever is longer. One
/// whose gap is not known yet gets [`UNKNOWN_CLIENT_LEASE_S`] at least, unless it is peerd.
pub fn lease_s(given_interval_s: u32, last_gap_s: Option<u32>, is_peerd: bool) -> u32 {
    let by_interval = given_interval_s.saturating_mul(5) / 2;
    let by_client = match last_gap_s {
        Some(gap_s) => gap_s.saturating_mul(5) / 2,
        None if is_peerd => 0,
        None => UNKNOWN_CLIENT_LEASE_S,
    };
    // The spread may carry an interval over the maximum: what was promised counts.
    by_interval.max(by_client.min(MAX_LEASE_S))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn the_interval_follows_the_number_of_peers() {
        for (entries, seconds) in
            [(0, 60), (6_000, 60), (6_100, 61), (50_000, 500), (180_000, 1_800), (10_000_000, 1_800)]
        {
            assert_eq!(interval_s(entries), seconds, "{entries}");
        }
    }

    #[test]
    fn intervals_are_spread_by_a_tenth() {
        let mut rng = SmallRng::seed_from_u64(1);
        let drawn: Vec<u32> = (0..1_000).map(|_| spread(60, &mut rng)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&54), Some(&66)));
    }

    #[test]
    fn leases() {
        assert_eq!(lease_s(60, None, true), 150, "peerd keeps to what it is given");
        assert_eq!(lease_s(60, None, false), 660);
        assert_eq!(lease_s(1_800, None, false), 4_500);
        assert_eq!(lease_s(60, Some(300), false), 750, "libtorrent's own minimum");
        assert_eq!(lease_s(60, Some(600), false), 1_500, "rTorrent's own minimum");
        assert_eq!(lease_s(60, Some(60), false), 150);
        assert_eq!(lease_s(60, Some(4_000), false), MAX_LEASE_S);
        assert_eq!(lease_s(1_980, Some(10), true), 4_950);
    }
}
