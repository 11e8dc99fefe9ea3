//! Where tasks run: on the nodes that hold what they read, and never waiting for a host on which nobody is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cachelet_tests::spark::{EventLog, Release};
use cachelet_tests::{Cluster, node_name};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::support::{DIRECTORIES, FILES, Ground, ROWS, Tables, ground, read_through, releases};

/// An application that reads everything in every way gives back what stock S3A gives, and once the cache is warm each
/// way is local, on the same nodes, without the origin.
#[test]
fn every_format_and_way_of_reading_is_node_local_once_warm_and_reads_what_stock_s3a_reads() {
    let tables = Tables::shared();
    for release in [Release::Spark3, Release::Spark4] {
        let proxy = Tables::counted();
        let mut cluster = Cluster::of(&proxy.endpoint())
            .nodes(2)
            .caller_authorization()
            .start();
        let mut ground = ground(release);
        ground.attach(&mut cluster);
        println!("Spark {}", ground.spark.install().version);

        let stock = ground.stock(&proxy.endpoint());
        let cachelet = stock.clone().cachelet();
        proxy.reset();
        let stock = ground.run(stock, &tables.every_way());
        stock.print("stock");
        let stock_heads = proxy.traffic().heads;
        proxy.reset();
        let cold = ground.run(cachelet.clone(), &tables.every_way());
        cold.print("cold");
        let cold_bytes = proxy.traffic().data_bytes;
        proxy.reset();
        let warm = ground.run(cachelet, &tables.every_way());
        warm.print("warm");
        let warm_heads = proxy.traffic().heads;
        println!("  HEADs: {stock_heads} with stock S3A, {warm_heads} warm");
        // Spark 4 itself opens a Parquet file once.
        let most_heads = match release {
            Release::Spark3 => stock_heads / 2,
            Release::Spark4 => stock_heads,
        };
        assert!(warm_heads <= most_heads);

        for (name, expected) in stock.steps() {
            for outcome in [&cold, &warm] {
                let found = outcome.step(name);
                assert_eq!(
                    (found.rows, &found.hash, found.files),
                    (expected.rows, &expected.hash, expected.files)
                );
                assert_input_bytes(name, release, &outcome.log, &stock.log);
            }
            assert_eq!(expected.rows, ROWS, "{name}");
            warm.assert_node_local(name);
            let nodes: BTreeSet<_> = warm.step(name).preferred_hosts.iter().flatten().collect();
            assert_eq!(nodes.len(), 2, "{name} lies on both nodes");
            assert_same_nodes(
                name,
                &cold.step(name).preferred_hosts,
                &warm.step(name).preferred_hosts,
            );
        }
        assert_eq!(stock.step("parquet").files, FILES);
        assert_eq!(stock.step("partitions").files, DIRECTORIES);
        cold.assert_only_hosts_of_executors();
        warm.assert_only_hosts_of_executors();
        let refetched = proxy.traffic().data_bytes;
        assert!(
            refetched * 20 <= cold_bytes,
            "a warm run took {refetched} bytes from the origin, the cold one {cold_bytes}"
        );
    }
}

/// Spark's input metrics say what stock S3A lets them say.
#[track_caller]
fn assert_input_bytes(name: &str, release: Release, ours: &EventLog, stock: &EventLog) {
    let ours = ours.input_bytes(Some(name)) as f64;
    let theirs = stock.input_bytes(Some(name)) as f64;
    // Stock S3A of Hadoop 3.4 reads the ranges of Parquet and ORC on threads of its own, and what they read is in no
    // task's statistics: there ours, which are complete, can only be compared from below.
    let theirs_are_complete = release == Release::Spark3 || ["csv", "text", "rdd"].contains(&name);
    let close = (ours / theirs - 1.0).abs() <= 0.05;
    assert!(
        if theirs_are_complete {
            close
        } else {
            ours >= theirs
        },
        "{name}: {ours} input bytes, {theirs} with stock S3A"
    );
}

/// Each partition's cold hosts are among its warm ones: what was read meanwhile moved nothing.
#[track_caller]
fn assert_same_nodes(name: &str, all_cold: &[Vec<String>], all_warm: &[Vec<String>]) {
    assert_eq!(all_cold.len(), all_warm.len(), "{name}");
    for (cold, warm) in all_cold.iter().zip(all_warm) {
        let moved = !cold.iter().all(|host| warm.contains(host));
        assert!(
            !moved,
            "{name}: from {cold:?} to {warm:?}, of all {all_cold:?} to {all_warm:?}"
        );
    }
}

#[test]
fn a_table_on_one_of_two_nodes_is_read_there_and_unread_files_make_no_task_wait() {
    let tables = Tables::shared();
    for release in releases(Release::Spark4) {
        let proxy = Tables::counted();
        let mut cluster = Cluster::of(&proxy.endpoint()).nodes(2).start();
        let mut ground = ground(release);
        ground.attach(&mut cluster);
        let on_first = tables.objects("parquet");
        let half: Vec<String> = tables.objects("orc").into_iter().step_by(2).collect();
        read_through(cluster.worker(0), &on_first);
        read_through(cluster.worker(0), &half);
        for path in on_first.iter().chain(&half) {
            cluster.wait_until_resident(path, 0);
        }
        let one = |name: &str| json!({"name": name, "format": "parquet", "path": tables.path("parquet")});
        let steps = json!([
            // So that both executors know Parquet before times are compared.
            {"name": "warm-up", "format": "parquet", "path": tables.path("partitions")},
            one("one"),
            one("one again"),
            one("once more"),
            {"name": "half", "format": "orc", "path": tables.path("orc")},
        ]);
        // A store is further away than this machine's own.
        proxy.set_first_byte_delay(Duration::from_millis(30));
        proxy.set_bandwidth(Some(90_000_000));
        // What the plug-in sets where nobody else did.
        let stock = ground
            .stock(&proxy.endpoint())
            .setting("spark.locality.wait.node", "500ms");
        let cachelet = stock.clone().cachelet();
        let stock = ground.run(stock, &steps);
        proxy.reset();
        let outcome = ground.run(cachelet, &steps);
        stock.print("stock");
        outcome.print("one of two");
        outcome.assert_only_hosts_of_executors();
        for partition in &outcome.step("one").preferred_hosts {
            assert_eq!(partition, &["127.0.0.2"], "only the first node holds it");
        }
        let of_half: BTreeMap<bool, usize> = tally(&outcome.step("half").preferred_hosts, |hosts| {
            hosts.iter().any(|host| host == "127.0.0.2")
        });
        assert!(of_half[&true] >= FILES / 2, "{of_half:?}");
        // 3 s is what a task waits for a host with nobody on it; the plug-in shortens what others wait to 0.5 s.
        let longest = longest_gap(&outcome.log, "half");
        assert!(
            longest < 2500,
            "a task was launched {longest} ms after the others"
        );
        for step in ["one", "one again", "once more", "half"] {
            assert_eq!(outcome.step(step).hash, stock.step(step).hash, "{step}");
            let (ours, theirs) = (outcome.step(step).seconds, stock.step(step).seconds);
            println!(
                "  {step}: {ours:.2} s, with stock S3A {theirs:.2} s ({:.2}x)",
                ours / theirs
            );
        }
    }
}

fn tally<T, K: Ord>(items: &[T], key: impl Fn(&T) -> K) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(key(item)).or_default() += 1;
    }
    counts
}

/// The longest time, in milliseconds, in which a core was free and no task of the group was launched although some were
/// still to come.
fn longest_gap(log: &EventLog, group: &str) -> u64 {
    let mut by_executor: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for task in log.scans(Some(group)) {
        let spans = by_executor.entry(&task.executor).or_default();
        spans.push((task.launched_ms, task.finished_ms));
    }
    let last_launch = log.scans(Some(group)).map(|task| task.launched_ms).max();
    let mut longest = 0;
    for spans in by_executor.values_mut() {
        spans.sort_unstable();
        let ends = spans.iter().map(|span| span.1);
        let next = spans.iter().skip(1).map(|span| span.0).chain(last_launch);
        for (end, next) in ends.zip(next) {
            longest = longest.max(next.saturating_sub(end));
        }
    }
    longest
}

#[test]
fn an_executor_that_is_lost_is_forgotten_and_the_one_that_replaces_it_is_used() {
    let tables = Tables::shared();
    for release in releases(Release::Spark3) {
        let proxy = Tables::counted();
        let mut cluster = Cluster::of(&proxy.endpoint())
            .nodes(2)
            .caller_authorization()
            .start();
        let mut ground = ground(release);
        ground.attach(&mut cluster);
        let go_on = cluster.dir().join("go-on");
        let parquet = |name: &str| json!({"name": name, "format": "parquet", "path": tables.path("parquet")});
        let mut after = parquet("after");
        after["wait_for"] = json!(go_on);
        after["executors"] = json!(2);
        let steps = Value::Array(vec![parquet("before"), after]);
        let application = ground.stock(&proxy.endpoint()).cachelet();
        let mut reading = ground.submit(application, &steps);
        reading.wait_until_waiting("after");
        let [lost] = ground.spark.executors("127.0.0.3")[..] else {
            panic!("one executor on 127.0.0.3");
        };
        kill(lost, Signal::SIGKILL).expect("it runs");
        ground.spark.wait_for_replacement("127.0.0.3", lost);
        std::fs::write(&go_on, "").expect("the directory is ours");
        let outcome = reading.finish();
        outcome.print("executor lost");
        assert_eq!(
            outcome.log.removed_executors.len(),
            1,
            "{:?}",
            outcome.log.removed_executors
        );
        assert_eq!(outcome.log.executors.len(), 3);
        assert_eq!(outcome.step("after").hash, outcome.step("before").hash);
        outcome.assert_only_hosts_of_executors();
        outcome.assert_node_local("after");
        assert_eq!(outcome.log.scans_by_host(Some("after")).len(), 2);
    }
}

#[test]
fn with_dynamic_allocation_a_table_listed_before_any_executor_was_there_is_local_once_they_are() {
    let tables = Tables::shared();
    for release in releases(Release::Spark4) {
        let proxy = Tables::counted();
        let mut cluster = Cluster::of(&proxy.endpoint())
            .nodes(2)
            .caller_authorization()
            .start();
        let mut ground = ground(release);
        ground.attach(&mut cluster);
        let application = ground.stock(&proxy.endpoint()).cachelet().settings([
            ("spark.dynamicAllocation.enabled", "true"),
            ("spark.dynamicAllocation.shuffleTracking.enabled", "true"),
            ("spark.dynamicAllocation.initialExecutors", "0"),
            ("spark.dynamicAllocation.minExecutors", "0"),
            ("spark.scheduler.minRegisteredResourcesRatio", "0"),
        ]);
        // The same relation twice: it is listed once.
        let step = |name: &str| json!({"name": name, "format": "parquet", "path": tables.path("parquet"), "table": "kept"});
        let mut warm = step("warm");
        warm["executors"] = json!(2);
        let outcome = ground.run(application, &json!([step("cold"), step("again"), warm]));
        outcome.print("dynamic allocation");
        outcome.assert_only_hosts_of_executors();
        outcome.assert_node_local("warm");
        assert_eq!(outcome.step("warm").hash, outcome.step("cold").hash);
    }
}

#[test]
fn executors_on_two_of_six_nodes_are_local_once_warm_and_no_block_has_more_than_two_copies() {
    const NODES: usize = 6;
    let tables = Tables::shared();
    for release in releases(Release::Spark3) {
        let proxy = Tables::counted();
        let mut cluster = Cluster::of(&proxy.endpoint())
            .nodes(NODES)
            .caller_authorization()
            .start();
        let mut ground: std::sync::MutexGuard<'_, Ground> = ground(release);
        ground.attach(&mut cluster);
        let step = |name: &str| json!({"name": name, "format": "parquet", "path": tables.path("parquet")});
        let application = ground.stock(&proxy.endpoint()).cachelet();
        let outcome = ground.run(application, &json!([step("cold"), step("again"), step("warm")]));
        outcome.print("two of six");
        outcome.assert_only_hosts_of_executors();
        outcome.assert_node_local("warm");
        let all_nodes: Vec<String> = (0..NODES).map(node_name).collect();
        let paths = tables.objects("parquet");
        let answer = cluster
            .service()
            .locations(&json!({"paths": paths, "candidates": all_nodes}));
        let locations = answer["locations"].as_array().expect("a list").clone();
        assert_eq!(locations.len(), FILES);
        for location in &locations {
            for block in location["blocks"].as_array().expect("a list") {
                let copies = block["nodes"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .filter(|node| node["state"] == "resident")
                    .count();
                assert!((1..=2).contains(&copies), "{copies} copies: {location}");
            }
        }
        // What no executor reads from is not filled either.
        for idle in 2..NODES {
            println!(
                "  {}: {} block files",
                node_name(idle),
                cluster.worker(idle).block_files().len()
            );
        }
    }
}
