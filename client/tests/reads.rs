//! What a reader gets, where from, and with how many messages, against a daemon that behaves well.

#![allow(clippy::unwrap_used, reason = "tests; clippy knows only their functions")]

mod fake;

use std::sync::Arc;

use cachelet_client::{Client, Error, OpenRequest, Options};
use cachelet_protocol::ids::{Etag, Generation, ObjectPath};
use cachelet_protocol::wire::{BypassReason, DropFiles, GrantStatus, Message, Priority};
use fake::{Answer, FakeDaemon, bypass, pattern};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const PATH: &str = "s3://lake/table/part-0.parquet";

fn request() -> OpenRequest {
    OpenRequest::new(PATH.parse().unwrap())
}

fn with_object(length: u64) -> (FakeDaemon, Vec<u8>) {
    let daemon = FakeDaemon::start();
    let bytes = pattern(1, length as usize);
    daemon.model().put(PATH, "etag-1", bytes.clone());
    (daemon, bytes)
}

fn read_all(object: &cachelet_client::Object, step: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = vec![0; step];
    loop {
        let read = object.read_at(&mut buf, all.len() as u64).unwrap();
        if read == 0 {
            return all;
        }
        all.extend_from_slice(&buf[..read]);
    }
}

#[test]
fn a_cold_open_and_first_read_is_one_round_trip_and_a_warm_read_none() {
    let (daemon, bytes) = with_object(3 * MIB);
    let client = daemon.client();
    client.connect().unwrap();
    let before = client.stats();
    let object = client.open(&request().with_first_range(MIB..MIB + 100)).unwrap();
    let mut buf = vec![0; 100];
    object.read_exact_at(&mut buf, MIB).unwrap();
    assert_eq!(buf, bytes[MIB as usize..MIB as usize + 100]);
    let cold = client.stats();
    assert_eq!(cold.round_trips - before.round_trips, 1);
    for offset in [0, 17, MIB, 3 * MIB - 100] {
        object.read_exact_at(&mut buf, offset).unwrap();
        assert_eq!(buf, bytes[offset as usize..offset as usize + 100]);
    }
    let warm = client.stats();
    assert_eq!(warm.round_trips, cold.round_trips);
    assert_eq!(daemon.requests(|message| !matches!(message, Message::Ack(_))), 1);
    assert_eq!((warm.local_bytes, warm.inline_bytes), (500, 0));
    assert_eq!(object.stats().local_bytes, 500);
}

#[test]
fn a_warm_open_is_one_round_trip_and_reads_from_the_descriptors_it_had() {
    let (daemon, bytes) = with_object(3 * MIB);
    let client = daemon.client();
    drop(read_all(
        &client.open(&request().with_first_range(0..MIB)).unwrap(),
        1 << 20,
    ));
    let before = client.stats();
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    assert_eq!(read_all(&object, 1 << 20), bytes);
    let after = client.stats();
    assert_eq!(after.round_trips - before.round_trips, 1);
    assert_eq!(client.descriptors_held(), 1, "one file, one descriptor");
}

#[test]
fn opening_an_open_generation_by_its_name_costs_no_message() {
    let (daemon, bytes) = with_object(MIB);
    let client = daemon.client();
    let first = client.open(&request().with_first_range(0..MIB)).unwrap();
    let named = request().with_generation(first.generation().clone());
    let before = client.stats();
    let second = client.open(&named).unwrap();
    assert_eq!(read_all(&second, 1 << 20), bytes);
    drop((first, second));
    let third = client.open(&named).unwrap();
    assert_eq!(read_all(&third, 1 << 20), bytes);
    let after = client.stats();
    assert_eq!(after.messages_sent, before.messages_sent);
    assert_eq!(after.opens_shared, 2);
}

#[test]
fn an_open_without_a_generation_may_be_served_from_one_within_the_staleness_allowed() {
    let (daemon, _) = with_object(MIB);
    let client = Client::new(Options {
        max_staleness: std::time::Duration::from_hours(1),
        ..daemon.options()
    });
    let first = client.open(&request()).unwrap();
    daemon.model().put(PATH, "etag-2", pattern(2, 5));
    assert_eq!(client.open(&request()).unwrap().generation(), first.generation());
    let strict = daemon.client();
    assert_eq!(strict.open(&request()).unwrap().size_bytes(), 5);
}

#[test]
fn reads_end_at_the_objects_end_as_pread_does() {
    let (daemon, bytes) = with_object(2 * MIB + 5);
    let object = daemon.client().open(&request()).unwrap();
    let mut buf = vec![0; 100];
    let end = 2 * MIB + 5;
    assert_eq!(object.read_at(&mut buf, end - 7).unwrap(), 7);
    assert_eq!(buf[..7], bytes[bytes.len() - 7..]);
    for offset in [end, end + 1, u64::MAX] {
        assert_eq!(object.read_at(&mut buf, offset).unwrap(), 0);
    }
    assert_eq!(object.read_at(&mut [], 0).unwrap(), 0);
    let beyond = object.read_exact_at(&mut buf, end - 99);
    assert!(matches!(beyond, Err(Error::EndOfObject { .. })));
    assert!(matches!(
        object.read_exact_at(&mut buf, u64::MAX),
        Err(Error::EndOfObject { .. })
    ));
}

#[test]
fn an_empty_object_has_no_block_and_small_ones_come_with_the_opening() {
    let daemon = FakeDaemon::start();
    let client = daemon.client();
    for length in [0_usize, 1, 16 << 10] {
        let path = format!("s3://lake/small-{length}");
        daemon.model().put(&path, "e", pattern(3, length));
        let opened = OpenRequest::new(path.parse().unwrap()).with_first_range(0..100);
        let object = client.open(&opened).unwrap();
        assert_eq!(read_all(&object, 4096), pattern(3, length));
    }
    assert_eq!(daemon.requests(|message| !matches!(message, Message::Open(_))), 0);
    assert_eq!(client.descriptors_held(), 0);
}

#[test]
fn missing_pages_are_asked_for_and_only_those() {
    let (daemon, bytes) = with_object(10 * MIB);
    daemon.model().warm = false;
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..10)).unwrap();
    let mut buf = vec![0; 2 << 20];
    // Half of page 1 and of page 3, in block 0: page 0 came with the opening.
    object.read_exact_at(&mut buf, MIB + MIB / 2).unwrap();
    assert_eq!(buf, bytes[(MIB + MIB / 2) as usize..][..2 << 20]);
    // Across blocks 1 and 2.
    object.read_exact_at(&mut buf, 7 * MIB).unwrap();
    assert_eq!(buf, bytes[7 << 20..9 << 20]);
    let pages: Vec<_> = daemon
        .log()
        .iter()
        .filter_map(|message| match message {
            Message::Fill(fill) => {
                assert_eq!(fill.priority, Priority::Demand);
                Some((fill.block.0, fill.file_id.0 != 0, fill.pages.bits()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(pages, [(0, true, 0b1110), (1, false, 0b1000), (2, false, 0b0001)]);
    assert_eq!(client.stats().fills_waited, 3);
}

#[test]
fn refill_after_eviction_never_reads_the_old_files_hole() {
    let (daemon, bytes) = with_object(4 * MIB);
    daemon.model().warm = false;
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    daemon.model().evict(PATH, 0);
    // The old file keeps page 0 readable; page 2 must come from the new one.
    assert_eq!(read_all(&object, 1 << 20), bytes);
    daemon.wait_for("the old file's release", |log| {
        log.iter()
            .any(|(_, message)| matches!(message, Message::Release(release) if release.files.len() == 1))
    });
    assert_eq!(client.descriptors_held(), 1);
}

#[test]
fn dropped_files_are_closed_reported_and_granted_anew() {
    let (daemon, bytes) = with_object(MIB);
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    assert_eq!(read_all(&object, 1 << 20), bytes);
    let path: ObjectPath = PATH.parse().unwrap();
    let file = daemon
        .model()
        .block(&path, cachelet_protocol::block::BlockIndex(0))
        .id;
    daemon.broadcast(&DropFiles { files: vec![file] });
    daemon.wait_for("usage and release", |log| {
        let used = log.iter().position(|(_, message)| {
            matches!(message, Message::Used(used) if used.files[0].bytes == MIB && used.files[0].file_id == file)
        });
        let released = log
            .iter()
            .position(|(_, message)| matches!(message, Message::Release(release) if release.files == [file]));
        used.zip(released).is_some_and(|(used, released)| used < released)
    });
    assert_eq!(client.descriptors_held(), 0);
    assert_eq!(read_all(&object, 1 << 20), bytes);
    assert_eq!(client.stats().grants_dropped, 1);
}

#[test]
fn descriptors_stay_below_the_limit_and_the_unused_go_first() {
    let (daemon, bytes) = with_object(40 * MIB);
    let client = Client::new(Options {
        max_descriptors: 3,
        ..daemon.options()
    });
    let object = client.open(&request()).unwrap();
    let mut buf = vec![0; 1000];
    for round in 0..3 {
        for block in 0..10_u64 {
            let offset = block * 4 * MIB + round;
            object.read_exact_at(&mut buf, offset).unwrap();
            assert_eq!(buf, bytes[offset as usize..offset as usize + 1000]);
            assert!(client.descriptors_held() <= 3);
        }
    }
    assert!(client.stats().grants_closed >= 7);
}

#[test]
fn a_sessions_share_of_held_bytes_is_kept() {
    let (daemon, _) = with_object(20 * MIB);
    daemon.model().max_held_bytes = 8 * MIB;
    let client = daemon.client();
    let object = client.open(&request()).unwrap();
    for block in 0..5_u64 {
        object.read_exact_at(&mut [0; 10], block * 4 * MIB).unwrap();
        assert!(client.descriptors_held() <= 2);
    }
}

#[test]
fn idle_descriptors_and_closed_objects_are_closed() {
    let (daemon, _) = with_object(MIB);
    daemon.model().idle_close_seconds = 0;
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..10)).unwrap();
    object.read_exact_at(&mut [0; 10], 0).unwrap();
    client.maintain();
    client.maintain();
    assert_eq!(client.descriptors_held(), 0);
    drop(object);
    client.maintain();
    daemon.wait_for("the handle's release", |log| {
        log.iter()
            .any(|(_, message)| matches!(message, Message::Release(release) if release.handle.0 != 0))
    });
}

#[test]
fn every_descriptor_is_acknowledged() {
    let (daemon, _) = with_object(40 * MIB);
    let client = daemon.client();
    let object = client.open(&request()).unwrap();
    for block in 0..10_u64 {
        object.read_exact_at(&mut [0; 10], block * 4 * MIB).unwrap();
    }
    daemon.wait_for("ten acknowledgements", |log| {
        let counts = log.iter().map(|(_, message)| match message {
            Message::Ack(ack) => ack.count,
            _ => 0,
        });
        counts.sum::<u16>() == 10
    });
}

#[test]
fn a_sequential_reader_has_its_next_block_granted_ahead() {
    let (daemon, bytes) = with_object(40 * MIB);
    let client = Client::new(Options {
        readahead_bytes: 8 * MIB,
        ..daemon.options()
    });
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    let mut read = Vec::new();
    let mut buf = vec![0; 512 << 10];
    while (read.len() as u64) < object.size_bytes() {
        let count = object.read_at(&mut buf, read.len() as u64).unwrap();
        read.extend_from_slice(&buf[..count]);
        let blocks_asked = (read.len() as u64 / (4 * MIB) + 1).min(9);
        if read.len() as u64 >= MIB {
            daemon.wait_for("the next block's request", |log| {
                log.iter().any(|(_, message)| {
                    matches!(message, Message::Fill(fill) if u64::from(fill.block.0) >= blocks_asked)
                })
            });
        }
    }
    assert_eq!(read, bytes);
    let ahead = daemon
        .requests(|message| matches!(message, Message::Fill(fill) if fill.priority == Priority::Readahead));
    assert!(ahead >= 9, "{ahead} blocks were asked for ahead");
}

#[test]
fn without_grants_bytes_come_inline_into_the_readers_buffer() {
    let (daemon, bytes) = with_object(9 * MIB + 3);
    daemon.model().grants = GrantStatus::Disabled;
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..10)).unwrap();
    assert_eq!(read_all(&object, 3 << 20), bytes);
    let stats = client.stats();
    assert_eq!((stats.inline_bytes, stats.local_bytes), (9 * MIB + 3, 0));
    assert_eq!(daemon.requests(|message| matches!(message, Message::Fill(_))), 0);
}

#[test]
fn a_remote_worker_is_read_over_tcp() {
    let (daemon, bytes) = with_object(5 * MIB);
    let client = Client::new(daemon.remote_options());
    let object = client.open(&request().with_first_range(0..10)).unwrap();
    assert_eq!(read_all(&object, 2 << 20), bytes);
    assert_eq!(client.stats().remote_bytes, 5 * MIB);
    let small = "s3://lake/small";
    daemon.model().put(small, "e", pattern(5, 100));
    let object = client
        .open(&OpenRequest::new(small.parse().unwrap()).with_first_range(0..10))
        .unwrap();
    assert_eq!(read_all(&object, 64), pattern(5, 100));
}

#[test]
fn a_remote_worker_refuses_a_wrong_secret() {
    let (daemon, _) = with_object(MIB);
    let client = Client::new(Options {
        target: match daemon.remote_options().target {
            cachelet_client::Target::Remote { address, .. } => cachelet_client::Target::Remote {
                address,
                token: "guess".into(),
            },
            local @ cachelet_client::Target::Local { .. } => local,
        },
        ..daemon.options()
    });
    let error = client.open(&request()).unwrap_err();
    assert!(error.to_string().contains("wrong token"), "{error}");
}

#[test]
fn a_block_whose_grant_is_refused_is_read_inline() {
    let (daemon, bytes) = with_object(5 * MIB);
    daemon.hook(|replier, request, message| match message {
        Message::Fill(_) => {
            replier.send(&bypass(BypassReason::NoGrant), request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    let client = daemon.client();
    let object = client.open(&request()).unwrap();
    assert_eq!(read_all(&object, 1 << 20), bytes);
    assert_eq!(client.stats().inline_bytes, 5 * MIB);
    let asked = daemon.requests(|message| matches!(message, Message::Fill(_)));
    assert!(asked <= 3, "it asked {asked} times for what it was refused");
}

#[test]
fn a_bypass_is_typed_and_sends_the_caller_to_the_origin() {
    let (daemon, _) = with_object(MIB);
    daemon.hook(|replier, request, message| match message {
        Message::Open(_) => {
            replier.send(&bypass(BypassReason::GenerationRequired), request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    let client = daemon.client();
    let error = client.open(&request()).unwrap_err();
    assert!(error.should_use_origin() && !error.is_retryable());
    assert!(matches!(
        error,
        Error::Bypass {
            reason: BypassReason::GenerationRequired,
            ..
        }
    ));
    assert_eq!(client.stats().bypasses, 1);
}

#[test]
fn another_generation_than_the_one_asked_for_is_refused() {
    let (daemon, _) = with_object(MIB);
    let client = daemon.client();
    let other = Generation {
        etag: Etag::new("other").unwrap(),
        size_bytes: MIB,
    };
    let error = client.open(&request().with_generation(other)).unwrap_err();
    assert!(matches!(error, Error::ObjectChanged { .. }), "{error}");
    let missing = OpenRequest::new("s3://lake/missing".parse().unwrap());
    assert!(matches!(client.open(&missing), Err(Error::NotFound(_))));
}

#[test]
fn invalidating_says_how_many_blocks_went() {
    let (daemon, _) = with_object(8 * MIB);
    let client = daemon.client();
    read_all(&client.open(&request()).unwrap(), 1 << 20);
    assert_eq!(client.invalidate(&PATH.parse().unwrap(), None).unwrap(), 2);
}

#[test]
fn eight_threads_reading_at_random_get_the_objects_bytes() {
    let (daemon, bytes) = with_object(21 * MIB + 17);
    daemon.model().warm = false;
    for verify_reads in [false, true] {
        let client = Client::new(Options {
            max_descriptors: 3,
            readahead_bytes: 2 * MIB,
            verify_reads,
            ..daemon.options()
        });
        let object = Arc::new(client.open(&request()).unwrap());
        let bytes = Arc::new(bytes.clone());
        let threads: Vec<_> = (0..8_u64)
            .map(|seed| {
                let (object, bytes) = (Arc::clone(&object), Arc::clone(&bytes));
                std::thread::spawn(move || {
                    let mut state = seed + 1;
                    let mut buf = vec![0; 300_000];
                    for _ in 0..60 {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let offset = (state >> 16) % bytes.len() as u64;
                        let length = (state >> 40) as usize % buf.len();
                        let read = object.read_at(&mut buf[..length], offset).unwrap();
                        assert_eq!(read, length.min(bytes.len() - offset as usize));
                        assert_eq!(buf[..read], bytes[offset as usize..][..read]);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(client.stats().crc_mismatches, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_sequence_of_reads_gives_the_objects_bytes(
        length in 0_u64..9 * MIB, warm: bool, verify_reads: bool, inline_only: bool,
        reads in prop::collection::vec((0_u64..10 * MIB, 0_usize..3_000_000), 1..6),
    ) {
        let (daemon, bytes) = with_object(length);
        daemon.model().warm = warm;
        let client = Client::new(Options { verify_reads, inline_only, readahead_bytes: MIB, ..daemon.options() });
        let object = client.open(&request()).unwrap();
        for (offset, count) in reads {
            let mut buf = vec![0; count];
            let read = object.read_at(&mut buf, offset).unwrap();
            let from = (offset as usize).min(bytes.len());
            let expected = &bytes[from..(from + count).min(bytes.len())];
            prop_assert!(&buf[..read] == expected);
        }
    }
}

#[test]
fn what_is_held_is_opened_and_read_without_a_message_and_nothing_else_is() {
    // Two blocks, of which the first is held whole and the second not at all.
    let (daemon, bytes) = with_object(6 * MIB);
    let client = Client::new(Options {
        readahead_bytes: 0,
        ..daemon.options()
    });
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    let known = request().with_generation(object.generation().clone());
    object.read_exact_at(&mut vec![0; 4 * MIB as usize], 0).unwrap();
    // It hangs.
    daemon.hook(|_, _, _| Answer::Done);
    let before = client.stats();

    let held = client.open_held(&known).expect("it is open");
    assert!(client.open_held(&request()).is_none(), "which generation?");
    let other = Generation {
        etag: Etag::new("etag-2".to_owned()).unwrap(),
        size_bytes: 6 * MIB,
    };
    assert!(client.open_held(&request().with_generation(other)).is_none());

    let mut buf = vec![0; 3 * MIB as usize];
    assert_eq!(held.read_held_at(&mut buf, MIB), Some(buf.len()));
    assert!(buf == bytes[MIB as usize..][..buf.len()], "wrong bytes");
    assert_eq!(
        held.read_held_at(&mut buf, MIB + 1),
        None,
        "the last byte is not held"
    );
    assert_eq!(held.read_held_at(&mut buf, 6 * MIB), Some(0));
    let mut through = Vec::new();
    let mut sink = |piece: &[u8]| -> Result<(), Error> {
        through.extend_from_slice(piece);
        Ok(())
    };
    let scratch = &mut [0; 10_000];
    let read = held.read_held_through(MIB, 3 * MIB, scratch, &mut sink).unwrap();
    assert_eq!(read, Some(3 * MIB));
    assert_eq!(
        held.read_held_through(3 * MIB, 2 * MIB, scratch, &mut sink)
            .unwrap(),
        None
    );
    assert!(through == bytes[MIB as usize..][..through.len()], "wrong bytes");
    assert!(held.holds(0..4 * MIB) && !held.holds(0..4 * MIB + 1) && !held.holds(0..7 * MIB));

    let after = client.stats();
    assert_eq!(after.messages_sent, before.messages_sent);
    assert_eq!(after.local_bytes - before.local_bytes, 6 * MIB);
}
