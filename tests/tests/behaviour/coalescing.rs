//! However many ask for the same bytes, the origin gives them once.

use std::sync::{Arc, Barrier};
use std::thread;

use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::ids::FileId;
use cachelet_protocol::wire::{Message, OPEN_NO_DATA, Open};
use cachelet_tests::{
    Bucket, Cluster, ClusterBuilder, FaultProxy, S3Server, deterministic_bytes, wait_until,
};
use http::Method;

use super::support::{
    DEADLINE, MIB, client_of, exact_client_of, generation_of, open_stored, options_for, put, read_range,
};
use super::wire::RawSession;

const CLIENTS: u64 = 64;

/// A cluster whose callers know the generation, so that what reaches the proxy are ranged GETs and nothing else.
fn behind_proxy() -> (Bucket, FaultProxy, ClusterBuilder) {
    let server = S3Server::shared();
    let proxy = FaultProxy::start(server.address());
    let cluster = Cluster::of(&proxy.endpoint()).caller_authorization();
    (server.bucket(), proxy, cluster)
}

#[test]
fn sixty_four_clients_on_one_cold_object_cost_the_origin_one_copy() {
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.without_service().start();
    let size = 17 * MIB + 12_345;
    let (path, stored) = put(&bucket, "wanted by all", 40, size);
    let content = Arc::new(deterministic_bytes(40, size));
    proxy.reset();
    // Nothing comes before everybody has asked.
    let hold = proxy.hold();
    let together = Arc::new(Barrier::new(CLIENTS as usize + 1));
    let options = options_for(cluster.worker(0).socket_dir());
    let readers: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (content, together) = (Arc::clone(&content), Arc::clone(&together));
            let (options, path, stored) = (options.clone(), path.clone(), stored.clone());
            thread::spawn(move || {
                let client = cachelet_client::Client::new(options);
                let stream = open_stored(&client, &path, &stored).expect("the generation is its proof");
                together.wait();
                // Each begins elsewhere: they meet on every page.
                let mut buffer = vec![0; MIB as usize];
                let pages = size.div_ceil(MIB);
                for page in 0..pages {
                    let at = (page + number) % pages * MIB;
                    let length = stream.read_at(&mut buffer, at).expect("it can be read");
                    let expected = &content[at as usize..(at + MIB).min(size) as usize];
                    assert!(
                        buffer[..length] == *expected,
                        "client {number} read wrong bytes at {at}"
                    );
                }
            })
        })
        .collect();
    together.wait();
    wait_until(DEADLINE, "the first requests wait at the origin", || {
        hold.waiting() > 0
    });
    drop(hold);
    for reader in readers {
        reader.join().expect("every client reads the right bytes");
    }
    let limit = size + size / 100;
    let sent = proxy.bytes_sent();
    assert!(
        sent <= limit,
        "{sent} bytes left the origin for an object of {size}"
    );
    let filled = cluster.worker(0).count("/fill_bytes/origin");
    assert!(
        (size..=limit).contains(&filled),
        "{filled} bytes filled of {size}"
    );
}

#[test]
fn a_reader_that_goes_away_in_mid_fill_cancels_nobody_elses_pages() {
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.without_service().start();
    let (path, stored) = put(&bucket, "left", 41, 8 * MIB);
    let worker = cluster.worker(0);
    let mut leaver = RawSession::begin(worker);
    let request = leaver.send(&Open {
        generation: Some(generation_of(&stored)),
        flags: OPEN_NO_DATA,
        ..Open::generation_only(path.parse().expect("a valid path"))
    });
    let (Message::Opened(opened), None) = leaver.answer(request) else {
        panic!("{path} was not opened");
    };
    proxy.reset();
    let hold = proxy.hold();
    // The one who goes has asked first: the fetches are his.
    leaver.demand(opened.handle, BlockIndex(0), FileId(0), PageSet::span(0..8));
    wait_until(DEADLINE, "his fetch waits at the origin", || hold.waiting() > 0);
    let client = exact_client_of(worker);
    let stream = open_stored(&client, &path, &stored).expect("the generation is its proof");
    let stayer = thread::spawn(move || read_range(&stream, 0..8 * MIB));
    wait_until(DEADLINE, "both are there", || worker.count("/sessions") == 2);
    drop(leaver);
    wait_until(DEADLINE, "the first has gone", || worker.count("/sessions") == 1);
    drop(hold);
    let bytes = stayer.join().expect("it does not panic").expect("it can be read");
    assert!(
        bytes == deterministic_bytes(41, 8 * MIB),
        "the one who stayed read wrong bytes"
    );
    assert_eq!(proxy.count(&Method::GET), 1, "{:?}", proxy.requests());
    assert_eq!(proxy.bytes_sent(), 8 * MIB, "the origin sent every byte once");
    wait_until(DEADLINE, "no fetch is left", || {
        worker.count("/fetches_in_flight") == 0
    });
}

#[test]
fn a_second_node_costs_the_origin_nothing() {
    let (bucket, proxy, cluster) = behind_proxy();
    let mut cluster = cluster.nodes(2).block_size("4MiB").start();
    let (path, stored) = put(&bucket, "on both nodes", 42, 9 * MIB + 77);
    let content = Arc::new(deterministic_bytes(42, 9 * MIB + 77));
    let read_by_all = |worker: &cachelet_tests::Worker| {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let client = client_of(worker);
                let (path, stored, content) = (path.clone(), stored.clone(), Arc::clone(&content));
                thread::spawn(move || {
                    let stream = open_stored(&client, &path, &stored).expect("the generation is its proof");
                    let bytes = read_range(&stream, 0..stored.size_bytes).expect("it can be read");
                    assert!(bytes == *content, "wrong bytes");
                })
            })
            .collect();
        for reader in readers {
            reader.join().expect("every client reads the right bytes");
        }
    };
    read_by_all(cluster.worker(0));
    cluster.wait_until_resident(&path, 0);
    proxy.reset();
    read_by_all(cluster.worker(1));
    assert_eq!(cluster.worker(1).count("/fill_bytes/origin"), 0);
    assert_eq!(cluster.worker(1).count("/fill_bytes/peer"), stored.size_bytes);
    assert_eq!(proxy.count(&Method::GET), 0, "{:?}", proxy.requests());
}
