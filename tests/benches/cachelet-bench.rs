//! `make bench`: Cachelet beside local files and direct S3.

mod bench;

use std::io::Write;
use std::process::ExitCode;

use bench::{CASES, Settings, report_path, run};
use cachelet_tests::report_panics;
use clap::Parser;
use clap::builder::PossibleValuesParser;

/// Measures Cachelet beside local files and direct S3, prints a table and writes target/bench/report.json.
#[derive(Debug, Parser)]
#[command(name = "cachelet-bench", version)]
struct Arguments {
    /// Small objects and few repetitions: shows within a minute that everything works.
    #[arg(long)]
    quick: bool,
    /// Measure this case only; may be given several times.
    #[arg(long = "case", value_name = "NAME", value_parser = PossibleValuesParser::new(CASES))]
    cases: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = Settings {
        quick: arguments.quick,
        only: arguments.cases,
    };
    report_panics("cachelet-bench");
    let measured = std::panic::catch_unwind(|| {
        run(&settings, &mut |progress| {
            let _ = writeln!(std::io::stderr(), "==> {progress}");
        })
    });
    // What went wrong has been said where it was found.
    let Ok(report) = measured else {
        return ExitCode::FAILURE;
    };
    let path = report_path();
    let mut out = std::io::stdout().lock();
    let printed = write!(out, "{report}")
        .and_then(|()| report.write(&path))
        .and_then(|()| writeln!(out, "  the same figures: {}", path.display()));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "cachelet-bench: cannot write {}: {error}",
                path.display()
            );
            ExitCode::FAILURE
        }
    }
}
