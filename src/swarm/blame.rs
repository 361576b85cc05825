//! Who gave the wrong bytes of a piece whose hash was wrong.
//!
//! A piece of several givers says nothing of any one of them. So its units are remembered, each with its giver and a
//! digest; once the piece has come right, whoever's unit differs from the right one gave it wrong, and all others did
//! not. No payload comes here: the shell digests the units of pieces that failed, and once more when such a piece was
//! verified. A piece that one peer gave alone needs no second look.

use std::collections::VecDeque;

use super::bans::Endpoint;
use super::session::Session;
use super::torrent::{Effect, Swarm};
use super::{CloseReason, Identity, PeerFault, SessionId};
use crate::wire::layout::PieceIndex;

/// Units remembered of one torrent's failed pieces: 128 MiB of content, two of the longest pieces, and 180 KiB of
/// memory. Beyond, the oldest failure is forgotten: what is fetched again now is judged within seconds.
pub const MAX_REMEMBERED_UNITS: usize = 8_192;

/// The SHA-1 of one 16 KiB unit of a piece (the last one may be shorter). Who could make two units of one digest could
/// give a wrong piece the right hash as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitDigest(pub [u8; 20]);

/// Who gave a block, as far as it was known when the block came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Giver {
    /// It may be closed by now.
    pub session: SessionId,
    pub identity: Identity,
    pub endpoint: Option<Endpoint>,
}

impl Giver {
    fn is_same_peer(&self, other: &Giver) -> bool {
        let same_key = matches!(self.identity, Identity::Key(_)) && self.identity == other.identity;
        self.session == other.session || same_key
    }
}

/// What was received of a piece: its givers, and for each unit which of them gave it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Origins {
    pub givers: Vec<Giver>,
    /// By unit: an index into `givers`.
    pub units: Vec<u16>,
}

impl Origins {
    fn giver(&self, unit: usize) -> Option<Giver> {
        self.givers.get(usize::from(*self.units.get(unit)?)).copied()
    }

    /// The one peer that gave all of it, if it was one.
    fn only_giver(&self) -> Option<Giver> {
        let first = self.giver(0)?;
        let alone = (0..self.units.len()).all(|unit| self.giver(unit).is_some_and(|giver| giver.is_same_peer(&first)));
        alone.then_some(first)
    }
}

/// One time that a piece came wrong.
#[derive(Debug)]
struct Attempt {
    piece: PieceIndex,
    origins: Origins,
    digests: Vec<UnitDigest>,
}

/// The failed pieces of one torrent whose culprits are still sought.
#[derive(Debug, Default)]
pub(super) struct Blame {
    /// Oldest first.
    attempts: VecDeque<Attempt>,
    units: usize,
}

impl Blame {
    /// A piece came wrong. Returns the culprit where it can be told at once. Without a digest for each unit (the bytes
    /// may have gone bad on our own disk) nobody is suspected.
    pub fn failed(&mut self, piece: PieceIndex, origins: Origins, digests: &[UnitDigest]) -> Option<Giver> {
        if digests.len() != origins.units.len() {
            return None;
        }
        let culprit = origins.only_giver();
        if culprit.is_none() {
            self.units += digests.len();
            self.attempts.push_back(Attempt { piece, origins, digests: digests.to_vec() });
            while self.units > MAX_REMEMBERED_UNITS
                && let Some(oldest) = self.attempts.pop_front()
            {
                self.units -= oldest.digests.len();
            }
        }
        culprit
    }

    /// Whether the piece came wrong before, and nobody has been found guilty of it yet.
    pub fn is_suspect(&self, piece: PieceIndex) -> bool {
        self.attempts.iter().any(|attempt| attempt.piece == piece)
    }

    /// The piece has come right, with these digests. Returns who had given it wrong, each once; it is forgotten.
    pub fn verified(&mut self, piece: PieceIndex, right: &[UnitDigest]) -> Vec<Giver> {
        let mut culprits: Vec<Giver> = Vec::new();
        self.attempts.retain(|attempt| {
            if attempt.piece != piece {
                return true;
            }
            self.units -= attempt.digests.len();
            let units = attempt.digests.iter().zip(right).enumerate();
            for giver in units.filter(|(_, (was, is))| was != is).filter_map(|(at, _)| attempt.origins.giver(at)) {
                if !culprits.iter().any(|known| known.is_same_peer(&giver)) {
                    culprits.push(giver);
                }
            }
            false
        });
        culprits
    }
}

impl Swarm {
    /// Where the peer of this session was met: what it gives from now on is told from what others of its IP address give.
    pub fn set_endpoint(&mut self, id: SessionId, endpoint: Endpoint) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.endpoint = Some(endpoint);
        }
    }

    /// What this peer gives may be wrong: it gets pieces of its own, until one of them was right. The shell asks for it
    /// where culprits were met at the peer's IP address before.
    pub fn put_on_parole(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.down.on_parole = true;
        }
    }

    /// A peer that came by itself says on which port it listens (BEP 10). Its first word counts: what it gave under one
    /// name it shall not go on under another.
    pub fn set_listening_port(&mut self, id: SessionId, port: u16) {
        if let Some(session) = self.sessions.get_mut(&id)
            && let Some(Endpoint::CameFrom(addr)) = &mut session.endpoint
            && !std::mem::replace(&mut session.port_told, true)
        {
            addr.set_port(port);
        }
    }

    /// Whose is what comes over this session now.
    pub fn giver(&self, id: SessionId) -> Option<Giver> {
        self.sessions.get(&id).map(Session::giver)
    }

    /// Whether the piece came wrong before: when it has been verified, [`Swarm::judge`] wants the digests of its units.
    pub fn is_suspect(&self, piece: PieceIndex) -> bool {
        self.blame.is_suspect(piece)
    }

    /// A piece that had come wrong is verified. `right` are the digests of its units, in order; none if they could not
    /// be had, and then nobody is to blame.
    pub fn judge(&mut self, piece: PieceIndex, right: &[UnitDigest]) {
        let culprits = self.blame.verified(piece, right);
        self.convict(piece, culprits);
    }

    /// A piece came wrong: who gave it all is guilty, of several each is suspected.
    pub(super) fn blame_givers(&mut self, piece: PieceIndex, origins: Origins, digests: &[UnitDigest]) {
        let givers: Vec<SessionId> = origins.givers.iter().map(|giver| giver.session).collect();
        let culprit = self.blame.failed(piece, origins, digests);
        if self.blame.is_suspect(piece) {
            givers.into_iter().for_each(|id| self.put_on_parole(id));
        }
        self.convict(piece, culprit);
    }

    fn convict(&mut self, piece: PieceIndex, culprits: impl IntoIterator<Item = Giver>) {
        for culprit in culprits {
            self.effects.push_back(Effect::Ban(culprit, piece));
            self.tell_to_close(culprit.session, CloseReason::Fault(PeerFault::BadPiece(piece)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::Layout;
    use std::net::{IpAddr, Ipv4Addr};

    const PIECES: u32 = 5_000;

    fn piece(index: u32) -> PieceIndex {
        Layout::new(u64::from(PIECES) * 65_536, 65_536).unwrap().piece(index).unwrap()
    }

    /// All of them come from one IP address.
    fn giver(session: u32) -> Giver {
        let endpoint = Endpoint::CameFrom((Ipv4Addr::LOCALHOST, 7_000 + session as u16).into());
        let identity = Identity::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Giver { session: SessionId(session), identity, endpoint: Some(endpoint) }
    }

    /// Four units by these sessions, of which each is right or, by its number, wrong in some way.
    fn attempt(sessions: [u32; 4], bytes: [u8; 4]) -> (Origins, Vec<UnitDigest>) {
        let mut origins = Origins::default();
        for session in sessions {
            let at = origins.givers.iter().position(|known| known.session.0 == session).unwrap_or_else(|| {
                origins.givers.push(giver(session));
                origins.givers.len() - 1
            });
            origins.units.push(at as u16);
        }
        (origins, bytes.map(|byte| UnitDigest([byte; 20])).to_vec())
    }

    fn fail(blame: &mut Blame, index: u32, sessions: [u32; 4], bytes: [u8; 4]) -> Option<Giver> {
        let (origins, digests) = attempt(sessions, bytes);
        blame.failed(piece(index), origins, &digests)
    }

    const RIGHT: [UnitDigest; 4] = [UnitDigest([0; 20]); 4];

    #[test]
    fn whoever_gave_the_unit_that_differs_is_guilty_and_nobody_else() {
        let mut blame = Blame::default();
        assert_eq!(fail(&mut blame, 7, [1, 2, 3, 2], [0, 0, 9, 0]), None);
        assert!(blame.is_suspect(piece(7)) && !blame.is_suspect(piece(8)));
        assert_eq!(blame.verified(piece(8), &RIGHT), []);
        assert_eq!(blame.verified(piece(7), &RIGHT), [giver(3)]);
        assert!(!blame.is_suspect(piece(7)));
        assert_eq!((blame.verified(piece(7), &RIGHT), blame.units), (vec![], 0));
    }

    #[test]
    fn several_culprits_and_several_attempts_are_all_found() {
        let mut blame = Blame::default();
        assert_eq!(fail(&mut blame, 7, [1, 2, 3, 3], [5, 0, 9, 9]), None);
        assert_eq!(fail(&mut blame, 7, [2, 2, 2, 4], [0, 0, 0, 1]), None);
        assert_eq!(blame.verified(piece(7), &RIGHT), [giver(1), giver(3), giver(4)]);
    }

    #[test]
    fn who_gave_all_of_it_is_guilty_at_once() {
        let mut blame = Blame::default();
        assert_eq!(fail(&mut blame, 7, [3, 3, 3, 3], [0, 0, 9, 0]), Some(giver(3)));
        assert!(!blame.is_suspect(piece(7)));
        // One proven key over two connections is one peer; one IP address is not.
        let (mut origins, digests) = attempt([3, 4, 4, 4], [0, 9, 0, 0]);
        assert_eq!(blame.failed(piece(7), origins.clone(), &digests), None);
        origins.givers.iter_mut().for_each(|giver| giver.identity = Identity::Key([8; 32]));
        assert_eq!(blame.failed(piece(7), origins.clone(), &digests), Some(origins.givers[0]));
    }

    #[test]
    fn without_digests_nobody_is_suspected() {
        let mut blame = Blame::default();
        for sessions in [[3, 3, 3, 3], [1, 2, 3, 4]] {
            let (origins, digests) = attempt(sessions, [9; 4]);
            assert_eq!(blame.failed(piece(7), origins.clone(), &[]), None);
            assert_eq!(blame.failed(piece(7), origins, &digests[1..]), None);
            assert!(!blame.is_suspect(piece(7)));
        }
        // The right bytes could not be read back: the failure is forgotten, and nobody is guilty.
        fail(&mut blame, 7, [1, 2, 3, 4], [9; 4]);
        assert_eq!(blame.verified(piece(7), &[]), []);
        assert!(!blame.is_suspect(piece(7)));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let mut blame = Blame::default();
        for index in 0..PIECES {
            fail(&mut blame, index, [1, 2, 3, 4], [9, 0, 0, 0]);
            assert!(blame.units <= MAX_REMEMBERED_UNITS && blame.attempts.len() <= MAX_REMEMBERED_UNITS);
        }
        assert!(!blame.is_suspect(piece(0)));
        assert_eq!(blame.verified(piece(PIECES - 1), &RIGHT), [giver(1)]);
    }
}
