//! fill.
