//! What a clean stop leaves behind, and how far a start may trust the pages it finds.
//!
//! The marker says: every page was complete when the daemon stopped, except that the files listed in it hold pages
//! which nobody had verified by then. Without `synced` that is true only as long as the machine did not restart.
//! A marker that cannot be read, in any way, is no marker. It is removed at start, before anything else is written.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;

use cachelet_protocol::ids::FileId;
use cachelet_protocol::integrity::crc32c;

use super::Error;
use super::layout::Layout;

const FIRST_LINE: &str = "cachelet clean stop 1";

/// The contents of `v1/clean`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    /// The boot that the daemon stopped in.
    pub(super) boot: String,
    /// Whether every page was on disk.
    pub(super) synced: bool,
    /// Files with pages that were never verified after an earlier stop that was not clean.
    pub(super) unverified: Vec<FileId>,
}

impl Marker {
    /// As text, with its checksum on the last line.
    pub(super) fn encode(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n{}\n{}\n", self.boot, u8::from(self.synced));
        for file in &self.unverified {
            writeln!(text, "{:016x}", file.0).expect("writing to a string cannot fail");
        }
        let crc = crc32c(text.as_bytes());
        writeln!(text, "{crc:08x}").expect("writing to a string cannot fail");
        text
    }

    /// From text; `None` if it is anything else than what [`Marker::encode`] writes.
    pub(super) fn decode(text: &str) -> Option<Self> {
        let body_length = text.len().checked_sub(9)?;
        let (body, last) = (text.get(..body_length)?, text.get(body_length..)?);
        if format!("{:08x}\n", crc32c(body.as_bytes())) != last {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let boot = lines.next()?.to_owned();
        let synced = lines.next()? == "1";
        let file = |line: &str| u64::from_str_radix(line, 16).map(FileId).ok();
        let unverified = lines.map(file).collect::<Option<_>>()?;
        Some(Self {
            boot,
            synced,
            unverified,
        })
    }
}

/// Which files found at start hold pages that must be verified before their first use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Suspects {
    /// All of them.
    Everything,
    /// These.
    Only(HashSet<FileId>),
}

impl Suspects {
    /// After the stop that left `marker`, as a daemon of boot `boot` sees it.
    pub(super) fn after(marker: Option<Marker>, boot: Option<&str>) -> Self {
        match marker {
            Some(marker) if marker.synced || boot == Some(marker.boot.as_str()) => {
                Self::Only(marker.unverified.into_iter().collect())
            }
            Some(_) | None => Self::Everything,
        }
    }

    pub(super) fn contains(&self, file: FileId) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(files) => files.contains(&file),
        }
    }
}

/// Takes the marker of the last stop away and says what it comes to.
pub(super) fn take(layout: &Layout) -> Result<Suspects, Error> {
    let path = layout.clean_marker();
    let marker = match std::fs::read_to_string(&path) {
        Ok(text) => Marker::decode(&text),
        Err(_) => None,
    };
    match std::fs::remove_file(&path) {
        Ok(()) => {
            // A marker that came back after a power loss would vouch for a life it knows nothing of.
            let sync = std::fs::File::open(layout.root()).and_then(|root| root.sync_all());
            sync.map_err(|error| Error::io("write to disk", layout.root(), error))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("remove the clean-stop marker", &path, error)),
    }
    Ok(Suspects::after(marker, boot_id().as_deref()))
}

/// The id of the machine's current boot.
pub(super) fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(synced: bool) -> Marker {
        Marker {
            boot: "b-1".into(),
            synced,
            unverified: vec![FileId(7), FileId(u64::MAX)],
        }
    }

    #[test]
    fn a_marker_reads_as_it_was_written() {
        for marker in [
            marker(true),
            Marker {
                unverified: vec![],
                ..marker(false)
            },
        ] {
            assert_eq!(Marker::decode(&marker.encode()), Some(marker));
        }
    }

    #[test]
    fn a_marker_with_any_flipped_bit_or_missing_byte_is_no_marker() {
        let text = marker(true).encode();
        for length in 0..text.len() {
            assert_eq!(Marker::decode(&text[..length]), None, "cut at {length}");
        }
        for bit in 0..8 * text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let decoded = String::from_utf8(bytes)
                .ok()
                .and_then(|text| Marker::decode(&text));
            assert_eq!(decoded, None, "bit {bit}");
        }
    }

    #[test]
    fn an_unsynced_marker_counts_only_within_its_boot() {
        let only = Suspects::Only([FileId(7), FileId(u64::MAX)].into());
        assert_eq!(Suspects::after(Some(marker(false)), Some("b-1")), only);
        assert_eq!(
            Suspects::after(Some(marker(false)), Some("b-2")),
            Suspects::Everything
        );
        assert_eq!(Suspects::after(Some(marker(false)), None), Suspects::Everything);
        assert_eq!(Suspects::after(Some(marker(true)), Some("b-2")), only);
        assert_eq!(Suspects::after(None, Some("b-1")), Suspects::Everything);
    }
}
