//! See ARCHITECTURE.md.
pub mod search;
pub mod swarms;
