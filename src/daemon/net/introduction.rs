//! What a peer says of itself after the handshake (BEP 10), and whether it is who it says.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::daemon::banning;
use crate::daemon::core::Core;
use crate::daemon::identity::{fresh_nonce, is_signed_by};
use crate::daemon::torrent::{Active, SessionHandle, Torrent};
use crate::swarm::Identity;
use crate::swarm::dial::Source;
use crate::swarm::proving::{Proving, Refused};
use crate::wire::extension::ExtensionHandshake;
use crate::wire::handshake::Handshake;
use crate::wire::id::to_hex;
use crate::wire::identity::{self, End, Offer, Role};
use crate::wire::layout::MAX_BLOCK_BYTES;
use crate::wire::message::Message;

/// What we tell peers that we queue of their requests; swarm serves no more.
const REQUESTS_SERVED: u32 = 2_000;
const TWICE: &str = "the same peer connected again";

/// Our half of the proof of identity, if this session is to have one: only in torrents of our own network, as a key is a
/// name by which one can be followed from swarm to swarm.
pub fn begin_proving(
    core: &Core,
    torrent: &Torrent,
    outgoing: bool,
    ours: Handshake,
    theirs: Handshake,
) -> Option<Proving> {
    if !theirs.reserved.extension() || !torrent.with_status(|status| status.ours) {
        return None;
    }
    let nonce = fresh_nonce()
        .inspect_err(|error| tracing::warn!(%error, "no randomness from the system: peers are not told who we are"))
        .ok()?;
    let ours = End { handshake: ours, offer: Offer { key: core.identity.public_key(), nonce } };
    Some(Proving::new(if outgoing { Role::Dialler } else { Role::Listener }, ours, theirs))
}

/// What we say of ourselves (BEP 10): `max_block` and the offer are ours, an ordinary client ignores them. `seeding` only
/// where the peer is told of all we have: clients close on one that will only upload and seems to have nothing.
pub fn ours(core: &Core, seeding: bool, peer: SocketAddr, offer: Option<Offer>) -> Message {
    let introduction = ExtensionHandshake {
        client: Some(concat!("peerd ", env!("CARGO_PKG_VERSION")).to_owned()),
        reqq: Some(REQUESTS_SERVED),
        port: core.listening.first().map(SocketAddr::port),
        yourip: Some(peer.ip().to_canonical()),
        upload_only: seeding.then_some(true),
        max_block: Some(MAX_BLOCK_BYTES),
        identity: offer,
        messages: offer
            .iter()
            .map(|_| (identity::EXTENSION.to_owned(), identity::PROOF_ID))
            .collect::<BTreeMap<_, _>>(),
    };
    Message::Extended { id: 0, payload: introduction.encode() }
}

/// Takes what the peer says of itself. Nonsense in it is ignored: nothing depends on it but comfort.
///
/// # Errors
/// When it lies about who it is.
pub fn theirs(
    core: &Core,
    active: &Active,
    handle: &SessionHandle,
    proving: Option<&mut Proving>,
    payload: &[u8],
) -> Result<(), Refused> {
    let Ok(theirs) = ExtensionHandshake::decode(payload) else { return Ok(()) };
    let proof_id = theirs.proof_id();
    let to_sign = match proving {
        Some(proving) => proving.introduced(theirs.identity, proof_id)?,
        None => None,
    };
    let proof = to_sign.map(|to_sign| Message::Extended {
        id: to_sign.proof_id,
        payload: core.identity.prove(&to_sign.text).encode(),
    });
    let mut inner = active.lock();
    let upload_only = theirs.upload_only.unwrap_or(false);
    inner.swarm.set_peer_extensions(handle.id, theirs.reqq, theirs.max_block, upload_only);
    if let Some(port) = theirs.port {
        inner.swarm.set_listening_port(handle.id, port);
    }
    banning::turn_away(core, &inner, handle);
    if let Some(proof) = proof {
        inner.swarm.queue_message(handle.id, &proof);
    }
    if !handle.introduce(theirs.client) {
        return Ok(());
    }
    let now = core.clock.now();
    // An incoming peer that says where it listens needs no dialling.
    if let Some(port) = theirs.port.filter(|_| !handle.outgoing) {
        let listens = SocketAddr::new(handle.addr.ip(), port);
        if inner.book.connected(listens, Source::Incoming, now) {
            handle.set_listens(listens);
        }
    }
    if let (Some(ip), Some(port)) = (theirs.yourip, core.listening.first().map(SocketAddr::port)) {
        inner.book.hear_own(SocketAddr::new(ip, port), handle.addr.ip());
    }
    Ok(())
}

/// Takes the peer's proof: from here on it earns by its key. Of two sessions with one key the later one stays: a peer that
/// was restarted is back before its old connection is known to be dead.
///
/// # Errors
/// When it is not the one right proof.
pub fn proof(
    core: &Core,
    torrent: &Torrent,
    active: &Active,
    handle: &SessionHandle,
    proving: &mut Proving,
    payload: &[u8],
) -> Result<(), Refused> {
    let key = proving.proof(payload, is_signed_by)?;
    let identity = Identity::Key(key);
    tracing::debug!(torrent = %torrent.summary.name, peer = %handle.addr, key = to_hex(&key), "the peer proved its key");
    let mut inner = active.lock();
    handle.set_identity(identity);
    inner.swarm.set_identity(handle.id, identity);
    banning::turn_away(core, &inner, handle);
    let mut others = inner.sessions.values().filter(|other| other.id != handle.id && other.closing().is_none());
    match others.find(|other| other.identity() == identity) {
        Some(twin) if twin.id < handle.id => twin.close(TWICE),
        Some(_) => handle.close(TWICE),
        None => {}
    }
    Ok(())
}
