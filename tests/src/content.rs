//! Object content that can be checked at any offset without keeping a copy.
//!
//! The 8-byte word at offset `8 * i` depends on the seed and on `i` only, so two seeds, two offsets or two generations
//! never look alike, and a block served at the wrong place shows.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest, Sha256};

/// `len` bytes of the content named `seed`.
pub fn deterministic_bytes(seed: u64, len: u64) -> Vec<u8> {
    deterministic_range(seed, 0..len)
}

/// The bytes of the content named `seed` at `range`.
pub fn deterministic_range(seed: u64, range: Range<u64>) -> Vec<u8> {
    let len = usize::try_from(range.end - range.start).expect("fits in memory");
    let skip = (range.start % 8) as usize;
    let mut bytes = Vec::with_capacity(skip + len + 8);
    let mut index = range.start / 8;
    while bytes.len() < skip + len {
        bytes.extend_from_slice(&word(seed, index).to_le_bytes());
        index += 1;
    }
    bytes.truncate(skip + len);
    bytes.drain(..skip);
    bytes
}

/// The offset (in the object) of the first byte of `read`, which was read at `offset`, that is not the content named
/// `seed`; `None` if all are.
pub fn first_difference(seed: u64, offset: u64, read: &[u8]) -> Option<u64> {
    let expected = deterministic_range(seed, offset..offset + read.len() as u64);
    // Comparing whole slices first keeps the usual case at memcmp speed.
    if expected == read {
        return None;
    }
    let at = expected.iter().zip(read).position(|(a, b)| a != b);
    at.map(|at| offset + at as u64)
}

/// The SHA-256 of `bytes` in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The SHA-256 of a file's content in lower-case hexadecimal.
pub fn sha256_file(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hex::encode(hasher.finalize()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) => panic!("cannot read {}: {error}", path.display()),
        }
    }
}

/// `SplitMix64`: one multiplication chain a word, and neighbouring inputs give unrelated outputs.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0xD6E8_FEB8_6659_FD93)
        .wrapping_add(index)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_equals_the_same_bytes_of_the_whole() {
        let whole = deterministic_bytes(7, 100);
        for start in 0..40 {
            for end in start..60 {
                let range = deterministic_range(7, start as u64..end as u64);
                assert_eq!(range, whole[start..end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn seeds_and_offsets_give_different_bytes() {
        let all: std::collections::HashSet<u64> = (0..100)
            .flat_map(|seed| (0..100).map(move |index| word(seed, index)))
            .collect();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn the_first_difference_is_an_offset_in_the_object() {
        let mut read = deterministic_range(3, 1000..2000);
        assert_eq!(first_difference(3, 1000, &read), None);
        read[17] ^= 1;
        assert_eq!(first_difference(3, 1000, &read), Some(1017));
    }
}
