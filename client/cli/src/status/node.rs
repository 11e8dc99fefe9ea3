//! One worker, as it describes itself on its admin side.

use serde::Deserialize;

use crate::arguments::{Common, Output};
use crate::failure::{Failure, Kind};
use crate::output;
use crate::service::{Service, Worker, part, whole};

/// The parts of a worker's `/status` that people are shown.
#[derive(Debug, Deserialize)]
struct Described {
    node: String,
    worker_uuid: String,
    version: String,
    state: String,
    uptime_seconds: u64,
    grants: Grants,
    cache: Cache,
    read_bytes: ReadBytes,
    fill_bytes: FillBytes,
    fetches_in_flight: u64,
    peers_left_out: u64,
    sessions: u64,
    stores: Vec<Store>,
}

#[derive(Debug, Deserialize)]
struct Grants {
    status: String,
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Cache {
    quota_bytes: u64,
    committed_bytes: u64,
    reserved_bytes: u64,
    unlinked_held_bytes: u64,
    quarantined_bytes: u64,
    blocks: u64,
    evictions: u64,
}

#[derive(Debug, Deserialize)]
struct ReadBytes {
    local: u64,
    inline: u64,
    remote: u64,
    peer: u64,
    pass_through: u64,
}

#[derive(Debug, Deserialize)]
struct FillBytes {
    peer: u64,
    origin: u64,
}

#[derive(Debug, Deserialize)]
struct Store {
    name: String,
    scheme: String,
    identity: String,
}

pub(super) fn run(common: &Common, service: &Service, node: &str, before: &str) -> Result<(), Failure> {
    let workers: Vec<Worker> = part(&service.nodes()?, "nodes")?;
    let worker = workers.iter().find(|worker| worker.node == node).ok_or_else(|| {
        let known: Vec<_> = workers.iter().map(|worker| worker.node.as_str()).collect();
        Failure::usage(format!(
            "--node {node}: there is no worker of that node; there are: {}",
            known.join(", ")
        ))
    })?;
    if worker.admin_address.is_empty() {
        let message = format!(
            "the worker of node {node} has no admin side: give its configuration [admin] with listen"
        );
        return Err(Failure::new(Kind::Unavailable, message));
    }
    let answer = Service::at(&worker.admin_address).worker_status(node)?;
    if common.output == Output::Json {
        return output::print_json(&answer);
    }
    let described: Described = whole(answer, "the worker's status")?;
    output::print(&format!("{before}{}", described.text()))
}

impl Described {
    fn text(&self) -> String {
        let Cache {
            quota_bytes,
            committed_bytes,
            reserved_bytes,
            unlinked_held_bytes,
            quarantined_bytes,
            blocks,
            evictions,
        } = self.cache;
        let used = committed_bytes + reserved_bytes + unlinked_held_bytes + quarantined_bytes;
        let grants = match &self.grants.reason {
            Some(reason) => format!("{}: {reason}", self.grants.status),
            None => self.grants.status.clone(),
        };
        let mut rows = vec![
            (
                "node",
                format!("{} ({}, up {} s)", self.node, self.state, self.uptime_seconds),
            ),
            (
                "worker",
                format!("{}, version {}", self.worker_uuid, self.version),
            ),
            ("grants", grants),
            ("sessions", self.sessions.to_string()),
            (
                "cache",
                format!("{} of {}", output::size(used), output::size(quota_bytes)),
            ),
            (
                "  held",
                format!(
                    "{} in {blocks} blocks; {evictions} evicted",
                    output::size(committed_bytes)
                ),
            ),
            ("  reserved", output::size(reserved_bytes)),
            ("  unlinked, still held", output::size(unlinked_held_bytes)),
            ("  quarantined", output::size(quarantined_bytes)),
            ("fetches in flight", self.fetches_in_flight.to_string()),
            ("peers left out", self.peers_left_out.to_string()),
            (
                "fetched",
                format!(
                    "{} from the origin, {} from peers",
                    output::size(self.fill_bytes.origin),
                    output::size(self.fill_bytes.peer)
                ),
            ),
            (
                "read",
                format!(
                    "{} from descriptors, {} over the socket, {} over TCP, {} by peers, {} uncached",
                    output::size(self.read_bytes.local),
                    output::size(self.read_bytes.inline),
                    output::size(self.read_bytes.remote),
                    output::size(self.read_bytes.peer),
                    output::size(self.read_bytes.pass_through)
                ),
            ),
        ];
        for Store {
            name,
            scheme,
            identity,
        } in &self.stores
        {
            rows.push(("store", format!("{name} ({scheme}, {identity})")));
        }
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: Vec<_> = rows
            .iter()
            .map(|(name, value)| format!("{name:width$}  {value}\n"))
            .collect();
        lines.concat()
    }
}
