//! The first bytes of a file in the cache directory: a header of this version, one of another, or damage.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = cacheletd::store::check_header(input);
    // With the right checksum the fields behind it are reached, too.
    let _ = cacheletd::store::check_header(&cacheletd::store::with_header_checksum(input));
});
