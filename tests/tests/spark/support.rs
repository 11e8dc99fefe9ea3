//! What these tests share: a cluster under a Spark cluster, tables, and applications that read them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cachelet_tests::TestDir;
use cachelet_tests::spark::{Application, EventLog, RunningApplication};
use serde::Deserialize;
use serde_json::Value;

/// An application on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(4);

/// What one step of `tests/spark/reads.py` found.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Step {
    pub(crate) rows: u64,
    pub(crate) hash: Option<String>,
    pub(crate) seconds: f64,
    #[serde(default)]
    pub(crate) preferred_hosts: Vec<Vec<String>>,
    #[serde(default)]
    pub(crate) files: usize,
}

/// What a finished application found and did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) steps: BTreeMap<String, Step>,
    pub(crate) log: EventLog,
}

impl Outcome {
    pub(crate) fn step(&self, name: &str) -> &Step {
        &self.steps[name]
    }
}

/// An application of `tests/spark/reads.py` that was submitted.
#[derive(Debug)]
pub(crate) struct Reading {
    application: RunningApplication,
    out: PathBuf,
}

/// Submits `reads.py` with its steps; everything it leaves is in `dir`.
pub(crate) fn submit(application: Application, steps: &Value, dir: &Path) -> Reading {
    std::fs::create_dir_all(dir).expect("the directory is ours");
    let (steps_file, out) = (dir.join("steps.json"), dir.join("out.json"));
    std::fs::write(&steps_file, steps.to_string()).expect("the directory is ours");
    let application = application
        .arg("--steps")
        .arg(steps_file)
        .arg("--out")
        .arg(&out)
        .submit(dir);
    Reading { application, out }
}

impl Reading {
    /// Waits until step `name` waits for its file.
    pub(crate) fn wait_until_waiting(&mut self, name: &str) {
        let waiting = PathBuf::from(format!("{}.{name}.waiting", self.out.display()));
        let what = format!("step {name} waits");
        self.application
            .process()
            .wait_until(DEADLINE, &what, || waiting.exists());
    }

    /// Waits for the end, which must be a success without a failed task.
    pub(crate) fn finish(self) -> Outcome {
        let outcome = self.finish_with_failures();
        assert_eq!(outcome.log.failures(), Vec::<String>::new());
        outcome
    }

    /// Waits for the end, which must be a success.
    pub(crate) fn finish_with_failures(self) -> Outcome {
        let log = self.application.finish(DEADLINE);
        let text = std::fs::read(&self.out).expect("a successful application has written its result");
        let steps: BTreeMap<String, Value> = serde_json::from_slice(&text).expect("reads.py writes JSON");
        let steps = steps
            .into_iter()
            // Steps that write have no result.
            .filter_map(|(name, step)| Some((name, serde_json::from_value(step).ok()?)))
            .collect();
        Outcome { steps, log }
    }
}

/// Runs an application to its end.
pub(crate) fn run(application: Application, steps: &Value, dir: &TestDir, name: &str) -> Outcome {
    submit(application, steps, &dir.join(name)).finish()
}
