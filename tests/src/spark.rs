//! A real Spark: `PySpark` releases with S3A from Maven Central, a standalone cluster on loopback, applications submitted
//! as users submit them, and what their event logs say.
//!
//! A Spark worker stands for a node: it has an address of its own (127.0.0.2, 127.0.0.3, ...), which is the host string
//! of its executors, and the socket directory of that node's daemon. Spark's scheduler matches host strings and nothing
//! else, so that what it does here is what it does with pod IPs.

mod application;
mod events;
mod install;
mod standalone;
mod tpch;

pub use application::{Application, RunningApplication, Summary, cachelet_jar};
pub use events::{EventLog, Executor, Locality, Task};
pub use install::{Release, SparkInstall};
pub use standalone::{SparkCluster, SparkNode};
pub use tpch::{QueryResult, TPCH_QUERIES, TpchSession, tpch_files};
pub(crate) use tpch::{TpchError, find_or_make_tpch};
