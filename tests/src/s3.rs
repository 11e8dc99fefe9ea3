//! A real S3 server on loopback, and the buckets and objects a test puts there.
//!
//! [`S3Server::shared`] is one server for all tests of a process (starting one takes about a second), in which each test
//! has buckets of its own; [`S3Server::start_fresh`] is for tests that stop the server.

mod client;
mod server;
mod sign;

pub use client::{Bucket, Refused, Reply, StoredObject};
pub use server::{ACCESS_KEY, REGION, S3Kind, S3Server, SECRET_KEY};
