//! TPC-H through `tests/spark/tpch.py`: the data, and a session that runs queries one at a time when asked to.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::application::{Application, RunningApplication, Summary};
use super::events::EventLog;
use crate::dir::repository_root;

/// A query on a busy machine whose store is far away.
const DEADLINE: Duration = Duration::from_mins(10);

/// All 22, in order.
pub const TPCH_QUERIES: [&str; 22] = [
    "q01", "q02", "q03", "q04", "q05", "q06", "q07", "q08", "q09", "q10", "q11", "q12", "q13", "q14", "q15",
    "q16", "q17", "q18", "q19", "q20", "q21", "q22",
];

/// What a query gave.
#[derive(Debug, Clone, Deserialize)]
pub struct QueryResult {
    /// Which query.
    pub name: String,
    /// From its text to its last row.
    pub seconds: f64,
    /// How many rows.
    pub rows: u64,
    /// Of the rows, in no order.
    pub sha256: String,
}

/// Why the tables could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TpchError {
    /// A file or directory could not be used.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The script failed.
    #[error("cannot make the TPC-H data: scripts/tpch-data ended with {0}; see the messages above")]
    Script(ExitStatus),
}

/// The tables at a scale factor as Parquet files, generated if they are not there yet; progress goes to stderr.
pub fn tpch_files(scale_factor: &str) -> Vec<PathBuf> {
    find_or_make_tpch(scale_factor).unwrap_or_else(|error| panic!("{error}"))
}

/// As [`tpch_files`], for who goes on after a failure.
pub(crate) fn find_or_make_tpch(scale_factor: &str) -> Result<Vec<PathBuf>, TpchError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TpchError::File { what, path, source }
    };
    let script = repository_root().join("scripts/tpch-data");
    let made = Command::new(&script)
        .arg(scale_factor)
        .stderr(Stdio::inherit())
        .output()
        .map_err(failed("run", &script))?;
    if !made.status.success() {
        return Err(TpchError::Script(made.status));
    }
    let dir = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(failed("list", &dir))? {
        let path = entry.map_err(failed("list", &dir))?.path();
        if path.extension().is_some_and(|extension| extension == "parquet") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// An application that runs a query whenever it is asked to; several can take turns.
#[derive(Debug)]
pub struct TpchSession {
    application: RunningApplication,
    stream: BufReader<TcpStream>,
}

impl TpchSession {
    /// Submits `application` (of `tpch.py`) and waits until it listens. What it keeps is in `dir`, which is its own.
    pub fn start(application: Application, dir: &Path) -> Self {
        let ready = dir.join("ready.json");
        let mut application = application
            .args(["serve", "--ready-file"])
            .arg(&ready)
            .submit(dir);
        application
            .process()
            .wait_until(DEADLINE, "the application listens", || ready.exists());
        let text = std::fs::read(&ready).expect("it was there a moment ago");
        let ready: Value = serde_json::from_slice(&text).expect("tpch.py writes JSON");
        let port = ready["port"].as_u64().expect("a port");
        let stream = TcpStream::connect(("127.0.0.1", u16::try_from(port).expect("a port")))
            .expect("the application listens");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("the deadline is not zero");
        Self {
            application,
            stream: BufReader::new(stream),
        }
    }

    /// Opens the tables at `root`, and returns the seconds that took.
    #[track_caller]
    pub fn open(&mut self, root: &str) -> f64 {
        self.ask(&json!({"root": root}));
        self.answer()["seconds"].as_f64().expect("seconds")
    }

    /// Runs a query to its end.
    #[track_caller]
    pub fn run(&mut self, query: &str) -> QueryResult {
        self.begin(query);
        self.result()
    }

    /// Lets a query begin; [`TpchSession::result`] waits for its end.
    #[track_caller]
    pub fn begin(&mut self, query: &str) {
        self.ask(&json!({"query": query}));
    }

    /// Waits for the end of the query that was begun.
    #[track_caller]
    pub fn result(&mut self) -> QueryResult {
        serde_json::from_value(self.answer()).expect("tpch.py answers as it promises")
    }

    /// Ends the application, and reads what it left.
    #[track_caller]
    pub fn end(self) -> (EventLog, Option<Summary>) {
        let Self {
            mut application,
            stream,
        } = self;
        drop(stream);
        let status = application.process().wait_for_exit(DEADLINE);
        assert!(status.success(), "the application ended with {status}");
        (application.event_log(), application.summary())
    }

    #[track_caller]
    fn ask(&mut self, request: &Value) {
        let sent = writeln!(self.stream.get_mut(), "{request}");
        sent.unwrap_or_else(|error| panic!("cannot ask the application for {request}: {error}"));
    }

    #[track_caller]
    fn answer(&mut self) -> Value {
        let mut line = String::new();
        let received = self.stream.read_line(&mut line);
        let running = self.application.process().is_running();
        let answer: Value = match received {
            Ok(bytes) if bytes > 0 => serde_json::from_str(&line).expect("tpch.py answers with JSON"),
            other => panic!("the application did not answer: {other:?}; it runs: {running}"),
        };
        assert!(
            answer["error"].is_null(),
            "the application failed: {}",
            answer["error"]
        );
        answer
    }
}
