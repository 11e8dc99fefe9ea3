//! The locality service's process: arguments, configuration, logging, runtime, service.

use std::process::ExitCode;

use cachelet_locality::cli::{self, Arguments};
use cachelet_locality::{App, Config, logging};
use clap::Parser;
use clap::error::ErrorKind;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

/// Wrong arguments or configuration: `EX_USAGE` of sysexits.h.
const EXIT_USAGE: u8 = 64;

#[allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "before logging starts, and what was asked for"
)]
fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(shown) => {
            let _ = shown.print();
            return match shown.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_USAGE),
            };
        }
    };
    let config = match arguments.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("cachelet-locality: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if arguments.dump_config {
        print!("{}", config.dump());
        return ExitCode::SUCCESS;
    }
    if arguments.check_config {
        println!("the configuration is in order");
        return ExitCode::SUCCESS;
    }
    logging::start(&config);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot start the runtime: check the limits on threads and descriptors");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(config, &arguments));
    // What is still running is bounded and harmless: the grace is over.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("cachelet-locality: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let app = App::build(config).await?;
    let addresses = app.addresses();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    info!(http = %addresses.http, grpc = %addresses.grpc, "listening");
    cli::announce(addresses, arguments.ready_file.as_deref())?;
    app.run(async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
    .await;
    Ok(())
}
