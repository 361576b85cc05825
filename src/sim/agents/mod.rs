//! Who plays otherwise: cheaters, and the plain chokers that they are measured against.

mod cooperative;
mod free_rider;
mod poisoner;
mod tit_for_tat;

pub use cooperative::Cooperative;
pub use free_rider::FreeRider;
pub use poisoner::Poisoner;
pub use tit_for_tat::TitForTat;
