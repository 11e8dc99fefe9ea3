//! The locality service's gRPC messages, client and server, generated from `proto/locality.proto`.

#![allow(
    missing_docs,
    unused_qualifications,
    clippy::pedantic,
    reason = "generated; documented in the .proto file"
)]

tonic::include_proto!("cachelet.locality.v1");
