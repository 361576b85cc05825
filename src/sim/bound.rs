//! What no schedule can beat.

use super::link::payload_bytes_per_s;
use crate::wire::layout::Layout;

/// Seconds until the last of `leechers` is complete where one seed and all of them have the same uplink and everything
/// but the uplinks is free: Mundinger, Weber and Weiss 2008, `(M + floor(log2 N)) P/u`. Only whole pieces are passed on.
pub fn block_bound_s(layout: Layout, leechers: usize, up_bits_per_s: u64) -> f64 {
    let rounds = f64::from(layout.piece_count()) + f64::from(leechers.max(1).ilog2());
    rounds * f64::from(layout.piece_bytes()) / payload_bytes_per_s(up_bits_per_s)
}

/// Seconds until the last leecher is complete where everything is fluid: Kumar and Ross 2006,
/// `max(F/u_s, F/min d, N F/(u_s + sum u))`. `leechers` are (up, down) in bits per second.
pub fn fluid_bound_s(layout: Layout, seeds_up_bits_per_s: u64, leechers: &[(u64, u64)]) -> f64 {
    let total = layout.total_bytes() as f64;
    let seeds = payload_bytes_per_s(seeds_up_bits_per_s);
    let slowest = leechers.iter().map(|(_, down)| payload_bytes_per_s(*down)).fold(f64::INFINITY, f64::min);
    let all: f64 = seeds + leechers.iter().map(|(up, _)| payload_bytes_per_s(*up)).sum::<f64>();
    [total / seeds, total / slowest, total * leechers.len() as f64 / all].into_iter().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_links() {
        let layout = Layout::new(256 * 262_144, 262_144).unwrap();
        let piece = 262_144.0 / payload_bytes_per_s(10_000_000);
        assert!((block_bound_s(layout, 127, 10_000_000) / piece - 262.0).abs() < 1e-9);
        let fluid = fluid_bound_s(layout, 10_000_000, &[(10_000_000, 100_000_000); 127]);
        assert!((fluid / piece - 256.0).abs() < 1e-9);
        assert!((fluid_bound_s(layout, 10_000_000, &[(0, 5_000_000); 2]) / piece - 512.0).abs() < 1e-9);
    }
}
