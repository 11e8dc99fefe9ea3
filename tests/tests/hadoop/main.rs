//! The Hadoop file systems on the Hadoop releases that they support, against a real S3 server and real daemons.
//!
//! The classes are compiled once, against the newest release, and run on each. Needs what `make jar` builds: the native
//! library in `target/native`.

#![cfg(test)]

mod contract;
mod faults;
mod java;
mod oss;
mod plain;
mod reads;
