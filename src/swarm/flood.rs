//! How much a peer may say that helps nobody: state flipped to and fro, what is known already, requests that cannot be
//! granted, junk of extensions. Each such message costs it points, which come back with time; an honest peer never
//! uses up its credit, a flood does within a fraction of a second.

use std::time::Duration;

use super::session::MAX_OUTBOX_BYTES;
use super::torrent::Swarm;
use super::{PeerFault, SessionId};
use crate::clock::Time;
use crate::wire::message::Message;

/// Points that a peer may run up: a full queue of requests refused after a choke (2,000), and cancelled ones, several
/// times over. As messages of 17 bytes they are 272 KiB.
const MAX_POINTS: u32 = 16_384;
/// One comes back in so long, 500 a second: swarms of tiny pieces make interest flip a few hundred times a second.
const POINT_RETURNS: Duration = Duration::from_millis(2);
/// A long message costs a point for each of these bytes.
const BYTES_PER_POINT: usize = 1_024;

/// What a peer has run up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Chatter {
    points: u32,
    at: Time,
}

impl Chatter {
    fn charge(&mut self, now: Time, points: u32) -> Result<(), PeerFault> {
        let returned = (now.since(self.at).as_nanos() / POINT_RETURNS.as_nanos()).min(u128::from(u32::MAX)) as u32;
        if returned > 0 {
            // The fraction of a point that is under way is kept.
            self.at = if returned < self.points { self.at + POINT_RETURNS * returned } else { now };
        }
        self.points = self.points.saturating_sub(returned).saturating_add(points);
        if self.points > MAX_POINTS { Err(PeerFault::Floods) } else { Ok(()) }
    }
}

impl Swarm {
    /// A message came. Extended messages are the shell's: here they are ignored, as is what we do not know.
    ///
    /// # Errors
    /// When the peer broke the rules, or floods us: the shell closes the session.
    pub fn receive(&mut self, now: Time, id: SessionId, message: Message) -> Result<(), PeerFault> {
        let (points, free_if_news) = cost(&message);
        let before = self.said(id);
        self.obey(now, id, message)?;
        let news = self.said(id) != before;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        if session.outbox.len() > MAX_OUTBOX_BYTES {
            return Err(PeerFault::DoesNotRead);
        }
        if points == 0 || (free_if_news && news) { Ok(()) } else { session.chatter.charge(now, points) }
    }

    /// What grows when a peer says something new: pieces that it has, requests of it that wait.
    fn said(&self, id: SessionId) -> Option<(u32, usize)> {
        self.sessions.get(&id).map(|session| (session.pieces.count(), session.up.queue.len()))
    }
}

/// The points that a message costs, and whether it costs none if it says something new.
fn cost(message: &Message) -> (u32, bool) {
    let long = |bytes: usize| 1 + (bytes / BYTES_PER_POINT) as u32;
    match message {
        // One answers a request of ours, or is an offence.
        Message::Reject(_) => (0, false),
        Message::Have(_) | Message::Request(_) => (1, true),
        Message::Bitfield(bytes) => (long(bytes.len()), false),
        Message::Extended { payload, .. } => (long(payload.len()), false),
        _ => (1, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::{Effect, Identity, SessionInfo, SwarmConfig};
    use crate::wire::bitfield::Bitfield;
    use crate::wire::layout::{Layout, RawBlock};
    use std::net::{IpAddr, Ipv4Addr};

    const ID: SessionId = SessionId(1);
    const PIECES: u32 = 100_000;

    fn swarm(have: bool) -> Swarm {
        let layout = Layout::new(u64::from(PIECES) * 16_384, 16_384).unwrap();
        let config = SwarmConfig {
            max_block_bytes: 16 << 10,
            window_max_bytes: 1 << 20,
            windows_total_bytes: 1 << 20,
            sequential: false,
            crowd_expected: true,
        };
        let have = if have { Bitfield::full(PIECES) } else { Bitfield::empty(PIECES) };
        let mut swarm = Swarm::new(config, layout, have, 1);
        let identity = Identity::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
        swarm.open(Time::from_secs(1), ID, SessionInfo { identity, fast: true });
        swarm
    }

    /// How many of these are taken, one each `every`.
    fn taken(swarm: &mut Swarm, every: Duration, messages: impl Iterator<Item = Message>) -> Result<usize, usize> {
        let (mut now, mut out, mut taken) = (Time::from_secs(1), Vec::new(), 0);
        for message in messages {
            now = now + every;
            if let Err(fault) = swarm.receive(now, ID, message) {
                assert_eq!(fault, PeerFault::Floods);
                return Err(taken);
            }
            out.clear();
            swarm.drain_sends(now, ID, &mut out, 1 << 20);
            assert!(out.len() <= 17 * 64, "{} bytes for one message", out.len());
            while let Some(effect) = swarm.poll_effect() {
                assert_eq!(effect, Effect::ReviewChoking);
            }
            taken += 1;
        }
        Ok(taken)
    }

    fn flips(a: Message, b: Message) -> impl Iterator<Item = Message> {
        (0..1_000_000).map(move |n| if n % 2 == 0 { a.clone() } else { b.clone() })
    }

    #[test]
    fn every_kind_of_flood_is_cut_off() {
        let raw = RawBlock { piece: 0, begin: 0, len: 16_384 };
        let floods = [
            (Message::Choke, Message::Unchoke),
            (Message::Interested, Message::NotInterested),
            (Message::Have(3), Message::Have(4)),
            (Message::HaveNone, Message::KeepAlive),
            (Message::Request(raw), Message::Cancel(raw)),
            (Message::AllowedFast(1), Message::Suggest(1)),
            (Message::Port(1), Message::Unknown(77)),
        ];
        for (a, b) in floods {
            let name = format!("{a:?}");
            let cut = taken(&mut swarm(true), Duration::ZERO, flips(a, b)).unwrap_err();
            assert!((16_384..=2 * 16_384 + 2).contains(&cut), "{name}: after {cut}");
        }
        let pex = Message::Extended { id: 1, payload: vec![0; 100 * 1_024] };
        let cut = taken(&mut swarm(true), Duration::ZERO, flips(pex.clone(), pex)).unwrap_err();
        assert_eq!(cut, 16_384 / 101, "16 MiB of junk");
    }

    #[test]
    fn what_honest_peers_say_is_never_cut_off() {
        let haves = (0..PIECES).map(Message::Have);
        assert_eq!(taken(&mut swarm(false), Duration::ZERO, haves), Ok(PIECES as usize));
        let flipping = flips(Message::Interested, Message::NotInterested).take(100_000);
        assert_eq!(taken(&mut swarm(true), Duration::from_millis(3), flipping), Ok(100_000));
        // A full queue, served as fast as it is asked for.
        let mut seed = swarm(true);
        seed.set_choke(ID, false);
        for piece in 0..PIECES {
            let raw = RawBlock { piece, begin: 0, len: 16_384 };
            assert_eq!(seed.receive(Time::from_secs(1), ID, Message::Request(raw)), Ok(()));
            if piece >= 1_000 {
                let block = seed.next_upload(ID).unwrap();
                seed.upload_done(Time::from_secs(1), ID, block);
            }
        }
    }
}
