//! The fuzzer's programs, all of this one source: each runs the target that it is named after.

#![no_main]

#[path = "../tests/fuzz/targets/mod.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| (targets::named(env!("CARGO_BIN_NAME")).run)(input));
