//! What a daemon that does not answer costs: one timeout a request, and nothing where no answer is needed.

#![allow(clippy::unwrap_used, reason = "tests; clippy knows only their functions")]

mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cachelet_client::{Client, Error, Options};
use cachelet_protocol::ids::{Etag, FileId, Generation, Handle};
use cachelet_protocol::wire::{self, Code, FLAG_DESCRIPTOR, FOLLOWS_GRANT, Message, Opened};
use fake::scene::{any_file, first_fill, granted, path, read, request, with_object};
use fake::{Answer, failed};

const MIB: u64 = 1 << 20;

#[test]
fn a_daemon_that_never_answers_costs_one_timeout_and_is_left() {
    let (daemon, bytes) = with_object(3 * MIB);
    let client = Client::new(Options {
        request_timeout: Duration::from_millis(200),
        max_silence: Duration::from_millis(200),
        ..daemon.options()
    });
    let object = client.open(&request()).unwrap();
    first_fill(&daemon, |_, _, _| Answer::Done);
    let error = read(&object, 0, 10).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.should_use_origin());
    assert_eq!(read(&object, 0, 10).unwrap(), bytes[..10]);
    let stats = client.stats();
    assert_eq!((stats.timeouts, stats.reconnects), (1, 1));
}

#[test]
fn a_timeout_leaves_the_session_and_a_late_answer_is_released() {
    let (daemon, bytes) = with_object(3 * MIB);
    let client = Client::new(daemon.options());
    let object = client.open(&request()).unwrap();
    let mut held_back = None;
    daemon.hook(move |replier, request, message| match message {
        Message::Fill(fill) if held_back.is_none() => {
            held_back = Some((request, fill.handle));
            Answer::Done
        }
        Message::Fill(_) => {
            let (late, handle) = held_back.unwrap();
            replier.send_with_file(&granted(handle, 3 * MIB), FLAG_DESCRIPTOR, late, &any_file());
            Answer::Good
        }
        _ => Answer::Good,
    });
    client.set_request_timeout(Duration::from_millis(50));
    let error = read(&object, 0, 10).unwrap_err();
    assert!(
        matches!(error, Error::Timeout { after, .. } if after == Duration::from_millis(50)),
        "{error}"
    );
    client.set_request_timeout(fake::PATIENCE);
    assert_eq!(read(&object, 0, 10).unwrap(), bytes[..10]);
    daemon.wait_for("the late file's release", |log| {
        log.iter().any(
            |(_, message)| matches!(message, Message::Release(release) if release.files.contains(&FileId(77))),
        )
    });
    let stats = client.stats();
    assert_eq!((stats.timeouts, stats.reconnects), (1, 0));
    assert_eq!(client.descriptors_held(), 1);
}

#[test]
fn an_open_that_comes_too_late_is_closed() {
    let (daemon, _) = with_object(3 * MIB);
    let client = Client::new(daemon.options());
    client.connect().unwrap();
    let mut held_back = None;
    daemon.hook(move |replier, request, message| match message {
        Message::Open(_) if held_back.is_none() => {
            held_back = Some(request);
            Answer::Done
        }
        Message::Open(open) => {
            let late = held_back.unwrap();
            let opened = Opened {
                handle: Handle(4242),
                generation: Generation {
                    etag: Etag::new("a").unwrap(),
                    size_bytes: 3 * MIB,
                },
                follows: FOLLOWS_GRANT,
            };
            assert_eq!(open.path, path());
            replier.send(&opened, late);
            replier.send_with_file(
                &granted(Handle(4242), 3 * MIB),
                FLAG_DESCRIPTOR,
                late,
                &any_file(),
            );
            Answer::Good
        }
        _ => Answer::Good,
    });
    client.set_request_timeout(Duration::from_millis(50));
    assert!(matches!(client.open(&request()), Err(Error::Timeout { .. })));
    client.set_request_timeout(fake::PATIENCE);
    client.open(&request()).unwrap();
    daemon.wait_for("the release of what came late", |log| {
        let released = |wanted: &dyn Fn(&wire::Release) -> bool| {
            log.iter()
                .any(|(_, message)| matches!(message, Message::Release(release) if wanted(release)))
        };
        released(&|release| release.files.contains(&FileId(77)))
            && released(&|release| release.handle == Handle(4242))
    });
    assert_eq!(client.stats().reconnects, 0);
}

#[test]
fn readers_that_wait_for_each_other_wait_no_longer_than_one_of_them() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let (daemon, _) = with_object(3 * MIB);
    let client = Client::new(Options {
        request_timeout: TIMEOUT,
        ..daemon.options()
    });
    let object = client.open(&request()).unwrap();
    daemon.hook(|_, _, _| Answer::Done);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let error = read(&object, 0, 10).unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error}");
            });
        }
    });
    let took = began.elapsed();
    assert!(
        took >= TIMEOUT && took < 4 * TIMEOUT,
        "8 readers waited {took:?} for a daemon that never answers"
    );
}

#[test]
fn an_inline_read_that_times_out_costs_one_timeout_and_leaves_the_session() {
    let (daemon, bytes) = with_object(3 * MIB);
    let client = Client::new(Options {
        inline_only: true,
        ..daemon.options()
    });
    let object = client.open(&request()).unwrap();
    daemon.hook(|_, _, _| Answer::Done);
    client.set_request_timeout(Duration::from_millis(50));
    let error = read(&object, 0, 10).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    daemon.unhook();
    client.set_request_timeout(fake::PATIENCE);
    assert_eq!(read(&object, 0, 10).unwrap(), bytes[..10]);
    let stats = client.stats();
    assert_eq!((stats.timeouts, stats.reconnects), (1, 0));
}

#[test]
fn a_daemon_too_old_to_tell_what_it_fetched_is_no_error() {
    let (daemon, _) = with_object(MIB);
    let client = Client::new(daemon.options());
    let told = client.filled_bytes().unwrap().unwrap();
    assert_eq!((told.origin_bytes, told.peer_bytes), (5, 7));
    daemon.hook(|replier, request, message| match message {
        Message::Tally(_) => {
            replier.send(&failed(Code::Unsupported, "no request of kind 9"), request);
            Answer::Done
        }
        _ => Answer::Good,
    });
    assert_eq!(client.filled_bytes().unwrap(), None);
    assert_eq!(client.stats().reconnects, 0);
}

#[test]
fn a_daemon_that_never_says_welcome_is_asked_once_a_backoff() {
    let (daemon, _) = with_object(MIB);
    let hellos = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&hellos);
    daemon.hook(move |_, _, message| {
        if matches!(message, Message::Hello(_)) {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        Answer::Done
    });
    let client = Client::new(Options {
        connect_timeout: Duration::from_millis(100),
        reconnect_backoff: Duration::from_hours(1),
        max_reconnect_backoff: Duration::from_hours(1),
        ..daemon.options()
    });
    for _ in 0..5 {
        assert!(client.open(&request()).unwrap_err().should_use_origin());
    }
    assert_eq!(hellos.load(Ordering::SeqCst), 1);
}

#[test]
fn a_reply_that_comes_too_late_is_closed_and_released() {
    let (daemon, _) = with_object(3 * MIB);
    let client = Client::new(Options {
        request_timeout: Duration::from_millis(300),
        ..daemon.options()
    });
    let object = client.open(&request()).unwrap();
    let mut held_back = None;
    daemon.hook(move |replier, request, message| match message {
        Message::Fill(fill) if held_back.is_none() => {
            held_back = Some((request, fill.handle));
            // Something arrives, so the session is alive.
            replier.send(&failed(Code::Internal, "of a one-way message"), 0);
            Answer::Done
        }
        Message::Fill(_) => {
            let (late, handle) = held_back.unwrap();
            let granted = granted(handle, 3 * MIB);
            replier.send_with_file(&granted, FLAG_DESCRIPTOR, late, &any_file());
            Answer::Good
        }
        _ => Answer::Good,
    });
    assert!(matches!(read(&object, 0, 10), Err(Error::Timeout { .. })));
    read(&object, 0, 10).unwrap();
    daemon.wait_for("the late file's release", |log| {
        log.iter().any(
            |(_, message)| matches!(message, Message::Release(release) if release.files.contains(&FileId(77))),
        )
    });
    assert_eq!((client.descriptors_held(), client.stats().reconnects), (1, 0));
}
