//! UDP trackers (BEP 15): one socket per family for all of them, and no task of its own. Whoever waits for a reply reads
//! the socket and hands on what belongs to others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::TrackerError;
use crate::wire::announce::{AnnounceRequest, AnnounceResponse, ScrapeEntry};
use crate::wire::id::InfoHash;
use crate::wire::tracker_udp::{Family, MAX_DATAGRAM_BYTES, Request, Response};

/// A connection id is used for a minute after it came (BEP 15).
const CONNECTION_ID_LIFE: Duration = Duration::from_secs(60);
/// A request is sent again after 1 s, then after 2 s more, 4 s, ...: sooner than BEP 15's 15 s, because a lost datagram
/// should not delay a download, and no worse for a tracker that is down, since whoever calls gives up after 15 s.
const FIRST_RESEND: Duration = Duration::from_secs(1);
/// Connection ids kept: far more trackers than the torrents of one person name, and 100 bytes each.
const MAX_CONNECTION_IDS: usize = 1024;

/// Datagrams handed on in a row, before whoever reads looks for its own reply.
const MAX_BURST: usize = 64;

/// The client end. Dropping it leaves nothing behind.
#[derive(Default)]
pub struct UdpClient {
    v4: OnceCell<Socket>,
    v6: OnceCell<Socket>,
    connection_ids: Mutex<HashMap<SocketAddr, (u64, Instant)>>,
}

struct Socket {
    socket: UdpSocket,
    /// Who waits for which reply: matched by the tracker's address and the transaction id, all else is ignored. As many
    /// as requests are under way, which the schedule bounds.
    waiting: Mutex<HashMap<(SocketAddr, u32), oneshot::Sender<Response>>>,
    /// Held by the one of them who reads: a datagram would wake all.
    reading: tokio::sync::Mutex<()>,
}

impl UdpClient {
    pub fn new() -> UdpClient {
        UdpClient::default()
    }

    /// Asks the addresses of one tracker in turn until one answers, for `limit` in all.
    ///
    /// # Errors
    /// When none answers, or the one that does declines.
    pub async fn announce(
        &self,
        addresses: &[SocketAddr],
        announce: &AnnounceRequest,
        limit: Duration,
    ) -> Result<AnnounceResponse, TrackerError> {
        let make = |connection_id, transaction_id| Request::Announce {
            connection_id,
            transaction_id,
            announce: announce.clone(),
        };
        match self.ask_any(addresses, &make, limit).await? {
            Response::Announce { announce, .. } => Ok(announce),
            other => Err(unexpected(other)),
        }
    }

    /// The counts of up to [`crate::wire::announce::MAX_SCRAPE_HASHES`] torrents, in the order of the hashes.
    ///
    /// # Errors
    /// As for [`UdpClient::announce`].
    pub async fn scrape(
        &self,
        addresses: &[SocketAddr],
        info_hashes: &[InfoHash],
        limit: Duration,
    ) -> Result<Vec<ScrapeEntry>, TrackerError> {
        let make = |connection_id, transaction_id| Request::Scrape {
            connection_id,
            transaction_id,
            info_hashes: info_hashes.to_vec(),
        };
        match self.ask_any(addresses, &make, limit).await? {
            Response::Scrape { entries, .. } => Ok(entries),
            other => Err(unexpected(other)),
        }
    }

    async fn ask_any(
        &self,
        addresses: &[SocketAddr],
        make: &(dyn Fn(u64, u32) -> Request + Sync),
        limit: Duration,
    ) -> Result<Response, TrackerError> {
        let deadline = Instant::now() + limit;
        // An address that answered in the last minute goes first.
        let mut order: Vec<(bool, SocketAddr)> =
            addresses.iter().map(|&address| (self.connection_id(address).is_none(), address)).collect();
        order.sort_by_key(|(unknown, _)| *unknown);
        let mut last = TrackerError::unreachable("it has no address");
        for (at, (_, address)) in order.iter().enumerate() {
            let share = deadline.saturating_duration_since(Instant::now()) / (order.len() - at) as u32;
            match timeout(share, self.ask(*address, make)).await {
                Ok(Err(unreachable @ TrackerError::Unreachable { .. })) => last = unreachable,
                Ok(answer) => return answer,
                Err(_) => {
                    self.forget(*address);
                    last = TrackerError::unreachable(format!("no answer by UDP from {address} in {share:.1?}"));
                }
            }
        }
        Err(last)
    }

    async fn ask(
        &self,
        address: SocketAddr,
        make: &(dyn Fn(u64, u32) -> Request + Sync),
    ) -> Result<Response, TrackerError> {
        let socket = self.socket(address).await.map_err(TrackerError::unreachable)?;
        if let Some(connection_id) = self.connection_id(address) {
            match socket.exchange(address, &|transaction_id| make(connection_id, transaction_id)).await? {
                // Maybe it is the connection id that it does not like (anymore): once more with a new one.
                Response::Error { .. } => self.forget(address),
                response => return Ok(response),
            }
        }
        let connected = socket.exchange(address, &|transaction_id| Request::Connect { transaction_id }).await?;
        let Response::Connect { connection_id, .. } = connected else { return Err(unexpected(connected)) };
        self.remember(address, connection_id);
        socket.exchange(address, &|transaction_id| make(connection_id, transaction_id)).await
    }

    async fn socket(&self, to: SocketAddr) -> io::Result<&Socket> {
        match to {
            SocketAddr::V4(_) => self.v4.get_or_try_init(|| Socket::bind((Ipv4Addr::UNSPECIFIED, 0).into())).await,
            SocketAddr::V6(_) => self.v6.get_or_try_init(|| Socket::bind((Ipv6Addr::UNSPECIFIED, 0).into())).await,
        }
    }

    fn connection_id(&self, address: SocketAddr) -> Option<u64> {
        let ids = self.connection_ids.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        ids.get(&address).filter(|(_, since)| since.elapsed() < CONNECTION_ID_LIFE).map(|(id, _)| *id)
    }

    fn remember(&self, address: SocketAddr, connection_id: u64) {
        let mut ids = self.connection_ids.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if ids.len() >= MAX_CONNECTION_IDS {
            ids.retain(|_, (_, since)| since.elapsed() < CONNECTION_ID_LIFE);
        }
        if ids.len() < MAX_CONNECTION_IDS {
            ids.insert(address, (connection_id, Instant::now()));
        }
    }

    fn forget(&self, address: SocketAddr) {
        self.connection_ids.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&address);
    }
}

impl Socket {
    async fn bind(local: SocketAddr) -> io::Result<Socket> {
        Ok(Socket {
            socket: UdpSocket::bind(local).await?,
            waiting: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        })
    }

    /// Sends the request, again and again, until its reply comes; for ever, if the caller sets no limit.
    async fn exchange(&self, to: SocketAddr, make: &(dyn Fn(u32) -> Request + Sync)) -> Result<Response, TrackerError> {
        let (sender, mut reply) = oneshot::channel();
        let waiting = self.wait_for(to, sender)?;
        let mut datagram = Vec::new();
        make(waiting.key.1).encode(&mut datagram);
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        let mut resend = FIRST_RESEND;
        loop {
            self.socket.send_to(&datagram, to).await.map_err(TrackerError::unreachable)?;
            let deadline = Instant::now() + resend;
            resend *= 2;
            while let Ok(step) = timeout_at(deadline, self.step(&mut reply, &mut buffer)).await {
                if let Some(response) = step? {
                    return Ok(response);
                }
            }
        }
    }

    /// Draws a transaction id that nobody waits for.
    fn wait_for(&self, to: SocketAddr, sender: oneshot::Sender<Response>) -> Result<Waiting<'_>, TrackerError> {
        let mut waiting = self.lock();
        loop {
            let key = (to, getrandom::u32().map_err(TrackerError::unreachable)?);
            if let Entry::Vacant(vacant) = waiting.entry(key) {
                vacant.insert(sender);
                return Ok(Waiting { socket: self, key });
            }
        }
    }

    /// Waits for the reply, or for a datagram, which is then handed to whom it belongs.
    async fn step(
        &self,
        reply: &mut oneshot::Receiver<Response>,
        buffer: &mut [u8],
    ) -> Result<Option<Response>, TrackerError> {
        tokio::select! {
            biased;
            response = reply => response.map(Some).map_err(TrackerError::unreachable),
            received = self.receive(buffer) => received.map(|()| None).map_err(TrackerError::unreachable),
        }
    }

    /// Waits for a datagram, and hands on what has come by then.
    async fn receive(&self, buffer: &mut [u8]) -> io::Result<()> {
        let _turn = self.reading.lock().await;
        let mut came = self.socket.recv_from(buffer).await?;
        for _ in 0..MAX_BURST {
            self.hand_on(buffer.get(..came.0).unwrap_or_default(), came.1);
            let Ok(next) = self.socket.try_recv_from(buffer) else { break };
            came = next;
        }
        Ok(())
    }

    fn hand_on(&self, datagram: &[u8], from: SocketAddr) {
        let Ok(response) = Response::decode(datagram, Family::of(from.ip())) else { return };
        if let Some(sender) = self.lock().remove(&(from, response.transaction_id())) {
            // Whoever asked may have given up meanwhile.
            let _ = sender.send(response);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(SocketAddr, u32), oneshot::Sender<Response>>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Takes the entry out again however the wait ends.
struct Waiting<'a> {
    socket: &'a Socket,
    key: (SocketAddr, u32),
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.socket.lock().remove(&self.key);
    }
}

fn unexpected(response: Response) -> TrackerError {
    match response {
        Response::Error { message, .. } => TrackerError::Refused { status: None, reason: message },
        _ => TrackerError::bad_reply("an answer to another question"),
    }
}
