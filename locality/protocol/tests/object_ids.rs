//! The ids that files, frames and reports carry never change: vectors computed by another implementation.

use cachelet_protocol::ids::{Etag, Generation, ObjectName, StoreFingerprint, StoreIdentity};

#[test]
fn ids_are_those_of_the_committed_vectors() {
    let mut rows = 0;
    for row in include_str!("vectors/object_ids.tsv")
        .lines()
        .filter(|row| !row.starts_with('#'))
    {
        let [store, path, etag, size, path_id, object_id] = row
            .split('\t')
            .collect::<Vec<_>>()
            .try_into()
            .expect("six columns");
        let name = ObjectName {
            store: StoreIdentity::new(store).unwrap(),
            path: path.parse().unwrap(),
        };
        let generation = Generation {
            etag: Etag::new(etag).unwrap(),
            size_bytes: size.parse().unwrap(),
        };
        assert_eq!(name.path_id().to_string(), path_id, "{row}");
        assert_eq!(name.object_id(&generation).to_string(), object_id, "{row}");
        rows += 1;
    }
    assert_eq!(rows, 4);
}

#[test]
fn store_fingerprints_are_those_of_the_committed_vectors() {
    let mut rows = 0;
    for row in include_str!("vectors/store_fingerprints.tsv")
        .lines()
        .filter(|row| !row.starts_with('#'))
    {
        let [scheme, endpoint, region, bucket, requester_pays, expected] = row
            .split('\t')
            .collect::<Vec<_>>()
            .try_into()
            .expect("six columns");
        let (scheme, pays) = (scheme.parse().unwrap(), requester_pays == "true");
        let fingerprint = StoreFingerprint::of(scheme, endpoint, region, bucket, pays);
        assert_eq!(fingerprint.to_string(), expected, "{row}");
        rows += 1;
    }
    assert_eq!(rows, 5);
}
