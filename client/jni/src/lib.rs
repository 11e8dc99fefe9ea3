//! The native library of the Java package `io.cachelet.client`: `cachelet-client` behind JNI.
//!
//! [`natives`] has the functions that the JVM calls, [`handles`] the tables behind the numbers that Java holds,
//! [`open`] what they name, [`failure`] how an error becomes an exception.
//!
//! Invariants: no number that Java passes is ever a pointer, so closing twice, using after closing, or closing while
//! another thread reads is an exception at worst; no Java array is pinned while the kernel is asked for bytes; nothing
//! unwinds into the JVM. All calls come from threads that the JVM made: the client's own thread never calls Java, so
//! there is no thread to attach.

mod failure;
mod handles;
mod natives;
mod open;
