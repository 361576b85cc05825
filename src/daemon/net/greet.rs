//! The handshake, either way, and what becomes of it: a session, or not.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::session::{Session, SessionEnd};
use crate::daemon::banning;
use crate::daemon::core::{ActivateError, Core, MAX_SESSIONS_PER_TORRENT};
use crate::daemon::torrent::{Active, SessionHandle, Torrent};
use crate::swarm::SessionInfo;
use crate::swarm::dial::Ended;
use crate::wire::extension::ExtensionHandshake;
use crate::wire::handshake::{self, FIRST_BYTE, Handshake, HandshakeError, Reserved};
use crate::wire::id::{InfoHash, PeerId};
use crate::wire::layout::MAX_BLOCK_BYTES;
use crate::wire::message::Message;

/// design.md section 6: connect and handshake.
const GREETING: Duration = Duration::from_secs(10);
/// What we tell peers that we queue of their requests; swarm serves no more.
const REQUESTS_SERVED: u32 = 2_000;

/// Why a connection became no session.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    #[error("no handshake within {} s", GREETING.as_secs())]
    TimeOut,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the first byte is not that of a BitTorrent handshake in the clear")]
    NotBitTorrent,
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("asks for {0}, which is not here")]
    UnknownTorrent(InfoHash),
    #[error("answers for another torrent")]
    WrongTorrent,
    #[error("that is ourselves")]
    Ourselves,
    #[error("connected already")]
    Twice,
    #[error("all places are taken")]
    Full,
    #[error("{0}")]
    Activate(#[from] ActivateError),
}

/// A connection with a place, ready to run.
pub struct Greeted {
    torrent: Arc<Torrent>,
    active: Arc<Active>,
    handle: Arc<SessionHandle>,
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// The accepting side: theirs first, then ours.
///
/// # Errors
/// When there is no handshake, or nothing of ours that it asks for, or no place.
pub async fn incoming(core: &Arc<Core>, mut stream: TcpStream, from: SocketAddr) -> Result<Greeted, GreetError> {
    let work = async {
        stream.set_nodelay(true)?;
        let theirs = read_handshake(&mut stream).await?;
        if theirs.peer_id == core.peer_id {
            return Err(GreetError::Ourselves);
        }
        let torrent = core
            .torrent(theirs.info_hash)
            .filter(|torrent| torrent.with_status(|status| status.is_live()))
            .ok_or(GreetError::UnknownTorrent(theirs.info_hash))?;
        let active = core.activate(&torrent).await?;
        stream.write_all(&our_handshake(core, theirs.info_hash)).await?;
        admit(core, torrent, active, stream, from, &theirs, false)
    };
    tokio::time::timeout(GREETING, work).await.unwrap_or(Err(GreetError::TimeOut))
}

/// The dialling side: ours first, then theirs.
///
/// # Errors
/// When the peer cannot be reached, answers wrongly, or there is no place.
pub async fn outgoing(
    core: &Arc<Core>,
    torrent: &Arc<Torrent>,
    active: &Arc<Active>,
    to: SocketAddr,
) -> Result<Greeted, GreetError> {
    let work = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&our_handshake(core, torrent.key())).await?;
        let theirs = read_handshake(&mut stream).await?;
        if theirs.info_hash != torrent.key() {
            return Err(GreetError::WrongTorrent);
        }
        if theirs.peer_id == core.peer_id {
            active.lock().book.add_own(to);
            return Err(GreetError::Ourselves);
        }
        admit(core, torrent.clone(), active.clone(), stream, to, &theirs, true)
    };
    tokio::time::timeout(GREETING, work).await.unwrap_or(Err(GreetError::TimeOut))
}

fn our_handshake(core: &Core, info_hash: InfoHash) -> [u8; handshake::LEN] {
    Handshake { info_hash, peer_id: core.peer_id, reserved: Reserved::ours() }.encode()
}

async fn read_handshake(stream: &mut TcpStream) -> Result<Handshake, GreetError> {
    let mut bytes = [0; handshake::LEN];
    let mut got = 0;
    while got < bytes.len() {
        let count = stream.read(&mut bytes[got..]).await?;
        if count == 0 {
            return Err(GreetError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        got += count;
        // An encrypted greeting is told from the first byte: closed at once, the client falls back to the clear.
        if bytes[0] != FIRST_BYTE {
            return Err(GreetError::NotBitTorrent);
        }
    }
    Ok(Handshake::decode(&bytes)?)
}

fn admit(
    core: &Arc<Core>,
    torrent: Arc<Torrent>,
    active: Arc<Active>,
    stream: TcpStream,
    addr: SocketAddr,
    theirs: &Handshake,
    outgoing: bool,
) -> Result<Greeted, GreetError> {
    let place = core.session_permits.clone().try_acquire_owned().map_err(|_| GreetError::Full)?;
    let now = core.clock.now();
    let handle = Arc::new(SessionHandle::new(core.next_session_id(), addr, theirs.peer_id, outgoing));
    {
        let mut inner = active.lock();
        // Whatever happened while we were greeting: what is paused, removed or set up anew takes nobody.
        if inner.retired || torrent.is_removed() || !torrent.with_status(|status| status.is_live()) {
            return Err(GreetError::UnknownTorrent(torrent.key()));
        }
        if inner.sessions.len() >= MAX_SESSIONS_PER_TORRENT {
            return Err(GreetError::Full);
        }
        let twin = inner.sessions.values().find(|other| other.peer_id == theirs.peer_id && other.closing().is_none());
        if let Some(twin) = twin {
            if !replaces(core.peer_id, theirs.peer_id, twin.outgoing, outgoing) {
                return Err(GreetError::Twice);
            }
            twin.close("the same peer connected the other way round");
        }
        inner.sessions.insert(handle.id, handle.clone());
        let extended = theirs.reserved.extension();
        let info = SessionInfo { identity: handle.identity, fast: theirs.reserved.fast() };
        inner.swarm.open(now, handle.id, info);
        banning::take_note(core, &mut inner, &handle);
        if extended {
            let seeding = inner.swarm.is_complete() && inner.swarm.is_open_to(handle.id);
            let payload = introduction(core, seeding, addr);
            inner.swarm.queue_message(handle.id, &Message::Extended { id: 0, payload });
        }
    }
    Ok(Greeted { torrent, active, handle, stream, _place: place })
}

/// Of two connections between the same two peers, dialled at once, both ends must keep the same one: that which the
/// peer of the greater id began. A second one the same way round is never kept.
fn replaces(ours: PeerId, theirs: PeerId, old_is_outgoing: bool, new_is_outgoing: bool) -> bool {
    old_is_outgoing != new_is_outgoing && new_is_outgoing == (ours.0 > theirs.0)
}

/// What we say of ourselves (BEP 10): `max_block` is ours, an ordinary client ignores it. `seeding` only where the peer
/// is told of all we have: clients close on one that will only upload and seems to have nothing.
fn introduction(core: &Core, seeding: bool, peer: SocketAddr) -> Vec<u8> {
    ExtensionHandshake {
        client: Some(concat!("peerd ", env!("CARGO_PKG_VERSION")).to_owned()),
        reqq: Some(REQUESTS_SERVED),
        port: core.listening.first().map(SocketAddr::port),
        yourip: Some(peer.ip().to_canonical()),
        upload_only: seeding.then_some(true),
        max_block: Some(MAX_BLOCK_BYTES),
        ..ExtensionHandshake::default()
    }
    .encode()
}

impl Greeted {
    /// Runs the session to its end and takes it out of the books.
    pub async fn run(self, core: Arc<Core>) {
        let Greeted { torrent, active, handle, stream, _place } = self;
        core.choking.notify_one();
        let session = Session::new(core.clone(), torrent.clone(), active.clone(), handle.clone(), stream);
        // If the daemon stops, this future is dropped at an await; the guard puts the books right all the same.
        let mut closing = Closing { core: core.clone(), torrent, active, handle, how: Ended::Closed };
        let end = session.run().await;
        if matches!(end, SessionEnd::Fault(_) | SessionEnd::Frame(_)) {
            closing.how = Ended::Fault;
        }
        tracing::debug!(torrent = %closing.torrent.summary.name, peer = %closing.handle.addr, %end, "session ended");
    }
}

struct Closing {
    core: Arc<Core>,
    torrent: Arc<Torrent>,
    active: Arc<Active>,
    handle: Arc<SessionHandle>,
    how: Ended,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let now = self.core.clock.now();
        {
            let mut inner = self.active.lock();
            if self.how == Ended::Closed && inner.swarm.both_seed(self.handle.id) {
                self.how = Ended::NoUse;
            }
            inner.swarm.close(self.handle.id);
            inner.sessions.remove(&self.handle.id);
            if self.handle.outgoing {
                inner.book.ended(self.handle.addr, self.how, now);
            }
        }
        self.torrent.pass_effects(&self.core, &self.active);
        self.torrent.touch();
        self.core.choking.notify_one();
        self.core.dialling.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_keep_the_same_one_of_two_simultaneous_connections() {
        let (small, great) = (PeerId([1; 20]), PeerId([2; 20]));
        for first_was_by_great in [false, true] {
            // Each end sees the first connection and then the second, which was dialled the other way.
            let great_takes_second = replaces(great, small, first_was_by_great, !first_was_by_great);
            let small_takes_second = replaces(small, great, !first_was_by_great, first_was_by_great);
            assert_eq!(great_takes_second, small_takes_second);
            assert_eq!(great_takes_second, !first_was_by_great, "the one that the greater began stays");
        }
        assert!(!replaces(great, small, true, true) && !replaces(great, small, false, false));
    }
}
