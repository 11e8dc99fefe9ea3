//! What Cachelet promises, through real processes, real sockets and a real S3 server.
//!
//! `docs/semantics.md` names these tests; `docs.rs` checks that it names no other.

#![cfg(test)]

mod coalescing;
mod disks;
mod docs;
mod eviction;
mod generations;
mod grants;
mod integrity;
mod keys;
mod lifecycle;
mod load;
mod locations;
mod origin;
mod peers;
mod reads;
mod short_circuit;
mod support;
mod usage;
mod wire;
mod wrong_input;
