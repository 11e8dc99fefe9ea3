//! What Cachelet's parts say to each other, and the arithmetic they must agree on.
//!
//! * [`ids`]: stores, objects, generations, workers; the identities that blocks are filed under.
//! * [`block`]: block and page arithmetic.
//! * [`config_text`]: what is wrong with a configuration file, on one line.
//! * [`bucket`]: which buckets a store serves.
//! * [`integrity`]: chunk checksums and page words.
//! * [`rendezvous`]: which node a block belongs to while nobody holds it.
//! * [`residency`]: how much of a block a node holds, two bits a block.
//! * [`wire`]: frames, messages and descriptors between clients and daemons.
//! * `grpc` (feature `grpc`): the locality service as workers see it.
//!
//! This crate lives in every executor: without the feature it depends on little more than `nix` and `thiserror`.

pub mod block;
pub mod bucket;
pub mod config_text;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod ids;
pub mod integrity;
pub mod rendezvous;
pub mod residency;
pub mod wire;
