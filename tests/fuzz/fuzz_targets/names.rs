//! Paths, etags and ids: read or refused, and what is read prints as it was.
#![no_main]

use cachelet_protocol::ids::{Etag, ObjectId, ObjectPath, WorkerUuid};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(path) = text.parse::<ObjectPath>() {
        assert!(text.ends_with(&format!("{}/{}", path.bucket, path.key)), "the key is kept as it is");
    }
    if let Ok(etag) = Etag::from_header(text) {
        assert_eq!(Etag::from_header(&etag.to_header()), Ok(etag));
    }
    if let Ok(id) = text.parse::<ObjectId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(uuid) = text.parse::<WorkerUuid>() {
        assert_eq!(uuid.to_string(), text.to_ascii_lowercase());
    }
});
