//! What a session can do with a descriptor, how many it gets, and what hostile sessions achieve: nothing.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::ids::FileId;
use cachelet_protocol::wire::{
    BypassReason, Code, FLAG_DESCRIPTOR, FrameHeader, FrameKind, FrameReceiver, GrantStatus, HEADER_BYTES,
    Hello, Message, OPEN_NO_DATA, Open, Role, encode, send_with_descriptor,
};
use cachelet_tests::{GrantSetup, Worker, can_mount, sha256_hex, wait_until};
use nix::errno::Errno;
use nix::libc;

use super::support::{
    DEADLINE, MIB, assert_content, client_of, open, over_s3, put, read_all, read_range, sha256_through,
};
use super::wire::{RawSession, connect, hello, is_over, unknown_request};

#[test]
fn a_granted_descriptor_cannot_be_made_writable_even_by_root() {
    if !can_mount() {
        println!("skipped: making and testing the read-only mount needs root");
        return;
    }
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let (path, stored) = put(&bucket, "granted", 60, 2 * MIB);
    let mut session = RawSession::begin(cluster.worker(0));
    assert_eq!(session.welcome.grants, GrantStatus::Enabled);
    let (_, grant) = session.open(&path, 2 * MIB);
    let grant = grant.expect("grants are enabled");
    let file = File::from(grant.descriptor);

    let reopen = |how: &mut OpenOptions| {
        let by_proc = format!("/proc/self/fd/{}", file.as_raw_fd());
        let error = how.open(by_proc).expect_err("a grant is for reading");
        error.raw_os_error().map(Errno::from_raw)
    };
    assert_eq!(reopen(OpenOptions::new().write(true)), Some(Errno::EROFS));
    assert_eq!(
        reopen(OpenOptions::new().read(true).write(true)),
        Some(Errno::EROFS)
    );
    assert_eq!(reopen(OpenOptions::new().append(true)), Some(Errno::EROFS));
    let truncating = reopen(OpenOptions::new().read(true).custom_flags(libc::O_TRUNC));
    assert_eq!(truncating, Some(Errno::EROFS));

    let errno = |result: std::io::Result<()>| result.expect_err("a grant is for reading").raw_os_error();
    let fchmod = file.set_permissions(Permissions::from_mode(0o777));
    assert_eq!(errno(fchmod), Some(libc::EROFS));
    assert_eq!(
        nix::unistd::fchown(&file, Some(nix::unistd::getuid()), None),
        Err(Errno::EROFS)
    );
    assert!(file.set_len(0).is_err(), "truncated");
    assert!(
        file.write_all_at(b"x", grant.granted.data_offset).is_err(),
        "written"
    );

    let mut bytes = vec![0; 2 << 20];
    file.read_exact_at(&mut bytes, grant.granted.data_offset)
        .expect("reading is what it is for");
    assert_eq!(sha256_hex(&bytes), stored.sha256);
}

#[test]
fn without_the_read_only_mount_nothing_is_granted_and_reads_come_inline() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster
        .without_service()
        .grants(GrantSetup::Missing)
        .block_size("4MiB")
        .start();
    let (path, stored) = put(&bucket, "inline", 61, 9 * MIB + 5);
    let worker = cluster.worker(0);
    let mut session = RawSession::begin(worker);
    assert_eq!(session.welcome.grants, GrantStatus::Disabled);
    let reason = &session.welcome.grants_disabled_reason;
    assert!(reason.contains("read_only_path"), "{reason:?} says what to do");

    // Even to who asks all the same.
    let request = session.send(&Open {
        flags: OPEN_NO_DATA,
        ..Open::generation_only(path.parse().expect("a valid path"))
    });
    let (Message::Opened(opened), None) = session.answer(request) else {
        panic!("{path} was not opened");
    };
    let refused = session
        .fill(opened.handle, BlockIndex(0), FileId(0), PageSet::span(0..1))
        .expect_err("nothing is granted");
    assert_eq!(refused.reason, BypassReason::NoGrant, "{}", refused.detail);

    let client = client_of(worker);
    let object = open(&client, &path).expect("it exists");
    assert_eq!(
        sha256_hex(&read_all(&object).expect("it can be read")),
        stored.sha256
    );
    let stats = client.stats();
    assert_eq!(
        (stats.grants_received, stats.inline_bytes),
        (0, stored.size_bytes)
    );
    assert_eq!(
        worker.count("/fill_bytes/origin"),
        stored.size_bytes,
        "it is cached all the same"
    );
}

#[test]
fn a_session_that_acknowledges_nothing_gets_eight_descriptors_and_is_still_answered() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let paths: Vec<_> = (0..10)
        .map(|number| put(&bucket, &format!("part {number}"), 70 + number, 100_000))
        .collect();
    let worker = cluster.worker(0);
    let mut session = RawSession::begin(worker);
    assert_eq!(session.welcome.max_unacknowledged, 8);
    let mut held = Vec::new();
    for (path, _) in &paths[..8] {
        held.push(session.open(path, 100_000).1.expect("within the limit"));
    }
    for round in 0..3 {
        let (opened, ninth) = session.open(&paths[8].0, 100_000);
        let refused = ninth.expect_err("eight are on their way");
        assert_eq!(
            refused.reason,
            BypassReason::NoGrant,
            "round {round}: {}",
            refused.detail
        );
        // The bytes are to be had all the same.
        assert_content(78, 0, &session.read_inline(opened.handle, 0, 100_000));
    }
    assert_eq!(
        sha256_through(worker, &paths[9].0),
        paths[9].1.sha256,
        "others are served"
    );
    session.acknowledge(1);
    session.open(&paths[8].0, 100_000).1.expect("one has arrived");
    let refused = session.open(&paths[9].0, 100_000).1.expect_err("eight again");
    assert_eq!(refused.reason, BypassReason::NoGrant);
    // Acknowledging more than was sent gains nothing.
    session.acknowledge(u16::MAX);
    for (path, _) in &paths[..8] {
        held.push(session.open(path, 100_000).1.expect("all have arrived"));
    }
    session
        .open(&paths[9].0, 100_000)
        .1
        .expect_err("eight, not 65,535");
}

#[test]
fn a_session_over_its_share_of_the_cache_gets_no_further_grant_and_reads_inline() {
    let (bucket, cluster) = over_s3();
    // A session may hold 3.2 MiB: one block of 2 MiB.
    let mut cluster = cluster
        .without_service()
        .quota("32MiB")
        .block_size("2MiB")
        .local_config("max_held_percent = 10")
        .start();
    let (first, _) = put(&bucket, "first", 80, 2 * MIB);
    let (second, _) = put(&bucket, "second", 81, 2 * MIB);
    let worker = cluster.worker(0);
    let mut session = RawSession::begin(worker);
    let (_, held) = session.open(&first, 2 * MIB);
    let held = held.expect("the first fits");
    session.acknowledge(1);
    let (opened, refused) = session.open(&second, 2 * MIB);
    let refused = refused.expect_err("the second does not");
    assert_eq!(refused.reason, BypassReason::NoGrant, "{}", refused.detail);
    assert_content(81, 0, &session.read_inline(opened.handle, 0, 2 * MIB));
    // Whoever gives one back gets another.
    drop(held.descriptor);
    let release = cachelet_protocol::wire::Release {
        handle: cachelet_protocol::ids::Handle(0),
        files: vec![held.granted.file_id],
    };
    session.send_bytes(&encode(&release, 0, 0));
    let (_, granted) = session.open(&second, 2 * MIB);
    granted.expect("there is room again");

    // A client keeps to its share by itself, and sees nothing of all this.
    let (long, stored) = put(&bucket, "long", 82, 10 * MIB);
    let client = client_of(worker);
    let object = open(&client, &long).expect("it exists");
    for _ in 0..2 {
        assert_eq!(
            sha256_hex(&read_all(&object).expect("it can be read")),
            stored.sha256
        );
    }
    assert!(
        client.descriptors_held() <= 1,
        "{} held",
        client.descriptors_held()
    );
    assert!(client.stats().grants_closed > 0, "it gave descriptors back");
}

#[test]
fn a_block_larger_than_a_sessions_share_is_read_inline() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster
        .without_service()
        .quota("32MiB")
        .block_size("4MiB")
        .local_config("max_held_percent = 10")
        .start();
    let (path, stored) = put(&bucket, "large", 83, 9 * MIB);
    let client = client_of(cluster.worker(0));
    let object = open(&client, &path).expect("it exists");
    assert_eq!(
        sha256_hex(&read_all(&object).expect("it can be read")),
        stored.sha256
    );
    let inline = client.stats().inline_bytes;
    assert!(inline >= 8 * MIB, "{inline} bytes came inline");
}

/// Descriptors that the worker's process has open.
fn descriptors_of(worker: &mut Worker) -> usize {
    let path = format!("/proc/{}/fd", worker.process().pid());
    std::fs::read_dir(path).expect("the worker runs").count()
}

/// Sends bytes on a fresh connection; who is refused early may be refused while it still sends.
fn send_to(worker: &Worker, bytes: &[u8]) -> UnixStream {
    let mut socket = connect(worker);
    let _ = socket.write_all(bytes);
    socket
}

/// Waits until the daemon has closed the connection; what it says before does not matter.
fn wait_until_closed(socket: UnixStream) {
    let mut receiver = FrameReceiver::new(socket);
    loop {
        let received = receiver.receive();
        if is_over(&received) {
            return;
        }
        received.expect("the daemon speaks the protocol, or closes");
    }
}

fn header(kind: u8, length: u32) -> Vec<u8> {
    let header = FrameHeader {
        length,
        kind,
        flags: 0,
        request: 2,
    };
    header.to_bytes().to_vec()
}

#[test]
fn garbage_ends_the_connection_it_came_on_and_harms_nobody_else() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let (path, stored) = put(&bucket, "unharmed", 90, 3 * MIB);
    let worker = cluster.worker(0);
    let bystander = client_of(worker);
    let object = open(&bystander, &path).expect("it exists");
    read_all(&object).expect("it can be read");
    assert_eq!(sha256_through(worker, &path), stored.sha256);
    wait_until(DEADLINE, "only the bystander is left", || {
        worker.count("/sessions") == 1
    });
    let before = descriptors_of(worker);

    let greeting = encode(&hello(Role::Control), 0, 1);
    let noise: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let open_kind = FrameKind::Open as u8;
    let bad_reserved = {
        let mut bytes = header(open_kind, 0);
        bytes[6] = 1;
        bytes
    };
    let garbage: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise.clone()),
        ("an endless length", header(open_kind, u32::MAX)),
        (
            "an endless length of data",
            header(FrameKind::Data as u8, u32::MAX),
        ),
        ("a length just too long", header(open_kind, (64 << 10) + 1)),
        ("reserved bytes", bad_reserved),
        ("an open before the hello", header(open_kind, 0)),
        ("a hello without content", header(FrameKind::Hello as u8, 0)),
        ("a hello of a later version", {
            let mut hello = hello(Role::Control);
            (hello.min_version, hello.max_version) = (900, 901);
            encode(&hello, 0, 1)
        }),
        ("a peer on the domain socket", encode(&hello(Role::Peer), 0, 1)),
        (
            "a data connection of no session",
            encode(&hello(Role::Data), 0, 1),
        ),
    ];
    for (what, bytes) in &garbage {
        println!("{what}");
        wait_until_closed(send_to(worker, bytes));
    }
    // Within a session: whatever follows the hello.
    for (what, bytes) in [
        ("noise", noise.clone()),
        ("an endless length", header(open_kind, u32::MAX)),
        ("an open without content", header(open_kind, 0)),
        (
            "an open full of noise",
            [header(open_kind, 5000), noise[..5000].to_vec()].concat(),
        ),
        ("a second hello", greeting.clone()),
        ("an answer to nothing", header(FrameKind::Opened as u8, 0)),
        (
            "object bytes",
            [header(FrameKind::Data as u8, 10), vec![7; 10]].concat(),
        ),
    ] {
        println!("in a session: {what}");
        wait_until_closed(send_to(worker, &[&greeting[..], &bytes].concat()));
    }
    // Descriptors, which the daemon never takes.
    for _ in 0..20 {
        let socket = connect(worker);
        let file = File::open("/dev/null").expect("it is there");
        let frame = encode(&hello(Role::Control), FLAG_DESCRIPTOR, 1);
        let sent = send_with_descriptor(socket.as_fd(), &frame, file.as_fd()).expect("the socket has room");
        assert_eq!(sent, frame.len());
    }
    // Those who go in the middle of a frame.
    for cut in [1, HEADER_BYTES - 1, HEADER_BYTES, greeting.len() - 1] {
        drop(send_to(worker, &greeting[..cut]));
    }

    assert_content(
        90,
        0,
        &read_range(&object, 0..3 * MIB).expect("the bystander reads on"),
    );
    assert_eq!(
        sha256_through(worker, &path),
        stored.sha256,
        "newcomers are served"
    );
    wait_until(DEADLINE, "only the bystander is left", || {
        worker.count("/sessions") == 1
    });
    wait_until(DEADLINE, "no descriptor is left behind", || {
        descriptors_of(worker) <= before
    });
    assert_eq!(bystander.stats().reconnects, 0);
}

#[test]
fn a_connection_that_says_nothing_is_closed_and_one_that_said_hello_is_not() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let (path, _) = put(&bucket, "patience", 91, 100_000);
    let worker = cluster.worker(0);
    let mut session = RawSession::begin(worker);
    let before = descriptors_of(worker);
    let greeting = encode(&hello(Role::Control), 0, 1);
    let silent: Vec<UnixStream> = (0..50)
        .map(|number| send_to(worker, &greeting[..number % (greeting.len() - 1)]))
        .collect();
    for socket in silent {
        wait_until_closed(socket);
    }
    session
        .open(&path, 100_000)
        .1
        .expect("a session may be as quiet as it likes");
    // The file itself may be open now, too.
    wait_until(DEADLINE, "no descriptor is left behind", || {
        descriptors_of(worker) <= before + 1
    });
}

#[test]
fn a_session_has_at_most_four_data_connections() {
    let (_, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let worker: &Worker = cluster.worker(0);
    let session = RawSession::begin(worker);
    let hello = Hello {
        session: session.welcome.session,
        session_secret: session.welcome.session_secret,
        ..hello(Role::Data)
    };
    let join = || {
        let mut socket = connect(worker);
        socket.write_all(&encode(&hello, 0, 1)).unwrap();
        let mut receiver = FrameReceiver::new(socket.try_clone().unwrap());
        let kind = receiver.receive().unwrap().header.known_kind();
        (socket, kind)
    };
    let joined: Vec<_> = (0..4).map(|_| join()).collect();
    assert!(joined.iter().all(|(_, kind)| *kind == Some(FrameKind::Welcome)));
    assert_eq!(join().1, Some(FrameKind::Bypass));
    drop(joined);
    wait_until(DEADLINE, "a closed connection makes room for another", || {
        join().1 == Some(FrameKind::Welcome)
    });
}

#[test]
fn a_request_of_an_unknown_kind_is_answered_unsupported_and_the_session_lives_on() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.without_service().start();
    let (path, _) = put(&bucket, "of a later version", 92, 100_000);
    let mut session = RawSession::begin(cluster.worker(0));
    for request in [1000, 1001] {
        session.send_bytes(&unknown_request(request));
        match session.answer(request) {
            (Message::Failed(failed), None) => assert_eq!(failed.code, Code::Unsupported),
            other => panic!("{other:?}"),
        }
    }
    let (_, grant) = session.open(&path, 100_000);
    let granted = grant.expect("the session lives");
    let mut bytes = vec![0; 100_000];
    File::from(granted.descriptor)
        .read_exact_at(&mut bytes, granted.granted.data_offset)
        .expect("it is granted for reading");
    assert_content(92, 0, &bytes);
}
