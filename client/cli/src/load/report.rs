//! What a load would do, or has done: by node, and what failed with its reason.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::objects::{Objects, Wanted};
use super::plan::{Copy, Plan};
use super::transfer::Outcome;
use crate::failure::{Failure, Kind};
use crate::fleet::Fleet;
use crate::output;
use crate::progress::rate;

/// Failures that are shown to people.
const SHOWN: usize = 10;

/// One node's share.
#[derive(Debug, Default, Serialize)]
struct NodeReport {
    node: String,
    /// Blocks that were to be brought in, and their bytes.
    planned_blocks: u64,
    planned_bytes: u64,
    /// Those that are there now, as the worker says; what was there without the service knowing included.
    loaded_blocks: u64,
    loaded_bytes: u64,
    /// Blocks that were there already.
    present_blocks: u64,
    present_bytes: u64,
    /// What the worker fetched for this, if it says.
    origin_bytes: Option<u64>,
    peer_bytes: Option<u64>,
    /// Why the node was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// An object that was not loaded, or not all of it.
#[derive(Debug, Serialize)]
struct FailedReport {
    path: String,
    blocks: u64,
    bytes: u64,
    reason: String,
    #[serde(skip)]
    kind: Kind,
}

/// See the module's text. Bytes and blocks count each copy.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) dry_run: bool,
    pub(super) interrupted: bool,
    /// Objects with bytes, and without.
    objects: u64,
    empty_objects: u64,
    planned_blocks: u64,
    planned_bytes: u64,
    loaded_blocks: u64,
    loaded_bytes: u64,
    /// Bytes that came of blocks that are not complete.
    partial_bytes: u64,
    present_blocks: u64,
    present_bytes: u64,
    failed_blocks: u64,
    failed_bytes: u64,
    seconds: f64,
    bytes_per_second: u64,
    nodes: Vec<NodeReport>,
    failed: Vec<FailedReport>,
    pub(super) warnings: Vec<String>,
    #[serde(skip)]
    paths: Vec<String>,
}

impl Report {
    pub(super) fn new(fleet: &Fleet, objects: &Objects, plan: &Plan) -> Self {
        let mut report = Self {
            objects: objects.wanted.len() as u64,
            empty_objects: objects.empty,
            paths: objects
                .wanted
                .iter()
                .map(|Wanted { path, .. }| path.to_string())
                .collect(),
            nodes: fleet
                .members
                .iter()
                .map(|member| NodeReport {
                    node: member.node.clone(),
                    ..NodeReport::default()
                })
                .collect(),
            ..Self::default()
        };
        for (path, why) in &objects.refused {
            report.failed.push(FailedReport {
                path: path.clone(),
                blocks: 0,
                bytes: 0,
                reason: format!("it cannot be cached: {why}"),
                kind: Kind::Unavailable,
            });
        }
        for copy in &plan.missing {
            report.planned_blocks += 1;
            report.planned_bytes += copy.length;
            report.nodes[copy.node].planned_blocks += 1;
            report.nodes[copy.node].planned_bytes += copy.length;
        }
        report.add_present(&plan.present);
        for nowhere in &plan.nowhere {
            let reason = "no worker takes it: the one that it belongs to is stopping or lost";
            report.fail(nowhere.block.object, nowhere.length, Kind::Temporary, reason);
        }
        report
    }

    /// Adds what was done.
    pub(super) fn add(&mut self, outcome: Outcome, elapsed: Duration) {
        for copy in &outcome.loaded {
            self.loaded_blocks += 1;
            self.loaded_bytes += copy.length;
            self.nodes[copy.node].loaded_blocks += 1;
            self.nodes[copy.node].loaded_bytes += copy.length;
        }
        self.add_present(&outcome.present);
        for failed in &outcome.failed {
            self.fail(
                failed.copy.block.object,
                failed.copy.length,
                failed.kind,
                &failed.reason,
            );
        }
        for (node, filled) in &outcome.fetched {
            self.nodes[*node].origin_bytes = Some(filled.origin_bytes);
            self.nodes[*node].peer_bytes = Some(filled.peer_bytes);
        }
        for (node, problem) in outcome.given_up {
            self.nodes[node].problem = Some(problem);
        }
        self.partial_bytes = outcome.partial_bytes;
        self.seconds = elapsed.as_secs_f64();
        self.bytes_per_second = rate(self.loaded_bytes + self.partial_bytes, elapsed);
    }

    fn add_present(&mut self, copies: &[Copy]) {
        for copy in copies {
            self.present_blocks += 1;
            self.present_bytes += copy.length;
            self.nodes[copy.node].present_blocks += 1;
            self.nodes[copy.node].present_bytes += copy.length;
        }
    }

    fn fail(&mut self, object: usize, bytes: u64, kind: Kind, reason: &str) {
        self.failed_blocks += 1;
        self.failed_bytes += bytes;
        let path = &self.paths[object];
        // Blocks of an object fail one after the other.
        match self
            .failed
            .iter_mut()
            .rev()
            .take(SHOWN)
            .find(|failed| failed.path == *path && failed.reason == reason)
        {
            Some(failed) => {
                failed.blocks += 1;
                failed.bytes += bytes;
            }
            None => self.failed.push(FailedReport {
                path: path.clone(),
                blocks: 1,
                bytes,
                reason: reason.to_owned(),
                kind,
            }),
        }
    }

    /// Nodes that are to hold more of this than their caches take, whatever else is in them.
    pub(super) fn too_much(&self, fleet: &Fleet) -> Vec<String> {
        let shares = self.nodes.iter().zip(&fleet.members);
        shares
            .filter(|(share, member)| {
                member.capacity_bytes > 0 && share.planned_bytes + share.present_bytes > member.capacity_bytes
            })
            .map(|(share, member)| {
                format!(
                    "node {} is to hold {} of this, and its cache takes {}: what comes last pushes the first out again",
                    share.node,
                    output::size(share.planned_bytes + share.present_bytes),
                    output::size(member.capacity_bytes)
                )
            })
            .collect()
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let empty = match self.empty_objects {
            0 => String::new(),
            count => format!(" (and {count} without bytes)"),
        };
        let objects = format!("{} objects{empty}", self.objects);
        let involved: Vec<&NodeReport> = self
            .nodes
            .iter()
            .filter(|node| node.planned_blocks + node.present_blocks + node.loaded_blocks > 0)
            .collect();
        let cell = |bytes: Option<u64>| bytes.map_or("-".into(), output::size);
        if self.dry_run {
            let rows: Vec<_> = involved
                .iter()
                .map(|node| {
                    vec![
                        node.node.clone(),
                        node.planned_blocks.to_string(),
                        output::size(node.planned_bytes),
                        output::size(node.present_bytes),
                    ]
                })
                .collect();
            if !rows.is_empty() {
                text += &output::table(
                    &["NODE", "BLOCKS TO LOAD", "BYTES TO LOAD", "THERE ALREADY"],
                    &rows,
                );
                text.push('\n');
            }
            text.extend([format!(
                "{objects}: would load {} blocks, {}; {} blocks, {} are there already\n",
                self.planned_blocks,
                output::size(self.planned_bytes),
                self.present_blocks,
                output::size(self.present_bytes)
            )]);
        } else {
            let rows: Vec<_> = involved
                .iter()
                .map(|node| {
                    vec![
                        node.node.clone(),
                        node.loaded_blocks.to_string(),
                        output::size(node.loaded_bytes),
                        output::size(node.present_bytes),
                        cell(node.origin_bytes),
                        cell(node.peer_bytes),
                    ]
                })
                .collect();
            if !rows.is_empty() {
                let headings = [
                    "NODE",
                    "BLOCKS",
                    "LOADED",
                    "WAS THERE",
                    "FROM ORIGIN",
                    "FROM PEERS",
                ];
                text += &output::table(&headings, &rows);
                text.push('\n');
            }
            text.extend([format!(
                "{objects}: loaded {} blocks, {} in {:.1} s, {}/s; {} blocks, {} were there already\n",
                self.loaded_blocks,
                output::size(self.loaded_bytes),
                self.seconds,
                output::size(self.bytes_per_second),
                self.present_blocks,
                output::size(self.present_bytes)
            )]);
        }
        for warning in &self.warnings {
            text.extend(["warning: ", warning, "\n"]);
        }
        for failed in self.failed.iter().take(SHOWN) {
            text.extend(["not loaded: ", &failed.path, ": ", &failed.reason, "\n"]);
        }
        if let Some(more @ 1..) = self.failed.len().checked_sub(SHOWN) {
            text.extend([format!("not loaded: {more} more; --output json names all\n")]);
        }
        text
    }

    /// What the program ends with.
    pub(super) fn outcome(&self) -> Result<(), Failure> {
        if self.interrupted && self.loaded_bytes < self.planned_bytes {
            return Err(Failure::new(
                Kind::Temporary,
                format!(
                    "interrupted: {} of {} were loaded, and stay; the same command goes on from there",
                    output::size(self.loaded_bytes + self.partial_bytes),
                    output::size(self.planned_bytes)
                ),
            ));
        }
        let Some(first) = self.failed.first() else {
            return Ok(());
        };
        let mut kinds = BTreeMap::new();
        for failed in &self.failed {
            kinds.entry(failed.kind as u8).or_insert(failed.kind);
        }
        // Failures of several kinds: some may work if tried again.
        let kind = if kinds.len() == 1 {
            first.kind
        } else {
            Kind::Temporary
        };
        let more = match self.failed.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more objects)"),
        };
        Err(Failure::new(
            kind,
            format!(
                "{} blocks, {} were not loaded: {}: {}{more}",
                self.failed_blocks,
                output::size(self.failed_bytes),
                first.path,
                first.reason
            ),
        ))
    }
}
