//! Accepts connections and watches over them: none holds a place by its silence, and a full house makes room for who
//! comes by closing one that is idle.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::{Ends, Site};
use crate::clock::{Clock, Time};
use crate::tracker::metrics::Refused;

/// Connections at once, all listeners together: each takes some 20 KB and a descriptor.
pub const MAX_CONNECTIONS: usize = 4_096;
/// How long a connection may keep its place without saying anything.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From a request's first byte (or the connection's start) to the end of its head.
    pub head: Duration,
    /// Between requests, and without any progress of an answer.
    pub idle: Duration,
    /// How often it is looked.
    pub watch_every: Duration,
}

impl Default for Timeouts {
    /// A head comes in one piece, or somebody holds it back; between two requests people think.
    fn default() -> Timeouts {
        let [head, idle, watch_every] = [10, 120, 5].map(Duration::from_secs);
        Timeouts { head, idle, watch_every }
    }
}

/// Accepting pauses so long when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests in hand at a stop are finished within this time.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// A request's head: announces with long queries fit several times.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// What is known of an open connection from outside of it.
struct Watched {
    /// Nanoseconds of the clock.
    last_io: AtomicU64,
    /// When the head that is being read began; 0 between requests and while one is answered.
    head_since: AtomicU64,
    /// A request is being answered.
    busy: AtomicBool,
    /// It has made a request.
    served: AtomicBool,
    close: Notify,
}

/// The connections that are open, so that one can be chosen to make room.
struct House {
    open: Mutex<HashMap<u64, Arc<Watched>>>,
    next: AtomicU64,
    timeouts: Timeouts,
}

impl House {
    fn new(timeouts: Timeouts) -> House {
        House { open: Mutex::default(), next: AtomicU64::new(0), timeouts }
    }

    fn enter(&self, now: Time) -> (u64, Arc<Watched>) {
        let watched = Arc::new(Watched {
            last_io: AtomicU64::new(now.as_nanos()),
            head_since: AtomicU64::new(now.as_nanos()),
            busy: AtomicBool::new(false),
            served: AtomicBool::new(false),
            close: Notify::new(),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, watched.clone());
        (number, watched)
    }

    /// Tells the connection that was idle longest to close, one that never asked for anything before those that did;
    /// `false` when all are busy.
    ///
    /// So a flood of silent connections displaces itself, not the clients that keep theirs open.
    fn displace(&self) -> bool {
        let mut open = self.lock();
        let idle = open.iter().filter(|(_, watched)| !watched.busy.load(Ordering::Relaxed));
        let worth =
            |watched: &Watched| (watched.served.load(Ordering::Relaxed), watched.last_io.load(Ordering::Relaxed));
        let longest = idle.min_by_key(|(_, watched)| worth(watched)).map(|(number, _)| *number);
        // Taken out at once, so that the next one chooses another.
        match longest.and_then(|number| open.remove(&number)) {
            Some(watched) => {
                watched.close.notify_one();
                true
            }
            None => false,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Watched>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves `listeners` until `stop` turns true; then finishes what is in hand.
pub async fn serve(
    site: Arc<Site>,
    listeners: Vec<TcpListener>,
    max_connections: usize,
    timeouts: Timeouts,
    stop: watch::Receiver<bool>,
) {
    let (house, places) = (Arc::new(House::new(timeouts)), Arc::new(Semaphore::new(max_connections)));
    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(accept_loop(site.clone(), listener, house.clone(), places.clone(), stop.clone()));
    }
    while loops.join_next().await.is_some() {}
}

async fn accept_loop(
    site: Arc<Site>,
    listener: TcpListener,
    house: Arc<House>,
    places: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &site, &house, &places) => accepted,
            () = stopped(&mut stop) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, ends, place)) => {
                connections.spawn(connection(site.clone(), house.clone(), stream, ends, place, stop.clone()));
            }
            Err(error) => {
                if !is_of_one_connection(&error) {
                    tracing::warn!(%error, "accepting connections pauses");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A place first, then the connection: what cannot be served waits in the kernel's queue. When all places are taken, who
/// comes gets that of whoever was idle longest.
async fn accept(
    listener: &TcpListener,
    site: &Site,
    house: &House,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, Ends, OwnedSemaphorePermit)> {
    let free = places.clone().try_acquire_owned().ok();
    let (stream, remote) = listener.accept().await?;
    let place = match free.or_else(|| places.clone().try_acquire_owned().ok()) {
        Some(place) => place,
        None => {
            if house.displace() {
                site.announcer.metrics.refuse(Refused::ConnectionDisplaced);
            }
            places.clone().acquire_owned().await.map_err(io::Error::other)?
        }
    };
    let ends = Ends { remote: canonical(remote), local: canonical(stream.local_addr()?) };
    // Answers are written in one piece: nothing is gained by waiting for more. Without it they are slower, not wrong.
    let _ = stream.set_nodelay(true);
    Ok((stream, ends, place))
}

async fn connection(
    site: Arc<Site>,
    house: Arc<House>,
    stream: TcpStream,
    ends: Ends,
    place: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    let clock = site.clock.clone();
    let (number, watched) = house.enter(clock.now());
    site.connections.fetch_add(1, Ordering::Relaxed);
    let io = TokioIo::new(WatchedStream { stream, watched: watched.clone(), clock: clock.clone() });
    let service = service_fn(|request| {
        let (site, watched) = (site.clone(), watched.clone());
        watched.head_since.store(0, Ordering::Relaxed);
        watched.busy.store(true, Ordering::Relaxed);
        watched.served.store(true, Ordering::Relaxed);
        async move {
            let answer = site.answer(request, ends).await;
            watched.busy.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    // The time-outs are ours: hyper's would end idle connections as early as slow heads.
    http.header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES).pipeline_flush(true);
    {
        let mut serving = std::pin::pin!(http.serve_connection(io, service));
        tokio::select! {
            // What goes wrong on a connection is its client's affair.
            _ = serving.as_mut() => {}
            reason = timed_out(&watched, &*clock, house.timeouts) => site.announcer.metrics.refuse(reason),
            () = watched.close.notified() => {}
            () = stopped(&mut stop) => {
                serving.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(STOP_GRACE, serving).await;
            }
        }
    }
    house.lock().remove(&number);
    site.connections.fetch_sub(1, Ordering::Relaxed);
    drop(place);
}

/// Comes back when the tracker stops, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Comes back when the connection has overstayed.
async fn timed_out(watched: &Watched, clock: &dyn Clock, timeouts: Timeouts) -> Refused {
    loop {
        tokio::time::sleep(timeouts.watch_every).await;
        if let Some(reason) = overstayed(watched, clock.now(), timeouts) {
            return reason;
        }
    }
}

fn overstayed(watched: &Watched, now: Time, timeouts: Timeouts) -> Option<Refused> {
    if watched.busy.load(Ordering::Relaxed) {
        // Bodies have a time-out of their own.
        return None;
    }
    let since = |at: &AtomicU64| now.since(Time::from_nanos(at.load(Ordering::Relaxed)));
    let reading_head = watched.head_since.load(Ordering::Relaxed) != 0;
    if reading_head && since(&watched.head_since) > timeouts.head {
        Some(Refused::HeaderTimeout)
    } else if since(&watched.last_io) > timeouts.idle {
        Some(Refused::IdleTimeout)
    } else {
        None
    }
}

/// Errors of the connection that was being accepted; others concern the listener (no descriptors left).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | NotConnected)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A stream that notes when bytes pass.
struct WatchedStream {
    stream: TcpStream,
    watched: Arc<Watched>,
    clock: Arc<dyn Clock>,
}

impl WatchedStream {
    fn note(&self) -> u64 {
        let now = self.clock.now().as_nanos();
        self.watched.last_io.store(now, Ordering::Relaxed);
        now
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            let now = self.note();
            if !self.watched.busy.load(Ordering::Relaxed) {
                // Only the head's first bytes start its time.
                let _ = self.watched.head_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        read
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(_))) {
            self.note();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if matches!(written, Poll::Ready(Ok(_))) {
            self.note();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn who_overstays() {
        let house = House::new(Timeouts::default());
        let (_, watched) = house.enter(at(100));
        let overstayed = |second| overstayed(&watched, at(second), house.timeouts);
        assert_eq!(overstayed(110), None);
        assert_eq!(overstayed(111), Some(Refused::HeaderTimeout), "never said a word");
        watched.busy.store(true, Ordering::Relaxed);
        assert_eq!(overstayed(1_000), None, "being answered");
        watched.busy.store(false, Ordering::Relaxed);
        watched.head_since.store(0, Ordering::Relaxed);
        watched.last_io.store(at(200).as_nanos(), Ordering::Relaxed);
        assert_eq!(overstayed(320), None, "between requests");
        assert_eq!(overstayed(321), Some(Refused::IdleTimeout));
        watched.head_since.store(at(300).as_nanos(), Ordering::Relaxed);
        watched.last_io.store(at(311).as_nanos(), Ordering::Relaxed);
        assert_eq!(overstayed(311), Some(Refused::HeaderTimeout), "byte by byte");
    }

    #[tokio::test]
    async fn the_one_idle_longest_makes_room() {
        let house = House::new(Timeouts::default());
        let (_, oldest_but_busy) = house.enter(at(1));
        let (_, idle_but_known) = house.enter(at(1));
        idle_but_known.served.store(true, Ordering::Relaxed);
        let (_, idle_longest) = house.enter(at(2));
        let (_, idle) = house.enter(at(3));
        oldest_but_busy.busy.store(true, Ordering::Relaxed);
        assert!(house.displace());
        idle_longest.close.notified().await;
        assert!(house.displace());
        idle.close.notified().await;
        assert!(house.displace());
        idle_but_known.close.notified().await;
        assert!(!house.displace());
    }
}
