//! See ARCHITECTURE.md.

pub mod disk;
