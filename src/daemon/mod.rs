//! See ARCHITECTURE.md.

pub mod share;
pub mod watch;
