//! Cachelet's client core: S3 and OSS objects read from descriptors of the local cache's files.
//!
//! Synchronous and small: it lives in every executor's JVM. One [`Client`] a process; [`Client::open`] gives an
//! [`Object`], one generation of one object, whose [`read_at`](Object::read_at) is, once the block is cached and its
//! descriptor held, one `pread` and no message. What the daemon does not serve ends in an [`Error`] whose
//! [`should_use_origin`](Error::should_use_origin) says whether to read from the origin instead; this crate knows no
//! origin.
//!
//! ```no_run
//! use cachelet_client::{Client, OpenRequest, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new(Options::default());
//! let path = "s3://lake/table/part-0.parquet".parse()?;
//! let object = client.open(&OpenRequest::new(path).with_first_range(0..65536))?;
//! let mut buf = vec![0; 65536];
//! let read = object.read_at(&mut buf, 0)?;
//! # Ok(())
//! # }
//! ```
//!
//! How a read goes: [`Object::read_at`] -> the block's slot -> its grant -> `pread`. How a miss goes: a `Fill` on the
//! session's control connection, answered through its reader thread; or, where no descriptor is to be had, a `Read` on a
//! data connection straight into the caller's buffer.

mod client;
mod deadline;
mod error;
mod grant;
mod object;
mod options;
mod session;
mod stats;

pub use client::{Client, OpenRequest};
pub use error::{Error, ExpectedGeneration};
pub use object::Object;
pub use options::{DEFAULT_SOCKET_DIR, Identity, Options, Target};
pub use session::{FilledBytes, WorkerInfo};
pub use stats::Stats;
