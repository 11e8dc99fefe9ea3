//! The harness by itself: stock Spark and stock S3A.

use cachelet_tests::spark::{Application, Release, SparkCluster, SparkInstall, SparkNode};
use cachelet_tests::{FaultProxy, S3Server, TestDir};
use serde_json::json;

use crate::support::run;

#[test]
fn stock_s3a_reads_through_the_proxy_on_every_node_and_no_task_is_node_local() {
    let server = S3Server::shared();
    let proxy = FaultProxy::start_reusing_connections(server.address());
    let bucket = server.bucket();
    let dir = TestDir::new("sp");
    for release in [Release::Spark3, Release::Spark4] {
        let install = SparkInstall::of(release);
        let nodes = [0, 1].map(|index| SparkNode::new(index, dir.join("no-daemon")));
        let cluster = SparkCluster::start(
            install,
            &nodes,
            &dir.create_dir(format!("spark-{}", install.version)),
        );
        for file in 0..8 {
            let lines: String = (0..20_000).map(|line| format!("{file},{line}\n")).collect();
            bucket.put(&format!("table/{file}.csv"), lines.as_bytes());
        }
        let path = format!("s3a://{}/table", bucket.name());
        proxy.reset();
        let application = Application::new(install, cluster.url(), "reads.py")
            .s3a(&proxy.endpoint())
            .setting("spark.sql.files.openCostInBytes", "134217728");
        let steps = json!([{"name": "csv", "format": "csv", "path": path}]);
        let outcome = run(application, &steps, &dir, &install.version);
        assert_eq!(
            (outcome.step("csv").rows, outcome.step("csv").files),
            (160_000, 8)
        );
        assert_eq!(outcome.log.node_local_share(Some("csv")), Some(0.0));
        assert_eq!(
            outcome.log.scans_by_host(Some("csv")).len(),
            2,
            "{:?}",
            outcome.log
        );
        assert_eq!(outcome.log.hosts(), cluster.hosts().iter().cloned().collect());
        let traffic = proxy.traffic();
        assert!(traffic.gets >= 8 && traffic.lists >= 1, "{traffic:?}");
        assert!(
            traffic.data_bytes >= outcome.log.input_bytes(Some("csv")),
            "{traffic:?}"
        );
    }
}
