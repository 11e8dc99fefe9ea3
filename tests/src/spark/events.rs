//! What an application did, as its event log tells.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

/// How near to its data a task ran, as the scheduler says.
///
/// A task without preferred hosts is called `PROCESS_LOCAL`: only [`Locality::NodeLocal`] says that a host matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Locality {
    /// On an executor that holds the data in memory, or without any preference.
    ProcessLocal,
    /// On a host that it preferred.
    NodeLocal,
    /// Anywhere else.
    Other,
}

/// A task that has ended.
#[derive(Debug, Clone)]
pub struct Task {
    /// The job group of its job, if that had one.
    pub group: Option<String>,
    /// Its stage.
    pub stage: u64,
    /// The host string of its executor.
    pub host: String,
    /// Its executor.
    pub executor: String,
    /// How near to its data it ran.
    pub locality: Locality,
    /// What it read from files, as Spark counts it.
    pub input_bytes: u64,
    /// Since the epoch, in milliseconds.
    pub launched_ms: u64,
    /// Since the epoch, in milliseconds.
    pub finished_ms: u64,
    /// Why it failed; `None` if it did not.
    pub failure: Option<String>,
}

/// An executor that was there at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executor {
    /// Its id.
    pub id: String,
    /// Its host string.
    pub host: String,
}

/// A whole event log.
#[derive(Debug, Clone, Default)]
pub struct EventLog {
    /// All tasks, in the order in which they ended.
    pub tasks: Vec<Task>,
    /// All executors, in the order in which they came.
    pub executors: Vec<Executor>,
    /// Executors that were lost, or given back.
    pub removed_executors: Vec<String>,
}

impl EventLog {
    /// Reads a log, which may still be written to.
    pub fn read(path: &Path) -> Self {
        let file = std::fs::File::open(path)
            .unwrap_or_else(|error| panic!("cannot open the event log {}: {error}", path.display()));
        let mut log = Self::default();
        let mut groups = HashMap::new();
        for line in BufReader::new(file).lines() {
            let line = line.unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
            // The last line may not be complete yet.
            if let Ok(event) = serde_json::from_str(&line) {
                log.add(&event, &mut groups);
            }
        }
        log
    }

    fn add(&mut self, event: &Value, groups: &mut HashMap<u64, String>) {
        match event["Event"].as_str().unwrap_or_default() {
            "SparkListenerJobStart" => {
                if let Some(group) = event["Properties"]["spark.jobGroup.id"].as_str() {
                    for stage in event["Stage IDs"].as_array().into_iter().flatten() {
                        groups.insert(stage.as_u64().expect("a stage has a number"), group.to_owned());
                    }
                }
            }
            "SparkListenerTaskEnd" => self.tasks.push(task(event, groups)),
            "SparkListenerExecutorAdded" => self.executors.push(Executor {
                id: string(&event["Executor ID"]),
                host: string(&event["Executor Info"]["Host"]),
            }),
            "SparkListenerExecutorRemoved" => self.removed_executors.push(string(&event["Executor ID"])),
            _ => {}
        }
    }

    /// The same without the tasks of a job group.
    #[must_use]
    pub fn without(mut self, group: &str) -> Self {
        self.tasks.retain(|task| task.group.as_deref() != Some(group));
        self
    }

    /// The tasks that read files and succeeded; of one job group, or of all.
    pub fn scans<'a>(&'a self, group: Option<&'a str>) -> impl Iterator<Item = &'a Task> {
        self.tasks.iter().filter(move |task| {
            task.input_bytes > 0
                && task.failure.is_none()
                && (group.is_none() || task.group.as_deref() == group)
        })
    }

    /// The share of file-reading tasks that ran on a host they preferred; `None` if there was no such task.
    pub fn node_local_share(&self, group: Option<&str>) -> Option<f64> {
        let scans: Vec<_> = self.scans(group).collect();
        let local = scans
            .iter()
            .filter(|task| task.locality == Locality::NodeLocal)
            .count();
        (!scans.is_empty()).then(|| local as f64 / scans.len() as f64)
    }

    /// What file-reading tasks read, as Spark counts it.
    pub fn input_bytes(&self, group: Option<&str>) -> u64 {
        self.scans(group).map(|task| task.input_bytes).sum()
    }

    /// File-reading tasks by host.
    pub fn scans_by_host(&self, group: Option<&str>) -> BTreeMap<String, usize> {
        let mut hosts = BTreeMap::new();
        for task in self.scans(group) {
            *hosts.entry(task.host.clone()).or_default() += 1;
        }
        hosts
    }

    /// From the launch of a group's first task to the end of its last, in seconds.
    pub fn seconds(&self, group: Option<&str>) -> f64 {
        let of_group = || {
            self.tasks
                .iter()
                .filter(|task| group.is_none() || task.group.as_deref() == group)
        };
        let first = of_group().map(|task| task.launched_ms).min().unwrap_or(0);
        let last = of_group().map(|task| task.finished_ms).max().unwrap_or(0);
        (last - first) as f64 / 1e3
    }

    /// The tasks that failed, each with its reason.
    pub fn failures(&self) -> Vec<String> {
        self.tasks
            .iter()
            .filter_map(|task| {
                let reason = task.failure.as_ref()?;
                Some(format!("stage {} on {}: {reason}", task.stage, task.host))
            })
            .collect()
    }

    /// The hosts of all executors there ever were.
    pub fn hosts(&self) -> BTreeSet<String> {
        self.executors
            .iter()
            .map(|executor| executor.host.clone())
            .collect()
    }
}

fn task(event: &Value, groups: &HashMap<u64, String>) -> Task {
    let info = &event["Task Info"];
    let stage = event["Stage ID"].as_u64().expect("a task is of a stage");
    let reason = &event["Task End Reason"];
    Task {
        group: groups.get(&stage).cloned(),
        stage,
        host: string(&info["Host"]),
        executor: string(&info["Executor ID"]),
        locality: match info["Locality"].as_str() {
            Some("PROCESS_LOCAL") => Locality::ProcessLocal,
            Some("NODE_LOCAL") => Locality::NodeLocal,
            _ => Locality::Other,
        },
        input_bytes: event["Task Metrics"]["Input Metrics"]["Bytes Read"]
            .as_u64()
            .unwrap_or(0),
        launched_ms: info["Launch Time"].as_u64().unwrap_or(0),
        finished_ms: info["Finish Time"].as_u64().unwrap_or(0),
        failure: (reason["Reason"] != "Success").then(|| reason.to_string()),
    }
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(events: &[Value]) -> EventLog {
        let mut log = EventLog::default();
        let mut groups = HashMap::new();
        for event in events {
            log.add(event, &mut groups);
        }
        log
    }

    fn task_end(stage: u64, locality: &str, bytes: u64, reason: &str) -> Value {
        json!({
            "Event": "SparkListenerTaskEnd", "Stage ID": stage, "Task End Reason": {"Reason": reason},
            "Task Info": {"Host": "127.0.0.2", "Executor ID": "0", "Locality": locality,
                "Launch Time": 1000, "Finish Time": 3000},
            "Task Metrics": {"Input Metrics": {"Bytes Read": bytes}},
        })
    }

    #[test]
    fn only_tasks_that_read_and_matched_a_host_count_as_local() {
        let log = read(&[
            json!({"Event": "SparkListenerJobStart", "Stage IDs": [1], "Properties": {"spark.jobGroup.id": "q01"}}),
            task_end(1, "NODE_LOCAL", 10, "Success"),
            task_end(1, "ANY", 10, "Success"),
            task_end(1, "PROCESS_LOCAL", 10, "Success"),
            // Reads a shuffle, not files.
            task_end(2, "PROCESS_LOCAL", 0, "Success"),
            task_end(1, "NODE_LOCAL", 10, "ExceptionFailure"),
        ]);
        assert_eq!(log.node_local_share(Some("q01")), Some(1.0 / 3.0));
        assert_eq!(log.node_local_share(Some("q02")), None);
        assert_eq!(log.input_bytes(None), 30);
        assert_eq!(log.failures().len(), 1);
        assert!((log.seconds(None) - 2.0).abs() < f64::EPSILON);
        assert_eq!(log.without("q01").tasks.len(), 1);
    }

    #[test]
    fn executors_are_told_by_their_hosts() {
        let added = |id: &str, host: &str| json!({"Event": "SparkListenerExecutorAdded", "Executor ID": id, "Executor Info": {"Host": host}});
        let log = read(&[
            added("0", "127.0.0.3"),
            added("1", "127.0.0.2"),
            json!({"Event": "SparkListenerExecutorRemoved", "Executor ID": "0"}),
        ]);
        assert_eq!(Vec::from_iter(log.hosts()), ["127.0.0.2", "127.0.0.3"]);
        assert_eq!(log.removed_executors, ["0"]);
    }
}
