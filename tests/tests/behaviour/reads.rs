//! The bytes of an object, whichever way they come.

use super::support::{MIB, over_s3, put, sha256_through};

/// Around every boundary there is: nothing, a byte, chunks, pages, a block, several blocks.
const SIZES: [u64; 11] = [
    0,
    1,
    65_535,
    65_537,
    MIB - 1,
    MIB,
    MIB + 1,
    128 * MIB - 1,
    128 * MIB,
    128 * MIB + 1,
    300 * MIB,
];

#[test]
fn objects_of_every_size_read_alike_cold_warm_from_the_peer_and_after_a_restart() {
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.nodes(2).start();
    for size in SIZES {
        let (path, stored) = put(&bucket, &format!("object of {size}"), size, size);
        assert_eq!(
            sha256_through(cluster.worker(0), &path),
            stored.sha256,
            "cold, {size} bytes"
        );
        let origin = cluster.worker(0).count("/fill_bytes/origin");
        assert_eq!(
            sha256_through(cluster.worker(0), &path),
            stored.sha256,
            "warm, {size} bytes"
        );
        assert_eq!(
            cluster.worker(0).count("/fill_bytes/origin"),
            origin,
            "a warm read asks the origin for nothing"
        );
        if size > 0 {
            cluster.wait_until_resident(&path, 0);
        }
        assert_eq!(
            sha256_through(cluster.worker(1), &path),
            stored.sha256,
            "from the peer, {size} bytes"
        );
        assert_eq!(
            cluster.worker(1).count("/fill_bytes/origin"),
            0,
            "the second node asks the first, not the origin"
        );
        cluster.worker(0).stop();
        cluster.worker(0).start();
        assert_eq!(
            sha256_through(cluster.worker(0), &path),
            stored.sha256,
            "after a restart, {size} bytes"
        );
        assert_eq!(
            cluster.worker(0).count("/fill_bytes/origin"),
            0,
            "a restart keeps the cache"
        );
        bucket.delete(&format!("object of {size}"));
    }
}
