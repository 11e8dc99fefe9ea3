//! What Cachelet's parts say to each other.
//!
//! * [`ids`]: stores, objects, generations, workers; the identities that blocks are filed under.
//! * [`block`]: block and page arithmetic.
//! * [`integrity`]: chunk checksums and page words.

pub mod block;
pub mod ids;
pub mod integrity;
