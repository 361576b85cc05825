//! Who plays otherwise: cheaters, and the plain chokers that they are measured against.

mod bit_tyrant;
mod cooperative;
mod free_rider;
mod poisoner;
mod shows_all;
mod thief;
mod tit_for_tat;

pub use bit_tyrant::BitTyrant;
pub use cooperative::Cooperative;
pub use free_rider::FreeRider;
pub use poisoner::Poisoner;
pub use shows_all::ShowsAll;
pub use thief::Thief;
pub use tit_for_tat::TitForTat;
