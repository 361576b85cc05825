//! How many are served at a time.

use std::time::Duration;

use crate::clock::Time;

/// Regular slots before anything is known of the uplink: in a small swarm nobody waits at the start.
const FIRST_SLOTS: usize = 8;
/// However slow the uplink is, and however fast. A piece is of use only when it is whole: few fast slots pass it on
/// sooner than many slow ones.
const LEAST_SLOTS: usize = 2;
const MOST_SLOTS: usize = 8;
/// So long shall a slot take for one piece. In the simulator's flash crowd of 127 peers the last is complete at 1.22
/// times the bound with 1.2 s, at 1.19 with 0.7 s and at 1.17 with 0.5 s.
const PIECE_TIME_S: f64 = 0.5;
/// A turn by reciprocity is what a slot carries in this time, in whole pieces.
const TURN_S: f64 = 1.2;
/// What is sent is measured over at least this: what fits into sockets goes out at once and says nothing.
const SAMPLE: Duration = Duration::from_secs(1);
/// What the uplink once carried is believed for about so long.
const MEMORY: Duration = Duration::from_secs(60);
/// How often it is tried whether one slot more carries more: takers slower than their share leave room.
const PROBE: Duration = Duration::from_secs(5);
/// A probe that gained nothing is not repeated before this.
const REST: Duration = Duration::from_secs(30);
/// Against a crowd of takers that stand still.
const MOST_EXTRA: usize = 24;

/// How many are served at a time. One optimistic slot comes on top, unless there is only one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UploadSlots {
    Fixed(u32),
    /// As many as the uplink carries well.
    Default,
}

/// The number of regular slots, fixed or by what the uplink is seen to carry.
#[derive(Debug)]
pub(super) struct SlotCount {
    fixed: bool,
    count: usize,
    meter: Meter,
    /// The most that the uplink was lately seen to carry.
    uplink_bytes_per_s: f64,
    probe: Probe,
}

/// Bytes since a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    since: Option<Time>,
    bytes: u64,
}

/// Whether more slots than the rule says carry more.
#[derive(Clone, Copy, Debug, Default)]
struct Probe {
    extra: usize,
    trial: Option<Trial>,
    /// After a rest both directions are tried by turns.
    fewer_first: bool,
    meter: Meter,
    wait: Duration,
}

/// What is being tried, and the bytes per second before.
#[derive(Clone, Copy, Debug)]
enum Trial {
    More(f64),
    Less(f64),
}

impl SlotCount {
    pub fn new(slots: UploadSlots) -> SlotCount {
        let (fixed, count) = match slots {
            UploadSlots::Fixed(slots) => (true, slots as usize),
            UploadSlots::Default => (false, FIRST_SLOTS),
        };
        let probe = Probe { wait: PROBE, ..Probe::default() };
        SlotCount { fixed, count, meter: Meter::default(), uplink_bytes_per_s: 0.0, probe }
    }

    pub fn get(&self) -> usize {
        self.count
    }

    /// What a slot carries in the time of a turn.
    pub fn share_bytes(&self) -> u64 {
        (self.uplink_bytes_per_s * TURN_S) as u64 / self.count.max(1) as u64
    }

    /// So much was sent since the last call; pieces have so many bytes; all slots are held and others wait, or not.
    pub fn measure(&mut self, now: Time, sent_bytes: u64, piece_bytes: u64, crowded: bool) {
        let sample = self.meter.add(now, sent_bytes, SAMPLE);
        if let Some((rate, took)) = sample {
            let fades = (-took.as_secs_f64() / MEMORY.as_secs_f64()).exp();
            self.uplink_bytes_per_s = (self.uplink_bytes_per_s * fades).max(rate);
        }
        if self.fixed || piece_bytes == 0 {
            return;
        }
        self.probe.step(now, sent_bytes, self.count, crowded);
        if sample.is_some() && self.uplink_bytes_per_s >= 1.0 {
            let by_rate = (self.uplink_bytes_per_s * PIECE_TIME_S / piece_bytes as f64).round() as usize;
            self.count = by_rate.clamp(LEAST_SLOTS, MOST_SLOTS) + self.probe.extra;
        }
    }
}

impl Meter {
    /// Returns bytes per second once `least` has passed since it last did, and how long that was.
    fn add(&mut self, now: Time, bytes: u64, least: Duration) -> Option<(f64, Duration)> {
        let Some(since) = self.since else {
            self.since = Some(now);
            return None;
        };
        self.bytes += bytes;
        let took = now.since(since);
        (took >= least).then(|| {
            let rate = self.bytes as f64 / took.as_secs_f64();
            *self = Meter { since: Some(now), bytes: 0 };
            (rate, took)
        })
    }
}

impl Probe {
    fn step(&mut self, now: Time, sent_bytes: u64, slots: usize, crowded: bool) {
        let Some((rate, _)) = self.meter.add(now, sent_bytes, self.wait) else { return };
        // Half of what a slot of its own carries tells whether a slot more or less matters.
        let half_slot = rate / (2 * slots.max(1)) as f64;
        match self.trial.take() {
            Some(Trial::More(before)) if rate < before + half_slot => self.rest(self.extra - 1),
            Some(Trial::Less(before)) if rate + half_slot < before => self.rest(self.extra + 1),
            None if self.extra > 0 && self.fewer_first => self.try_slots(Trial::Less(rate), self.extra - 1),
            Some(Trial::Less(_)) if self.extra > 0 => self.try_slots(Trial::Less(rate), self.extra - 1),
            Some(Trial::Less(_)) => self.rest(self.extra),
            _ if crowded && self.extra < MOST_EXTRA => self.try_slots(Trial::More(rate), self.extra + 1),
            _ => self.rest(self.extra),
        }
    }

    fn try_slots(&mut self, trial: Trial, extra: usize) {
        *self = Probe { extra, trial: Some(trial), wait: PROBE, ..*self };
    }

    fn rest(&mut self, extra: usize) {
        *self = Probe { extra, trial: None, fewer_first: !self.fewer_first, wait: REST, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slots after `seconds` in which `rate` says what the slots carry.
    fn after(seconds: u64, piece_bytes: u64, rate: impl Fn(usize) -> u64) -> usize {
        let mut slots = SlotCount::new(UploadSlots::Default);
        for tick in 0..seconds * 10 {
            let now = Time::from_secs(100) + Duration::from_millis(100 * tick);
            slots.measure(now, rate(slots.get()) / 10, piece_bytes, true);
        }
        slots.get()
    }

    #[test]
    fn a_slot_carries_a_piece_soon() {
        let filled = |bytes_per_s: u64| move |_: usize| bytes_per_s;
        assert_eq!(after(4, 256 << 10, filled(2_400_000)), 5);
        assert_eq!(after(4, 256 << 10, filled(4_800_000)), MOST_SLOTS);
        assert_eq!(after(4, 4 << 20, filled(1_190_000)), LEAST_SLOTS);
        assert_eq!(after(4, 64 << 10, filled(390_000)), 3);
        assert_eq!(after(3, 256 << 10, |_| 0), FIRST_SLOTS, "nothing is known");
    }

    #[test]
    fn slots_are_added_while_they_carry_more_and_taken_back_when_they_do_not() {
        // Takers of 100 KB/s each, on an uplink of 1.2 MB/s.
        let slow_takers = |slots: usize| (slots as u64 * 100_000).min(1_200_000);
        let slots = after(200, 256 << 10, slow_takers);
        assert!((10..=15).contains(&slots), "{slots}");
        let filled = after(200, 256 << 10, |_| 2_400_000);
        assert!((5..=6).contains(&filled), "{filled}");
    }

    #[test]
    fn a_fixed_number_stays() {
        let mut slots = SlotCount::new(UploadSlots::Fixed(5));
        slots.measure(Time::from_secs(9), 50_000_000, 65_536, true);
        assert_eq!(slots.get(), 5);
    }
}
