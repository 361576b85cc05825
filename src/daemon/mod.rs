//! Placeholder.

pub mod identity;
pub mod trackers;
