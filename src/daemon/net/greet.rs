//! The handshake, either way, and what becomes of it: a session, or not.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::introduction;
use super::session::{Session, SessionEnd};
use crate::daemon::banning;
use crate::daemon::core::{ActivateError, Core, MAX_SESSIONS_PER_TORRENT};
use crate::daemon::neighbours;
use crate::daemon::torrent::{Active, Inner, SessionHandle, Torrent};
use crate::swarm::SessionInfo;
use crate::swarm::dial::{Ended, Source};
use crate::swarm::proving::Proving;
use crate::wire::handshake::{self, FIRST_BYTE, Handshake, HandshakeError, Reserved};
use crate::wire::id::{InfoHash, PeerId};

/// design.md section 6: connect and handshake.
const GREETING: Duration = Duration::from_secs(10);

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
    proving: Option<Proving>,
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
        let torrent = core
            .torrent(theirs.info_hash)
            .filter(|torrent| torrent.with_status(|status| status.is_live()))
            .ok_or(GreetError::UnknownTorrent(theirs.info_hash))?;
        let active = core.activate(&torrent).await?;
        let ours = our_handshake(core, theirs.info_hash);
        if theirs.peer_id == core.peer_id {
            // The half of us that dialled hears who answers, and strikes the address out.
            stream.write_all(&ours.encode()).await?;
            return Err(GreetError::Ourselves);
        }
        // Whoever finds no place hears no handshake: it takes that for a failure and comes back later and later.
        let place = neighbours::place_for_incoming(core, &active).await.ok_or(GreetError::Full)?;
        stream.write_all(&ours.encode()).await?;
        admit(core, torrent, active, Connection { stream, addr: from, ours, theirs, outgoing: false, place })
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
        let ours = our_handshake(core, torrent.key());
        stream.write_all(&ours.encode()).await?;
        let theirs = read_handshake(&mut stream).await?;
        if theirs.info_hash != torrent.key() {
            return Err(GreetError::WrongTorrent);
        }
        if theirs.peer_id == core.peer_id {
            active.lock().book.add_own(to);
            return Err(GreetError::Ourselves);
        }
        let place = core.session_permits.clone().try_acquire_owned().map_err(|_| GreetError::Full)?;
        let connection = Connection { stream, addr: to, ours, theirs, outgoing: true, place };
        admit(core, torrent.clone(), active.clone(), connection)
    };
    tokio::time::timeout(GREETING, work).await.unwrap_or(Err(GreetError::TimeOut))
}

fn our_handshake(core: &Core, info_hash: InfoHash) -> Handshake {
    Handshake { info_hash, peer_id: core.peer_id, reserved: Reserved::ours() }
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

/// A connection on which both handshakes have passed.
struct Connection {
    stream: TcpStream,
    addr: SocketAddr,
    ours: Handshake,
    theirs: Handshake,
    outgoing: bool,
    place: OwnedSemaphorePermit,
}

fn admit(
    core: &Arc<Core>,
    torrent: Arc<Torrent>,
    active: Arc<Active>,
    connection: Connection,
) -> Result<Greeted, GreetError> {
    let Connection { stream, addr, ours, theirs, outgoing, place } = connection;
    let now = core.clock.now();
    let handle = Arc::new(SessionHandle::new(core.next_session_id(), addr, theirs.peer_id, outgoing, now));
    let proving = introduction::begin_proving(core, &torrent, outgoing, ours, theirs);
    {
        let mut inner = active.lock();
        // Whatever happened while we were greeting: what is paused, removed or set up anew takes nobody.
        if inner.retired || torrent.is_removed() || !torrent.with_status(|status| status.is_live()) {
            return Err(GreetError::UnknownTorrent(torrent.key()));
        }
        if inner.live_sessions() >= MAX_SESSIONS_PER_TORRENT {
            return Err(GreetError::Full);
        }
        replace_twin(&mut inner, core.peer_id, &handle)?;
        if outgoing && inner.book.connected(addr, Source::Tracker, now) {
            handle.set_listens(addr);
        }
        inner.sessions.insert(handle.id, handle.clone());
        let info = SessionInfo { identity: handle.identity(), fast: theirs.reserved.fast() };
        inner.swarm.open(now, handle.id, info);
        banning::take_note(core, &mut inner, &handle);
        if theirs.reserved.extension() {
            let offer = proving.as_ref().map(Proving::offer);
            let seeding = inner.swarm.is_complete() && inner.swarm.is_open_to(handle.id);
            inner.swarm.queue_message(handle.id, &introduction::ours(core, seeding, addr, offer));
        }
    }
    Ok(Greeted { torrent, active, handle, proving, stream, _place: place })
}

/// One session per peer: if there is one with the same peer already, one of the two goes.
///
/// # Errors
/// With [`GreetError::Twice`] when it is the new one.
fn replace_twin(inner: &mut Inner, ours: PeerId, new: &SessionHandle) -> Result<(), GreetError> {
    let twin = inner.sessions.values().find(|other| other.peer_id == new.peer_id && other.closing().is_none());
    let Some(twin) = twin.cloned() else { return Ok(()) };
    // Dials that cross are done within one greeting of each other. Later nobody who borrows a peer id can push its owner out.
    let at_once = new.since.since(twin.since) < GREETING;
    if at_once && replaces(ours, new.peer_id, twin.outgoing, new.outgoing) {
        twin.close("the same peer connected the other way round");
        if let Some(listens) = twin.take_listens() {
            inner.book.ended(listens, Ended::NoUse, new.since);
        }
        return Ok(());
    }
    // Where we dialled is an address of that peer: it stands for the session that stays, unless that has another.
    if new.outgoing {
        match twin.listens() {
            None if inner.book.connected(new.addr, Source::Tracker, new.since) => twin.set_listens(new.addr),
            Some(listens) if listens != new.addr => inner.book.ended(new.addr, Ended::NoUse, new.since),
            _ => {}
        }
    }
    Err(GreetError::Twice)
}

/// Of two connections between the same two peers, dialled at once, both ends must keep the same one: that which the
/// peer of the greater id began. A second one the same way round is never kept.
fn replaces(ours: PeerId, theirs: PeerId, old_is_outgoing: bool, new_is_outgoing: bool) -> bool {
    old_is_outgoing != new_is_outgoing && new_is_outgoing == (ours.0 > theirs.0)
}

impl Greeted {
    /// Runs the session to its end and takes it out of the books.
    pub async fn run(self, core: Arc<Core>) {
        let Greeted { torrent, active, handle, proving, stream, _place } = self;
        core.choking.notify_one();
        let session = Session::new(core.clone(), torrent.clone(), active.clone(), handle.clone(), proving, stream);
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
            if let Some(listens) = self.handle.take_listens() {
                inner.book.ended(listens, self.how, now);
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
