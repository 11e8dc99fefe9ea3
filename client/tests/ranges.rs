//! Reads of many ranges at once, and reads through scratch memory: the same bytes as a plain read, for fewer messages.

#![allow(clippy::unwrap_used, reason = "tests; clippy knows only their functions")]

mod fake;

use cachelet_client::{Client, Error, Object, OpenRequest, Options};
use cachelet_protocol::ids::ObjectPath;
use fake::{FakeDaemon, pattern};

const MIB: u64 = 1 << 20;
const PATH: &str = "s3://lake/table/part-0.parquet";

fn with_object(length: u64) -> (FakeDaemon, Vec<u8>) {
    let daemon = FakeDaemon::start();
    let bytes = pattern(1, length as usize);
    daemon.model().put(PATH, "etag-1", bytes.clone());
    (daemon, bytes)
}

fn open(client: &Client) -> Object {
    let path: ObjectPath = PATH.parse().unwrap();
    client.open(&OpenRequest::new(path)).unwrap()
}

fn ranges(spans: &[(u64, usize)]) -> Vec<(u64, Vec<u8>)> {
    spans
        .iter()
        .map(|(offset, length)| (*offset, vec![0; *length]))
        .collect()
}

fn read_through(object: &Object, offset: u64, length: u64, scratch: usize) -> Vec<u8> {
    let mut read = Vec::new();
    let mut sink = |bytes: &[u8]| -> Result<(), Error> {
        read.extend_from_slice(bytes);
        Ok(())
    };
    let told = object
        .read_through(offset, length, &mut vec![0; scratch], &mut sink)
        .unwrap();
    assert_eq!(told, read.len() as u64);
    read
}

#[test]
fn many_ranges_read_as_written_with_one_fill_a_block_and_again_with_no_message() {
    let (daemon, bytes) = with_object(40 * MIB);
    let client = Client::new(daemon.options());
    let object = open(&client);
    let block = daemon.model().block_size.bytes();
    let spans = [
        (0, 10),
        (5 * MIB, 100_000),
        (2 * MIB - 7, 14),
        (block - 5, 10),
        (40 * MIB - 3, 3),
        (7, 0),
        (40 * MIB, 0),
        (5 * MIB, 100_000),
    ];
    let mut asked = ranges(&spans);
    object.read_ranges(&mut asked).unwrap();
    for (offset, buf) in &asked {
        assert_eq!(buf, &bytes[*offset as usize..][..buf.len()], "at {offset}");
    }
    let before = client.stats();
    let mut again = ranges(&spans);
    object.read_ranges(&mut again).unwrap();
    assert_eq!(again, asked);
    assert_eq!(client.stats().messages_sent, before.messages_sent);
}

#[test]
fn a_range_beyond_the_end_fails_before_anything_is_read() {
    let (daemon, _) = with_object(MIB);
    let client = Client::new(daemon.options());
    let object = open(&client);
    for (offset, length) in [(MIB - 1, 2), (MIB + 1, 0), (u64::MAX, 2)] {
        let mut asked = ranges(&[(0, 100), (offset, length)]);
        let error = object.read_ranges(&mut asked).unwrap_err();
        assert!(matches!(error, Error::EndOfObject { .. }), "{error}");
        assert_eq!(asked[0].1, [0; 100]);
    }
    assert_eq!(client.stats().fills_waited, 0);
}

#[test]
fn a_read_through_scratch_memory_is_the_read_without() {
    for length in [0, 1, 5000, 3 * MIB, 37 * MIB + 11] {
        let (daemon, bytes) = with_object(length);
        let client = Client::new(daemon.options());
        let object = open(&client);
        for (offset, asked) in [
            (0, length),
            (0, 1),
            (length / 2, length),
            (length, 5),
            (length + 9, 5),
        ] {
            for scratch in [100_000, 1 << 20] {
                let start = length.min(offset) as usize;
                let end = length.min(offset + asked) as usize;
                assert_eq!(
                    read_through(&object, offset, asked, scratch),
                    bytes[start..end],
                    "{asked} bytes at {offset} of {length}"
                );
            }
        }
    }
}

#[test]
fn a_read_through_scratch_memory_is_one_read_to_readahead_and_one_fill() {
    let (daemon, bytes) = with_object(16 * MIB);
    let client = Client::new(Options {
        readahead_bytes: 8 * MIB,
        ..daemon.options()
    });
    let object = open(&client);
    assert_eq!(
        read_through(&object, 9 * MIB, 3 * MIB, 64 << 10),
        bytes[9 * MIB as usize..12 * MIB as usize]
    );
    let stats = client.stats();
    assert_eq!((stats.fills_waited, stats.readaheads_sent), (1, 0));
    assert_eq!(stats.local_bytes, 3 * MIB);
}

#[test]
fn a_sink_that_fails_ends_the_read_with_its_error() {
    let (daemon, _) = with_object(3 * MIB);
    let client = Client::new(daemon.options());
    let object = open(&client);
    let mut calls = 0;
    let failed = object.read_through(0, 3 * MIB, &mut vec![0; 4096], |_| {
        calls += 1;
        Err(Error::NotFound("the array".into()))
    });
    assert!(matches!(failed, Err(Error::NotFound(_))));
    assert_eq!(calls, 1);
}
