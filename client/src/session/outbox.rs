//! One-way messages that are put together until somebody sends: acknowledgements, releases, usage.
//!
//! Acknowledgements and releases are never lost while the connection lives; usage is a hint and is dropped when the
//! connection does not take it.

use std::sync::Mutex;

use cachelet_protocol::ids::{FileId, Handle};
use cachelet_protocol::wire::{self, Used, UsedFile};

use super::pending::lock;

/// Usage entries kept for a connection that takes nothing. A message's entries stay below 64 KiB.
const MAX_USED: usize = 1000;
/// Files in one `Release`: 8 bytes each, below 64 KiB.
const FILES_PER_RELEASE: usize = 4000;

#[derive(Debug, Default)]
struct Contents {
    received: u16,
    closed_files: Vec<FileId>,
    closed_handles: Vec<Handle>,
    used: Vec<UsedFile>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    contents: Mutex<Contents>,
}

impl Outbox {
    /// A descriptor has arrived. Says how many are unacknowledged.
    pub(crate) fn acknowledge(&self) -> u16 {
        let mut contents = lock(&self.contents);
        contents.received = contents.received.saturating_add(1);
        contents.received
    }

    /// The last descriptor of a file was closed.
    pub(crate) fn release_file(&self, file: FileId) {
        lock(&self.contents).closed_files.push(file);
    }

    /// An open object was closed.
    pub(crate) fn release_handle(&self, handle: Handle) {
        lock(&self.contents).closed_handles.push(handle);
    }

    /// Bytes were read from a held file.
    pub(crate) fn used(&self, used: UsedFile) {
        let mut contents = lock(&self.contents);
        if contents.used.len() < MAX_USED {
            contents.used.push(used);
        }
    }

    /// Whether something waits that the daemon counts on: acknowledgements or releases.
    pub(crate) fn is_urgent(&self) -> bool {
        let contents = lock(&self.contents);
        contents.received > 0 || !contents.closed_files.is_empty() || !contents.closed_handles.is_empty()
    }

    /// Takes everything, as frames appended to `out`. Says how many frames.
    pub(crate) fn drain_into(&self, out: &mut Vec<u8>) -> u64 {
        let contents = std::mem::take(&mut *lock(&self.contents));
        let mut frames = 0;
        let mut push = |frame: Vec<u8>| {
            out.extend_from_slice(&frame);
            frames += 1;
        };
        if contents.received > 0 {
            let ack = wire::Ack {
                count: contents.received,
            };
            push(wire::encode(&ack, 0, 0));
        }
        if !contents.used.is_empty() {
            push(wire::encode(&Used { files: contents.used }, 0, 0));
        }
        for files in contents.closed_files.chunks(FILES_PER_RELEASE) {
            let release = wire::Release {
                handle: Handle(0),
                files: files.to_vec(),
            };
            push(wire::encode(&release, 0, 0));
        }
        for handle in contents.closed_handles {
            let release = wire::Release {
                handle,
                files: Vec::new(),
            };
            push(wire::encode(&release, 0, 0));
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachelet_protocol::wire::{FrameHeader, HEADER_BYTES, Message};

    fn messages(mut bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
            let header = FrameHeader::from_bytes(header).unwrap();
            let (payload, rest) = rest.split_at(header.length as usize);
            messages.push(
                Message::decode(header.known_kind().unwrap(), payload)
                    .unwrap()
                    .unwrap(),
            );
            bytes = rest;
        }
        messages
    }

    #[test]
    fn acknowledgements_and_releases_are_put_together_and_usage_goes_before_the_release() {
        let outbox = Outbox::default();
        assert!(!outbox.is_urgent());
        outbox.acknowledge();
        assert_eq!(outbox.acknowledge(), 2);
        let used = UsedFile {
            file_id: FileId(7),
            bytes: 1,
            pages: cachelet_protocol::block::PageSet::EMPTY,
        };
        outbox.used(used);
        outbox.release_file(FileId(7));
        outbox.release_handle(Handle(3));
        assert!(outbox.is_urgent());
        let mut out = Vec::new();
        assert_eq!(outbox.drain_into(&mut out), 4);
        let kinds = messages(&out);
        assert!(matches!(
            &kinds[..],
            [
                Message::Ack(wire::Ack { count: 2 }),
                Message::Used(_),
                Message::Release(_),
                Message::Release(_)
            ]
        ));
        assert_eq!(outbox.drain_into(&mut Vec::new()), 0);
    }

    #[test]
    fn ten_thousand_releases_fit_into_frames() {
        let outbox = Outbox::default();
        (0..10_000).for_each(|file| outbox.release_file(FileId(file)));
        let mut out = Vec::new();
        outbox.drain_into(&mut out);
        let released: usize = messages(&out)
            .into_iter()
            .map(|message| match message {
                Message::Release(release) => release.files.len(),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(released, 10_000);
    }
}
