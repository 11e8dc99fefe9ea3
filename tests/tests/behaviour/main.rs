//! What Cachelet promises, through real processes, real sockets and a real S3 server.
//!
//! `docs/semantics.md` names these tests; `docs.rs` checks that it names no other.

#![cfg(test)]

mod docs;
mod keys;
mod lifecycle;
mod locations;
mod reads;
mod support;
