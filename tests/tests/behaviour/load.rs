//! `cachelet load` and `cachelet free`, as users run them: a table is there before it is read, and gone when it is not
//! wanted any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cachelet_client::OpenRequest;
use cachelet_tests::{
    Bucket, Cluster, ClusterBuilder, FaultProxy, Finished, Process, ProcessBuilder, S3Server, StoredObject,
    Worker, node_name, wait_until,
};
use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::support::{DEADLINE, MIB, assert_content, exact_client_of, put, read_range, sha256_through};

const SEED: u64 = 600;
/// Long enough for a load of some megabytes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// A cluster whose workers fetch through a proxy that counts; listings go to the server itself.
fn behind_proxy() -> (Bucket, FaultProxy, ClusterBuilder) {
    let server = S3Server::shared();
    let proxy = FaultProxy::start(server.address());
    let cluster = Cluster::of(&proxy.endpoint()).block_size("4MiB");
    (server.bucket(), proxy, cluster)
}

/// The command as somebody runs it who has credentials for the store and asks all workers over TCP, but for the secret.
fn without_secret(cluster: &Cluster) -> ProcessBuilder {
    Process::binary("cachelet")
        .envs(S3Server::credentials_env())
        .env("AWS_ENDPOINT_URL", S3Server::shared().endpoint())
        .env("AWS_ALLOW_HTTP", "true")
        .env_remove("CACHELET_TOKEN_FILE")
        .env("CACHELET_SOCKET_DIR", "/nonexistent")
        .args(["--output", "json", "--service"])
        .arg(format!("http://{}", cluster.service().http()))
}

fn command(cluster: &Cluster) -> ProcessBuilder {
    without_secret(cluster)
        .arg("--token-file")
        .arg(cluster.dir().join("secret"))
}

fn run(cluster: &Cluster, arguments: &[&str]) -> Finished {
    command(cluster).args(arguments).run(PATIENCE)
}

/// What the command reported, whatever it ended with.
fn report(finished: &Finished) -> Value {
    serde_json::from_slice(&finished.stdout)
        .unwrap_or_else(|error| panic!("no report ({error}), but {}", finished.stderr))
}

fn number(report: &Value, pointer: &str) -> u64 {
    report
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_else(|| panic!("no number at {pointer} in {report:#}"))
}

/// Adds up a number of every node's report.
fn of_all_nodes(report: &Value, name: &str) -> u64 {
    let nodes = report["nodes"].as_array().expect("a list of nodes");
    nodes.iter().map(|node| node[name].as_u64().unwrap_or(0)).sum()
}

/// A table of objects of every kind: of many blocks, of one, small enough to come inline, and empty.
fn table(bucket: &Bucket, prefix: &str, sizes: &[u64]) -> Vec<(String, StoredObject)> {
    sizes
        .iter()
        .zip(0..)
        .map(|(size, index)| put(bucket, &format!("{prefix}part-{index}"), SEED + index, *size))
        .collect()
}

const SIZES: [u64; 6] = [9 * MIB + 77, 4 * MIB, 300_000, 9_000, 0, 17 * MIB];

fn bytes(sizes: &[u64]) -> u64 {
    sizes.iter().sum()
}

fn blocks(sizes: &[u64]) -> u64 {
    sizes.iter().map(|size| size.div_ceil(4 * MIB)).sum()
}

/// The nodes named for each block of a table, by path and block, with whether they hold all of it.
fn places(
    cluster: &Cluster,
    table: &[(String, StoredObject)],
) -> BTreeMap<(String, u64), BTreeSet<(String, String)>> {
    let paths: Vec<Value> = table
        .iter()
        .map(|(path, stored)| json!({"path": path, "etag": stored.etag, "size_bytes": stored.size_bytes}))
        .collect();
    let answer = cluster.service().locations(&json!({ "paths": paths }));
    let mut places = BTreeMap::new();
    for location in answer["locations"].as_array().expect("a list") {
        for block in location["blocks"].as_array().expect("a list") {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let nodes = block["nodes"].as_array().expect("a list");
            let nodes = nodes
                .iter()
                .map(|node| (text(&node["node"]), text(&node["residency"])))
                .collect();
            places.insert(
                (
                    text(&location["path"]),
                    block["index"].as_u64().expect("a number"),
                ),
                nodes,
            );
        }
    }
    places
}

/// Waits until the service says that each block is wholly on these nodes and on no other.
fn wait_until_placed(
    cluster: &Cluster,
    table: &[(String, StoredObject)],
    expected: &BTreeMap<(String, u64), BTreeSet<(String, String)>>,
) {
    wait_until(DEADLINE, "the blocks are where they belong", || {
        places(cluster, table) == *expected
    });
}

fn assert_reads_right(cluster: &mut Cluster, node: usize, table: &[(String, StoredObject)]) {
    for (path, stored) in table {
        assert_eq!(
            sha256_through(cluster.worker(node), path),
            stored.sha256,
            "{path}"
        );
    }
}

/// Reads each block on the nodes that hold it: from elsewhere a busy machine may miss the time that peers have, and then
/// the origin gives.
fn read_where_it_lies(
    cluster: &mut Cluster,
    table: &[(String, StoredObject)],
    places: &BTreeMap<(String, u64), BTreeSet<(String, String)>>,
) {
    for ((path, block), nodes) in places {
        let at = table.iter().position(|(other, _)| other == path);
        let index = at.unwrap_or_else(|| panic!("{path} is not of the table"));
        let start = block * 4 * MIB;
        let range = start..table[index].1.size_bytes.min(start + 4 * MIB);
        for (node, _) in nodes {
            let worker = (0..2).find(|worker| node_name(*worker) == *node);
            let client = exact_client_of(cluster.worker(worker.expect("one of the two")));
            let request = OpenRequest::new(path.parse().expect("a valid path"));
            let object = client
                .open(&request.with_first_range(range.clone()))
                .unwrap_or_else(|error| panic!("opening {path}: {error}"));
            let bytes = read_range(&object, range.clone());
            let bytes = bytes.unwrap_or_else(|error| panic!("reading {path}: {error}"));
            assert_content(SEED + index as u64, start, &bytes);
        }
    }
}

/// Requests for objects of a bucket; workers ask for others to see whether their credentials are good.
fn requests(proxy: &FaultProxy, bucket: &Bucket, method: &Method) -> usize {
    let own = format!("/{}/", bucket.name());
    let requests = proxy.requests();
    requests
        .iter()
        .filter(|request| request.method == *method && request.path.starts_with(&own))
        .count()
}

fn gets(proxy: &FaultProxy, bucket: &Bucket) -> usize {
    requests(proxy, bucket, &Method::GET)
}

fn heads(proxy: &FaultProxy, bucket: &Bucket) -> usize {
    requests(proxy, bucket, &Method::HEAD)
}

/// A counter of a worker's metrics.
fn counted(worker: &Worker, sample: &str) -> u64 {
    let metrics = worker.metrics();
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// Bytes that a worker sent to anybody who reads.
fn sent_to_readers(worker: &Worker) -> u64 {
    ["local", "inline", "remote", "pass_through"]
        .iter()
        .map(|path| counted(worker, &format!("cachelet_read_bytes_total{{path=\"{path}\"}}")))
        .sum()
}

#[test]
fn a_loaded_table_is_where_it_belongs_came_from_the_origin_once_and_is_read_without_it() {
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.nodes(2).start();
    let table = table(&bucket, "t/", &SIZES);
    put(&bucket, "t2/other", SEED, MIB);
    let prefix = format!("s3a://{}/t/", bucket.name());
    let planned = places(&cluster, &table);
    assert_eq!(planned.len() as u64, blocks(&SIZES));
    let nodes: BTreeSet<&String> = planned.values().flatten().map(|(node, _)| node).collect();
    assert_eq!(nodes.len(), 2, "the table belongs on both nodes: {planned:?}");
    let expected: BTreeMap<_, BTreeSet<_>> = planned
        .into_iter()
        .map(|(block, nodes)| {
            let whole = nodes.into_iter().map(|(node, _)| (node, "all".to_owned()));
            (block, whole.collect())
        })
        .collect();

    let dry = report(&run(&cluster, &["load", &prefix, "--dry-run"]).expect_success());
    assert_eq!(number(&dry, "/planned_bytes"), bytes(&SIZES));
    assert_eq!(number(&dry, "/loaded_bytes"), 0);
    assert_eq!(
        gets(&proxy, &bucket),
        0,
        "nothing is loaded by asking what would be"
    );

    let first = report(&run(&cluster, &["load", &prefix]).expect_success());
    assert_eq!(number(&first, "/objects"), 5);
    assert_eq!(number(&first, "/empty_objects"), 1);
    assert_eq!(number(&first, "/loaded_blocks"), blocks(&SIZES));
    assert_eq!(number(&first, "/loaded_bytes"), bytes(&SIZES));
    assert_eq!(of_all_nodes(&first, "loaded_bytes"), bytes(&SIZES));
    assert_eq!(of_all_nodes(&first, "origin_bytes"), bytes(&SIZES));
    assert_eq!(
        proxy.traffic().data_bytes,
        bytes(&SIZES),
        "once, and nothing else"
    );
    assert_eq!(heads(&proxy, &bucket), 0, "the listing was proof enough");
    wait_until_placed(&cluster, &table, &expected);
    for node in 0..2 {
        assert_eq!(
            sent_to_readers(cluster.worker(node)),
            0,
            "no byte went anywhere else"
        );
    }
    let files: usize = (0..2).map(|node| cluster.worker(node).block_files().len()).sum();
    assert_eq!(files as u64, blocks(&SIZES));

    let second = report(&run(&cluster, &["load", &prefix]).expect_success());
    assert_eq!(number(&second, "/planned_blocks"), 0);
    assert_eq!(number(&second, "/present_bytes"), bytes(&SIZES));
    assert_eq!(proxy.traffic().data_bytes, bytes(&SIZES));
    let after = gets(&proxy, &bucket);
    read_where_it_lies(&mut cluster, &table, &expected);
    // HEADs go on: these clusters let the daemon resolve generations.
    assert_eq!(
        gets(&proxy, &bucket),
        after,
        "what was loaded is read without the origin"
    );
    for node in 0..2 {
        assert_reads_right(&mut cluster, node, &table);
    }
}

#[test]
fn the_second_copy_comes_from_the_first() {
    const SIZES: [u64; 3] = [9 * MIB, 500_000, 5 * MIB];
    /// A busy machine may answer a worker's question for peers after the 200 ms that it waits: then the origin gives.
    const TRIES: u64 = 6;
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster
        .nodes(3)
        .remote_config("peer_first_byte_timeout = \"20s\"")
        .start();
    let mut files = 0;
    for attempt in 1.. {
        let before = proxy.traffic();
        let prefix = format!("t{attempt}/");
        let table = table(&bucket, &prefix, &SIZES);
        let prefix = format!("s3://{}/{prefix}", bucket.name());
        let load = ["load", &prefix, "--replication", "2", "--nodes", "node-1,node-3"];
        let first = report(&run(&cluster, &load).expect_success());
        assert_eq!(number(&first, "/loaded_bytes"), 2 * bytes(&SIZES));
        let from_origin = of_all_nodes(&first, "origin_bytes");
        let from_peers = of_all_nodes(&first, "peer_bytes");
        assert_eq!(proxy.traffic().since(&before).data_bytes, from_origin);
        assert_eq!(from_origin + from_peers, 2 * bytes(&SIZES), "each copy came once");
        let both = || ["node-1", "node-3"].map(|node| (node.to_owned(), "all".to_owned()));
        let expected = places(&cluster, &table)
            .into_keys()
            .map(|block| (block, BTreeSet::from(both())));
        wait_until_placed(&cluster, &table, &expected.collect());
        files += blocks(&SIZES);
        for (node, held) in [(0, files), (1, 0), (2, files)] {
            assert_eq!(
                cluster.worker(node).block_files().len() as u64,
                held,
                "node {node}"
            );
        }

        let second = report(&run(&cluster, &load).expect_success());
        assert_eq!(number(&second, "/planned_blocks"), 0);
        assert_eq!(number(&second, "/present_bytes"), 2 * bytes(&SIZES));
        for node in [0, 2] {
            assert_reads_right(&mut cluster, node, &table);
        }
        assert_eq!(proxy.traffic().since(&before).data_bytes, from_origin);
        if from_origin == bytes(&SIZES) {
            break;
        }
        println!("attempt {attempt}: {from_origin} bytes came from the origin");
        assert!(attempt < TRIES, "the origin gave more than one copy each time");
    }
}

/// Starts a slow load, and waits until workers have begun to fetch.
fn begin_slowly(cluster: &mut Cluster, prefix: &str, worker: usize) -> Process {
    let process = command(cluster)
        .args(["load", prefix, "--bandwidth", "4MiB/s"])
        .start(&cluster.dir().join("logs"));
    wait_until(DEADLINE, "the load has begun", || {
        cluster.worker(worker).count("/fill_bytes/origin") > 0
    });
    process
}

/// The report among what a command wrote to its log.
fn report_in(log: &str) -> Value {
    let begin = log.find("{\n").unwrap_or_else(|| panic!("no report in {log}"));
    let end = log.rfind("\n}\n").unwrap_or_else(|| panic!("no report in {log}"));
    serde_json::from_str(&log[begin..end + 2]).unwrap_or_else(|error| panic!("{error}: {log}"))
}

#[test]
fn what_a_killed_worker_was_to_hold_goes_to_the_next_owner() {
    const SIZES: [u64; 4] = [12 * MIB, 12 * MIB, 8 * MIB, MIB];
    let (bucket, _proxy, cluster) = behind_proxy();
    let mut cluster = cluster.nodes(2).start();
    let table = table(&bucket, "t/", &SIZES);
    let prefix = format!("s3://{}/t/", bucket.name());
    let mut process = begin_slowly(&mut cluster, &prefix, 1);
    cluster.worker(1).kill();
    let status = process.wait_for_exit(PATIENCE);
    let log = process.log();
    assert!(status.success(), "{status}: {log}");
    assert!(log.contains("going on without node node-2"), "{log}");
    let report = report_in(&log);
    assert_eq!(number(&report, "/loaded_bytes"), bytes(&SIZES));
    assert_eq!(
        number(&report, "/nodes/0/loaded_bytes"),
        bytes(&SIZES),
        "all of it on the other"
    );
    assert!(report["nodes"][1]["problem"].is_string(), "{report:#}");
    let served = cluster.worker(0).count("/fill_bytes/origin");
    assert_reads_right(&mut cluster, 0, &table);
    assert_eq!(
        cluster.worker(0).count("/fill_bytes/origin"),
        served,
        "it was all there"
    );
}

#[test]
fn without_a_worker_left_the_blocks_are_reported_with_the_reason() {
    const SIZES: [u64; 2] = [12 * MIB, 20 * MIB];
    let (bucket, _proxy, cluster) = behind_proxy();
    let mut cluster = cluster.start();
    table(&bucket, "t/", &SIZES);
    let mut process = begin_slowly(&mut cluster, &format!("s3://{}/t/", bucket.name()), 0);
    cluster.worker(0).kill();
    let status = process.wait_for_exit(PATIENCE);
    let log = process.log();
    assert_eq!(status.code(), Some(69), "{log}");
    let report = report_in(&log);
    assert_eq!(number(&report, "/loaded_bytes"), 0, "what it had is gone with it");
    assert_eq!(number(&report, "/failed_bytes"), bytes(&SIZES));
    let reason = report["failed"][0]["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("node-1") && reason.contains("no other"),
        "{reason}"
    );
}

#[test]
fn an_interrupted_load_says_how_far_it_came_and_the_next_one_goes_on_from_there() {
    const SIZES: [u64; 3] = [16 * MIB, 16 * MIB, 16 * MIB];
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.start();
    let table = table(&bucket, "t/", &SIZES);
    let prefix = format!("s3://{}/t/", bucket.name());
    let mut process = begin_slowly(&mut cluster, &prefix, 0);
    process.signal(Signal::SIGINT);
    let status = process.wait_for_exit(PATIENCE);
    let log = process.log();
    assert_eq!(status.code(), Some(75), "{log}");
    assert!(
        log.contains("interrupted: ") && log.contains("of 48.0 MiB"),
        "{log}"
    );
    let first = report_in(&log);
    assert_eq!(first["interrupted"], true);
    assert!(number(&first, "/loaded_bytes") < bytes(&SIZES), "{first:#}");

    wait_until(DEADLINE, "what was begun has ended", || {
        cluster.worker(0).count("/fetches_in_flight") == 0
    });
    let kept = proxy.traffic().data_bytes;
    assert!(kept > 0 && kept < bytes(&SIZES), "{kept} bytes came before");
    run(&cluster, &["load", &prefix]).expect_success();
    assert_eq!(
        proxy.traffic().data_bytes,
        bytes(&SIZES),
        "what had come did not come again"
    );
    assert_reads_right(&mut cluster, 0, &table);
    assert_eq!(proxy.traffic().data_bytes, bytes(&SIZES));
}

#[test]
fn a_load_keeps_to_its_bandwidth() {
    const SIZES: [u64; 2] = [12 * MIB, 12 * MIB];
    let (bucket, _proxy, cluster) = behind_proxy();
    let cluster = cluster.nodes(2).start();
    table(&bucket, "t/", &SIZES);
    let began = Instant::now();
    let prefix = format!("s3://{}/t/", bucket.name());
    let finished = run(&cluster, &["load", &prefix, "--bandwidth", "6MiB/s"]).expect_success();
    let took = began.elapsed();
    assert_eq!(number(&report(&finished), "/loaded_bytes"), bytes(&SIZES));
    // 4 s, but for the first steps of 1 MiB, which need not wait.
    assert!(took >= Duration::from_secs(3), "24 MiB at 6 MiB/s took {took:?}");
}

#[test]
fn however_much_is_asked_for_a_worker_sends_the_origin_four_requests_of_loads_at_a_time() {
    const SIZES: [u64; 2] = [40 * MIB, 24 * MIB];
    let (bucket, proxy, cluster) = behind_proxy();
    let cluster = cluster.start();
    table(&bucket, "t/", &SIZES);
    // So that those that could overlap do.
    proxy.set_first_byte_delay(Duration::from_millis(100));
    let prefix = format!("s3://{}/t/", bucket.name());
    run(&cluster, &["load", &prefix, "--concurrency", "64"]).expect_success();
    assert_eq!(proxy.traffic().data_bytes, bytes(&SIZES));
    // 16 without the bound. The proxy may not have noticed yet that a request is over, when the next one comes.
    let most = proxy.most_under_way();
    assert!((2..=6).contains(&most), "{most} requests were under way at once");
}

#[test]
fn an_origin_that_is_slow_beyond_an_answers_time_gets_no_more_requests_for_it() {
    const SIZES: [u64; 1] = [64 * MIB];
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.start();
    table(&bucket, "t/", &SIZES);
    let hold = proxy.hold();
    let mut process = command(&cluster)
        .args([
            "load",
            &format!("s3://{}/t/", bucket.name()),
            "--concurrency",
            "64",
        ])
        .start(&cluster.dir().join("logs"));
    // 16 steps, each answered after some seconds without a page, and asked for again.
    process.wait_until(PATIENCE, "every step was asked for three times", || {
        counted(cluster.worker(0), "cachelet_requests_total{request=\"load\"}") >= 3 * 16
    });
    // Fewer where the daemon has just given one up, to try again.
    let waiting = hold.waiting();
    assert!(waiting <= 4, "{waiting} requests wait at the origin");
    drop(hold);
    let status = process.wait_for_exit(PATIENCE);
    assert!(status.success(), "{}", process.log());
}

#[test]
fn an_object_that_changes_after_it_was_listed_is_not_loaded_and_the_others_are() {
    const SIZES: [u64; 2] = [12 * MIB, 8 * MIB];
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.start();
    let mut table = table(&bucket, "t/", &SIZES);
    let prefix = format!("s3://{}/t/", bucket.name());
    let hold = proxy.hold();
    let process = command(&cluster)
        .args(["load", &prefix])
        .start(&cluster.dir().join("logs"));
    let mut process = process;
    wait_until(DEADLINE, "its first request waits", || hold.waiting() > 0);
    table[1] = put(&bucket, "t/part-1", SEED + 9, 8 * MIB);
    drop(hold);
    let status = process.wait_for_exit(PATIENCE);
    let log = process.log();
    assert_eq!(status.code(), Some(75), "{log}");
    let report = report_in(&log);
    assert_eq!(number(&report, "/loaded_bytes"), SIZES[0]);
    assert_eq!(number(&report, "/failed_bytes"), SIZES[1]);
    assert_eq!(report["failed"][0]["path"], format!("{prefix}part-1"));
    let reason = report["failed"][0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("changed since it was listed"), "{reason}");
    assert_reads_right(&mut cluster, 0, &table);
}

#[test]
fn without_the_secret_nothing_is_loaded_or_freed_over_tcp() {
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.start();
    let (path, stored) = put(&bucket, "t/k", SEED, 100_000);
    assert_eq!(sha256_through(cluster.worker(0), &path), stored.sha256);
    let before = proxy.traffic();
    let other = cluster.dir().join("another secret");
    std::fs::write(&other, "a guess").expect("the directory is ours");
    let prefix = format!("s3://{}/t/", bucket.name());
    put(&bucket, "t/new", SEED, 100_000);
    for verb in ["load", "free"] {
        let none = without_secret(&cluster).args([verb, &path]).run(PATIENCE);
        assert_eq!(none.code(), 64, "{}", none.stderr);
        assert!(none.stderr.contains("--token-file"), "{}", none.stderr);
        let wrong = without_secret(&cluster)
            .arg("--token-file")
            .arg(&other)
            .args([verb, &prefix])
            .run(PATIENCE);
        assert_eq!(wrong.code(), 77, "{}", wrong.stderr);
        assert!(wrong.stderr.contains("secret"), "{}", wrong.stderr);
    }
    assert_eq!(proxy.traffic().since(&before).data_bytes, 0);
    assert_eq!(
        cluster.worker(0).block_files().len(),
        1,
        "what was there is still there"
    );
}

#[test]
fn who_may_not_read_a_table_cannot_load_it() {
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.caller_authorization().start();
    let (path, stored) = put(&bucket, "t/k", SEED, 5 * MIB);
    let prefix = format!("s3://{}/t/", bucket.name());
    for place in [&prefix, &path] {
        let stranger = command(&cluster)
            .env("AWS_ACCESS_KEY_ID", "a stranger")
            .args(["load", place])
            .run(PATIENCE);
        assert_eq!(stranger.code(), 77, "{}", stranger.stderr);
    }
    assert_eq!(gets(&proxy, &bucket), 0);
    assert_eq!(cluster.worker(0).block_files().len(), 0);

    let loaded = report(&run(&cluster, &["load", &prefix]).expect_success());
    assert_eq!(number(&loaded, "/loaded_bytes"), stored.size_bytes, "{loaded:#}");
    assert_eq!(proxy.traffic().data_bytes, stored.size_bytes, "{loaded:#}");
    assert_eq!(heads(&proxy, &bucket), 0, "the caller asked, not the daemon");
    cluster.wait_until_resident(&path, 0);
    let single = report(&run(&cluster, &["load", &path]).expect_success());
    assert_eq!(number(&single, "/present_bytes"), stored.size_bytes);

    // On this node's socket whoever can name an object may forget it; a prefix takes the secret.
    let sockets = cluster.worker(0).socket_dir().to_owned();
    let locally = |arguments: &[&str]| {
        without_secret(&cluster)
            .arg("--socket-dir")
            .arg(&sockets)
            .args(arguments)
            .run(PATIENCE)
    };
    let refused = locally(&["free", &prefix]);
    assert_eq!(refused.code(), 77, "{}", refused.stderr);
    assert!(refused.stderr.contains("secret"), "{}", refused.stderr);
    let freed = report(&locally(&["free", &path]).expect_success());
    assert_eq!(number(&freed, "/bytes"), stored.size_bytes);
    assert_eq!(cluster.worker(0).block_files().len(), 0);
}

#[test]
fn what_is_freed_is_gone_from_every_node_and_read_right_again() {
    const SIZES: [u64; 4] = [9 * MIB, 200_000, 4_000, 5 * MIB];
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.nodes(2).start();
    let table = table(&bucket, "t/", &SIZES);
    let (other, other_stored) = put(&bucket, "t2/k", SEED + 50, 300_000);
    let prefix = format!("s3://{}/t/", bucket.name());
    run(&cluster, &["load", &prefix, &other, "--replication", "2"]).expect_success();
    let kept = |cluster: &mut Cluster| [0, 1].map(|node| cluster.worker(node).block_files().len() as u64);
    let all = blocks(&SIZES) + 1;
    assert_eq!(kept(&mut cluster), [all; 2]);

    let dry = report(&run(&cluster, &["free", &prefix, "--dry-run"]).expect_success());
    assert_eq!(number(&dry, "/blocks"), 2 * blocks(&SIZES));
    assert_eq!(number(&dry, "/bytes"), 2 * bytes(&SIZES));
    assert_eq!(kept(&mut cluster), [all; 2], "it only said so");

    // Deleted at the origin: no listing tells of it, and its block goes all the same.
    bucket.delete("t/part-1");
    let one = report(&run(&cluster, &["free", &table[1].0]).expect_success());
    assert_eq!(number(&one, "/blocks"), 2);
    assert_eq!(number(&one, "/bytes"), 2 * SIZES[1]);
    let freed = report(&run(&cluster, &["free", &prefix]).expect_success());
    assert_eq!(number(&freed, "/blocks"), 2 * (blocks(&SIZES) - 1));
    assert_eq!(number(&freed, "/nodes/1/objects"), 3);
    assert_eq!(kept(&mut cluster), [1; 2], "what is beside the prefix stays");

    let before = proxy.traffic();
    let left: Vec<_> = table
        .iter()
        .filter(|(path, _)| !path.ends_with("part-1"))
        .cloned()
        .collect();
    assert_reads_right(&mut cluster, 0, &left);
    let came = proxy.traffic().since(&before);
    assert_eq!(came.data_bytes, bytes(&SIZES) - SIZES[1], "it had to come again");
    assert_reads_right(&mut cluster, 1, &[(other, other_stored)]);
    let nothing =
        report(&run(&cluster, &["free", &format!("s3://{}/none/", bucket.name())]).expect_success());
    assert_eq!(number(&nothing, "/blocks"), 0);
}

#[test]
fn what_cannot_be_loaded_is_refused_with_the_remedy() {
    let (bucket, _proxy, cluster) = behind_proxy();
    let cluster = cluster.start();
    let (path, _) = put(&bucket, "t/k", SEED, 100_000);
    let nowhere = format!("s3://{}/tabel/", bucket.name());
    let gone = format!("s3://{}/t/gone", bucket.name());
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let finished = run(&cluster, arguments);
        assert_eq!(finished.code(), code, "{arguments:?}: {}", finished.stderr);
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "{arguments:?}: {}",
                finished.stderr
            );
        }
    };
    refused(&["load", &nowhere], 66, &["nothing in", &nowhere, "spelling"]);
    refused(&["load", &gone], 66, &[&gone]);
    refused(
        &["load", "s3://no-such-bucket-here/"],
        66,
        &["no-such-bucket-here"],
    );
    refused(
        &["load", "file://data/t/"],
        64,
        &["file://data/t/", "by its own path"],
    );
    refused(&["load", "file://data/k"], 69, &["file://data"]);
    refused(&["free", "oss://elsewhere/t/"], 69, &["oss://elsewhere"]);
    refused(&["load", &path, "--nodes", "node-9"], 64, &["node-9", "node-1"]);
    refused(
        &["load", &path, "--replication", "2"],
        64,
        &["--replication 2", "node-1"],
    );
    refused(&["load", &path, "--replication", "3"], 64, &["3"]);
    refused(&["load", &path, "--bandwidth", "fast"], 64, &["fast", "200MB/s"]);
    refused(
        &["load", "s3://lake"],
        64,
        &["s3://lake", "scheme://bucket/prefix/"],
    );
    refused(
        &["load", &format!("s3://{}/t//", bucket.name())],
        64,
        &["empty part"],
    );
    let long = format!("s3://{}/{}", bucket.name(), "k".repeat(1025));
    refused(&["load", &long], 64, &["too long"]);
}

#[test]
fn one_worker_is_shown_in_full() {
    let (bucket, _proxy, cluster) = behind_proxy();
    let mut cluster = cluster.nodes(2).start();
    let (path, stored) = put(&bucket, "k", SEED, 5 * MIB);
    assert_eq!(sha256_through(cluster.worker(1), &path), stored.sha256);
    let shown = report(&run(&cluster, &["status", "--node", "node-2"]).expect_success());
    assert_eq!(shown["worker_uuid"], cluster.worker(1).uuid());
    assert_eq!(number(&shown, "/fill_bytes/origin"), stored.size_bytes);
    let text = Process::binary("cachelet")
        .args([
            "--service",
            cluster.service().http(),
            "status",
            "--node",
            "node-2",
        ])
        .run(PATIENCE)
        .expect_success()
        .text();
    for part in [
        "node-2 (ready",
        "unlinked, still held",
        "2 blocks",
        "5.0 MiB from the origin",
        "test-s3",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let unknown = run(&cluster, &["status", "--node", "node-9"]);
    assert_eq!(unknown.code(), 64, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("node-1, node-2"), "{}", unknown.stderr);
}
