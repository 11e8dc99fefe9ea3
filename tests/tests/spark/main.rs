//! What Spark does with Cachelet: locality, freshness and faults, from event logs of real applications on both
//! supported releases.
//!
//! These need `make jar` and `scripts/spark-env install`: `make test-spark` does both.

#![cfg(test)]

mod harness;
mod support;
