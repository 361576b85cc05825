//! Carries bans out: whoever gave wrong bytes is shut out of all torrents. Who that is, `swarm` says.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::core::Core;
use super::torrent::{Inner, SessionHandle, Torrent};
use crate::clock::Time;
use crate::swarm::Giver;
use crate::swarm::bans::{Bans, Endpoint};
use crate::wire::layout::PieceIndex;

/// Why its sessions end.
const BANNED: &str = "it gave wrong data and is banned";

/// The daemon's bans.
#[derive(Default)]
pub struct Bouncer {
    bans: Mutex<Bans>,
}

impl Bouncer {
    /// Whether a peer may be dialled here.
    pub fn may_dial(&self, addr: SocketAddr, now: Time) -> bool {
        self.lock().may_dial(addr, now)
    }

    fn lock(&self) -> MutexGuard<'_, Bans> {
        self.bans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session is open: who its peer is, as far as that is known yet.
pub fn take_note(core: &Core, inner: &mut Inner, session: &SessionHandle) {
    let at = session.addr;
    inner.swarm.set_endpoint(session.id, if session.outgoing { Endpoint::Dialled(at) } else { Endpoint::CameFrom(at) });
    if core.bouncer.lock().knows_of(at.ip(), core.clock.now()) {
        inner.swarm.put_on_parole(session.id);
    }
    // It may have been dialled before it was banned.
    turn_away(core, inner, session);
}

/// Bans who gave wrong bytes of a piece of `torrent`, and ends its sessions, here and in other torrents.
pub fn shut_out(core: &Core, torrent: &Torrent, culprit: &Giver, piece: PieceIndex) {
    let now = core.clock.now();
    let Some(term) = core.bouncer.lock().ban(culprit, now) else { return };
    let mut client = None;
    for live in core.live_torrents() {
        let Some(active) = live.active() else { continue };
        let inner = active.lock();
        for session in inner.sessions.values() {
            if session.id == culprit.session {
                client = Some(session.client());
            }
            turn_away(core, &inner, session);
        }
    }
    let name = &torrent.summary.name;
    let minutes = term.as_secs() / 60;
    let peer = culprit.endpoint.map(|endpoint| endpoint.addr().to_string()).unwrap_or_default();
    let client = client.unwrap_or_default();
    tracing::warn!(torrent = %name, piece = piece.get(), %peer, client, minutes, "a peer gave wrong data and is banned");
    core.warn(format!(
        "{name}: a peer gave wrong data; it was thrown away, and the peer is shut out for a while (the log names it)"
    ));
}

/// Closes a session whose peer turns out to be banned: to be called when something new is known of who it is.
pub fn turn_away(core: &Core, inner: &Inner, session: &SessionHandle) {
    let banned = |peer: Giver| core.bouncer.lock().is_banned(&peer, core.clock.now());
    if inner.swarm.giver(session.id).is_some_and(banned) {
        session.close(BANNED);
    }
}
