//! The byte stream under a session. TCP today; uTP and encryption will be other implementations.

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};

use nix::sys::uio::readv;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pipe::Pipe;

/// A connected, ordered, reliable stream that never blocks.
pub trait PeerStream: Send + Sync + 'static {
    /// Resolves when a read (always) or a write (if `write`) may make progress.
    ///
    /// # Errors
    /// When the stream is broken.
    fn ready(&self, read: bool, write: bool) -> impl Future<Output = io::Result<()>> + Send;

    /// Reads into the buffers in order. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else breaks the stream.
    fn try_read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Writes from the buffers in order.
    ///
    /// # Errors
    /// `WouldBlock` when nothing can be taken; anything else breaks the stream.
    fn try_write_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Writes at most so many bytes of what a pipe holds.
    ///
    /// # Errors
    /// `WouldBlock` when nothing can be taken; anything else breaks the stream.
    fn try_write_pipe(&self, pipe: &mut Pipe, most_bytes: usize) -> io::Result<usize>;

    /// Takes no more than about so many bytes beyond what is on its way: what waits there cannot be taken back. `None`
    /// lifts the bound. Best effort: a stream that cannot do it takes more.
    fn bound_unsent(&self, bytes: Option<u32>);
}

impl PeerStream for TcpStream {
    async fn ready(&self, read: bool, write: bool) -> io::Result<()> {
        let interest = match (read, write) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (false, true) => Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            (false, false) => return std::future::pending().await,
        };
        TcpStream::ready(self, interest).await.map(|_| ())
    }

    fn try_read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let room: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let mut got = 0;
        let tried = self.try_io(Interest::READABLE, || {
            got = readv(self, buffers)?;
            // Less than there was room for: that was all. Said so, it is not asked again in vain.
            if got > 0 && got < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(got) }
        });
        if got > 0 { Ok(got) } else { tried }
    }

    fn try_write_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        TcpStream::try_write_vectored(self, buffers)
    }

    fn try_write_pipe(&self, pipe: &mut Pipe, most_bytes: usize) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, || pipe.send(self, most_bytes))
    }

    fn bound_unsent(&self, bytes: Option<u32>) {
        // Zero is the system's default.
        if let Err(error) = SockRef::from(self).set_tcp_notsent_lowat(bytes.unwrap_or(0)) {
            tracing::debug!(%error, "what waits in a socket is not bounded");
        }
    }
}
