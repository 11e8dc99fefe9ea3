//! What the program does before and around the daemon: logging, refusals, announcements, signals.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::app::Addresses;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::origin::Stores;

/// Wrong arguments or configuration: `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// The arguments; else, with help or the reason printed, the exit code.
pub fn arguments<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|shown| {
        // The terminal may be gone; there is nobody to tell then.
        let _ = shown.print();
        match shown.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
            _ => ExitCode::from(EXIT_USAGE),
        }
    })
}

/// Raises the limit of open descriptors to the hard limit: grants, connections and block files each take one.
pub fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open descriptors; going on with what there is");
    }
}

/// Logs to standard error. `RUST_LOG` filters; `default` says what is logged without it.
pub fn log(json: bool, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    // A second call, in a test, keeps the first subscriber.
    let _ = if json {
        subscriber.json().try_init()
    } else {
        subscriber.try_init()
    };
}

/// Says why the daemon does not start, on one line, and gives the exit code.
pub fn refuse(code: u8, error: &dyn Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "cacheletd: {error}");
    ExitCode::from(code)
}

/// Prints the configuration with its defaults.
pub fn dump(config: &Config) -> ExitCode {
    match toml::to_string(config) {
        Ok(text) => {
            let _ = write!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => refuse(1, &error),
    }
}

/// Checks every store and prints one line each.
pub async fn check_stores(config: &Config) -> ExitCode {
    let stores = match Stores::build(&config.stores, Metrics::default()) {
        Ok(stores) => stores,
        Err(error) => return refuse(EXIT_USAGE, &error),
    };
    let mut good = true;
    for store in stores.iter() {
        match store.check().await {
            Ok(()) => {
                let _ = writeln!(io::stdout(), "store {}: ok ({})", store.name(), store.identity());
            }
            Err(error) => {
                good = false;
                let _ = writeln!(io::stderr(), "store {}: {error}", store.name());
            }
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Writes the addresses to the ready file, whole or not at all.
pub fn announce(addresses: &Addresses, ready_file: Option<&Path>) -> io::Result<()> {
    let Some(path) = ready_file else { return Ok(()) };
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec_pretty(addresses)?)?;
    std::fs::rename(temporary, path)
}

/// Cancelled by SIGTERM or SIGINT. Must be called within a Tokio runtime.
pub fn termination() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        if let (Ok(mut terminate), Ok(mut interrupt)) = signals {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            cancelled.cancel();
        }
    });
    token
}
