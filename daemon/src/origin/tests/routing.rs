//! Configuration: what is refused and how; which store serves a path, and which client means it.

use std::sync::Arc;

use cachelet_protocol::ids::{BucketName, Scheme, StoreFingerprint};
use reqsign_core::StaticEnv;

use crate::metrics::Metrics;

use super::super::{Clock, Error, StoreConfig, StoreKind, Stores, Surroundings};

fn parse(toml: &str) -> StoreConfig {
    toml::from_str(toml).unwrap_or_else(|error| panic!("{error}\n{toml}"))
}

fn stores(configs: &[StoreConfig]) -> Result<Stores, Error> {
    let env = Arc::new(StaticEnv::default());
    Stores::build_in(
        configs,
        &Surroundings {
            env,
            clock: Clock::system(),
            resolver: None,
            metrics: Metrics::default(),
        },
    )
}

fn bucket(name: &str) -> BucketName {
    BucketName::new(name).unwrap()
}

#[test]
fn a_minimal_table_of_each_kind_works() {
    let tables = [
        (
            "name = \"a\"\nkind = \"s3\"\nregion = \"eu-west-1\"",
            "s3:s3.eu-west-1.amazonaws.com",
        ),
        (
            "name = \"a\"\nkind = \"s3\"\nendpoint = \"http://127.0.0.1:9000\"",
            "s3:127.0.0.1:9000",
        ),
        (
            "name = \"a\"\nkind = \"oss\"\nregion = \"cn-hangzhou\"",
            "oss:oss-cn-hangzhou-internal.aliyuncs.com",
        ),
        (
            "name = \"a\"\nkind = \"oss\"\nendpoint = \"https://oss-cn-beijing.aliyuncs.com\"",
            "oss:oss-cn-beijing.aliyuncs.com",
        ),
        ("name = \"a\"\nkind = \"file\"\nroot = \"/data\"", "file:/data"),
        (
            "name = \"a\"\nkind = \"file\"\nroot = \"/data\"\nidentity = \"shared\"",
            "shared",
        ),
    ];
    for (table, identity) in tables {
        let config = parse(table);
        config.validate().unwrap();
        assert_eq!(config.store_identity().unwrap().as_str(), identity);
        let again = parse(&toml::to_string(&config).unwrap());
        assert_eq!(again, config, "a dumped configuration is the same configuration");
    }
}

#[test]
fn an_unknown_key_is_refused() {
    for table in [
        "name = \"a\"\nkind = \"s3\"\nsecret_access_key = \"x\"",
        "name = \"a\"\nkind = \"gs\"",
        "kind = \"s3\"",
    ] {
        assert!(toml::from_str::<StoreConfig>(table).is_err(), "{table}");
    }
}

#[test]
fn a_bad_value_is_refused_with_its_key_and_a_remedy() {
    let s3 = "name = \"a\"\nkind = \"s3\"\n";
    let local = "name = \"a\"\nkind = \"s3\"\nendpoint = \"http://127.0.0.1:9000\"\n";
    let file = "name = \"a\"\nkind = \"file\"\n";
    let cases = [
        (s3, "", "region"),
        (s3, "region = \"\"", "region"),
        (s3, "region = \"evil.example.com/\"", "region"),
        (s3, "endpoint = \"s3.example.com\"", "endpoint"),
        (s3, "endpoint = \"http://s3.example.com\"", "endpoint"),
        (s3, "endpoint = \"https://u:p@s3.example.com\"", "endpoint"),
        (local, "buckets = [\"a*b\"]", "buckets"),
        (local, "buckets = [\"a/b\"]", "buckets"),
        (local, "buckets = [\"a..b\"]", "buckets"),
        (local, "buckets = [\"\"]", "buckets"),
        (local, "addressing = \"virtual\"", "addressing"),
        (local, "endpoint_aliases = [\"https://x\"]", "endpoint_aliases"),
        (local, "root = \"/data\"", "root"),
        (local, "access_key_id = \"AK\"", "secret_access_key_file"),
        (local, "secret_access_key_file = \"/s\"", "access_key_id"),
        (local, "session_token_file = \"/t\"", "access_key_id"),
        (
            local,
            "access_key_id = \"AK\"\naccess_key_id_file = \"/f\"\nsecret_access_key_file = \"/s\"",
            "access_key_id",
        ),
        (
            local,
            "access_key_id = \"AK\"\nsecret_access_key_env = \"S\"\ncredentials = \"anonymous\"",
            "credentials",
        ),
        (local, "connect_timeout = \"0s\"", "connect_timeout"),
        (local, "request_timeout = \"1h\"", "request_timeout"),
        (local, "max_concurrent_requests = 0", "max_concurrent_requests"),
        (local, "max_retries = 11", "max_retries"),
        (local, "max_requests_per_second = 0", "max_requests_per_second"),
        (local, "max_bandwidth = \"1KiB\"", "max_bandwidth"),
        (local, "identity = \"\"", "identity"),
        (file, "", "root"),
        (file, "root = \"data\"", "root"),
        (file, "root = \"/data\"\nregion = \"x\"", "region"),
        (file, "root = \"/data\"\nbuckets = [\"*\"]", "buckets"),
        ("kind = \"s3\"\nregion = \"r\"\n", "name = \"a b\"", "name"),
        (
            "name = \"a\"\nkind = \"oss\"\n",
            "endpoint = \"https://oss-accelerate.aliyuncs.com\"",
            "region",
        ),
        (
            "name = \"a\"\nkind = \"oss\"\nregion = \"cn-hangzhou\"\n",
            "requester_pays = true",
            "requester_pays",
        ),
    ];
    for (table, line, key) in cases {
        let error = parse(&format!("{table}{line}")).validate().expect_err(line);
        assert_eq!(error.key, key, "{line}: {error}");
        let text = error.to_string();
        assert!(text.starts_with("store \"") && text.contains(key), "{text}");
        assert!(!text.contains("u:p"), "a password is not repeated: {text}");
    }
}

fn named(name: &str, buckets: &[&str]) -> StoreConfig {
    StoreConfig {
        endpoint: Some("http://127.0.0.1:9".into()),
        buckets: buckets.iter().map(ToString::to_string).collect(),
        ..StoreConfig::new(name, StoreKind::S3)
    }
}

#[test]
fn the_most_specific_bucket_pattern_wins() {
    let file = StoreConfig {
        root: Some("/data".into()),
        ..StoreConfig::new("lake-a", StoreKind::File)
    };
    let configs = [
        named("any", &["*"]),
        named("prefix", &["lake-*"]),
        named("longer", &["lake-a*"]),
        named("exact", &["lake-a"]),
        file,
    ];
    let stores = stores(&configs).unwrap();
    let find = |scheme, name| {
        stores
            .find(scheme, &bucket(name))
            .map(|store| store.name().to_owned())
    };
    assert_eq!(find(Scheme::S3, "lake-a").as_deref(), Some("exact"));
    assert_eq!(find(Scheme::S3, "lake-ab").as_deref(), Some("longer"));
    assert_eq!(find(Scheme::S3, "lake-b").as_deref(), Some("prefix"));
    assert_eq!(find(Scheme::S3, "logs").as_deref(), Some("any"));
    assert_eq!(find(Scheme::File, "lake-a").as_deref(), Some("lake-a"));
    assert_eq!(find(Scheme::File, "logs"), None);
    assert_eq!(find(Scheme::Oss, "lake-a"), None);
}

#[test]
fn stores_that_cannot_be_told_apart_are_refused() {
    for (first, second, key) in [
        (named("a", &["x"]), named("a", &["y"]), "name"),
        (named("a", &["x", "y*"]), named("b", &["y*"]), "buckets"),
        (named("a", &["x"]), named("b", &["z", "x"]), "buckets"),
        (named("a", &[]), named("b", &["*"]), "buckets"),
    ] {
        let Err(Error::Config(error)) = stores(&[first, second]) else {
            panic!("{key}")
        };
        assert_eq!(error.key, key);
    }
}

#[tokio::test]
async fn a_path_of_another_store_is_refused() {
    let stores = stores(&[named("a", &["lake"])]).unwrap();
    let store = stores.iter().next().unwrap();
    for path in ["s3://other/key", "oss://lake/key", "file://lake/key"] {
        assert_eq!(
            store.head(&path.parse().unwrap()).await.unwrap_err().code(),
            "not_served",
            "{path}"
        );
    }
}

#[test]
fn a_fingerprint_matches_the_store_it_was_made_for_and_no_other() {
    let matches = |config: &StoreConfig, endpoint: &str, region: &str, name: &str, pays: bool| {
        let stores = stores(std::slice::from_ref(config)).unwrap();
        let store = stores.iter().next().unwrap();
        let fingerprint = StoreFingerprint::of(store.scheme(), endpoint, region, name, pays);
        store.fingerprint_matches(&fingerprint, &bucket(name))
    };
    let aws = |region: &str| StoreConfig {
        region: Some(region.into()),
        ..StoreConfig::new("a", StoreKind::S3)
    };
    assert!(matches(&aws("eu-west-1"), "", "", "lake", false));
    assert!(matches(&aws("eu-west-1"), "", "eu-west-1", "lake", false));
    assert!(matches(
        &aws("eu-west-1"),
        "s3.eu-west-1.amazonaws.com",
        "",
        "lake",
        false
    ));
    assert!(!matches(&aws("eu-west-1"), "", "us-east-1", "lake", false));
    assert!(!matches(
        &aws("eu-west-1"),
        "minio.example.com",
        "eu-west-1",
        "lake",
        false
    ));
    assert!(!matches(&aws("eu-west-1"), "", "", "lake", true));
    // Bucket names repeat in AWS's other partitions.
    assert!(matches(&aws("cn-north-1"), "", "cn-north-1", "lake", false));
    assert!(!matches(&aws("cn-north-1"), "", "", "lake", false));
    assert!(!matches(
        &aws("cn-north-1"),
        "s3.amazonaws.com",
        "cn-north-1",
        "lake",
        false
    ));

    let minio = StoreConfig {
        endpoint_aliases: vec!["minio.example.com".into()],
        ..named("a", &["lake"])
    };
    assert!(matches(&minio, "127.0.0.1:9", "", "lake", false));
    assert!(matches(&minio, "minio.example.com", "us-east-1", "lake", false));
    assert!(!matches(&minio, "", "", "lake", false));
    assert!(!matches(&minio, "127.0.0.1:9", "", "other", false));

    let oss = StoreConfig {
        region: Some("cn-hangzhou".into()),
        ..StoreConfig::new("a", StoreKind::Oss)
    };
    assert!(matches(&oss, "oss-cn-hangzhou.aliyuncs.com", "", "lake", false));
    assert!(!matches(&oss, "oss-cn-beijing.aliyuncs.com", "", "lake", false));
}
