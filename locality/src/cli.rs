//! The command line: what it says and what it does before a service is built.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Serialize;

use crate::app::Addresses;
use crate::config::{self, Config};

/// The locality service of Cachelet: knows which node holds which block, and tells schedulers.
#[derive(Debug, Clone, Parser)]
#[command(name = "cachelet-locality", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// TOML file with settings; without it every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port of the HTTP side (locations, status, metrics, health); port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Address and port of the gRPC side, where workers report.
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<SocketAddr>,
    /// Writes {"http", "grpc", "pid"} to this file once both sides listen.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Checks the configuration and exits: 0 if it can be used, 64 if not.
    #[arg(long)]
    pub check_config: bool,
    /// Prints every setting with its meaning, default and present value, as a TOML file, and exits.
    #[arg(long)]
    pub dump_config: bool,
}

const EXAMPLES: &str = "\
Examples:
  cachelet-locality --http 127.0.0.1:7070 --grpc 127.0.0.1:7071
      A service for one machine. Point workers at 127.0.0.1:7071, browsers at http://127.0.0.1:7070/status.
  cachelet-locality --dump-config > locality.toml
      A configuration file that explains itself, to edit and to pass with --config.
  curl -d '{\"paths\": [\"s3a://lake/table/part-0.parquet\"]}' http://127.0.0.1:7070/v1/locations
      Where an object's blocks are.

It keeps nothing on disk: workers tell a fresh replica everything within seconds. SIGTERM and Ctrl-C end it in order.
Exit codes: 0 ended in order, 1 cannot run (an address is taken, for example), 64 wrong arguments or configuration.";

impl Arguments {
    /// The settings: the file's, with the command line's over them, checked.
    pub fn load(&self) -> Result<Config, config::Error> {
        let mut config = self
            .config
            .as_deref()
            .map_or_else(|| Ok(Config::default()), Config::read)?;
        config.http = self.http.unwrap_or(config.http);
        config.grpc = self.grpc.unwrap_or(config.grpc);
        config.validate()?;
        Ok(config)
    }
}

/// Says where the service listens: a line on standard output, and the file that was asked for.
pub fn announce(addresses: Addresses, ready_file: Option<&Path>) -> std::io::Result<()> {
    let Addresses { http, grpc } = addresses;
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening http={http} grpc={grpc}")?;
    out.flush()?;
    let Some(path) = ready_file else {
        return Ok(());
    };
    write_ready_file(path, addresses).map_err(|error| {
        let message = format!("cannot write the ready file {}: {error}", path.display());
        std::io::Error::new(error.kind(), message)
    })
}

/// Whoever waits for the file finds it whole: it is written beside its place and moved there.
fn write_ready_file(path: &Path, addresses: Addresses) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Ready {
        http: SocketAddr,
        grpc: SocketAddr,
        pid: u32,
    }
    let pid = std::process::id();
    let ready = Ready {
        http: addresses.http,
        grpc: addresses.grpc,
        pid,
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{pid}.tmp"));
    std::fs::write(&beside, serde_json::to_vec(&ready)?)?;
    std::fs::rename(&beside, path)
}
