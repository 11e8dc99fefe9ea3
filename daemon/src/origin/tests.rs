//! The stores against small servers on the loopback interface that answer as told, and against a directory.

mod directory;
mod hostile;
mod oss_signature;
mod routing;
mod server;
mod sources;
mod wire;
