//! peerd's files: where a torrent's bytes lie, how they get there and how they are known to be right.
//!
//! - [`fs`] is the narrow trait behind which a faulty disk can stand; the real one opens everything beneath a root.
//! - [`storage`] maps one torrent's byte stream to its files, unfinished or in their final place.
//! - [`check`] hashes pieces, one or all.
//! - [`digest`] digests the parts of a piece that came wrong, to find who gave them.
//! - [`gather`] has pieces that come quickly wait for each other, [`lanes`] hashes them side by side.
//! - [`pool`] owns the memory that payload passes through.
//! - [`assembly`] collects the blocks of pieces in progress and says what to hash and write, and when.
//!
//! Nothing here is async but the wait for a buffer: calls that touch files belong on blocking threads.

pub mod assembly;
pub mod check;
pub mod digest;
pub mod fs;
pub mod gather;
pub mod lanes;
pub mod pool;
pub mod storage;
