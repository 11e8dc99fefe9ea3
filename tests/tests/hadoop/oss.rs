//! `oss://` over hadoop-aliyun. The server is one that checks no signatures; the object's requests are like S3's.

use cachelet_tests::{
    ACCESS_KEY, Bucket, Cluster, LiteralS3, SECRET_KEY, deterministic_bytes, deterministic_range, sha256_hex,
};

use crate::java::{Hadoop, Reader, ReaderBuilder};

const MIB: u64 = 1 << 20;

/// A bucket, and a worker whose daemon knows it as one of OSS.
fn over_oss() -> (LiteralS3, Bucket, Cluster) {
    let server = LiteralS3::start();
    let bucket = server.bucket();
    let store = format!(
        "[[store]]\nname = \"oss\"\nkind = \"oss\"\nidentity = \"test-oss\"\nendpoint = \"{}\"\nregion = \"cn-test\"\n\
         access_key_id_env = \"AWS_ACCESS_KEY_ID\"\nsecret_access_key_env = \"AWS_SECRET_ACCESS_KEY\"\n",
        server.endpoint()
    );
    let cluster = Cluster::of(&server.endpoint())
        .caller_authorization()
        .without_service()
        .config(&store)
        .start();
    (server, bucket, cluster)
}

fn reader(hadoop: Hadoop, server: &LiteralS3, cluster: &mut Cluster) -> ReaderBuilder {
    Reader::of(hadoop, &server.endpoint(), cluster.worker(0))
        .setting("fs.oss.impl", "io.cachelet.hadoop.CacheletOSSFileSystem")
        .setting("fs.oss.endpoint", &server.endpoint())
        .setting("fs.oss.connection.secure.enabled", "false")
        .setting("fs.oss.attempts.maximum", "1")
        .setting("fs.oss.accessKeyId", ACCESS_KEY)
        .setting("fs.oss.accessKeySecret", SECRET_KEY)
}

#[test]
fn objects_of_oss_read_as_hadoop_aliyun_reads_them_and_come_from_the_cache() {
    for hadoop in Hadoop::ALL {
        let (server, bucket, mut cluster) = over_oss();
        let mut reader = reader(hadoop, &server, &mut cluster).start_at(&format!("oss://{}/", bucket.name()));
        for size in [1, 4095, 16_385, MIB - 1, 3 * MIB + 17] {
            let key = format!("size {size}+%41");
            bucket.put(&key, &deterministic_bytes(size, size));
            let said = reader.ask(&["compare", &format!("oss://{}/{key}", bucket.name())]);
            assert!(
                said[0].starts_with(&format!("{size} ")),
                "{hadoop}, {size} bytes: {said:?}"
            );
        }
        let metrics = reader.metrics();
        assert_eq!(metrics.origin_bytes, 0, "{hadoop}: {metrics:?}");
        assert!(metrics.grants > 0, "{hadoop}: {metrics:?}");
    }
}

#[test]
fn a_stream_of_oss_goes_on_at_the_origin_while_the_object_is_the_same_and_no_longer() {
    for hadoop in Hadoop::ALL {
        let (server, bucket, mut cluster) = over_oss();
        bucket.put("o", &deterministic_bytes(1, 4 * MIB));
        let mut reader = reader(hadoop, &server, &mut cluster).start_at(&format!("oss://{}/", bucket.name()));
        reader.ask(&["open", "a", &format!("oss://{}/o", bucket.name())]);
        reader.ask(&["pread", "a", "0", "1000"]);
        cluster.worker(0).kill();
        let read = reader.ask(&["pread", "a", "3000000", "1000"]);
        assert_eq!(
            read[0],
            sha256_hex(&deterministic_range(1, 3_000_000..3_001_000)),
            "{hadoop}"
        );
        bucket.put("o", &deterministic_bytes(2, 4 * MIB));
        let error = reader
            .try_ask(&["pread", "a", "2000000", "1000"])
            .expect_err("OSS has another generation");
        assert!(error.contains("GenerationChangedException"), "{hadoop}: {error}");
    }
}
