//! What decoding may cost: memory counted by the allocator of this thread, steps by this thread's processor time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Bytes allocated at any one moment for each byte of input, those of the result among them. A vector that grows by
/// doubling alone makes three: the old one beside the new one.
const ALLOCATED_PER_BYTE: usize = 4;
/// What may be allocated however short the input is: stacks, the first growth of a vector, the text of an error.
pub const SLACK_BYTES: usize = 8 << 10;
/// Hang limits, a hundred times what an unoptimised build takes: they see steps that grow with the square of the input.
const NANOSECONDS: u64 = 10_000_000;
const NANOSECONDS_PER_BYTE: u64 = 2_000;

/// What `decode` returns, if it stayed within the bounds for `input`.
///
/// # Panics
/// When it did not.
pub fn bounded<T>(input: &[u8], decode: impl FnOnce() -> T) -> T {
    bounded_by(input, SLACK_BYTES, decode)
}

/// As [`bounded`], for a decoder that may allocate `slack` bytes beside what its input's length allows. The caller says
/// why.
///
/// # Panics
/// When the bounds were passed.
pub fn bounded_by<T>(input: &[u8], slack: usize, decode: impl FnOnce() -> T) -> T {
    let mut decoded = None;
    let started = processor_time();
    let allocated = allocation_counter::measure(|| decoded = Some(decode())).bytes_max;
    let spent = processor_time().saturating_sub(started);

    let bytes = input.len();
    let may_allocate = (ALLOCATED_PER_BYTE * bytes + slack) as u64;
    assert!(allocated <= may_allocate, "{allocated} bytes allocated for {bytes}: {may_allocate} are allowed");
    let may_spend = Duration::from_nanos(NANOSECONDS + NANOSECONDS_PER_BYTE * bytes as u64);
    assert!(spent <= may_spend, "{spent:?} spent on {bytes} bytes: {may_spend:?} are allowed");
    decoded.expect("the closure has run")
}

/// Of this thread: what else the machine does is not counted.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux counts it").into()
}
