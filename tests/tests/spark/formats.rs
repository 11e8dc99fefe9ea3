//! What tables of other formats than plain files get: they build their scans themselves.

use cachelet_tests::Cluster;
use cachelet_tests::spark::Release;
use http::Method;
use serde_json::{Value, json};

use crate::support::{FILES, ROWS, Tables, ground};

/// The rows of [`Tables`], as a query.
const SELECT: &str = "id, pmod(id, 40) AS part, md5(cast(id AS string)) AS text, id * 0.5 AS amount";

#[test]
fn iceberg_delta_and_hive_tables_are_read_from_the_cache_and_all_but_delta_are_node_local() {
    let tables = Tables::shared();
    let proxy = Tables::counted();
    let mut cluster = Cluster::of(&proxy.endpoint())
        .nodes(2)
        .caller_authorization()
        .start();
    let mut ground = ground(Release::Spark3);
    ground.attach(&mut cluster);
    let warehouse = tables.path("iceberg");
    let delta = format!("delta.`{}`", tables.path("delta"));
    let rows = format!("SELECT /*+ REPARTITION({FILES}) */ {SELECT} FROM range({ROWS})");
    let stock = ground
        .stock(&proxy.endpoint())
        .table_formats(&warehouse)
        .setting("spark.sql.catalogImplementation", "hive")
        .setting("spark.sql.warehouse.dir", &tables.path("hive"))
        .setting(
            "spark.hadoop.javax.jdo.option.ConnectionURL",
            "jdbc:derby:memory:metastore;create=true",
        )
        .driver_option(&format!(
            "-Dderby.stream.error.file={}",
            cluster.dir().join("derby.log").display()
        ))
        .setting("spark.sql.iceberg.locality.enabled", "true");
    let write = json!({"name": "write", "sql": [
        // A task a file.
        format!("CREATE TABLE lake.db.t USING iceberg TBLPROPERTIES ('read.split.open-file-cost' = '134217728') AS {rows}"),
        format!("CREATE TABLE {delta} USING delta AS {rows}"),
    ]});
    let hive = json!({"name": "hive", "sql": [
        format!(
            "CREATE EXTERNAL TABLE hive_text (id STRING, part STRING, text STRING, amount STRING) ROW FORMAT DELIMITED \
             FIELDS TERMINATED BY ',' STORED AS TEXTFILE LOCATION '{}'",
            tables.path("csv")
        ),
        format!(
            "CREATE EXTERNAL TABLE hive_parquet (id BIGINT, part BIGINT, text STRING, amount DECIMAL(22,1)) STORED AS PARQUET \
             LOCATION '{}'",
            tables.path("parquet")
        ),
    ]});
    let read = |name: &str, table: &str| json!({"name": name, "format": "table", "path": table});
    let reads = [
        read("iceberg", "lake.db.t"),
        read("delta", &delta),
        read("hive text", "hive_text"),
        read("hive parquet", "hive_parquet"),
    ];
    let with = |before: &[&Value]| Value::Array(before.iter().copied().chain(&reads).cloned().collect());
    let cachelet = stock.clone().cachelet();
    let stock = ground.run(stock, &with(&[&write, &hive]));
    stock.print("stock");
    let cold = ground.run(cachelet.clone(), &with(&[&hive]));
    cold.print("cold");
    proxy.reset();
    let warm = ground.run(cachelet, &with(&[&hive]));
    warm.print("warm");

    for step in &reads {
        let name = step["name"].as_str().expect("a name");
        let expected = stock.step(name);
        for outcome in [&cold, &warm] {
            let found = outcome.step(name);
            assert_eq!(
                (found.rows, &found.hash),
                (expected.rows, &expected.hash),
                "{name}"
            );
        }
        assert_eq!(expected.rows, ROWS, "{name}");
        if name == "delta" {
            // Delta makes the statuses of its files itself, from its log.
            assert!(warm.step(name).preferred_hosts.iter().all(Vec::is_empty));
        } else {
            warm.assert_node_local(name);
        }
    }
    warm.assert_only_hosts_of_executors();
    let fetched: Vec<String> = proxy
        .requests()
        .into_iter()
        .filter(|request| request.method == Method::GET && request.path.ends_with(".parquet"))
        .map(|request| request.path)
        .collect();
    assert_eq!(fetched, Vec::<String>::new(), "data files were cached");
}
