//! `make bench-tpch`: the 22 TPC-H queries, six ways in turn.

mod tpch;

use std::io::Write;
use std::process::ExitCode;

use cachelet_tests::report_panics;
use cachelet_tests::spark::{Release, TPCH_QUERIES};
use clap::Parser;
use clap::builder::PossibleValuesParser;

/// Runs TPC-H on Spark over local files, stock S3A and Cachelet, query by query in turn.
///
/// A proxy before the S3 server makes it as far away as S3 is: 30 ms to the first byte, 90 MB/s a connection. Prints a
/// table, and writes target/bench/tpch.json.
#[derive(Debug, Parser)]
#[command(name = "cachelet-bench-tpch", version)]
struct Arguments {
    /// TPC-H scale factor; 1 is about 345 MB of Parquet.
    #[arg(long, value_name = "FACTOR", default_value = "1")]
    scale_factor: String,
    /// Which Spark: 3.5 or 4.1.
    #[arg(long, value_name = "LINE", default_value = "3.5", value_parser = release)]
    spark: Release,
    /// How many measured passes; figures are medians. A cold cache is measured in the first one alone.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    passes: u32,
    /// Which queries, in order.
    #[arg(long, value_name = "QUERY,...", value_delimiter = ',', default_values = TPCH_QUERIES,
          value_parser = PossibleValuesParser::new(TPCH_QUERIES))]
    queries: Vec<String>,
    /// Also write the table into docs/benchmarks.md and the plot docs/images/tpch.svg.
    #[arg(long)]
    update_docs: bool,
}

fn release(line: &str) -> Result<Release, String> {
    Release::of_line(line).ok_or_else(|| "expected 3.5 or 4.1".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    report_panics("cachelet-bench-tpch");
    let settings = tpch::Settings {
        scale_factor: arguments.scale_factor,
        release: arguments.spark,
        passes: arguments.passes,
        queries: arguments.queries,
    };
    let measured = std::panic::catch_unwind(|| {
        tpch::run(&settings, &mut |progress| {
            let _ = writeln!(std::io::stderr(), "==> {progress}");
        })
    });
    // What went wrong has been said where it was found.
    let Ok(report) = measured else {
        return ExitCode::FAILURE;
    };
    let mut out = std::io::stdout().lock();
    let written = write!(out, "{report}")
        .and_then(|()| report.write())
        .and_then(|()| {
            if arguments.update_docs {
                report.update_docs()
            } else {
                Ok(())
            }
        });
    let failures = report.failures();
    for failure in &failures {
        let _ = writeln!(std::io::stderr(), "cachelet-bench-tpch: {failure}");
    }
    match written {
        Ok(()) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "cachelet-bench-tpch: cannot write the report: {error}"
            );
            ExitCode::FAILURE
        }
    }
}
