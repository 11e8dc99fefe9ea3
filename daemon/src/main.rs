//! The daemon's program: arguments, configuration, build, run, drain.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cacheletd::app::App;
use cacheletd::config::Config;
use cacheletd::standby::{self, Ended};
use cacheletd::{prepare, start, uninstall, wipe};
use clap::Parser;
use tracing::{error, info};

/// Caches blocks of S3 and OSS objects on this node's disks and hands readers read-only descriptors of them.
///
/// One daemon runs on each node. It needs a configuration file (docs/configuration.md); node name and worker UUID come from
/// NODE_NAME and WORKER_UUID. SIGTERM drains it: requests under way end, the cache is kept.
#[derive(Debug, Parser)]
#[command(name = "cacheletd", version)]
#[allow(clippy::doc_markdown, reason = "the text is printed by --help")]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration file and exit: 0 if it is good, 64 with the key and the reason if not.
    #[arg(long)]
    check_config: bool,
    /// Check that every configured store can be read, print one line each, and exit: 0 or 1.
    #[arg(long)]
    check_stores: bool,
    /// Make cache.directory and local.socket_dir for a daemon of this user and group, and exit. Needs root.
    #[arg(long, value_name = "UID:GID")]
    prepare_directories: Option<prepare::Owner>,
    /// Remove what daemons made in cache.directory and local.socket_dir, say what that was and what else is there, and exit.
    /// Waits for a running daemon to end, at most for cache.takeover_wait.
    #[arg(long)]
    wipe_directories: bool,
    /// With --wipe-directories: wait for SIGTERM afterwards, as the pods of a DaemonSet must.
    #[arg(long, requires = "wipe_directories")]
    stay: bool,
    /// Wait until the pods of this DaemonSet, each of which wipes its node, are ready, and exit: 0, or 1 with how many are not.
    #[arg(long, value_name = "NAME")]
    await_wiped: Option<String>,
    /// With --await-wiped: how long, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 240, requires = "await_wiped")]
    within: u64,
    /// Print the configuration with every default filled in, and exit.
    #[arg(long)]
    dump_config: bool,
    /// Write the bound addresses to this file, as JSON, once the daemon serves.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Write log lines as JSON.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments: Arguments = match start::arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return start::refuse(start::EXIT_USAGE, &error),
    };
    // A check says what it found itself.
    start::log(
        arguments.log_json,
        if arguments.check_stores { "off" } else { "info" },
    );
    if arguments.dump_config {
        return start::dump(&config);
    }
    if arguments.check_config {
        return ExitCode::SUCCESS;
    }
    if let Some(owner) = arguments.prepare_directories {
        return match prepare::directories(&config, owner) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => start::refuse(1, &error),
        };
    }
    if arguments.wipe_directories
        && let Err(error) = wipe::directories(&config)
    {
        return start::refuse(1, &error);
    }
    start::raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return start::refuse(1, &error),
    };
    if arguments.wipe_directories {
        if arguments.stay {
            runtime.block_on(wipe::stay());
        }
        return ExitCode::SUCCESS;
    }
    if let Some(daemonset) = &arguments.await_wiped {
        let within = Duration::from_secs(arguments.within);
        return match runtime.block_on(uninstall::until_wiped(daemonset, within)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => start::refuse(1, &error),
        };
    }
    if arguments.check_stores {
        return runtime.block_on(start::check_stores(&config));
    }
    runtime.block_on(run(config, arguments.ready_file.as_deref()))
}

async fn run(config: Config, ready_file: Option<&Path>) -> ExitCode {
    let environment = |name: &str| std::env::var(name).ok();
    let stop = start::termination();
    match standby::until_free(&config, &environment, &stop).await {
        Ok(Ended::Proceed) => {}
        Ok(Ended::Stopped) => return ExitCode::SUCCESS,
        Err(error) => return start::refuse(1, &error),
    }
    let app = match App::build(config, &environment) {
        Ok(app) => app,
        Err(error) => return start::refuse(1, &error),
    };
    match app
        .addresses()
        .and_then(|addresses| start::announce(&addresses, ready_file).map(|()| addresses))
    {
        Ok(addresses) => info!(?addresses, "serving"),
        Err(error) => return start::refuse(1, &error),
    }
    match app.run(stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "the daemon failed");
            ExitCode::FAILURE
        }
    }
}
