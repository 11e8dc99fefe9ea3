//! The demo's figures, for people and for programs, and what must be true of them.

use std::fmt;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::Settings;
use super::data::DemoObject;
use super::spark::SparkRuns;
use crate::table::{Table, bytes};

/// One pass over all objects.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Pass {
    pub(super) name: &'static str,
    #[serde(skip)]
    pub(super) label: &'static str,
    /// Reading; neither opening nor checking.
    pub(super) seconds: f64,
    /// Asking for every object's size and etag.
    pub(super) opening_seconds: f64,
    /// Of reading.
    pub(super) gb_per_s: f64,
    /// Fetched from the origin meanwhile, by any worker.
    pub(super) origin_bytes: u64,
    /// Fetched by one worker from the other.
    pub(super) peer_bytes: u64,
    /// Read by the client from descriptors of cached files; in the last pass, from plain files.
    pub(super) local_bytes: u64,
    /// Received by the client over the socket.
    pub(super) inline_bytes: u64,
    pub(super) sha256_ok: bool,
    /// A line for each object that was read wrong.
    #[serde(skip)]
    pub(super) wrong: Vec<String>,
}

/// All passes.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// Absent where the data is no TPC-H.
    #[serde(skip_serializing_if = "Option::is_none")]
    scale_factor: Option<f64>,
    objects: usize,
    bytes: u64,
    passes: Vec<Pass>,
    #[serde(flatten)]
    spark: Option<SparkRuns>,
    status_url: String,
}

impl Report {
    pub(super) fn new(
        settings: &Settings,
        objects: &[DemoObject],
        passes: Vec<Pass>,
        status_url: &str,
    ) -> Self {
        let scale_factor = (!settings.minimal)
            .then(|| settings.scale_factor.parse().ok())
            .flatten();
        Self {
            scale_factor,
            objects: objects.len(),
            bytes: objects.iter().map(|object| object.size).sum(),
            passes,
            spark: None,
            status_url: status_url.to_owned(),
        }
    }

    /// Adds what Spark did, and where the cluster it did it with shows its status.
    pub(super) fn add(&mut self, runs: SparkRuns, status_url: &str) {
        self.spark = Some(runs);
        status_url.clone_into(&mut self.status_url);
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        std::fs::write(path, json)
    }

    /// What must not be: a line for each.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.passes.iter().flat_map(|pass| pass.wrong.clone()).collect();
        let mut refuse = |pass: &Pass, bytes: u64, from: &str, why: &str| {
            if bytes != 0 {
                failures.push(format!(
                    "{}: {bytes} bytes came from {from}, though {why}",
                    pass.label
                ));
            }
        };
        for pass in &self.passes {
            match pass.name {
                "warm" => refuse(pass, pass.origin_bytes, "the origin", "node-1 had just read them"),
                "peer" => refuse(pass, pass.origin_bytes, "the origin", "node-1 held them"),
                "restart" => {
                    let why = "a restart keeps the cache";
                    refuse(pass, pass.origin_bytes, "the origin", why);
                    refuse(pass, pass.peer_bytes, "the peer", why);
                }
                _ => {}
            }
        }
        failures
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            "",
            "opening s",
            "seconds",
            "GB/s",
            "origin",
            "peer",
            "local",
            "inline",
            "sha256",
        ]);
        for pass in &self.passes {
            table.row([
                pass.label.to_owned(),
                format!("{:.3}", pass.opening_seconds),
                format!("{:.3}", pass.seconds),
                format!("{:.2}", pass.gb_per_s),
                bytes(pass.origin_bytes),
                bytes(pass.peer_bytes),
                bytes(pass.local_bytes),
                bytes(pass.inline_bytes),
                if pass.sha256_ok { "ok" } else { "WRONG" }.to_owned(),
            ]);
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "  {} objects, {}; every object of every pass was compared with what was {}",
            self.objects,
            bytes(self.bytes),
            if self.scale_factor.is_some() {
                "uploaded"
            } else {
                "written"
            }
        )?;
        writeln!(
            f,
            "  opening asks the origin for each object's etag: a changed object is never read from the cache\n  \
             seconds, GB/s: reading; origin, peer: what the workers fetched; local, inline: how bytes reached the reader"
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(name: &'static str, origin_bytes: u64, peer_bytes: u64) -> Pass {
        Pass {
            name,
            label: name,
            seconds: 1.0,
            opening_seconds: 0.1,
            gb_per_s: 1.0,
            origin_bytes,
            peer_bytes,
            local_bytes: 0,
            inline_bytes: 0,
            sha256_ok: true,
            wrong: Vec::new(),
        }
    }

    fn report(passes: Vec<Pass>) -> Report {
        let settings = Settings {
            scale_factor: "0.1".to_owned(),
            minimal: false,
            delay: true,
            queries: Vec::new(),
            release: crate::spark::Release::Spark3,
            keep: false,
        };
        Report::new(&settings, &[], passes, "http://127.0.0.1:1/status")
    }

    #[test]
    fn bytes_from_the_origin_fail_every_pass_but_the_direct_and_the_cold_one() {
        let fine = vec![
            pass("direct_s3", 9, 0),
            pass("cold", 9, 0),
            pass("warm", 0, 0),
            pass("peer", 0, 9),
            pass("restart", 0, 0),
        ];
        assert!(report(fine.clone()).failures().is_empty());
        for (name, origin, peer) in [
            ("warm", 1, 0),
            ("peer", 1, 9),
            ("restart", 1, 0),
            ("restart", 0, 1),
        ] {
            let mut passes = fine.clone();
            passes.retain(|pass| pass.name != name);
            passes.push(pass(name, origin, peer));
            let failures = report(passes).failures();
            assert_eq!(failures.len(), 1, "{name}: {failures:?}");
            assert!(failures[0].starts_with(name), "{failures:?}");
        }
    }

    #[test]
    fn a_wrong_hash_fails_any_pass() {
        let mut wrong = pass("direct_s3", 9, 0);
        wrong.sha256_ok = false;
        wrong.wrong = vec!["WRONG BYTES".to_owned()];
        let report = report(vec![wrong]);
        assert_eq!(report.failures(), ["WRONG BYTES"]);
        assert!(report.to_string().contains("WRONG"));
    }

    #[test]
    fn the_report_has_the_documented_fields() {
        let json = serde_json::to_value(report(vec![pass("cold", 5, 0)])).unwrap();
        assert_eq!(json["scale_factor"], 0.1);
        assert_eq!(json["passes"][0]["name"], "cold");
        assert_eq!(json["passes"][0]["origin_bytes"], 5);
        assert_eq!(json["passes"][0]["sha256_ok"], true);
        assert_eq!(json["status_url"], "http://127.0.0.1:1/status");
    }
}
