//! Links the library so that it is never unmapped.

fn main() {
    // A JVM closes a library when its class loader is collected. A session's reader thread, and the destructors of what
    // this library keeps for each thread, would then run code that is gone.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rerun-if-changed=build.rs");
}
