//! Cachelet.
