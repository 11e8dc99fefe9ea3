//! Faults, each at a dose, through real processes, sockets and files.
//!
//! Every byte that any reader gets is compared with the [`Reference`](cachelet_tests::Reference); when a test is over, nothing of its
//! clients is left in the daemon ([`Baseline`](cachelet_tests::Baseline)). Each run prints its seed and takes it from
//! `CACHELET_SEED`; `CACHELET_DOSE=full` (`make soak`) gives the full dose. `docs/testing.md` lists faults and doses.

#![cfg(test)]

mod clocks;
mod crowds;
mod damage;
mod full_disk;
mod memory;
mod model;
mod overwrites;
mod partitions;
mod restarts;
mod support;
