//! `cachelet status`: the workers of the cluster, or one of them in full.

mod node;

use std::time::Duration;

use crate::arguments::{Common, Output, Status};
use crate::failure::Failure;
use crate::output;
use crate::service::{Service, Worker, part};

pub(crate) fn run(common: &Common, status: &Status) -> Result<(), Failure> {
    let service = Service::find(common)?;
    let Some(seconds) = status.watch else {
        return once(common, status, &service, "");
    };
    loop {
        // Home, and clear what is below: nothing flickers.
        once(common, status, &service, "\x1b[H\x1b[J")?;
        std::thread::sleep(Duration::from_secs(u64::from(seconds.max(1))));
    }
}

fn once(common: &Common, status: &Status, service: &Service, before: &str) -> Result<(), Failure> {
    if let Some(node) = &status.node {
        return node::run(common, service, node.as_str(), before);
    }
    let answer = service.nodes()?;
    if common.output == Output::Json {
        return output::print_json(&answer);
    }
    let workers: Vec<Worker> = part(&answer, "nodes")?;
    output::print(&format!(
        "{before}{}\n{}\n",
        show(&workers),
        service.status_page()
    ))
}

fn show(workers: &[Worker]) -> String {
    if workers.is_empty() {
        return "no worker is registered\n".into();
    }
    let rows: Vec<_> = workers
        .iter()
        .map(|worker| {
            vec![
                worker.node.clone(),
                worker.state.clone(),
                output::size(worker.capacity_bytes),
                output::size(worker.used_bytes),
                worker.blocks.to_string(),
                worker.sessions.to_string(),
                output::size(worker.local_bytes),
                output::size(worker.peer_bytes),
                output::size(worker.origin_bytes),
                worker.uuid.clone(),
            ]
        })
        .collect();
    let headings = [
        "NODE", "STATE", "CAPACITY", "USED", "BLOCKS", "SESSIONS", "LOCAL", "PEER", "ORIGIN", "UUID",
    ];
    output::table(&headings, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_has_a_row() {
        let worker = |node: &str| Worker {
            node: node.into(),
            uuid: "u".into(),
            state: "ready".into(),
            data_address: String::new(),
            admin_address: String::new(),
            capacity_bytes: 1 << 30,
            used_bytes: 5 << 20,
            blocks: 3,
            sessions: 1,
            local_bytes: 0,
            peer_bytes: 0,
            origin_bytes: 0,
        };
        let shown = show(&[worker("node-1"), worker("node-2")]);
        assert_eq!(shown.lines().count(), 3);
        assert!(shown.contains("1.0 GiB") && shown.contains("5.0 MiB"), "{shown}");
    }
}
