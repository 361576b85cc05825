//! How many neighbours a torrent wants, and who makes room for another when all places are taken.
//!
//! A neighbour is *useful* while either side wants something of the other and it does not keep us waiting; a new one counts
//! as useful until it has had time to show. swarm.md's figures: with 25 useful neighbours rarest first comes within 4 % of
//! a full mesh, below 10 it hurts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{SessionId, SessionReport};
use crate::clock::Time;

/// With so many useful neighbours nobody is dialled: more would cost HAVEs and bring little, and the places up to the
/// torrent's limit are free for those who dial us, so that a newcomer finds one wherever it knocks. With fewer we are in
/// want: the useless make room, and the tracker is asked sooner.
pub const WANTED: usize = 25;
/// A session has so long to show that it is of use.
const PROBATION: Duration = Duration::from_secs(60);
/// Who has been of no use for so long may be told to go. Interest comes with every piece that somebody completes, so three
/// minutes without any are a long time.
const USELESS_AFTER: Duration = Duration::from_secs(180);
/// How often being in want is said again.
const REMIND_EVERY: Duration = Duration::from_secs(10);

/// What to do about a torrent's connections now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Dial another, if one is known.
    Dial,
    /// All places are taken, by too few that are of use: close this one if somebody else is known.
    Replace(SessionId),
    Enough,
}

/// The neighbours of one torrent, as they were at the last look.
#[derive(Debug, Default)]
pub struct Neighbours {
    last_useful: BTreeMap<SessionId, Time>,
    useful: usize,
    reminded: Option<Time>,
}

impl Neighbours {
    /// Takes note of how the sessions do; to be called about every second.
    pub fn look(&mut self, now: Time, reports: impl IntoIterator<Item = SessionReport>) {
        let mut seen = BTreeMap::new();
        self.useful = 0;
        for report in reports {
            let of_use = report.peer_interested || report.we_interested && !report.snubbed;
            let before = self.last_useful.get(&report.session).copied().unwrap_or(report.since);
            let last = if of_use { now } else { before };
            self.useful += usize::from(of_use || now.since(report.since) < PROBATION);
            seen.insert(report.session, last);
        }
        self.last_useful = seen;
    }

    /// Neighbours at the last look that were of use, or may still turn out to be.
    pub fn useful(&self) -> usize {
        self.useful
    }

    /// `connected` sessions are up and `dialling` ones may come, of at most `most`.
    pub fn step(&self, now: Time, connected: usize, dialling: usize, most: usize) -> Step {
        if self.useful + dialling >= WANTED {
            return Step::Enough;
        }
        if connected + dialling < most {
            return Step::Dial;
        }
        match self.least_useful(now) {
            Some((id, _)) => Step::Replace(id),
            None => Step::Enough,
        }
    }

    /// The session that has been of no use for longest, and since when; `None` while all may be.
    pub fn least_useful(&self, now: Time) -> Option<(SessionId, Time)> {
        let (&id, &last) = self.last_useful.iter().min_by_key(|&(id, last)| (*last, *id))?;
        (now.since(last) >= USELESS_AFTER).then_some((id, last))
    }

    /// Whether to ask for more peers now: said every ten seconds while there are too few.
    pub fn in_want(&mut self, now: Time) -> bool {
        if self.useful >= WANTED || self.reminded.is_some_and(|last| now.since(last) < REMIND_EVERY) {
            return false;
        }
        self.reminded = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::{Identity, SessionInfo, Swarm, SwarmConfig};
    use crate::wire::bitfield::Bitfield;
    use crate::wire::layout::Layout;
    use crate::wire::message::Message;
    use std::net::{IpAddr, Ipv4Addr};

    fn s(secs: u64) -> Time {
        Time::from_secs(secs)
    }

    /// A swarm of two pieces of which we have the first, with sessions 0 to `count` - 1 opened at 0 s.
    fn swarm(count: u32) -> Swarm {
        let layout = Layout::new(2 * 65_536, 65_536).unwrap();
        let config = SwarmConfig {
            max_block_bytes: 128 << 10,
            window_max_bytes: 8 << 20,
            windows_total_bytes: 64 << 20,
            sequential: false,
            crowd_expected: true,
        };
        let mut swarm = Swarm::new(config, layout, Bitfield::from_wire(&[0x80], 2).unwrap(), 1);
        for id in 0..count {
            let identity = Identity::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, id as u8)));
            swarm.open(s(0), SessionId(id), SessionInfo { identity, fast: true });
        }
        swarm
    }

    fn look(neighbours: &mut Neighbours, swarm: &Swarm, now: Time) {
        neighbours.look(now, swarm.reports(now));
    }

    #[test]
    fn dialling_goes_on_until_enough_are_of_use() {
        let (mut neighbours, mut swarm) = (Neighbours::default(), swarm(40));
        let step = |neighbours: &Neighbours, now, dialling| neighbours.step(now, 40, dialling, 50);
        look(&mut neighbours, &swarm, s(1));
        assert_eq!(neighbours.useful(), 40, "all may turn out to be");
        assert_eq!(step(&neighbours, s(1), 0), Step::Enough);
        for id in 0..20 {
            swarm.receive(s(2), SessionId(id), Message::Interested).unwrap();
        }
        look(&mut neighbours, &swarm, s(61));
        assert_eq!(neighbours.useful(), 20);
        assert_eq!((step(&neighbours, s(61), 4), step(&neighbours, s(61), 5)), (Step::Dial, Step::Enough));
        // Those that hold what we lack are of use too.
        for id in 20..25 {
            swarm.receive(s(62), SessionId(id), Message::HaveAll).unwrap();
        }
        look(&mut neighbours, &swarm, s(63));
        assert_eq!((neighbours.useful(), step(&neighbours, s(63), 0)), (25, Step::Enough));
    }

    #[test]
    fn the_longest_useless_makes_room_and_nobody_else() {
        let (mut neighbours, mut swarm) = (Neighbours::default(), swarm(50));
        let interest = |swarm: &mut Swarm, ids: std::ops::Range<u32>, wants| {
            let message = if wants { Message::Interested } else { Message::NotInterested };
            ids.for_each(|id| swarm.receive(s(1), SessionId(id), message.clone()).unwrap());
        };
        // 0 to 19 want something all the time, 20 until 100 s, 21 to 30 never, the others for a moment at 102 s.
        interest(&mut swarm, 0..21, true);
        look(&mut neighbours, &swarm, s(100));
        interest(&mut swarm, 20..21, false);
        interest(&mut swarm, 31..50, true);
        look(&mut neighbours, &swarm, s(102));
        interest(&mut swarm, 31..50, false);
        for now in [110, 179] {
            look(&mut neighbours, &swarm, s(now));
            assert_eq!(neighbours.step(s(now), 50, 0, 50), Step::Enough, "after {now} s");
        }
        look(&mut neighbours, &swarm, s(180));
        assert_eq!(neighbours.useful(), 20);
        assert_eq!(neighbours.step(s(180), 50, 0, 50), Step::Replace(SessionId(21)));
        assert_eq!(neighbours.step(s(180), 50, 5, 50), Step::Enough, "others are on their way");
        assert_eq!(neighbours.step(s(180), 49, 0, 50), Step::Dial);
        // Once those are gone it is the turn of who was useful until 100 s, and only then of the others.
        (21..31).for_each(|id| swarm.close(SessionId(id)));
        look(&mut neighbours, &swarm, s(281));
        assert_eq!(neighbours.least_useful(s(279)), None);
        assert_eq!(neighbours.least_useful(s(280)), Some((SessionId(20), s(100))));
    }

    #[test]
    fn want_is_said_now_and_then() {
        let (mut neighbours, mut swarm) = (Neighbours::default(), swarm(25));
        look(&mut neighbours, &swarm, s(1));
        assert!(!neighbours.in_want(s(1)));
        swarm.close(SessionId(3));
        look(&mut neighbours, &swarm, s(2));
        let said: Vec<u64> = (2..30).filter(|now| neighbours.in_want(s(*now))).collect();
        assert_eq!(said, [2, 12, 22]);
    }
}
