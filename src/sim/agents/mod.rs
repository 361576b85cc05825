//! Who plays otherwise: cheaters, and the plain chokers that they are measured against.

mod cooperative;
mod free_rider;

pub use cooperative::Cooperative;
pub use free_rider::FreeRider;
