//! One object at a fake daemon, and what tests of its faults do with it.

use cachelet_client::{Error, Object, OpenRequest};
use cachelet_protocol::block::{BlockIndex, PageSet};
use cachelet_protocol::ids::{FileId, Handle, ObjectPath};
use cachelet_protocol::wire::{self, Granted, Message};

use super::{Answer, CRC_OFFSET, DATA_OFFSET, FakeDaemon, Replier, pattern};

/// The object.
pub(crate) const PATH: &str = "s3://lake/table/part-0.parquet";

pub(crate) fn request() -> OpenRequest {
    OpenRequest::new(PATH.parse().unwrap())
}

pub(crate) fn path() -> ObjectPath {
    PATH.parse().unwrap()
}

pub(crate) fn with_object(length: u64) -> (FakeDaemon, Vec<u8>) {
    let daemon = FakeDaemon::start();
    let bytes = pattern(1, length as usize);
    daemon.model().put(PATH, "etag-1", bytes.clone());
    (daemon, bytes)
}

pub(crate) fn read(object: &Object, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
    let mut buf = vec![0; length];
    object.read_exact_at(&mut buf, offset).map(|()| buf)
}

/// Answers the first fill with `answer` and the others well.
pub(crate) fn first_fill(
    daemon: &FakeDaemon,
    mut answer: impl FnMut(&mut Replier, u32, &wire::Fill) -> Answer + Send + 'static,
) {
    let mut left = 1;
    daemon.hook(move |replier, request, message| match message {
        Message::Fill(fill) if left > 0 => {
            left -= 1;
            answer(replier, request, fill)
        }
        _ => Answer::Good,
    });
}

pub(crate) fn any_file() -> std::fs::File {
    tempfile::tempfile().unwrap()
}

/// A good grant of block 0 but for what the test changes.
pub(crate) fn granted(handle: Handle, length: u64) -> Granted {
    Granted {
        handle,
        block: BlockIndex(0),
        file_id: FileId(77),
        data_offset: DATA_OFFSET,
        crc_offset: CRC_OFFSET,
        length,
        present: PageSet::all(length),
    }
}
