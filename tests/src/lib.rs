//! The harness of Cachelet's behaviour tests: real processes, real sockets, a real S3 server.
//!
//! A test says what it needs (an [`S3Server`], a [`FaultProxy`] in front of it, a [`Process`] of this workspace, a
//! [`TestDir`]) and what it waits for ([`wait_until`]). Everything it starts ends with it: when the value is dropped,
//! when the test panics, and when the whole test process is killed.
//!
//! Two programs are built on it: `cachelet-demo` ([`demo`]) and `cachelet-bench` (`tests/benches`).
//!
//! A harness has nobody to return an error to: what goes wrong here panics, with what was attempted and on what.

mod cluster;
mod content;
pub mod demo;
mod dir;
mod dose;
mod driver;
mod fault_proxy;
mod faulty_disk;
mod hostile_s3;
mod literal_s3;
mod loopback;
mod net;
mod process;
pub mod raw;
mod reference;
mod residue;
mod s3;
pub mod spark;
pub mod table;
mod wait;

pub use cluster::{Cluster, ClusterBuilder, GrantSetup, LEASE, Service, Worker, can_mount, node_name};
pub use content::{deterministic_bytes, deterministic_range, first_difference, sha256_file, sha256_hex};
pub use dir::{TestDir, repository_root};
pub use dose::Dose;
pub use driver::report_panics;
pub use fault_proxy::{Fault, FaultProxy, Hold, RecordedRequest, Traffic};
pub use faulty_disk::{DiskOperation, FaultyDisk};
pub use hostile_s3::{HostileS3, Misdeed, Mood};
pub use literal_s3::LiteralS3;
pub use net::free_port;
pub use process::{Finished, Process, ProcessBuilder};
pub use reference::{Counts, Outcome, Reader, Reference, Version};
pub use residue::Baseline;
pub use s3::{ACCESS_KEY, Bucket, REGION, Refused, Reply, S3Kind, S3Server, SECRET_KEY, StoredObject};
pub use wait::{pause, wait_until};
