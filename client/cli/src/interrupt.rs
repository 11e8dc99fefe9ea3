//! Ctrl-C, looked for where it suits instead of ending the program anywhere.

use std::cell::Cell;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::failure::Failure;

/// See the module's text. Threads that are started before it exists do not honour it.
pub(crate) struct Interrupt {
    signals: SignalFd,
    came: Cell<bool>,
}

impl Interrupt {
    /// From here on SIGINT and SIGTERM end nothing by themselves.
    pub(crate) fn hold() -> Result<Self, Failure> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        let failed = |error: nix::Error| Failure::io("setting up signals", &error.into());
        set.thread_block().map_err(failed)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self {
            signals: SignalFd::with_flags(&set, flags).map_err(failed)?,
            came: Cell::new(false),
        })
    }

    /// Whether the user has asked for the end.
    pub(crate) fn came(&self) -> bool {
        if matches!(self.signals.read_signal(), Ok(Some(_))) {
            self.came.set(true);
        }
        self.came.get()
    }
}
