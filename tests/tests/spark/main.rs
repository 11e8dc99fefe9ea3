//! What Spark does with Cachelet: locality and faults, told by event logs of real applications on both supported
//! releases.
//!
//! These need `make jar` and `scripts/spark-env install`: `make test-spark` does both. What takes long on both releases
//! runs on one, unless `CACHELET_TEST_SPARK=full` (`make test-spark-full`).

#![cfg(test)]

mod faults;
mod formats;
mod harness;
mod locality;
mod support;
