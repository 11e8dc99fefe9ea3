//! Cachelet's locality service: which node holds which block, and where a block belongs that nobody holds.
//!
//! Workers report over gRPC ([`App`]'s `grpc` address) to every replica; schedulers ask over HTTP (its `http` address),
//! in the JSON of [`api`]. All state is soft: a fresh replica knows everything as soon as the workers have told it.
//!
//! The way of a report: `grpc` -> `report` (gaps, full reports) -> `cluster` -> `membership` (who lives) and `index`
//! (who holds what). The way of a question: `http` -> `cluster` -> `answer` (whom to name for a block).

mod answer;
pub mod api;
mod app;
pub mod cli;
mod cluster;
pub mod config;
mod grpc;
mod http;
mod index;
pub mod logging;
mod membership;
pub mod metrics;
mod report;

pub use app::{Addresses, App, BuildError};
pub use config::Config;
