//! Every integration test, one binary.

mod tidy;
