//! What the locality service tells schedulers, over real HTTP, about workers that live and die.

use std::time::{Duration, Instant};

use cachelet_tests::{Cluster, LEASE, Service, TestDir, deterministic_bytes, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::support::{DEADLINE, client_of, open, over_s3, put, read_all, sha256_through};

/// The nodes named for every block of every path of an answer: the node, and whether it is resident or planned.
fn named(answer: &Value) -> Vec<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    list(&answer["locations"])
        .iter()
        .flat_map(|location| list(&location["blocks"]))
        .map(|block| {
            let nodes = list(&block["nodes"]);
            nodes
                .iter()
                .map(|node| (text(&node["node"]), text(&node["state"])))
                .collect()
        })
        .collect()
}

fn names(service: &Service, paths: &[String], candidates: Option<&[&str]>) -> Vec<Vec<(String, String)>> {
    let mut request = json!({ "paths": paths });
    if let Some(candidates) = candidates {
        request["candidates"] = json!(candidates);
    }
    named(&service.locations(&request))
}

fn is(entry: &(String, String), node: &str, state: &str) -> bool {
    entry.0 == node && entry.1 == state
}

#[test]
fn a_thousand_paths_are_answered_within_50_milliseconds() {
    const PATHS: usize = 1_000;
    let dir = TestDir::new("loc");
    let root = dir.create_dir("root");
    let content = deterministic_bytes(1, 20_000);
    for index in 0..PATHS {
        std::fs::write(root.join(format!("part-{index:05}")), &content).unwrap();
    }
    let mut cluster = Cluster::of_directory(&root).nodes(3).block_size("1MiB").start();
    let paths: Vec<String> = (0..PATHS)
        .map(|index| format!("file://data/part-{index:05}"))
        .collect();
    let clients = [0, 1, 2].map(|node| client_of(cluster.worker(node)));
    // A file that changed just now could change again unnoticed, and is not cached.
    wait_until(DEADLINE, "the last file has settled", || {
        open(&clients[0], &paths[PATHS - 1]).is_ok()
    });
    std::thread::scope(|scope| {
        for (node, client) in clients.iter().enumerate() {
            let own = paths.iter().skip(node).step_by(clients.len());
            scope.spawn(|| {
                for path in own {
                    read_all(&open(client, path).unwrap()).unwrap();
                }
            });
        }
    });
    let nodes = ["node-1", "node-2", "node-3"];
    let expected = |index: usize| nodes[index % nodes.len()];
    let service = cluster.service();
    wait_until(DEADLINE, "the service knows every object", || {
        let named = names(service, &paths, Some(&nodes));
        let resident = |(index, block): (usize, &Vec<(String, String)>)| {
            block.len() == 1 && is(&block[0], expected(index), "resident")
        };
        named.len() == PATHS && named.iter().enumerate().all(resident)
    });

    let request = json!({ "paths": paths, "candidates": nodes });
    let best = (0..5)
        .map(|_| {
            let begun = Instant::now();
            let answer = service.locations(&request);
            let took = begun.elapsed();
            assert_eq!(answer["locations"].as_array().map(Vec::len), Some(PATHS));
            took
        })
        .min()
        .expect("there were five");
    assert!(best <= Duration::from_millis(50), "the best of 5 took {best:?}");
}

#[test]
fn only_candidates_are_ever_named_and_no_candidates_name_nobody() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.nodes(3).block_size("1MiB").start();
    let paths: Vec<String> = (0..12)
        .map(|index| put(&bucket, &format!("part-{index}"), index, 150_000).0)
        .collect();
    for path in &paths {
        sha256_through(cluster.worker(0), path);
    }
    for path in &paths {
        cluster.wait_until_resident(path, 0);
    }
    let service = cluster.service();
    for block in names(service, &paths, None) {
        assert!(
            block.len() == 1 && is(&block[0], "node-1", "resident"),
            "{block:?}"
        );
    }

    let others = names(service, &paths, Some(&["node-2", "node-3"]));
    assert_eq!(others.len(), paths.len());
    for block in &others {
        assert_eq!(block.len(), 1, "planned on one node: {block:?}");
        assert!(
            is(&block[0], "node-2", "planned") || is(&block[0], "node-3", "planned"),
            "{block:?}"
        );
    }
    for node in ["node-2", "node-3"] {
        assert!(
            others.iter().any(|block| block[0].0 == node),
            "12 objects are planned on both nodes, not on {node} alone: {others:?}"
        );
    }
    // A plan does not change from one question to the next: it depends on names only.
    assert_eq!(names(service, &paths, Some(&["node-3", "node-2"])), others);
    assert_eq!(
        names(service, &paths, Some(&["node-3", "node-2", "no-such-node"])),
        others
    );

    for candidates in [&[] as &[&str], &["no-such-node"], &["NODE-1", "node-1 ", ""]] {
        let blocks = names(service, &paths, Some(candidates));
        assert_eq!(blocks.len(), paths.len(), "the blocks are told all the same");
        assert!(blocks.iter().all(Vec::is_empty), "{candidates:?}: {blocks:?}");
    }
    let both = names(service, &paths, Some(&["node-1", "node-2"]));
    for block in both {
        assert!(
            block.len() == 1 && is(&block[0], "node-1", "resident"),
            "{block:?}"
        );
    }
}

/// Half of the lease: what a loaded machine may add to it.
const MARGIN: Duration = Duration::from_secs(1);

#[test]
fn a_killed_worker_leaves_the_answers_within_its_lease_and_its_node_has_one_entry_when_it_is_back() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.nodes(2).start();
    let (path, _) = put(&bucket, "k", 1, 2_000_000);
    sha256_through(cluster.worker(0), &path);
    cluster.wait_until_resident(&path, 0);
    let paths = [path.clone()];
    let before = cluster.worker(0).uuid();

    cluster.worker(0).kill();
    let service = cluster.service();
    wait_until(LEASE + MARGIN, "a dead worker is named no more", || {
        names(service, &paths, None)
            .iter()
            .flatten()
            .all(|entry| entry.0 != "node-1")
            && names(service, &paths, Some(&["node-1"]))
                .iter()
                .all(Vec::is_empty)
    });
    assert_eq!(service.ready_nodes(), ["node-2"]);

    cluster.worker(0).start();
    let after = cluster.worker(0).uuid();
    assert_ne!(before, after);
    let service = cluster.service();
    wait_until(DEADLINE, "the node is back", || {
        let nodes = service.nodes();
        let own: Vec<&Value> = nodes.iter().filter(|node| node["node"] == "node-1").collect();
        assert_eq!(own.len(), 1, "one entry a node: {nodes:?}");
        own[0]["uuid"] == after.as_str() && own[0]["state"] == "ready"
    });
    cluster.wait_until_resident(&path, 0);
}

#[test]
fn a_worker_that_hangs_leaves_the_answers_within_its_lease_and_comes_back_when_it_goes_on() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.nodes(2).start();
    let (path, _) = put(&bucket, "k", 1, 2_000_000);
    sha256_through(cluster.worker(0), &path);
    cluster.wait_until_resident(&path, 0);
    let paths = [path.clone()];

    // Its connection stays up: only the lease tells.
    cluster.worker(0).process().signal(Signal::SIGSTOP);
    wait_until(LEASE + MARGIN, "a worker that hangs is named no more", || {
        names(cluster.service(), &paths, None)
            .iter()
            .flatten()
            .all(|entry| entry.0 != "node-1")
    });
    cluster.worker(0).process().signal(Signal::SIGCONT);
    cluster.wait_until_resident(&path, 0);
}

#[test]
fn a_restarted_worker_replaces_its_former_self_before_that_ones_lease_is_over() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.start();
    let (path, _) = put(&bucket, "k", 1, 2_000_000);
    sha256_through(cluster.worker(0), &path);
    cluster.wait_until_resident(&path, 0);
    let mut seen = vec![cluster.worker(0).uuid()];
    for _ in 0..3 {
        cluster.worker(0).kill();
        cluster.worker(0).start();
        let uuid = cluster.worker(0).uuid();
        assert!(!seen.contains(&uuid));
        // Far less than what a lease would take: the worker has just started.
        wait_until(LEASE / 2, "the new worker has its node's place", || {
            let nodes = cluster.service().nodes();
            assert_eq!(nodes.len(), 1, "no ghost beside it: {nodes:?}");
            nodes[0]["uuid"] == uuid.as_str() && nodes[0]["state"] == "ready"
        });
        cluster.wait_until_resident(&path, 0);
        seen.push(uuid);
    }
}
