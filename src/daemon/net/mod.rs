//! Connections: listening, dialling, handshakes, and the sessions that come of them.

mod ahead;
pub mod bind;
pub mod dial;
pub mod greet;
pub mod introduction;
pub mod listen;
pub mod outbox;
pub mod pipe;
pub mod session;
pub mod stream;
mod waiting_room;
