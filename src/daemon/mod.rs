//! See ARCHITECTURE.md.

pub mod control;
