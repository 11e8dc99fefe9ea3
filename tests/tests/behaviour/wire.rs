//! A client of the local protocol that keeps what it is asked to give back.

pub(crate) use cachelet_tests::raw::{RawGrant, RawSession, connect, hello, is_over, unknown_request};
