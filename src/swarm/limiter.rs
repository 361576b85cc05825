//! A byte rate shared out: evenly between torrents, and between a torrent's sessions.
//!
//! A session that has used up what it was granted asks, and waits; at each share-out those that wait divide what has
//! come together since the last one. Whoever asks for nothing leaves its part to the others.

use std::collections::VecDeque;
use std::time::Duration;

use super::SessionId;
use crate::clock::Time;
use crate::wire::id::InfoHash;
use crate::wire::rate::Rate;

/// How often to share out while somebody waits: a grant is small enough that no second differs much from the next (what is
/// read goes beyond a grant, and is then waited for).
pub const SHARE_OUT_EVERY: Duration = Duration::from_millis(20);
/// What may come together while nobody wants anything: a later burst is no longer than this at the full rate, or two
/// packets: while one is saved up for, no byte must fall by the side.
const BURST_TIME: Duration = Duration::from_millis(50);
/// The least worth waking a session for: about one full packet.
const MIN_GRANT_BYTES: u64 = 1_448;

/// What a session may move now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    pub session: SessionId,
    pub bytes: u32,
}

/// One direction's limit.
pub struct Limiter {
    rate: Rate,
    /// Bytes that may be granted, and the moment up to which they have been counted.
    level: f64,
    counted_to: Time,
    /// Who waits, by torrent; torrents and sessions in the order of their turns.
    waiting: VecDeque<(InfoHash, VecDeque<SessionId>)>,
}

impl Limiter {
    pub fn new(now: Time, rate: Rate) -> Limiter {
        Limiter { rate, level: 0.0, counted_to: now, waiting: VecDeque::new() }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// From now on. Those that wait go on waiting for their part of the new rate.
    pub fn set_rate(&mut self, now: Time, rate: Rate) {
        self.count(now);
        self.rate = rate;
        self.level = 0.0;
    }

    /// A session has something to move and nothing left of its grant. Asking again while waiting changes nothing.
    pub fn ask(&mut self, torrent: InfoHash, session: SessionId) {
        match self.waiting.iter_mut().find(|(key, _)| *key == torrent) {
            Some((_, sessions)) if sessions.contains(&session) => {}
            Some((_, sessions)) => sessions.push_back(session),
            None => self.waiting.push_back((torrent, VecDeque::from([session]))),
        }
    }

    pub fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A session is gone: what it had left, or moved beyond its grants, is others'; of a debt no more than a second's worth.
    pub fn leave(&mut self, session: SessionId, left_bytes: i64) {
        for (_, sessions) in &mut self.waiting {
            sessions.retain(|waiting| *waiting != session);
        }
        self.waiting.retain(|(_, sessions)| !sessions.is_empty());
        self.level += (left_bytes as f64).max(-(self.rate.bytes_per_s() as f64));
    }

    /// Divides what there is among those that wait; whoever gets something waits no more. Without a limit all get all
    /// they can use.
    pub fn share_out(&mut self, now: Time, out: &mut Vec<Grant>) {
        self.count(now);
        if self.rate.is_unlimited() {
            let all = self.waiting.drain(..).flat_map(|(_, sessions)| sessions);
            out.extend(all.map(|session| Grant { session, bytes: u32::MAX }));
            return;
        }
        // Who got nothing keeps its place; who got something stands behind the others.
        let (mut unserved, mut served) = (VecDeque::new(), VecDeque::new());
        for torrents_left in (1..=self.waiting.len() as u64).rev() {
            let Some((torrent, mut sessions)) = self.waiting.pop_front() else { break };
            let level = self.level.max(0.0) as u64;
            // Where it is too little for all, the first in turn get a packet each.
            let share = (level / torrents_left).max(MIN_GRANT_BYTES).min(level);
            let granted = divide(share, &mut sessions, out);
            self.level -= granted as f64;
            if !sessions.is_empty() {
                let queue = if granted > 0 { &mut served } else { &mut unserved };
                queue.push_back((torrent, sessions));
            }
        }
        unserved.append(&mut served);
        self.waiting = unserved;
    }

    fn count(&mut self, now: Time) {
        let bytes_per_s = self.rate.bytes_per_s() as f64;
        let burst = (bytes_per_s * BURST_TIME.as_secs_f64()).max(2.0 * MIN_GRANT_BYTES as f64);
        let level = self.level + bytes_per_s * now.since(self.counted_to).as_secs_f64();
        self.level = level.min(burst);
        self.counted_to = now;
    }
}

/// Gives each session its part of `share`, or a packet each to the first of them. Returns what was granted.
fn divide(share: u64, sessions: &mut VecDeque<SessionId>, out: &mut Vec<Grant>) -> u64 {
    let mut left = share;
    while let Some(&session) = sessions.front() {
        let bytes = (left / sessions.len() as u64).max(MIN_GRANT_BYTES);
        if bytes > left {
            break;
        }
        sessions.pop_front();
        left -= bytes;
        out.push(Grant { session, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) });
    }
    share - left
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn torrent(n: u8) -> InfoHash {
        InfoHash::new([n; 20])
    }

    /// Everybody asks again as soon as it has been granted something. Returns what each moved in each second.
    fn run(rate: &str, sessions: &[(u8, u32)], seconds: u64) -> Vec<BTreeMap<u32, u64>> {
        let mut limiter = Limiter::new(Time::ZERO, rate.parse().unwrap());
        let mut moved = Vec::new();
        for second in 0..seconds {
            let mut by_session = BTreeMap::new();
            for tick in 0..50 {
                sessions.iter().for_each(|&(key, id)| limiter.ask(torrent(key), SessionId(id)));
                let mut grants = Vec::new();
                limiter.share_out(Time::from_secs(second) + SHARE_OUT_EVERY * tick, &mut grants);
                for grant in grants {
                    *by_session.entry(grant.session.0).or_default() += u64::from(grant.bytes);
                }
            }
            moved.push(by_session);
        }
        moved
    }

    #[test]
    fn each_second_holds_the_rate_and_torrents_and_sessions_have_even_parts() {
        // Torrent 1 has one session, torrent 2 has three.
        for rate in ["10K", "100K", "1M", "1G"] {
            let bytes_per_s = rate.parse::<Rate>().unwrap().bytes_per_s() as f64;
            let moved = run(rate, &[(1, 1), (2, 2), (2, 3), (2, 4)], 20);
            for second in &moved[1..] {
                let total = second.values().sum::<u64>() as f64;
                assert!((total / bytes_per_s - 1.0).abs() < 0.15, "{rate}: {total} in a second");
            }
            let total = |id: u32| moved.iter().filter_map(|second| second.get(&id)).sum::<u64>() as f64;
            let all = bytes_per_s * 20.0;
            assert!(((1..=4).map(total).sum::<f64>() / all - 1.0).abs() < 0.03, "{rate}");
            // At the lowest rates a share-out is a packet or two, which cannot be divided.
            assert!((total(1) / all - 0.5).abs() < 0.05, "{rate}: {}", total(1) / all);
            for id in 2..=4 {
                assert!((total(id) / all - 1.0 / 6.0).abs() < 0.05, "{rate}: {}", total(id) / all);
            }
        }
    }

    #[test]
    fn what_nobody_wanted_does_not_come_as_a_burst_later() {
        let mut limiter = Limiter::new(Time::ZERO, "1M".parse().unwrap());
        limiter.ask(torrent(1), SessionId(1));
        let mut grants = Vec::new();
        limiter.share_out(Time::from_secs(3_600), &mut grants);
        let [grant] = grants.as_slice() else { panic!("{grants:?}") };
        assert!(u64::from(grant.bytes) <= (1 << 20) / 20, "{grant:?}");
    }

    #[test]
    fn what_a_session_leaves_is_others_and_it_is_asked_for_no_more() {
        let mut limiter = Limiter::new(Time::ZERO, "1M".parse().unwrap());
        limiter.ask(torrent(1), SessionId(1));
        limiter.leave(SessionId(1), 10_000);
        assert!(!limiter.is_waited_for());
        limiter.ask(torrent(1), SessionId(2));
        let mut grants = Vec::new();
        limiter.share_out(Time::ZERO, &mut grants);
        assert_eq!(grants, [Grant { session: SessionId(2), bytes: 10_000 }]);
    }

    #[test]
    fn a_lifted_limit_lets_everybody_go() {
        let mut limiter = Limiter::new(Time::ZERO, "1K".parse().unwrap());
        [1, 2].into_iter().for_each(|id| limiter.ask(torrent(1), SessionId(id)));
        let mut grants = Vec::new();
        limiter.share_out(Time::ZERO, &mut grants);
        assert_eq!(grants, []);
        limiter.set_rate(Time::ZERO, Rate::UNLIMITED);
        limiter.share_out(Time::ZERO, &mut grants);
        assert_eq!(grants.len(), 2);
        assert!(!limiter.is_waited_for());
    }
}
