//! `make demo` and `make demo-min`: what Cachelet does, in one table.

use std::io::Write;
use std::process::ExitCode;

use cachelet_tests::demo::{Error, Settings, Stop, run};
use cachelet_tests::report_panics;
use cachelet_tests::spark::Release;
use clap::Parser;

/// Those that spend their time on reading more than on computing; `make bench-tpch` runs all 22.
const QUERIES: [&str; 12] = [
    "q03", "q05", "q06", "q07", "q08", "q10", "q12", "q14", "q15", "q19", "q20", "q22",
];

/// Reads TPC-H through a two-node cluster in front of a real S3 server: cold, warm, from the peer and after a restart.
///
/// Checks every byte, prints one table beside direct S3 and plain local files, and writes the same figures to
/// target/demo/report.json. Everything it starts ends with it.
#[derive(Debug, Parser)]
#[command(name = "cachelet-demo", version)]
struct Arguments {
    /// TPC-H scale factor; 1 is about 345 MB of Parquet.
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = scale_factor)]
    scale_factor: String,
    /// No S3 server and no TPC-H: files of many sizes in a directory, which is the store.
    #[arg(long)]
    minimal: bool,
    /// Leave the S3 server on loopback as it is; else a proxy makes it as far away as S3 is.
    #[arg(long)]
    no_delay: bool,
    /// What Spark runs, in order.
    #[arg(long, value_name = "QUERY,...", value_delimiter = ',', default_values = QUERIES)]
    queries: Vec<String>,
    /// Which Spark: 3.5 or 4.1.
    #[arg(long, value_name = "LINE", default_value = "3.5", value_parser = release)]
    spark: Release,
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

fn release(line: &str) -> Result<Release, String> {
    Release::of_line(line).ok_or_else(|| "expected 3.5 or 4.1".to_owned())
}

fn scale_factor(text: &str) -> Result<String, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor > 0.0 && factor <= 1000.0 => Ok(text.to_owned()),
        _ => Err("expected a number above 0, such as 0.1 or 1".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = Settings {
        scale_factor: arguments.scale_factor,
        minimal: arguments.minimal,
        delay: !arguments.no_delay,
        queries: arguments.queries,
        release: arguments.spark,
        keep: arguments.keep,
    };
    report_panics("cachelet-demo");
    let stop = Stop::on_signals();
    match std::panic::catch_unwind(|| run(&settings, &stop)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            let _ = writeln!(std::io::stderr(), "cachelet-demo: {error}");
            match error {
                Error::Interrupted => ExitCode::from(130),
                _ => ExitCode::FAILURE,
            }
        }
        // What went wrong has been said where it was found.
        Err(_) => ExitCode::FAILURE,
    }
}
