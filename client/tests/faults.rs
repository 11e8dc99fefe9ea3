//! What a reader gets from a daemon that lies, hangs or dies: right bytes or a typed error, never other bytes.

#![allow(clippy::unwrap_used, reason = "tests; clippy knows only their functions")]

mod fake;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use cachelet_client::{Client, Error, Options, Target};
use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::ids::FileId;
use cachelet_protocol::wire::{
    self, Code, FLAG_DESCRIPTOR, FOLLOWS_DATA, FrameKind, GrantStatus, Message, Opened, Ready, Role,
};
use fake::scene::{PATH, any_file, first_fill, granted, path, read, request, with_object};
use fake::{Answer, DATA_OFFSET, FakeDaemon, failed, pattern};

const MIB: u64 = 1 << 20;

#[test]
fn surplus_and_missing_descriptors_turn_the_client_inline() {
    for surplus in [true, false] {
        let (daemon, bytes) = with_object(3 * MIB);
        let client = daemon.client();
        let object = client.open(&request()).unwrap();
        first_fill(&daemon, move |replier, request, fill| {
            if surplus {
                let ready = Ready {
                    file_id: FileId(1),
                    present: PageSet::EMPTY,
                };
                replier.send_with_file(&ready, 0, request, &any_file());
            } else {
                let granted = granted(fill.handle, 3 * MIB);
                replier.raw(&wire::encode(&granted, FLAG_DESCRIPTOR, request));
            }
            Answer::Done
        });
        assert_eq!(read(&object, 5, 100).unwrap(), bytes[5..105]);
        assert_eq!(read(&object, MIB, 100).unwrap(), bytes[1 << 20..][..100]);
        let stats = client.stats();
        assert_eq!(
            (stats.descriptor_failures, stats.inline_bytes, stats.reconnects),
            (1, 200, 1)
        );
        assert_eq!(client.descriptors_held(), 0);
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table of attacks")]
fn what_breaks_the_protocol_ends_the_session_with_a_typed_error_and_the_next_one_works() {
    type Attack = fn(&mut fake::Replier, u32, &wire::Fill) -> Answer;
    let attacks: [(&str, Attack); 12] = [
        ("a garbage frame", |replier, _, _| {
            replier.raw(&[0xff; 64]);
            Answer::Done
        }),
        ("a frame that is too long", |replier, request, _| {
            let header = wire::FrameHeader {
                length: u32::MAX,
                kind: FrameKind::Ready as u8,
                flags: 0,
                request,
            };
            replier.raw(&header.to_bytes());
            Answer::Done
        }),
        ("a broken message", |replier, request, _| {
            let header = wire::FrameHeader {
                length: 2,
                kind: FrameKind::Ready as u8,
                flags: 0,
                request,
            };
            replier.raw(&[&header.to_bytes()[..], &[1, 2]].concat());
            Answer::Done
        }),
        ("a reply to another request", |replier, request, fill| {
            let ready = Ready {
                file_id: fill.file_id,
                present: fill.pages,
            };
            replier.send(&ready, request + 1000);
            Answer::Done
        }),
        ("a reply without a request", |replier, _, fill| {
            let ready = Ready {
                file_id: fill.file_id,
                present: fill.pages,
            };
            replier.send(&ready, 0);
            Answer::Done
        }),
        ("a reply of another kind", |replier, request, _| {
            replier.send(&wire::Invalidated { blocks: 1 }, request);
            Answer::Done
        }),
        ("another file made ready", |replier, request, fill| {
            let ready = Ready {
                file_id: FileId(fill.file_id.0 + 1),
                present: fill.pages,
            };
            replier.send(&ready, request);
            Answer::Done
        }),
        ("a grant of another block", |replier, request, fill| {
            let mut granted = granted(fill.handle, 3 * MIB);
            granted.block = BlockIndex(9);
            replier.send_with_file(&granted, FLAG_DESCRIPTOR, request, &any_file());
            Answer::Done
        }),
        ("a grant of another length", |replier, request, fill| {
            let granted = granted(fill.handle, 4 * MIB);
            replier.send_with_file(&granted, FLAG_DESCRIPTOR, request, &any_file());
            Answer::Done
        }),
        ("a grant beyond any file", |replier, request, fill| {
            let mut granted = granted(fill.handle, 3 * MIB);
            granted.data_offset = u64::MAX - 5;
            replier.send_with_file(&granted, FLAG_DESCRIPTOR, request, &any_file());
            Answer::Done
        }),
        ("a grant for another handle", |replier, request, fill| {
            let granted = granted(cachelet_protocol::ids::Handle(fill.handle.0 + 1), 3 * MIB);
            replier.send_with_file(&granted, FLAG_DESCRIPTOR, request, &any_file());
            Answer::Done
        }),
        ("a pipe for a file", |replier, request, fill| {
            let (reading, _writing) = nix::unistd::pipe().unwrap();
            let granted = granted(fill.handle, 3 * MIB);
            replier.send_with_file(&granted, FLAG_DESCRIPTOR, request, &reading.into());
            Answer::Done
        }),
    ];
    for (what, attack) in attacks {
        let (daemon, bytes) = with_object(3 * MIB);
        let client = Client::new(Options {
            reconnect_attempts: 0,
            ..daemon.options()
        });
        let object = client.open(&request()).unwrap();
        first_fill(&daemon, attack);
        let error = read(&object, 5, 100).unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{what}: {error}");
        assert!(error.should_use_origin(), "{what}");
        assert_eq!(client.descriptors_held(), 0, "{what}");
        let deadline = Instant::now() + fake::PATIENCE;
        let again = loop {
            match read(&object, 5, 100) {
                Ok(bytes) => break bytes,
                Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
            }
            std::thread::yield_now();
        };
        assert_eq!(again, bytes[5..105], "{what}");
    }
}

#[test]
fn a_connection_that_ends_within_a_reply_is_made_again() {
    let (daemon, bytes) = with_object(3 * MIB);
    let client = daemon.client();
    let object = client.open(&request()).unwrap();
    first_fill(&daemon, |replier, request, fill| {
        let ready = Ready {
            file_id: fill.file_id,
            present: fill.pages,
        };
        let frame = wire::encode(&ready, 0, request);
        replier.raw(&frame[..frame.len() - 3]);
        Answer::Close
    });
    assert_eq!(read(&object, MIB, 1000).unwrap(), bytes[1 << 20..][..1000]);
    assert_eq!(client.stats().reconnects, 1);
}

#[test]
fn presence_beyond_the_block_is_not_believed() {
    let (daemon, bytes) = with_object(MIB + 10);
    let client = daemon.client();
    let object = client.open(&request()).unwrap();
    let file = {
        let mut model = daemon.model();
        model.block(&path(), BlockIndex(0)).file.try_clone().unwrap()
    };
    first_fill(&daemon, move |replier, request, fill| {
        let mut granted = granted(fill.handle, MIB + 10);
        granted.present = PageSet::from_bits(u128::MAX);
        replier.send_with_file(&granted, FLAG_DESCRIPTOR, request, &file);
        Answer::Done
    });
    assert_eq!(read(&object, 0, (MIB + 10) as usize).unwrap(), bytes);
    assert_eq!(object.read_at(&mut [0; 10], MIB + 10).unwrap(), 0);
}

#[test]
fn inline_bytes_are_counted_before_they_are_stored() {
    for (what, sent) in [("more", 101), ("fewer", 99), ("none", 0)] {
        let (daemon, _) = with_object(MIB);
        daemon.model().grants = GrantStatus::Disabled;
        daemon.hook(move |replier, request, message| match message {
            Message::Read(_) => {
                replier.data(&vec![1; sent], 0, request);
                Answer::Done
            }
            _ => Answer::Good,
        });
        let object = daemon.client().open(&request()).unwrap();
        let mut buf = [0; 200];
        let result = object.read_exact_at(&mut buf[..100], 0);
        assert!(matches!(result, Err(Error::Protocol(_))), "{what}: {result:?}");
        assert_eq!(buf[100..], [0; 100], "{what}");
    }
}

#[test]
fn a_failure_amid_inline_bytes_is_typed_and_the_connection_lives_on() {
    let (daemon, bytes) = with_object(MIB);
    daemon.model().grants = GrantStatus::Disabled;
    let mut first = true;
    daemon.hook(move |replier, request, message| match message {
        Message::Read(_) if std::mem::take(&mut first) => {
            replier.data(&[1; 50], wire::FLAG_MORE, request);
            replier.send(&failed(Code::ObjectChanged, "412 from the origin"), request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    let client = daemon.client();
    let object = client.open(&request()).unwrap();
    assert!(matches!(read(&object, 0, 100), Err(Error::ObjectChanged { .. })));
    assert_eq!(read(&object, 0, 100).unwrap(), bytes[..100]);
    assert_eq!(client.stats().reconnects, 0);
}

#[test]
fn a_data_connection_that_the_daemon_closed_while_idle_is_made_again() {
    let (daemon, bytes) = with_object(MIB);
    daemon.model().grants = GrantStatus::Disabled;
    let closing = Arc::new(AtomicU32::new(0));
    let counting = Arc::clone(&closing);
    daemon.hook(move |replier, _, message| match message {
        // Every second read finds a connection that is closed instead of answered.
        Message::Read(_)
            if replier.role == Role::Data && counting.fetch_add(1, Ordering::SeqCst) % 2 == 1 =>
        {
            Answer::Close
        }
        _ => Answer::Good,
    });
    let client = daemon.client();
    let object = client.open(&request()).unwrap();
    for offset in 0..6 {
        assert_eq!(
            read(&object, offset, 100).unwrap(),
            bytes[offset as usize..][..100]
        );
    }
    assert_eq!(client.stats().reconnects, 0);
}

#[test]
fn a_truncated_file_is_never_read_as_zeros() {
    let (daemon, bytes) = with_object(3 * MIB);
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    read(&object, 0, 10).unwrap();
    let file = {
        let mut model = daemon.model();
        model.block(&path(), BlockIndex(0)).file.try_clone().unwrap()
    };
    file.set_len(DATA_OFFSET + MIB + 100).unwrap();
    assert_eq!(read(&object, MIB, 1000).unwrap(), bytes[1 << 20..][..1000]);
    let stats = client.stats();
    assert_eq!((stats.file_failures, stats.inline_bytes), (1, 1000));
    assert_eq!(client.descriptors_held(), 0);
}

#[test]
fn a_flipped_bit_is_found_with_verify_reads_wherever_the_read_begins() {
    for (offset, length) in [
        (0, 3 << 20),
        (70_000, 100),
        (65_536, 65_536),
        (131_000, 80),
        (1, 200_000),
    ] {
        let (daemon, bytes) = with_object(3 * MIB);
        let client = Client::new(Options {
            verify_reads: true,
            ..daemon.options()
        });
        let object = client.open(&request().with_first_range(0..MIB)).unwrap();
        assert_eq!(
            read(&object, 3 * MIB - 77, 77).unwrap(),
            bytes[bytes.len() - 77..]
        );
        let at = DATA_OFFSET + 100_000;
        let file = {
            let mut model = daemon.model();
            model.block(&path(), BlockIndex(0)).file.try_clone().unwrap()
        };
        file.write_all_at(&[bytes[100_000] ^ 4], at).unwrap();
        let expected = &bytes[offset as usize..][..length];
        assert_eq!(read(&object, offset, length).unwrap(), expected, "at {offset}");
        let stats = client.stats();
        assert_eq!(
            (stats.crc_mismatches, stats.inline_bytes),
            (1, length as u64),
            "at {offset}"
        );
    }
}

#[test]
fn stale_sockets_are_skipped_and_a_directory_without_a_daemon_is_named() {
    let (daemon, bytes) = with_object(MIB);
    for name in ["newer-but-stale", "another"] {
        drop(UnixListener::bind(daemon.directory().join(name)).unwrap());
    }
    std::fs::File::create(daemon.directory().join("no-socket"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let object = daemon.client().open(&request()).unwrap();
    assert_eq!(read(&object, 0, 10).unwrap(), bytes[..10]);

    let empty = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(empty.path().join("stale")).unwrap());
    for directory in [empty.path().to_owned(), empty.path().join("missing")] {
        let client = Client::new(Options {
            target: Target::Local {
                socket_dir: directory.clone(),
            },
            ..Options::default()
        });
        let error = client.open(&request()).unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        assert!(error.to_string().contains(directory.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_socket_path_of_more_than_107_bytes_is_reached_through_its_directory() {
    let short = FakeDaemon::start();
    let bytes = pattern(1, 100_000);
    short.model().put(PATH, "e", bytes.clone());
    let deep = tempfile::tempdir().unwrap();
    let directory = deep.path().join("d".repeat(120));
    std::fs::create_dir(&directory).unwrap();
    std::fs::hard_link(short.directory().join("worker-a"), directory.join("worker-a")).unwrap();
    let client = Client::new(Options {
        target: Target::Local {
            socket_dir: directory,
        },
        ..short.options()
    });
    let object = client.open(&request()).unwrap();
    assert_eq!(read(&object, 0, 10).unwrap(), bytes[..10]);
}

#[test]
fn held_grants_stay_readable_without_a_daemon_and_the_rest_is_unavailable() {
    let (mut daemon, bytes) = with_object(8 * MIB);
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    read(&object, 0, 10).unwrap();
    daemon.kill();
    assert_eq!(read(&object, 2 * MIB, 1000).unwrap(), bytes[2 << 20..][..1000]);
    let error = read(&object, 5 * MIB, 10).unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert_eq!(read(&object, 0, 1000).unwrap(), bytes[..1000]);
}

#[test]
fn a_stream_goes_on_with_another_worker_whose_file_ids_mean_other_files() {
    let (mut daemon, bytes) = with_object(4 * MIB);
    daemon.model().warm = false;
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    read(&object, 0, 10).unwrap();
    daemon.restart("worker-b");
    // The new worker's file of this block has the number that the old one's had. Were it named in the fill, the
    // daemon would say that it is ready, and the old file's hole would be read.
    assert_eq!(read(&object, 2 * MIB, 1000).unwrap(), bytes[2 << 20..][..1000]);
    assert_eq!(read(&object, 0, 1000).unwrap(), bytes[..1000]);
    let opens: Vec<_> = daemon
        .log()
        .into_iter()
        .filter_map(|message| match message {
            Message::Open(open) => open.generation,
            _ => None,
        })
        .collect();
    assert_eq!(
        opens,
        [object.generation().clone()],
        "opened again at its generation"
    );
    assert_eq!(client.stats().reconnects, 1);
}

#[test]
fn a_stream_whose_object_changed_while_the_daemon_was_away_never_mixes() {
    for same_size in [true, false] {
        let (mut daemon, bytes) = with_object(8 * MIB);
        let client = daemon.client();
        let object = client.open(&request().with_first_range(0..MIB)).unwrap();
        read(&object, 0, 10).unwrap();
        daemon.restart("worker-b");
        let size = if same_size { 8 * MIB } else { 9 * MIB };
        daemon.model().put(PATH, "etag-2", pattern(2, size as usize));
        let error = read(&object, 5 * MIB, 10).unwrap_err();
        assert!(matches!(error, Error::ObjectChanged { .. }), "{error}");
        assert!(!error.should_use_origin());
        // What is held is of the old generation, whole.
        assert_eq!(read(&object, MIB, 1000).unwrap(), bytes[1 << 20..][..1000]);
        let fresh = client.open(&request()).unwrap();
        assert_eq!(
            read(&fresh, 5 * MIB, 10).unwrap(),
            pattern(2, size as usize)[5 << 20..][..10]
        );
    }
}

#[test]
fn a_daemon_that_ignores_the_generation_asked_for_is_caught() {
    let (mut daemon, _) = with_object(8 * MIB);
    let client = daemon.client();
    let object = client.open(&request().with_first_range(0..MIB)).unwrap();
    daemon.restart("worker-b");
    daemon.hook(|replier, request, message| match message {
        Message::Open(open) => {
            let mut generation = open.generation.clone().unwrap();
            generation.size_bytes += 1;
            let opened = Opened {
                handle: cachelet_protocol::ids::Handle(3),
                generation,
                follows: 0,
            };
            replier.send(&opened, request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    assert!(matches!(
        read(&object, 5 * MIB, 10),
        Err(Error::ObjectChanged { .. })
    ));
}

#[test]
fn a_handle_that_the_daemon_forgot_is_opened_again() {
    let (daemon, bytes) = with_object(8 * MIB);
    let client = daemon.client();
    let object = client.open(&request()).unwrap();
    let mut first = true;
    daemon.hook(move |replier, request, message| match message {
        Message::Fill(_) if std::mem::take(&mut first) => {
            replier.send(&failed(Code::UnknownHandle, "no such handle"), request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    assert_eq!(read(&object, 0, 10).unwrap(), bytes[..10]);
    assert_eq!(daemon.requests(|message| matches!(message, Message::Open(_))), 2);
}

#[test]
fn readers_of_many_threads_survive_cuts() {
    let (daemon, bytes) = with_object(16 * MIB);
    daemon.model().warm = false;
    let client = Client::new(Options {
        reconnect_attempts: 50,
        readahead_bytes: MIB,
        ..daemon.options()
    });
    let object = Arc::new(client.open(&request()).unwrap());
    let bytes = Arc::new(bytes);
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let (object, bytes) = (Arc::clone(&object), Arc::clone(&bytes));
            std::thread::spawn(move || {
                for round in 0..40_u64 {
                    let offset = (round * 5 + thread * 3) % 16 * MIB;
                    match read(&object, offset, 5000) {
                        Ok(read) => assert_eq!(read, bytes[offset as usize..][..5000]),
                        Err(error) => assert!(error.should_use_origin(), "{error}"),
                    }
                }
            })
        })
        .collect();
    for _ in 0..20 {
        daemon.cut();
        std::thread::yield_now();
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_welcome_that_makes_no_sense_is_refused() {
    let attacks: [fn(&mut wire::Welcome); 3] = [
        |welcome| welcome.block_bytes = 3 << 20,
        |welcome| welcome.page_bytes = 4096,
        |welcome| welcome.version = 9,
    ];
    for attack in attacks {
        let (daemon, _) = with_object(MIB);
        daemon.hook(move |replier, request, message| {
            let Message::Hello(_) = message else {
                return Answer::Good;
            };
            let mut welcome = wire::Welcome {
                version: 1,
                features: 0,
                daemon: String::new(),
                node: cachelet_protocol::ids::NodeName::new("n").unwrap(),
                worker: cachelet_protocol::ids::WorkerUuid::from_bytes([1; 16]),
                epoch: cachelet_protocol::ids::Epoch(1),
                session: cachelet_protocol::ids::SessionId(1),
                session_secret: [0; 16],
                service_address: String::new(),
                block_bytes: 1 << 20,
                page_bytes: 1 << 20,
                inline_bytes: 0,
                max_held_bytes: 0,
                max_unacknowledged: 0,
                idle_close_seconds: 0,
                grants: GrantStatus::Enabled,
                grants_disabled_reason: String::new(),
            };
            attack(&mut welcome);
            replier.send(&welcome, request);
            Answer::Done
        });
        let error = daemon.client().open(&request()).unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{error}");
    }
}

#[test]
fn a_small_object_that_comes_with_other_bytes_than_its_size_is_refused() {
    for sent in [99, 101] {
        let (daemon, _) = with_object(100);
        daemon.hook(move |replier, request, message| {
            let Message::Open(_) = message else {
                return Answer::Good;
            };
            let opened = Opened {
                handle: cachelet_protocol::ids::Handle(3),
                generation: cachelet_protocol::ids::Generation {
                    etag: cachelet_protocol::ids::Etag::new("e").unwrap(),
                    size_bytes: 100,
                },
                follows: FOLLOWS_DATA,
            };
            replier.send(&opened, request);
            replier.data(&vec![1; sent], 0, request);
            Answer::Done
        });
        let client = Client::new(Options {
            reconnect_attempts: 0,
            ..daemon.options()
        });
        let error = client.open(&request().with_first_range(0..10)).unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{error}");
    }
}
