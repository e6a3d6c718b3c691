//! Labs in the kernel: real sockets and programs behind the model's links. They need root and TUN devices; elsewhere
//! each says that it was skipped, except in CI, where that is a failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod ends;
mod faults;
mod links;
mod streams;
mod support;
