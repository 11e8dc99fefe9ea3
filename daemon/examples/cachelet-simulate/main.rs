//! `make simulate`: how the daemon's eviction policy fares on traces, beside LRU and beside who knows the future.

mod cost;
mod optimum;
mod replay;
mod report;
mod trace;

use std::io::Write;
use std::process::ExitCode;

use cacheletd::store::eviction::Tuning;
use clap::Parser;
use clap::builder::PossibleValuesParser;

/// Replays generated traces against the daemon's eviction policy, LRU and offline optima, and prints hit ratios.
#[derive(Debug, Parser)]
#[command(name = "cachelet-simulate", version)]
struct Arguments {
    /// What the traces are generated from: the same seed gives the same figures.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Size of the cache in GiB; what is read, and for how long, grows with it.
    #[arg(long, value_name = "GIB", default_value_t = 32)]
    cache: u64,
    /// Replay this trace only; may be given several times.
    #[arg(long = "trace", value_name = "NAME", value_parser = PossibleValuesParser::new(trace::NAMES))]
    traces: Vec<String>,
    /// Write JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Also replay variants of the policy, each with one thing changed.
    #[arg(long)]
    variants: bool,
    /// Instead, measure what the policy itself costs with this many files.
    #[arg(long, value_name = "FILES")]
    cost: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let text = match arguments.cost {
        Some(files) => cost::measure(files, arguments.seed),
        None => simulate(&arguments),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "cachelet-simulate: cannot write the figures: {error}"
            );
            ExitCode::FAILURE
        }
    }
}

fn simulate(arguments: &Arguments) -> String {
    let tunings = if arguments.variants {
        report::variants()
    } else {
        vec![("ours", Tuning::default())]
    };
    let wanted =
        |name: &&str| arguments.traces.is_empty() || arguments.traces.iter().any(|only| only == name);
    let results = trace::NAMES.into_iter().filter(wanted).map(|name| {
        let trace = trace::generate(name, arguments.seed, arguments.cache << 30);
        report::replay_all(&trace, &tunings)
    });
    let report = report::Report {
        seed: arguments.seed,
        traces: results.collect(),
    };
    if arguments.json {
        report.json()
    } else {
        report.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use report::Outcome;

    /// Points of hit ratio by which the policy may fall below LRU: it learns what LRU would do only while it does worse.
    const NOISE: f64 = 0.03;

    fn outcome(name: &'static str) -> Outcome {
        // Of Parquet files a small cache holds too few for their shares to even out.
        let gib = if name == "parquet" { 32 } else { 8 };
        let trace = trace::generate(name, 1, gib << 30);
        report::replay_all(&trace, &[("ours", Tuning::default())])
    }

    fn ratio(outcome: &Outcome, name: &str) -> f64 {
        let contender = outcome.contenders.iter().find(|contender| contender.name == name);
        contender.expect("it took part").hit_ratio_by_bytes
    }

    #[test]
    fn eviction_is_never_below_lru_and_nobody_beats_the_optimum() {
        for name in trace::NAMES {
            let outcome = outcome(name);
            let (best, ours, lru) = (
                ratio(&outcome, "optimum by pages"),
                ratio(&outcome, "ours"),
                ratio(&outcome, "LRU"),
            );
            assert!(ours >= lru - NOISE, "{name}: {ours:.3} beside {lru:.3} of LRU");
            for contender in &outcome.contenders {
                let reached = contender.hit_ratio_by_bytes;
                assert!(
                    reached <= best,
                    "{name}: {} reaches {reached:.3}, the optimum {best:.3}",
                    contender.name
                );
            }
        }
    }

    #[test]
    fn under_scans_eviction_goes_half_way_from_lru_to_the_optimum() {
        for name in ["scan", "loop"] {
            let outcome = outcome(name);
            let half = f64::midpoint(ratio(&outcome, "LRU"), ratio(&outcome, "optimum by pages"));
            let ours = ratio(&outcome, "ours");
            assert!(ours >= half, "{name}: {ours:.3} of {half:.3}");
        }
    }

    /// The goal of half way to the optimum is missed (`docs/eviction.md`): what is held here is what was reached.
    #[test]
    fn of_parquet_files_eviction_keeps_more_than_lru() {
        let outcome = outcome("parquet");
        let (ours, lru) = (ratio(&outcome, "ours"), ratio(&outcome, "LRU"));
        assert!(ours >= lru + 0.05, "{ours:.3} beside {lru:.3} of LRU");
    }

    #[test]
    fn the_same_seed_gives_the_same_figures() {
        let json = |name| {
            let traces = vec![outcome(name)];
            report::Report { seed: 1, traces }.json()
        };
        assert_eq!(json("zipf"), json("zipf"));
    }
}
