//! Ctrl-C and SIGTERM: noticed between steps, so that everything is ended in order.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use super::Error;

/// Whether somebody wants the demo to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    wanted: Arc<AtomicBool>,
}

impl Stop {
    /// Listens for SIGINT and SIGTERM. At a second one the process ends at once; the kernel then kills what it started.
    pub fn on_signals() -> Self {
        let stop = Self::default();
        let wanted = Arc::clone(&stop.wanted);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime needs two descriptors");
                runtime.block_on(async {
                    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
                    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
                    loop {
                        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                        if wanted.swap(true, Ordering::AcqRel) {
                            process::exit(130);
                        }
                    }
                });
            })
            .expect("a thread can be started");
        stop
    }

    /// Fails once the demo is to stop.
    pub fn check(&self) -> Result<(), Error> {
        if self.wanted.load(Ordering::Acquire) {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }
}
