//! The figures, for people and for programs, and what must be true of them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use cachelet_tests::spark::SparkInstall;
use cachelet_tests::table::{Table, bytes};
use cachelet_tests::{Traffic, repository_root};
use serde::Serialize;

use super::{Settings, docs};

/// What one contender did.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    /// Listing the tables and reading their schemas.
    pub(super) opening_seconds: f64,
    /// All queries.
    pub(super) seconds: f64,
    pub(super) query_seconds: BTreeMap<String, f64>,
    pub(super) behind_proxy: bool,
    /// At the S3 server during the first pass, opening included.
    pub(super) traffic: Traffic,
    pub(super) failed_tasks: usize,
    /// Over its whole life; `None` without Cachelet.
    pub(super) fallbacks: Option<u64>,
    #[serde(skip)]
    pub(super) hashes: BTreeMap<String, String>,
}

/// All of them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(super) spark: String,
    pub(super) scale_factor: String,
    passes: u32,
    results_equal: bool,
    pub(super) contenders: Vec<Contender>,
    /// Seconds of all queries, beside local files and beside stock S3A.
    pub(super) ratios: BTreeMap<&'static str, Ratios>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Ratios {
    /// Times the seconds of local files.
    pub(super) local: f64,
    /// Stock S3A takes so many times as long.
    pub(super) s3a: f64,
}

impl Report {
    pub(super) fn new(settings: &Settings, install: &SparkInstall, contenders: Vec<Contender>) -> Self {
        let seconds = |name: &str| {
            contenders
                .iter()
                .find(|contender| contender.name == name)
                .map_or(f64::NAN, |contender| contender.seconds)
        };
        let (local, s3a) = (seconds("local"), seconds("s3a"));
        let ratios = contenders
            .iter()
            .map(|contender| {
                let ratios = Ratios {
                    local: contender.seconds / local,
                    s3a: s3a / contender.seconds,
                };
                (contender.name, ratios)
            })
            .collect();
        Self {
            spark: install.version.clone(),
            scale_factor: settings.scale_factor.clone(),
            passes: settings.passes,
            results_equal: contenders
                .iter()
                .all(|contender| contender.hashes == contenders[0].hashes),
            contenders,
            ratios,
        }
    }

    /// Writes `target/bench/tpch.json`.
    pub(crate) fn write(&self) -> io::Result<()> {
        let path = path();
        std::fs::create_dir_all(path.parent().expect("a file is in a directory"))?;
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        std::fs::write(path, json)
    }

    /// Writes the table and the plot into `docs`.
    pub(crate) fn update_docs(&self) -> io::Result<()> {
        docs::update(self)
    }

    /// What must not be, whatever the machine: a line for each.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.results_equal {
            failures.push("WRONG RESULTS: not all contenders had the same results".to_owned());
        }
        let heads = |name: &str| {
            let contender = self.contenders.iter().find(|contender| contender.name == name);
            contender.map_or(0, |contender| contender.traffic.heads)
        };
        for contender in &self.contenders {
            if contender.failed_tasks > 0 {
                failures.push(format!(
                    "{}: {} tasks failed",
                    contender.label, contender.failed_tasks
                ));
            }
            if contender.name.starts_with("warm") && contender.traffic.gets > 0 {
                failures.push(format!(
                    "{}: {} data GETs, though everything was cached",
                    contender.label, contender.traffic.gets
                ));
            }
        }
        if heads("warm_strict") * 2 > heads("s3a") {
            failures.push(format!(
                "strict freshness took {} HEADs, more than half of stock S3A's {}",
                heads("warm_strict"),
                heads("s3a")
            ));
        }
        failures
    }
}

fn path() -> PathBuf {
    repository_root().join("target/bench/tpch.json")
}

/// The middle of some figures; of an even number of them, the mean of the two in the middle.
pub(super) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(std::iter::once("seconds").chain(self.contenders.iter().map(|c| c.name)));
        for query in self.contenders[0].query_seconds.keys() {
            let cells = self
                .contenders
                .iter()
                .map(|contender| format!("{:.2}", contender.query_seconds[query]));
            table.row(std::iter::once(query.clone()).chain(cells));
        }
        writeln!(f, "{table}")?;
        let mut table = Table::new([
            &*format!("TPC-H {}, Spark {}", self.scale_factor, self.spark),
            "opening s",
            "queries s",
            "x local",
            "S3A / it",
            "GET",
            "HEAD",
            "LIST",
            "from the origin",
        ]);
        for contender in &self.contenders {
            let ratios = self.ratios[contender.name];
            let traffic = contender.traffic;
            let count = |number: u64| {
                if contender.behind_proxy {
                    number.to_string()
                } else {
                    "-".to_owned()
                }
            };
            table.row([
                format!("{} ({})", contender.label, contender.name),
                format!("{:.2}", contender.opening_seconds),
                format!("{:.1}", contender.seconds),
                format!("{:.2}", ratios.local),
                format!("{:.2}", ratios.s3a),
                count(traffic.gets),
                count(traffic.heads),
                count(traffic.lists),
                if contender.behind_proxy {
                    bytes(traffic.data_bytes)
                } else {
                    "-".to_owned()
                },
            ]);
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "  {} measured passes, medians; requests and bytes: at the S3 server in the first pass, opening included",
            self.passes
        )?;
        writeln!(
            f,
            "  results {}; the same figures: {}",
            if self.results_equal {
                "are all the same"
            } else {
                "DIFFER"
            },
            path().display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
