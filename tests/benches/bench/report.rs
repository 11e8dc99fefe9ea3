//! The figures, for people and for programs.

use std::fmt;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::machine::{Machine, load};
use cachelet_tests::table::Table;

/// One measured case.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Case {
    /// Its name.
    pub(crate) name: &'static str,
    /// What `ours` and `baseline` count, and what the baseline is.
    pub(crate) unit: String,
    /// Through Cachelet.
    pub(crate) ours: f64,
    /// Without it.
    pub(crate) baseline: f64,
    /// `ours / baseline`; higher is better.
    pub(crate) ratio: f64,
    /// The ratio to reach; none where the case only informs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) goal: Option<f64>,
}

impl Case {
    /// A case in which more is better.
    pub(super) fn new(
        name: &'static str,
        unit: impl Into<String>,
        (ours, baseline): (f64, f64),
        goal: Option<f64>,
    ) -> Self {
        Self {
            name,
            unit: unit.into(),
            ours,
            baseline,
            ratio: ours / baseline,
            goal,
        }
    }
}

/// All cases, and the machine they were measured on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// The cases.
    pub(crate) cases: Vec<Case>,
    machine: Machine,
    /// Measured with small objects and few repetitions.
    quick: bool,
}

impl Report {
    pub(super) fn begin(quick: bool) -> Self {
        Self {
            cases: Vec::new(),
            machine: Machine::of_this(),
            quick,
        }
    }

    pub(super) fn add(&mut self, case: Case) {
        self.cases.push(case);
    }

    pub(super) fn end(&mut self) {
        self.machine.load_after = load();
    }

    /// Writes it as JSON.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        std::fs::write(path, json)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["case", "ours", "baseline", "ratio", "goal"]);
        for case in &self.cases {
            table.row([
                case.name.to_owned(),
                figure(case.ours),
                figure(case.baseline),
                format!("{:.3}", case.ratio),
                case.goal
                    .map_or_else(|| "-".to_owned(), |goal| format!(">= {goal:.2}")),
            ]);
        }
        writeln!(f, "\n{table}")?;
        for case in &self.cases {
            writeln!(f, "  {}: {}", case.name, case.unit)?;
        }
        writeln!(f, "\n  {}", self.machine)?;
        if self.quick {
            writeln!(
                f,
                "  quick: small objects, few repetitions; good for a first look only"
            )?;
        }
        Ok(())
    }
}

/// Four significant digits are more than the measurement has.
fn figure(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_the_documented_fields() {
        let mut report = Report::begin(true);
        report.add(Case::new("a_case", "GB/s", (3.0, 4.0), Some(0.7)));
        report.end();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["cases"][0],
            serde_json::json!({"name": "a_case", "unit": "GB/s", "ours": 3.0, "baseline": 4.0, "ratio": 0.75, "goal": 0.7})
        );
        assert!(json["machine"]["cpus"].as_u64().unwrap() > 0);
        assert_eq!(json["machine"]["load_before"].as_array().unwrap().len(), 3);
        assert!(report.to_string().contains("0.750"));
    }
}
