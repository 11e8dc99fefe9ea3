//! The stores against small servers on the loopback interface that answer as told, and against a directory.

mod directory;
mod hostile;
mod oss_signature;
mod routing;
mod server;
<<<<<<< HEAD
=======
mod sources;
>>>>>>> origin
mod wire;
