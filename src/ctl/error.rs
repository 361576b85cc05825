//! Everything that ends a command without success, and the exit code it stands for.

use super::socket::NoDaemon;
use crate::wire::control::{Candidate, EncodeError, Failure, FailureClass, FrameError, Unsupported, VERSION};
use crate::wire::name::escape_for_terminal;
use std::io;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error(transparent)]
    NoDaemon(#[from] NoDaemon),
    /// The daemon's own word.
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("several torrents match; name one by its key")]
    Ambiguous(Vec<Candidate>),
    #[error("nobody shares that under this name; did you mean one of these?")]
    DidYouMean(Vec<Candidate>),
    #[error("this peerd does not know the command (kind {:#06x}, its protocol {}, ours {VERSION}): it is of another \
             version; restart it with the peerd that this peerctl came with", .0.kind, .0.version)]
    Unsupported(Unsupported),
    #[error("the daemon ended before it had answered; downloads go on when it is started again")]
    Lost,
    #[error("the daemon has said nothing for a minute; see its log, or `peerctl status`")]
    Silent,
    #[error("the daemon has no connection free for this command; end some `peerctl get`, or use `get --detach`")]
    Busy,
    #[error("the daemon's answer is not one that this peerctl understands")]
    Unexpected,
    #[error("what answers on this socket is not peerd: {0}")]
    NotPeerd(#[from] FrameError),
    #[error(transparent)]
    Request(#[from] EncodeError),
    #[error("the daemon's socket: {0}")]
    Socket(io::Error),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl CtlError {
    /// As the README has them: 1 failed, 2 usage, 3 no daemon, 4 not found, 5 ambiguous.
    pub fn exit_code(&self) -> u8 {
        match self {
            CtlError::NoDaemon(_) => 3,
            CtlError::Failed(failure) => failure.class.exit_code(),
            CtlError::Ambiguous(_) => FailureClass::Ambiguous.exit_code(),
            CtlError::DidYouMean(_) => FailureClass::NotFound.exit_code(),
            CtlError::Request(_) => FailureClass::Usage.exit_code(),
            _ => FailureClass::Failed.exit_code(),
        }
    }

    /// The exit code's name in `--json`.
    pub(super) fn class(&self) -> &'static str {
        match self.exit_code() {
            2 => "usage",
            3 => "no_daemon",
            4 => "not_found",
            5 => "ambiguous",
            _ => "failed",
        }
    }

    /// Torrents that may have been meant.
    pub(super) fn candidates(&self) -> &[Candidate] {
        match self {
            CtlError::Ambiguous(candidates) | CtlError::DidYouMean(candidates) => candidates,
            _ => &[],
        }
    }

    /// The message with a stranger's control characters escaped; its lines stay lines.
    pub(super) fn for_terminal(&self) -> String {
        let text = self.to_string();
        text.lines().map(escape_for_terminal).collect::<Vec<_>>().join("\n")
    }
}
