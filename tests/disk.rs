//! Nothing lost: the store, the segment log and the real daemons on a disk that fails on demand.

mod child;
mod crash;
mod faults;
mod minute;
mod model;
mod removal;
mod store;
mod swallow;
mod victim;
mod window;
