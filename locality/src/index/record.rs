//! One object's entry as bytes: its newest generation and who holds which of its segments.
//!
//! Entries are many and small, so they are packed: a 6-byte time, the size as a varint, the etag in binary where it is an
//! MD5 (as nearly all are), and each holding as two varints and only the mask bytes that are needed. A one-block object
//! on one node takes about 32 bytes. Only this module reads the layout; it never leaves the process.

use cachelet_protocol::ids::{Etag, Generation};
use cachelet_protocol::residency::SegmentResidency;

use super::Tag;

/// The newest generation of an object and everything held of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) generation: Generation,
    /// Unix milliseconds, below 2^48.
    pub(super) confirmed_unix_ms: u64,
    pub(super) holdings: Vec<TaggedSegment>,
}

/// 64 blocks of the object as one report named them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TaggedSegment {
    pub(super) tag: Tag,
    pub(super) segment: u32,
    /// Never empty.
    pub(super) residency: SegmentResidency,
}

const CONFIRMED_BYTES: usize = 6;
/// The greatest time that is kept, in Unix milliseconds (the year 10889).
pub(super) const MAX_CONFIRMED_UNIX_MS: u64 = (1 << 48) - 1;

const ETAG_TEXT: u8 = 0;
const ETAG_MD5: u8 = 1;
const ETAG_MULTIPART: u8 = 2;

impl Record {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let confirmed = self.confirmed_unix_ms.min(MAX_CONFIRMED_UNIX_MS).to_le_bytes();
        out.extend_from_slice(&confirmed[..CONFIRMED_BYTES]);
        put_varint(out, self.generation.size_bytes);
        put_etag(out, self.generation.etag.as_str());
        for holding in &self.holdings {
            put_varint(out, u64::from(holding.tag.0));
            let SegmentResidency { low_bits, high_bits } = holding.residency;
            let mask_bytes = (64 - (low_bits | high_bits).leading_zeros()).div_ceil(8).max(1) as usize;
            put_varint(out, u64::from(holding.segment) << 3 | (mask_bytes as u64 - 1));
            out.extend_from_slice(&low_bits.to_le_bytes()[..mask_bytes]);
            out.extend_from_slice(&high_bits.to_le_bytes()[..mask_bytes]);
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let mut rest = Bytes(bytes);
        let confirmed_unix_ms = rest.little_endian(CONFIRMED_BYTES);
        let size_bytes = rest.varint();
        let etag = rest.etag();
        let mut holdings = Vec::new();
        while !rest.0.is_empty() {
            let tag = Tag(rest.varint() as u32);
            let place = rest.varint();
            let mask_bytes = (place & 7) as usize + 1;
            holdings.push(TaggedSegment {
                tag,
                segment: (place >> 3) as u32,
                residency: SegmentResidency {
                    low_bits: rest.little_endian(mask_bytes),
                    high_bits: rest.little_endian(mask_bytes),
                },
            });
        }
        Self {
            generation: Generation { etag, size_bytes },
            confirmed_unix_ms,
            holdings,
        }
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// MD5 etags (`32 hex digits`, with `-parts` after a multipart upload) lose half of their length; others stay text.
fn put_etag(out: &mut Vec<u8>, etag: &str) {
    if let Some(digest) = md5(etag) {
        out.push(ETAG_MD5);
        out.extend_from_slice(&digest.to_be_bytes());
        return;
    }
    if let Some((hex, parts)) = etag.split_once('-')
        && let Some(digest) = md5(hex)
        && let Ok(count) = parts.parse::<u32>()
        && count.to_string() == parts
    {
        out.push(ETAG_MULTIPART);
        out.extend_from_slice(&digest.to_be_bytes());
        put_varint(out, u64::from(count));
        return;
    }
    out.push(ETAG_TEXT);
    put_varint(out, etag.len() as u64);
    out.extend_from_slice(etag.as_bytes());
}

/// The value of 32 lower-case hexadecimal digits.
fn md5(text: &str) -> Option<u128> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == 32 && text.bytes().all(lower_hex))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

/// Reads what [`Record::encode`] wrote; nothing else ever reaches it.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    fn little_endian(&mut self, count: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..count].copy_from_slice(self.take(count));
        u64::from_le_bytes(bytes)
    }

    fn md5(&mut self) -> String {
        let mut digest = [0; 16];
        digest.copy_from_slice(self.take(16));
        format!("{:032x}", u128::from_be_bytes(digest))
    }

    fn etag(&mut self) -> Etag {
        let text = match self.take(1)[0] {
            ETAG_MD5 => self.md5(),
            ETAG_MULTIPART => {
                let digest = self.md5();
                format!("{digest}-{}", self.varint())
            }
            _ => {
                let length = self.varint() as usize;
                String::from_utf8_lossy(self.take(length)).into_owned()
            }
        };
        Etag::new(text).expect("an etag was encoded")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(record: &Record) -> usize {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes), *record);
        bytes.len()
    }

    fn one_block(etag: &str) -> Record {
        Record {
            generation: Generation {
                etag: Etag::new(etag).unwrap(),
                size_bytes: 128 << 20,
            },
            confirmed_unix_ms: 1_800_000_000_000,
            holdings: vec![TaggedSegment {
                tag: Tag(9_999),
                segment: 0,
                residency: SegmentResidency {
                    low_bits: 1,
                    high_bits: 1,
                },
            }],
        }
    }

    #[test]
    fn a_one_block_object_takes_about_32_bytes() {
        assert!(round_trip(&one_block("d41d8cd98f00b204e9800998ecf8427e")) <= 34);
        assert!(round_trip(&one_block("d41d8cd98f00b204e9800998ecf8427e-100")) <= 35);
    }

    #[test]
    fn etags_that_only_look_like_md5_keep_their_spelling() {
        for etag in [
            "D41D8CD98F00B204E9800998ECF8427E",
            "d41d8cd98f00b204e9800998ecf8427e-007",
            "d41d8cd98f00b204e9800998ecf8427e-",
            "d41d8cd98f00b204e9800998ecf8427e-99999999999",
            "+41d8cd98f00b204e9800998ecf8427e",
            "-",
            "0x8D9",
        ] {
            round_trip(&one_block(etag));
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_as_it_was_written(
            etag in "[0-9a-f]{32}(-[0-9]{1,5})?|[!#-~]{1,256}",
            size_bytes: u64,
            confirmed_unix_ms in 0..=MAX_CONFIRMED_UNIX_MS,
            holdings in prop::collection::vec((any::<u32>(), 0_u32..1 << 26, any::<u64>(), any::<u64>()), 0..40),
        ) {
            round_trip(&Record {
                generation: Generation { etag: Etag::new(etag).unwrap(), size_bytes },
                confirmed_unix_ms,
                holdings: holdings
                    .into_iter()
                    .map(|(tag, segment, low_bits, high_bits)| TaggedSegment {
                        tag: Tag(tag),
                        segment,
                        residency: SegmentResidency { low_bits, high_bits },
                    })
                    .collect(),
            });
        }
    }
}
