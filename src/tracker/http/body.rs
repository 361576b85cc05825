//! Bodies in and out: read within a cap and a common budget, files sent as they are read.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Memory for all bodies of up to [`SMALL_BYTES`], and as much again for larger ones: connections times the largest body
/// would be 40 GiB.
const BUDGET_BYTES: usize = 64 << 20;
/// Most `.torrent`s are smaller: they do not wait behind a few huge ones.
const SMALL_BYTES: usize = 256 << 10;
/// The budgets are counted in these.
const UNIT_BYTES: usize = 1024;
/// A body takes no longer: it holds its share of the budget.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Read and thrown away of a body that is too large, so that its sender gets to see the answer.
const DISCARD_BYTES: usize = 32 << 20;
/// Read of a file at a time.
const FILE_CHUNK_BYTES: usize = 64 << 10;

/// Why there is no body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BodyError {
    #[error("at most {0} bytes are taken")]
    TooLarge(usize),
    #[error("the body did not come within 60 s")]
    Timeout,
    #[error("the body broke off")]
    Broken,
}

/// Memory that bodies may take together.
pub struct BodyBudget {
    small: Semaphore,
    large: Semaphore,
}

impl Default for BodyBudget {
    fn default() -> Self {
        let units = BUDGET_BYTES / UNIT_BYTES;
        BodyBudget { small: Semaphore::new(units), large: Semaphore::new(units) }
    }
}

/// A body, and the share of the budget that it holds until it is dropped.
pub struct Held<'a> {
    pub bytes: Vec<u8>,
    _share: SemaphorePermit<'a>,
}

impl BodyBudget {
    /// # Errors
    /// See [`BodyError`].
    pub async fn read(&self, body: Incoming, max_bytes: usize) -> Result<Held<'_>, BodyError> {
        let read = async {
            let announced = usize::try_from(body.size_hint().upper().unwrap_or(max_bytes as u64));
            let share_bytes = announced.unwrap_or(max_bytes).min(max_bytes);
            let budget = if share_bytes <= SMALL_BYTES { &self.small } else { &self.large };
            let units = u32::try_from(share_bytes.div_ceil(UNIT_BYTES)).map_err(|_| BodyError::TooLarge(max_bytes))?;
            let share = budget.acquire_many(units).await.map_err(|_| BodyError::Broken)?;
            let bytes = read_at_most(body, max_bytes).await?;
            Ok(Held { bytes, _share: share })
        };
        tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or(Err(BodyError::Timeout))
    }
}

async fn read_at_most(mut body: Incoming, max_bytes: usize) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    let mut came = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        came += data.len();
        if came <= max_bytes {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
            if came > max_bytes + DISCARD_BYTES {
                break;
            }
        }
    }
    if came > max_bytes { Err(BodyError::TooLarge(max_bytes)) } else { Ok(bytes) }
}

/// A file as a body, its first `left` bytes.
pub struct FileBody {
    file: tokio::fs::File,
    left: u64,
}

impl FileBody {
    pub fn new(file: tokio::fs::File, bytes: u64) -> FileBody {
        FileBody { file, left: bytes }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(FILE_CHUNK_BYTES);
        if wanted == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = vec![0; wanted];
        let mut buffer = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut self.file).poll_read(context, &mut buffer))?;
        let read = buffer.filled().len();
        if read == 0 {
            return Poll::Ready(Some(Err(std::io::ErrorKind::UnexpectedEof.into())));
        }
        chunk.truncate(read);
        self.left -= read as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
