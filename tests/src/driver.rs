//! What the programs built on the harness share.

use std::io::Write;

/// Says what went wrong in one line, `program: message`, where the harness panics: a user of the demo is not told about
/// threads and backtraces.
pub fn report_panics(program: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("failed for an unknown reason");
        let _ = writeln!(std::io::stderr(), "{program}: {message}");
    }));
}
