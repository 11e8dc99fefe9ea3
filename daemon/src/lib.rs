//! The daemon: caches blocks of objects on a node's disks and hands out read-only descriptors of them.

pub mod admin;
pub mod app;
mod breaker;
pub mod config;
mod connection;
mod descriptor_budget;
pub mod fill;
pub mod metrics;
pub mod origin;
pub mod prepare;
pub mod report;
pub mod serve;
pub mod standby;
pub mod start;
pub mod store;
pub mod uninstall;
mod upkeep;
pub mod wipe;
