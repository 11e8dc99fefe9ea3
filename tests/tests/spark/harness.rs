//! The harness by itself: stock Spark and stock S3A.

use cachelet_tests::S3Server;
use cachelet_tests::spark::Release;
use serde_json::json;

use crate::support::{Tables, ground};

#[test]
fn stock_s3a_reads_through_the_proxy_on_every_node_and_no_task_is_node_local() {
    let proxy = Tables::counted();
    let bucket = S3Server::shared().bucket();
    for file in 0..8 {
        let lines: Vec<String> = (0..20_000).map(|line| format!("{file},{line}")).collect();
        bucket.put(&format!("table/{file}.csv"), lines.join("\n").as_bytes());
    }
    let path = format!("s3a://{}/table", bucket.name());
    let steps = json!([{"name": "csv", "format": "csv", "path": path}]);
    for release in [Release::Spark3, Release::Spark4] {
        proxy.reset();
        let mut ground = ground(release);
        let application = ground.stock(&proxy.endpoint());
        let outcome = ground.run(application, &steps);
        assert_eq!(
            (outcome.step("csv").rows, outcome.step("csv").files),
            (160_000, 8)
        );
        assert_eq!(outcome.log.node_local_share(Some("csv")), Some(0.0));
        assert_eq!(
            outcome.log.hosts(),
            ground.spark.hosts().iter().cloned().collect()
        );
        let traffic = proxy.traffic();
        assert!(traffic.gets >= 8 && traffic.lists >= 1, "{traffic:?}");
        assert!(
            traffic.data_bytes >= outcome.log.input_bytes(Some("csv")),
            "{traffic:?}"
        );
    }
}
