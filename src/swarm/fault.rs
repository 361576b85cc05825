//! What peers do wrong, and why sessions end.

use super::proving::Refused;
use crate::wire::bitfield::BitfieldError;
use crate::wire::layout::{PieceIndex, RawBlock};

/// A peer's misbehaviour; the session ends with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerFault {
    #[error("it sent {0}")]
    Bitfield(#[from] BitfieldError),
    #[error("it named piece {0}, which this torrent does not have")]
    NoSuchPiece(u32),
    #[error("it sent a message of the fast extension, which was not agreed on (BEP 6)")]
    FastNotAgreed,
    #[error("it sent a block that lies outside the torrent: piece {} at {}, {} bytes", .0.piece, .0.begin, .0.len)]
    NoSuchBlock(RawBlock),
    #[error("it kept sending blocks that nobody had asked for")]
    Unrequested,
    #[error("it kept asking for blocks that do not exist or that we do not have")]
    BadRequests,
    #[error("it kept rejecting requests that it was never sent")]
    BadRejects,
    #[error("it sends requests without end and does not read the answers")]
    DoesNotRead,
    #[error("it gave wrong bytes of piece {}", .0.get())]
    BadPiece(PieceIndex),
    #[error("it floods us with messages that say nothing")]
    Floods,
    #[error("it stopped in the middle of a block")]
    Stalled,
    #[error("{0}")]
    Identity(#[from] Refused),
}

/// Why the shell is told to close a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    #[error("{0}")]
    Fault(PeerFault),
    #[error("neither side needs anything from the other")]
    BothSeeds,
}
