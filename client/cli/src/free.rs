//! `cachelet free`: every worker forgets objects.
//!
//! The workers know what they hold, generations and deleted objects included, so all of them are asked and nothing is
//! listed.

use std::thread;

use cachelet_client::Error;
use cachelet_protocol::wire::{self, BypassReason, Code, FREE_DRY_RUN, FREE_PREFIX, Freed, StoreRef};
use serde::Serialize;

use crate::arguments::{Common, Free, Output};
use crate::failure::{Failure, Kind};
use crate::fleet::{Fleet, Member};
use crate::output;
use crate::place::{Place, Prefix};
use crate::service::Service;

/// What one worker forgot.
#[derive(Debug, Default, Serialize)]
struct NodeReport {
    node: String,
    objects: u64,
    blocks: u64,
    bytes: u64,
    /// Why it did not forget all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip)]
    kind: Option<Kind>,
    #[serde(skip)]
    unknown_store: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    blocks: u64,
    bytes: u64,
    nodes: Vec<NodeReport>,
}

pub(crate) fn run(common: &Common, free: Free) -> Result<(), Failure> {
    let as_meant = |place: Place| if free.recursive { place.recursive() } else { place };
    let places: Vec<Place> = free.places.into_iter().map(as_meant).collect();
    let service = Service::find(common)?;
    let fleet = Fleet::gather(common, &service)?;
    let asked: Vec<usize> = (0..fleet.members.len())
        .filter(|index| fleet.members[*index].state != "lost")
        .collect();
    fleet.reachable(&asked)?;
    let requests: Vec<wire::Free> = places.iter().map(|place| request(place, free.dry_run)).collect();
    let nodes: Vec<NodeReport> = thread::scope(|scope| {
        let asking: Vec<_> = fleet
            .members
            .iter()
            .map(|member| scope.spawn(|| ask(member, &requests)))
            .collect();
        asking
            .into_iter()
            .map(|asked| {
                asked
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let report = Report {
        dry_run: free.dry_run,
        blocks: nodes.iter().map(|node| node.blocks).sum(),
        bytes: nodes.iter().map(|node| node.bytes).sum(),
        nodes,
    };
    match common.output {
        Output::Json => output::print_json(&report)?,
        Output::Text => output::print(&report.text())?,
    }
    report.outcome()
}

fn request(place: &Place, dry_run: bool) -> wire::Free {
    let (scheme, bucket, key, prefix) = match place {
        Place::Object(path) => (path.scheme, &path.bucket, path.key.as_str(), 0),
        Place::Prefix(Prefix { scheme, bucket, key }) => (*scheme, bucket, key.as_str(), FREE_PREFIX),
    };
    wire::Free {
        store: StoreRef { fingerprint: None },
        scheme,
        bucket: bucket.clone(),
        key: key.to_owned(),
        flags: prefix | if dry_run { FREE_DRY_RUN } else { 0 },
    }
}

fn ask(member: &Member, requests: &[wire::Free]) -> NodeReport {
    let mut report = NodeReport {
        node: member.node.clone(),
        ..NodeReport::default()
    };
    let fail = |report: &mut NodeReport, kind, problem: String| {
        report.kind = Some(kind);
        report.problem = Some(problem);
    };
    if member.state == "lost" {
        let problem = "its worker is lost; if it comes back, it still has what it held: run this again then";
        fail(&mut report, Kind::Temporary, problem.to_owned());
        return report;
    }
    let client = match member.connect() {
        Ok(client) => client,
        Err(failure) => {
            fail(&mut report, failure.kind, failure.to_string());
            return report;
        }
    };
    for request in requests {
        match client.free(request) {
            Ok(Freed {
                objects,
                blocks,
                bytes,
            }) => {
                report.objects += objects;
                report.blocks += blocks;
                report.bytes += bytes;
            }
            // A worker without the store holds nothing of it.
            Err(Error::Bypass {
                reason: BypassReason::UnknownStore,
                detail,
            }) => report.unknown_store = Some(detail),
            Err(
                error @ Error::Failed {
                    code: Code::Unsupported,
                    ..
                },
            ) => {
                let problem = format!("its version cannot free, update it: {error}");
                fail(&mut report, Kind::Unavailable, problem);
                break;
            }
            Err(error) => {
                let failure = Failure::from(error);
                fail(&mut report, failure.kind, failure.to_string());
                break;
            }
        }
    }
    report
}

impl Report {
    fn text(&self) -> String {
        let verb = if self.dry_run { "would forget" } else { "forgot" };
        if self.blocks == 0 {
            return "nothing of it is cached\n".into();
        }
        let rows: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                vec![
                    node.node.clone(),
                    node.objects.to_string(),
                    node.blocks.to_string(),
                    output::size(node.bytes),
                ]
            })
            .collect();
        format!(
            "{}\n{verb} {} blocks, {}\n",
            output::table(&["NODE", "OBJECTS", "BLOCKS", "BYTES"], &rows),
            self.blocks,
            output::size(self.bytes)
        )
    }

    fn outcome(&self) -> Result<(), Failure> {
        let problems: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|node| Some((node, node.problem.as_ref()?)))
            .collect();
        if let [(first, problem), more @ ..] = problems.as_slice() {
            let more = match more.len() {
                0 => String::new(),
                count => format!(" (and {count} more nodes)"),
            };
            return Err(Failure::new(
                first.kind.unwrap_or(Kind::Temporary),
                format!("node {}: {problem}{more}", first.node),
            ));
        }
        match self
            .nodes
            .iter()
            .map(|node| node.unknown_store.as_ref())
            .collect()
        {
            Some(unknown) => {
                let unknown: Vec<&String> = unknown;
                Err(Failure::new(
                    Kind::Unavailable,
                    unknown
                        .first()
                        .map_or("no worker was asked", |detail| detail.as_str()),
                ))
            }
            None => Ok(()),
        }
    }
}
