//! The control socket's server: who may connect, how many, how long a request may take to come. What requests do is
//! the [`Engine`]'s.
//!
//! A connection is served one request after the other: the next is read when the last is answered. A client that goes
//! away is noticed when an answer cannot be written; what it started goes on.

mod access;
mod socket;

pub use socket::{BindError, ControlSocket, SocketPlace};

use crate::wire::control::{
    Answer, EncodeError, Failure, FrameError, MAX_FRAME_BYTES, ROWS_BYTES, Received, Request, RequestDecoder,
    encode_answer,
};
use access::Access;
use postcard::ser_flavors::Size;
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections at once: people and their scripts, not a service. Each may hold a `.torrent` of 10 MiB.
pub const MAX_CONNECTIONS: usize = 64;
/// A request must have come whole after this long: who says half of one, or nothing, gives the place back.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer's frame must be taken within this long: who does not read gives the place back.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// At the end, answers that are being given may be finished within this long.
pub const STOP_GRACE: Duration = Duration::from_secs(2);
/// After a failed accept (no file descriptors left) nothing is tried for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read from a connection at once.
const READ_BYTES: usize = 16 * 1024;

/// What requests do.
pub trait Engine: Send + Sync + 'static {
    /// Carries out one request. What comes before the end of the answer (progress, rows) goes through `reply`; the
    /// value returned is the frame marked last: [`Answer::End`] when the rows have said it all.
    ///
    /// While it waits it sends an [`Answer::Progress`] at least every 10 s, so that a client that went away is noticed
    /// and one that stays knows that we live. `?` on [`Gone`] ends it. It is never cancelled while the daemon runs.
    fn handle(&self, request: Request, reply: &mut Reply<'_>) -> impl Future<Output = Result<Answer, Failure>> + Send;
}

/// The client does not listen any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("peerctl went away")]
pub struct Gone;

impl From<Gone> for Failure {
    fn from(gone: Gone) -> Failure {
        Failure::failed(gone.to_string())
    }
}

/// The way back to the client, for one request.
#[derive(Debug)]
pub struct Reply<'a> {
    stream: &'a mut UnixStream,
    request_id: u32,
}

impl Reply<'_> {
    /// Sends a frame that is not the last one. Waits while the client reads slowly, at most [`ANSWER_TIMEOUT`].
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn send(&mut self, answer: &Answer) -> Result<(), Gone> {
        self.write(answer, false).await
    }

    /// Sends rows in as many frames as they need: `wrap` says of which kind.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn send_rows<T: Serialize>(
        &mut self,
        rows: impl IntoIterator<Item = T>,
        wrap: impl Fn(Vec<T>) -> Answer,
    ) -> Result<(), Gone> {
        let mut frame = Vec::new();
        let mut bytes = 0;
        for row in rows {
            // A row that cannot be encoded makes its frame fail, which is answered.
            bytes += postcard::serialize_with_flavor(&row, Size::default()).unwrap_or(0);
            frame.push(row);
            if bytes >= ROWS_BYTES {
                self.send(&wrap(std::mem::take(&mut frame))).await?;
                bytes = 0;
            }
        }
        if frame.is_empty() { Ok(()) } else { self.send(&wrap(frame)).await }
    }

    async fn write(&mut self, answer: &Answer, last: bool) -> Result<(), Gone> {
        let frame = encode_answer(self.request_id, answer, last).or_else(|error| {
            let failure = Answer::Failed(Failure::failed(format!("peerd has an answer that cannot be sent: {error}")));
            encode_answer(self.request_id, &failure, last)
        });
        let frame = frame.map_err(|_: EncodeError| Gone)?;
        match timeout(ANSWER_TIMEOUT, self.stream.write_all(&frame)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no whole request came in time")]
    Silent,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl ControlSocket {
    /// Serves until `shutdown`, then lets answers that are being given finish (at most [`STOP_GRACE`]), and takes the
    /// socket and its link away.
    pub async fn serve<E: Engine>(self, engine: Arc<E>, shutdown: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            while connections.try_join_next().is_some() {}
            let stream = tokio::select! {
                () = &mut shutdown => break,
                stream = accept(self.listener()) => stream,
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                refuse(&stream);
                continue;
            };
            let (engine, access, stopping) = (Arc::clone(&engine), self.access().clone(), stopping.clone());
            connections.spawn(async move {
                let _place = place;
                if let Err(ended) = serve_connection(stream, &access, &*engine, stopping, REQUEST_TIMEOUT).await {
                    tracing::debug!(%ended, "control connection");
                }
            });
        }
        stop.send_replace(true);
        let finished = async { while connections.join_next().await.is_some() {} };
        if timeout(STOP_GRACE, finished).await.is_err() {
            connections.shutdown().await;
        }
    }
}

async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "control socket: cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells one client too many to come again. It has read nothing yet, so the few bytes fit.
fn refuse(stream: &UnixStream) {
    if let Ok(frame) = encode_answer(0, &Answer::Busy, true) {
        let _ = stream.try_write(&frame);
    }
}

async fn serve_connection<E: Engine>(
    mut stream: UnixStream,
    access: &Access,
    engine: &E,
    mut stopping: watch::Receiver<bool>,
    request_timeout: Duration,
) -> Result<(), Ended> {
    if let Err(failure) = access.check(&stream).await {
        let mut reply = Reply { stream: &mut stream, request_id: 0 };
        return Ok(reply.write(&Answer::Failed(failure), true).await?);
    }
    let mut decoder = RequestDecoder::default();
    loop {
        let received = tokio::select! {
            received = timeout(request_timeout, read_request(&mut stream, &mut decoder)) => received,
            _ = stopping.wait_for(|stop| *stop) => return Ok(()),
        };
        let Some(Received { request_id, request }) = received.map_err(|_| Ended::Silent)?? else {
            return Ok(());
        };
        let mut reply = Reply { stream: &mut stream, request_id };
        let answer = match request {
            Ok(request) => engine.handle(request, &mut reply).await.unwrap_or_else(Answer::Failed),
            Err(refusal) => refusal.into(),
        };
        reply.write(&answer, true).await?;
    }
}

/// `None` when the client has closed.
async fn read_request(stream: &mut UnixStream, decoder: &mut RequestDecoder) -> Result<Option<Received>, Ended> {
    const { assert!(READ_BYTES <= MAX_FRAME_BYTES) };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if let Some(received) = decoder.next_request()? {
            return Ok(Some(received));
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            n => decoder.push(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::{
        AnswerDecoder, LAST, ReceivedAnswer, Search, SearchHit, Unsupported, VERSION, What, encode_request, samples,
    };
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tempfile::TempDir;
    use tokio::sync::oneshot;

    /// Counts what reaches it; a few commands do something that a test can see.
    #[derive(Default)]
    struct Fake {
        handled: AtomicUsize,
        hold: tokio::sync::Notify,
    }

    impl Engine for Fake {
        async fn handle(&self, request: Request, reply: &mut Reply<'_>) -> Result<Answer, Failure> {
            self.handled.fetch_add(1, Ordering::SeqCst);
            match request {
                Request::Status => Ok(Answer::Status(samples::status())),
                Request::Search(search) => {
                    let hits = (0..search.limit).map(|i| SearchHit { n_parts: i, ..samples::search_hit() });
                    reply.send_rows(hits, Answer::SearchHits).await?;
                    Ok(Answer::End)
                }
                Request::Show(What::Torrent(bytes)) => Err(Failure::usage(format!("{} bytes", bytes.len()))),
                Request::Show(_) => Ok(Answer::Failed(Failure::failed("x".repeat(MAX_FRAME_BYTES)))),
                Request::Leave => {
                    self.hold.notified().await;
                    Ok(Answer::Left(samples::left()))
                }
                _ => Err(Failure::not_found("no such torrent")),
            }
        }
    }

    struct Server {
        dir: TempDir,
        place: SocketPlace,
        engine: Arc<Fake>,
        stop: Option<oneshot::Sender<()>>,
        task: tokio::task::JoinHandle<()>,
    }

    fn place_in(dir: &Path) -> SocketPlace {
        SocketPlace {
            path: dir.join("peerd.sock"),
            control_group: None,
            runtime_dir: None,
            private_dir: dir.join("private"),
        }
    }

    fn start() -> Server {
        let dir = TempDir::new().unwrap();
        let place = place_in(dir.path());
        let socket = ControlSocket::bind(&place).unwrap();
        let engine = Arc::new(Fake::default());
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&engine);
        let task = tokio::spawn(async move {
            socket
                .serve(served, async {
                    let _ = stopped.await;
                })
                .await;
        });
        Server { dir, place, engine, stop: Some(stop), task }
    }

    impl Server {
        async fn connect(&self) -> Client {
            Client { stream: UnixStream::connect(&self.place.path).await.unwrap(), decoder: AnswerDecoder::default() }
        }

        /// Ends it and proves that nothing is left of it.
        async fn end(mut self) {
            self.stop.take().unwrap().send(()).unwrap();
            self.task.await.unwrap();
            assert_eq!(Arc::strong_count(&self.engine), 1, "no task holds the engine any more");
            let left: Vec<PathBuf> =
                fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(left, [self.place.private_dir.clone()]);
            assert_eq!(fs::read_dir(&self.place.private_dir).unwrap().count(), 0);
        }
    }

    struct Client {
        stream: UnixStream,
        decoder: AnswerDecoder,
    }

    impl Client {
        async fn send(&mut self, bytes: &[u8]) {
            self.stream.write_all(bytes).await.unwrap();
        }

        async fn frame(&mut self) -> Option<ReceivedAnswer> {
            let mut buffer = [0; 4096];
            loop {
                if let Some(answer) = self.decoder.next_answer().unwrap() {
                    return Some(answer);
                }
                match self.stream.read(&mut buffer).await {
                    Ok(n) if n > 0 => self.decoder.push(&buffer[..n]),
                    _ => return None,
                }
            }
        }

        async fn ask(&mut self, id: u32, request: &Request) -> Vec<Answer> {
            self.send(&encode_request(id, request).unwrap()).await;
            let mut answers = Vec::new();
            loop {
                let frame = self.frame().await.unwrap();
                assert_eq!(frame.request_id, id);
                answers.push(frame.answer.unwrap());
                if frame.last {
                    return answers;
                }
            }
        }
    }

    #[tokio::test]
    async fn two_clients_are_answered_and_nothing_is_left_at_the_end() {
        let server = start();
        let (mut one, mut two) = (server.connect().await, server.connect().await);
        assert_eq!(one.ask(1, &Request::Status).await, [Answer::Status(samples::status())]);
        assert_eq!(two.ask(1, &Request::List).await, [Answer::Failed(Failure::not_found("no such torrent"))]);
        assert_eq!(one.ask(2, &Request::Status).await.len(), 1, "a connection takes more than one request");
        let show = Request::Show(What::Torrent(vec![b'd'; 700_000]));
        assert_eq!(two.ask(3, &show).await, [Answer::Failed(Failure::usage("700000 bytes"))]);
        server.end().await;
    }

    #[tokio::test]
    async fn rows_are_cut_into_frames_and_an_answer_too_long_becomes_a_failure() {
        let server = start();
        let mut client = server.connect().await;
        let search = Request::Search(Search { words: String::new(), limit: 10_000, offset: 0 });
        let mut answers = client.ask(1, &search).await;
        assert_eq!(answers.pop(), Some(Answer::End));
        assert!(answers.len() > 1);
        let parts = answers.into_iter().flat_map(|answer| match answer {
            Answer::SearchHits(hits) => hits,
            other => panic!("{other:?}"),
        });
        assert!(parts.map(|hit| hit.n_parts).eq(0..10_000));
        let answers = client.ask(2, &Request::Show(What::Words(String::new()))).await;
        assert!(matches!(&answers[..], [Answer::Failed(failure)] if failure.message.contains("cannot be sent")));
        server.end().await;
    }

    #[tokio::test]
    async fn an_unknown_kind_is_answered_and_the_connection_goes_on() {
        let server = start();
        let mut client = server.connect().await;
        let mut unknown = encode_request(1, &Request::List).unwrap();
        unknown[10..].copy_from_slice(&(0x0077 | LAST).to_be_bytes());
        client.send(&unknown).await;
        let frame = client.frame().await.unwrap();
        assert_eq!(frame.answer, Some(Answer::Unsupported(Unsupported { kind: 0x0077, version: VERSION })));
        assert!(frame.last);
        assert_eq!(client.ask(2, &Request::Status).await.len(), 1);
        server.end().await;
    }

    #[tokio::test]
    async fn what_is_not_ours_is_closed_without_effect() {
        let server = start();
        for bytes in [&b"POST /leave HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xFF; 4], &[0, 0, 0, 1, 0]] {
            let mut client = server.connect().await;
            client.send(bytes).await;
            assert_eq!(client.frame().await, None);
        }
        assert_eq!(server.engine.handled.load(Ordering::SeqCst), 0);
        server.end().await;
    }

    #[tokio::test]
    async fn half_a_frame_and_then_silence_loses_the_connection_after_the_timeout() {
        let (mut stream, server) = UnixStream::pair().unwrap();
        stream.write_all(&[0, 0, 0, 8, 0, 1]).await.unwrap();
        let (_stop, stopping) = watch::channel(false);
        let access = Access::new(nix::unistd::getuid(), None);
        let soon = Duration::from_millis(20);
        let ended = serve_connection(server, &access, &Fake::default(), stopping, soon).await;
        assert!(matches!(ended, Err(Ended::Silent)), "{ended:?}");
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn one_connection_too_many_is_told_so_and_a_free_place_is_taken() {
        let server = start();
        let mut clients = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut client = server.connect().await;
            client.ask(1, &Request::Status).await;
            clients.push(client);
        }
        let busy = server.connect().await.frame().await.unwrap();
        assert_eq!(busy, ReceivedAnswer { request_id: 0, last: true, answer: Some(Answer::Busy) });
        clients.pop();
        loop {
            if server.connect().await.frame_or_status().await {
                break;
            }
        }
        server.end().await;
    }

    impl Client {
        /// Whether it has a place. A refused connection may be closed before the request is written.
        async fn frame_or_status(&mut self) -> bool {
            let _ = self.stream.write_all(&encode_request(1, &Request::Status).unwrap()).await;
            matches!(self.frame().await, Some(ReceivedAnswer { answer: Some(Answer::Status(_)), .. }))
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_being_given_is_finished_at_the_end() {
        let mut server = start();
        let mut client = server.connect().await;
        client.send(&encode_request(1, &Request::Leave).unwrap()).await;
        while server.engine.handled.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        server.stop.take().unwrap().send(()).unwrap();
        server.engine.hold.notify_one();
        assert_eq!(client.frame().await.unwrap().answer, Some(Answer::Left(samples::left())));
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_a_second_daemon_is_refused() {
        let dir = TempDir::new().unwrap();
        let place = place_in(dir.path());
        let first = ControlSocket::bind(&place).unwrap();
        assert_eq!(fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(ControlSocket::bind(&place), Err(BindError::InUse(path)) if path == place.path));
        drop(first);
        assert!(!place.path.exists());

        fs::write(&place.path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&place), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read(&place.path).unwrap(), b"precious");
        let unknown = SocketPlace { control_group: Some("no such group".into()), ..place_in(dir.path()) };
        assert!(matches!(ControlSocket::bind(&unknown), Err(BindError::NoSuchGroup(_))));
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_successors_is_left_alone() {
        let dir = TempDir::new().unwrap();
        let place = place_in(dir.path());
        // Closed without unlinking, as kill -9 leaves it.
        drop(std::os::unix::net::UnixListener::bind(&place.path).unwrap());
        let first = ControlSocket::bind(&place).unwrap();
        fs::remove_file(&place.path).unwrap();
        let second = ControlSocket::bind(&place).unwrap();
        drop(first);
        UnixStream::connect(second.path()).await.unwrap();
        UnixStream::connect(place.private_dir.join("peerd.sock")).await.unwrap();
    }

    #[tokio::test]
    async fn the_well_known_link_leads_to_the_first_daemon_until_it_ends() {
        let dir = TempDir::new().unwrap();
        let runtime = dir.path().join("run");
        fs::create_dir(&runtime).unwrap();
        let link = runtime.join("peerd.sock");
        symlink(dir.path().join("gone"), &link).unwrap();
        let place = |name: &str| SocketPlace {
            path: dir.path().join(name),
            runtime_dir: Some(runtime.clone()),
            ..place_in(dir.path())
        };
        let first = ControlSocket::bind(&place("a.sock")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), dir.path().join("a.sock"));
        let second = ControlSocket::bind(&place("b.sock")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), dir.path().join("a.sock"));
        drop(second);
        assert!(link.exists());
        drop(first);
        assert!(fs::symlink_metadata(&link).is_err());
    }

    #[tokio::test]
    async fn links_that_a_killed_run_left_are_taken_over() {
        let dir = TempDir::new().unwrap();
        let long = dir.path().join("d".repeat(120));
        let runtime = dir.path().join("run");
        fs::create_dir(&long).unwrap();
        fs::create_dir(&runtime).unwrap();
        let place =
            SocketPlace { path: long.join("peerd.sock"), runtime_dir: Some(runtime.clone()), ..place_in(dir.path()) };
        let first = ControlSocket::bind(&place).unwrap();
        let target = fs::read_link(&place.path).unwrap();
        drop(first);
        let links = [place.path.clone(), runtime.join("peerd.sock")];
        drop(std::os::unix::net::UnixListener::bind(&target).unwrap());
        links.iter().for_each(|link| symlink(&target, link).unwrap());
        let second = ControlSocket::bind(&place).unwrap();
        assert!(links.iter().all(|link| fs::read_link(link).unwrap() == target));
        UnixStream::connect(&target).await.unwrap();
        drop(second);
        assert!(links.iter().chain([&target]).all(|path| fs::symlink_metadata(path).is_err()));
    }

    #[tokio::test]
    async fn a_place_too_long_for_an_address_gets_a_link_to_a_private_socket() {
        let dir = TempDir::new().unwrap();
        let long = dir.path().join("d".repeat(120));
        fs::create_dir(&long).unwrap();
        let place = SocketPlace { path: long.join("peerd.sock"), ..place_in(dir.path()) };
        let socket = ControlSocket::bind(&place).unwrap();
        let target = fs::read_link(&place.path).unwrap();
        assert!(target.starts_with(&place.private_dir));
        assert_eq!(fs::metadata(&place.private_dir).unwrap().mode() & 0o777, 0o700);
        UnixStream::connect(&target).await.unwrap();
        assert!(matches!(ControlSocket::bind(&place), Err(BindError::InUse(_))));
        drop(socket);
        assert!(fs::symlink_metadata(&place.path).is_err() && fs::symlink_metadata(&target).is_err());

        fs::set_permissions(&place.private_dir, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(ControlSocket::bind(&place), Err(BindError::NotPrivate(_))));
    }
}
