//! What the programs say about wrong input: an exit code, and one line with the key, its value and the remedy.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cachelet_client::Error;
use cachelet_tests::{
    Cluster, FaultProxy, Finished, GrantSetup, Process, ProcessBuilder, S3Server, TestDir, can_mount,
    free_port,
};
use nix::mount::{MsFlags, mount};

use super::support::{DEADLINE, MIB, client_of, open, over_s3, put, read_all};

/// Wrong arguments or configuration (`EX_USAGE`).
const USAGE: i32 = 64;
/// The configuration is in order, and what it asks for cannot be had.
const FAILED: i32 = 1;

/// A configuration of a daemon that would start, for tests to break.
fn daemon_config(dir: &TestDir) -> String {
    let root = dir.create_dir("root");
    std::fs::write(dir.join("secret"), "a secret of this test cluster").unwrap();
    format!(
        "[worker]\nnode_name = \"node-1\"\n\
         [cache]\ndirectory = \"{dir}/cache\"\ngrants = \"unprotected\"\nquota = \"1GiB\"\nmin_free_percent = 1\n\
         [local]\nsocket_dir = \"{dir}/s\"\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\
         [remote]\nlisten = \"127.0.0.1:0\"\nsecret_file = \"{dir}/secret\"\n\
         [[store]]\nname = \"data\"\nkind = \"file\"\nroot = \"{root}\"\n",
        dir = dir.path().display(),
        root = root.display(),
    )
}

fn daemon(config: &Path) -> ProcessBuilder {
    Process::binary("cacheletd")
        .arg("--config")
        .arg(config)
        .env_remove("RUST_LOG")
        .env_remove("NODE_NAME")
        .env_remove("WORKER_UUID")
}

/// Runs a daemon on a configuration in which `from` became `to`.
fn run_daemon_with(dir: &TestDir, from: &str, to: &str, argument: &str) -> Finished {
    let good = daemon_config(dir);
    assert!(good.contains(from), "{from:?} is not in the configuration");
    let config = dir.join("config.toml");
    std::fs::write(&config, good.replacen(from, to, 1)).unwrap();
    let daemon = daemon(&config);
    let daemon = if argument.is_empty() {
        daemon
    } else {
        daemon.arg(argument)
    };
    daemon.run(DEADLINE)
}

#[track_caller]
fn assert_one_line(finished: &Finished, code: i32, parts: &[&str]) {
    assert_eq!(finished.code(), code, "{}", finished.stderr);
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert_eq!(
        lines.len(),
        1,
        "one line, not {}:\n{}",
        lines.len(),
        finished.stderr
    );
    for part in parts {
        assert!(lines[0].contains(part), "no {part:?} in {:?}", lines[0]);
    }
}

const QUOTA: &str = "quota = \"1GiB\"";
const STORE: &str = "kind = \"file\"";
const DIRECTORY: &str = "kind = \"file\"\nroot";

/// What becomes what in a good configuration, and what the refusal says.
const WRONG_CONFIGURATIONS: &[(&str, &str, &[&str])] = &[
    (
        QUOTA,
        "quotta = \"1GiB\"",
        &[
            "line 6: quotta = \"1GiB\"",
            "unknown field `quotta`",
            "`quota`",
            "remove it",
        ],
    ),
    (
        QUOTA,
        "quota = \"lots\"",
        &["quota = \"lots\"", "such as \"512MiB\"", "correct it"],
    ),
    (QUOTA, "quota = \"1KiB\"", &["cache.quota = 1.0 KiB", "at least"]),
    (
        QUOTA,
        "quota = \"1GiB\"\nblock_size = \"3MiB\"",
        &["cache.block_size = 3.0 MiB", "power of two"],
    ),
    (
        QUOTA,
        "quota = \"1GiB\"\nmin_free_percent = 1",
        &["min_free_percent", "duplicate key", "keep one"],
    ),
    (QUOTA, "quota = \"1GiB", &["line 6: quota = \"1GiB", "correct it"]),
    (
        "min_free_percent = 1",
        "min_free_percent = 99",
        &["cache.min_free_percent = 99", "no room"],
    ),
    (
        "grants = \"unprotected\"",
        "grants = \"maybe\"",
        &["grants = \"maybe\"", "`required` or `unprotected`"],
    ),
    (
        "[local]\nsocket_dir",
        "[locl]\nsocket_dir",
        &["[locl]", "unknown field `locl`", "`local`"],
    ),
    (
        "[cache]\ndirectory",
        "[cache]\n#",
        &["[cache]", "missing field `directory`", "add it"],
    ),
    ("[[store]]", "[admin.x]", &["admin", "unknown field `x`"]),
    (
        STORE,
        "kind = \"file\"\nbuckets = [\"lake*\"]",
        &["store \"data\"", "buckets = \"lake*\"", "one by one"],
    ),
    (
        STORE,
        "kind = \"s3\"\nbuckets = [\"a*b\"]",
        &["store \"data\"", "buckets = \"a*b\"", "at its end"],
    ),
    (
        DIRECTORY,
        "kind = \"s3\"\n#",
        &["store \"data\"", "region = (unset)", "set it", "eu-west-1"],
    ),
    (
        DIRECTORY,
        "kind = \"s3\"\nendpoint = \"http://s3.example.com\"\n#",
        &["endpoint = \"http://s3.example.com\"", "https://", "allow_http"],
    ),
    (
        STORE,
        "kind = \"s3\"\nsecret_access_key = \"hunter2\"",
        &[
            "unknown field `secret_access_key`",
            "(not shown)",
            "`secret_access_key_file`",
        ],
    ),
    (
        STORE,
        "kind = \"file\"\nrequest_timeout = \"1 parsec\"",
        &["1 parsec", "such as \"500ms\""],
    ),
    (
        "[remote]",
        "[locality]\nservice = \"cachelet:7071\"\n[remote]",
        &["locality.service = cachelet:7071", "http://"],
    ),
];

#[test]
fn a_daemon_refuses_a_configuration_with_key_value_and_remedy_and_binds_nothing() {
    let dir = TestDir::new("wi");
    let long = format!("socket_dir = \"/{}\"", "d".repeat(120));
    for (from, to, parts) in WRONG_CONFIGURATIONS {
        for argument in ["--check-config", ""] {
            let finished = run_daemon_with(&dir, from, to, argument);
            assert_one_line(&finished, USAGE, parts);
            assert!(
                !finished.stderr.contains("hunter2"),
                "a secret is shown: {}",
                finished.stderr
            );
        }
        assert!(
            !dir.join("cache").exists() && !dir.join("s").exists(),
            "nothing was made for {to:?}"
        );
    }
    let config = daemon_config(&dir);
    let without_store = &config[..config.find("[[store]]").unwrap()];
    let without_local = config.replace("[local]", "").replace("socket_dir", "#");
    for (text, parts) in [
        (without_store, ["store = []", "add a [[store]] table"]),
        (&without_local, ["missing field `local`", "add it"]),
    ] {
        std::fs::write(dir.join("config.toml"), text).unwrap();
        let finished = daemon(&dir.join("config.toml")).run(DEADLINE);
        assert_one_line(&finished, USAGE, &parts);
    }
    // Too long a socket path is found when the socket is bound.
    let socket_dir = format!("socket_dir = \"{}/s\"", dir.path().display());
    let finished = run_daemon_with(&dir, &socket_dir, &long, "");
    assert_one_line(
        &finished,
        FAILED,
        &["local.socket_dir", &"d".repeat(120), "107", "shorter"],
    );
}

#[test]
fn a_daemon_without_its_configuration_file_says_which_and_where_to_look() {
    let finished = daemon(Path::new("/no/such/file.toml")).run(DEADLINE);
    assert_one_line(
        &finished,
        USAGE,
        &["/no/such/file.toml", "No such file", "--config"],
    );
    let finished = Process::binary("cacheletd").arg("--confg").run(DEADLINE);
    assert_eq!(finished.code(), USAGE);
    assert!(finished.stderr.contains("'--confg'"), "{}", finished.stderr);
    for binary in ["cacheletd", "cachelet-locality", "cachelet"] {
        let help = Process::binary(binary)
            .arg("--help")
            .run(DEADLINE)
            .expect_success();
        assert!(help.text().contains("Usage") && help.stderr.is_empty());
        Process::binary(binary)
            .arg("--version")
            .run(DEADLINE)
            .expect_success();
    }
}

#[test]
fn a_cache_directory_that_cannot_be_written_is_refused() {
    let dir = TestDir::new("wi");
    let file = dir.join("cache");
    std::fs::write(&file, "a file").unwrap();
    let finished = run_daemon_with(&dir, "[cache]", "[cache]", "");
    let shown = file.display().to_string();
    assert_one_line(
        &finished,
        FAILED,
        &["cache.directory", &shown, "make it a directory", "write"],
    );
    std::fs::remove_file(&file).unwrap();

    if can_mount() {
        std::fs::create_dir(&file).unwrap();
        let bind = |flags| mount(Some(&file), &file, None::<&str>, flags, None::<&str>).unwrap();
        bind(MsFlags::MS_BIND);
        bind(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        let finished = run_daemon_with(&dir, "[cache]", "[cache]", "");
        assert_one_line(
            &finished,
            FAILED,
            &["cache.directory", &shown, "Read-only file system", "write"],
        );
    }
}

#[test]
fn a_socket_directory_that_cannot_be_used_is_refused() {
    let dir = TestDir::new("wi");
    std::fs::write(dir.join("s"), "a file").unwrap();
    let finished = run_daemon_with(&dir, "[cache]", "[cache]", "");
    let shown = dir.join("s").display().to_string();
    assert_one_line(
        &finished,
        FAILED,
        &["local.socket_dir", &shown, "must exist and be writable"],
    );
}

#[test]
fn a_port_in_use_is_named_with_its_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = TestDir::new("wi");
    for (section, key) in [("[admin]", "admin.listen"), ("[remote]", "remote.listen")] {
        let from = format!("{section}\nlisten = \"127.0.0.1:0\"");
        let to = format!("{section}\nlisten = \"{address}\"");
        let finished = run_daemon_with(&dir, &from, &to, "");
        assert_one_line(&finished, FAILED, &[key, &address, "in use", "another port"]);
    }
    for (own, other) in [("--http", "--grpc"), ("--grpc", "--http")] {
        let finished = Process::binary("cachelet-locality")
            .args([own, &address, other, "127.0.0.1:0"])
            .run(DEADLINE);
        assert_one_line(
            &finished,
            FAILED,
            &[&own[2..], &address, "in use", "another port"],
        );
    }
    // Not an address of this machine.
    let finished = Process::binary("cachelet-locality")
        .args(["--http", "192.0.2.1:7070", "--grpc", "127.0.0.1:0"])
        .run(DEADLINE);
    assert_one_line(
        &finished,
        FAILED,
        &["http", "192.0.2.1:7070", "address of this machine"],
    );
}

#[test]
fn a_secret_file_that_is_missing_or_too_short_is_named_and_never_shown() {
    let dir = TestDir::new("wi");
    let path = dir.join("secret").display().to_string();
    let gone = dir.join("gone").display().to_string();
    let finished = run_daemon_with(&dir, &path, &gone, "");
    assert_one_line(
        &finished,
        FAILED,
        &["remote.secret_file", &gone, "No such file", "at least 16"],
    );

    let config = dir.join("config.toml");
    std::fs::write(&config, daemon_config(&dir)).unwrap();
    for short in ["hunter2", "", "    \n", "fifteen chars.."] {
        std::fs::write(dir.join("secret"), short).unwrap();
        let finished = daemon(&config).run(DEADLINE);
        assert_one_line(&finished, FAILED, &["remote.secret_file", &path, "16 characters"]);
        assert!(
            short.trim().is_empty() || !finished.stderr.contains(short),
            "{}",
            finished.stderr
        );
    }
    // Not text.
    std::fs::write(dir.join("secret"), [0xff_u8; 32]).unwrap();
    assert_one_line(
        &daemon(&config).run(DEADLINE),
        FAILED,
        &["remote.secret_file", &path, "UTF-8"],
    );
}

#[test]
fn the_service_refuses_a_configuration_with_key_value_and_remedy() {
    let dir = TestDir::new("wi");
    let config = dir.join("service.toml");
    for (text, parts) in [
        (
            "leese = \"10s\"",
            &["leese = \"10s\"", "unknown field `leese`", "`lease`"] as &[&str],
        ),
        (
            "lease = \"soon\"",
            &["lease = \"soon\"", "such as \"500ms\"", "correct it"],
        ),
        ("lease = \"1ms\"", &["`lease` is 1ms", "expected 100ms to 10m"]),
        ("lease = \"3s\"", &["`lease` is 3s", "at least twice `heartbeat`"]),
        (
            "max_request_paths = 0",
            &["`max_request_paths` is 0", "expected 1 to 1000000"],
        ),
        (
            "max_request_body_bytes = \"many\"",
            &["max_request_body_bytes = \"many\"", "such as \"512MiB\""],
        ),
        ("http = \"localhost\"", &["http = \"localhost\"", "correct it"]),
        (
            "log_format = \"xml\"",
            &["log_format = \"xml\"", "unknown variant `xml`", "`json`"],
        ),
        ("[http", &["line 1: [http", "correct it"]),
        (
            "[locality]\nlease = \"3s\"",
            &["[locality]", "unknown field `locality`", "remove it"],
        ),
    ] {
        std::fs::write(&config, text).unwrap();
        let finished = Process::binary("cachelet-locality")
            .arg("--config")
            .arg(&config)
            .run(DEADLINE);
        assert_one_line(&finished, USAGE, parts);
    }
    let finished = Process::binary("cachelet-locality")
        .args(["--config", "/no/such/file.toml"])
        .run(DEADLINE);
    assert_one_line(
        &finished,
        USAGE,
        &["/no/such/file.toml", "No such file", "--config"],
    );
    let finished = Process::binary("cachelet-locality")
        .args(["--http", "nonsense"])
        .run(DEADLINE);
    assert_eq!(finished.code(), USAGE);
    assert!(finished.stderr.contains("'nonsense'") && finished.stderr.contains("--http"));
}

/// A daemon that grants nothing says why, and its clients read all the same.
fn assert_reads_inline(mut cluster: Cluster, bucket: &cachelet_tests::Bucket, parts: &[&str]) {
    let (path, stored) = put(bucket, "inline", 1, 3 * MIB + 5);
    let worker = cluster.worker(0);
    let status = worker.status();
    assert_eq!(status["grants"]["status"], "disabled", "{status}");
    let reason = status["grants"]["reason"].as_str().expect("a reason").to_owned();
    let log = worker.process().log();
    let logged = log
        .lines()
        .find(|line| line.contains("WARN") && line.contains("grant"))
        .unwrap_or_else(|| panic!("no warning about grants in the log:\n{log}"))
        .to_owned();
    for part in parts {
        assert!(reason.contains(part), "no {part:?} in {reason:?}");
        assert!(logged.contains(part), "no {part:?} in {logged:?}");
    }
    for _ in 0..2 {
        let client = client_of(worker);
        let bytes = read_all(&open(&client, &path).unwrap()).unwrap();
        assert_eq!(cachelet_tests::sha256_hex(&bytes), stored.sha256);
        let stats = client.stats();
        assert_eq!((stats.local_bytes, stats.grants_received), (0, 0), "{stats:?}");
        assert_eq!(stats.inline_bytes, stored.size_bytes);
        assert_eq!(client.descriptors_held(), 0);
    }
}

#[test]
fn without_a_read_only_path_the_daemon_serves_inline_and_says_why() {
    let (bucket, cluster) = over_s3();
    let cluster = cluster.grants(GrantSetup::Missing).start();
    assert_reads_inline(
        cluster,
        &bucket,
        &["read_only_path", "mount the cache directory a second time"],
    );
}

#[test]
fn a_read_only_path_that_is_another_directory_grants_nothing_and_is_named() {
    let (bucket, cluster) = over_s3();
    let other = TestDir::new("other");
    let shown = other.path().display().to_string();
    let cluster = cluster
        .grants(GrantSetup::Missing)
        .cache_config(&format!("read_only_path = \"{shown}\""))
        .start();
    assert_reads_inline(cluster, &bucket, &["read_only_path", &shown, "mount"]);
}

/// An S3 store for `--check-stores`, in a configuration of its own.
fn check_stores(dir: &TestDir, store: &str, credentials: [(&str, &str); 2]) -> Finished {
    let config = daemon_config(dir);
    let config = format!("{}{store}", &config[..config.find("[[store]]").unwrap()]);
    std::fs::write(dir.join("config.toml"), config).unwrap();
    daemon(&dir.join("config.toml"))
        .arg("--check-stores")
        .envs(credentials)
        .env_remove("AWS_REGION")
        .run(DEADLINE)
}

fn s3_store(endpoint: &str, buckets: &str) -> String {
    format!(
        "[[store]]\nname = \"lake\"\nkind = \"s3\"\nendpoint = \"{endpoint}\"\naddressing = \"path\"\nmax_retries = 0\n{buckets}\n"
    )
}

#[test]
fn check_stores_tells_a_good_store_from_a_bad_one_without_a_secret() {
    let server = S3Server::shared();
    let bucket = server.bucket();
    let dir = TestDir::new("wi");
    let good = [
        ("AWS_ACCESS_KEY_ID", cachelet_tests::ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", cachelet_tests::SECRET_KEY),
    ];
    let wrong = [
        ("AWS_ACCESS_KEY_ID", cachelet_tests::ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2"),
    ];
    let endpoint = server.endpoint();
    let own = format!("buckets = [\"{}\"]", bucket.name());

    let finished = check_stores(&dir, &s3_store(&endpoint, &own), good).expect_success();
    assert!(
        finished.text().starts_with("store lake: ok"),
        "{}",
        finished.text()
    );
    assert_eq!(finished.stderr, "", "good news is no news on standard error");

    let finished = check_stores(&dir, &s3_store(&endpoint, &own), wrong);
    assert_one_line(&finished, FAILED, &["lake", &endpoint, "check the access key"]);
    assert!(!finished.stderr.contains("hunter2"));

    let missing = "buckets = [\"no-such-bucket\"]";
    let finished = check_stores(&dir, &s3_store(&endpoint, missing), good);
    assert_one_line(
        &finished,
        FAILED,
        &[
            "lake",
            "buckets",
            "no-such-bucket",
            &endpoint,
            "create it or remove it",
        ],
    );

    let nobody = format!("http://127.0.0.1:{}", free_port());
    let finished = check_stores(&dir, &s3_store(&nobody, &own), good);
    assert_one_line(&finished, FAILED, &["lake", &nobody, "refused", "check"]);

    let directory = format!(
        "[[store]]\nname = \"data\"\nkind = \"file\"\nroot = \"{}/gone\"\n",
        dir.path().display()
    );
    let finished = check_stores(&dir, &directory, good);
    assert_one_line(&finished, FAILED, &["data", "root", "/gone", "create it"]);
}

#[test]
fn a_client_is_told_what_the_origin_refused() {
    let server = S3Server::shared();
    let bucket = server.bucket();
    let (path, _) = put(&bucket, "k", 1, 100_000);
    let secret = TestDir::new("wi");
    std::fs::write(secret.join("id"), cachelet_tests::ACCESS_KEY).unwrap();
    std::fs::write(secret.join("key"), "hunter2-hunter2").unwrap();
    let keys = format!(
        "[[store]]\nname = \"wrong\"\nkind = \"s3\"\nidentity = \"wrong\"\nendpoint = \"{}\"\naddressing = \"path\"\nauthorization = \"daemon\"\n\
         buckets = [\"{}\"]\naccess_key_id_file = \"{id}\"\nsecret_access_key_file = \"{key}\"\nmax_retries = 0\n",
        server.endpoint(),
        bucket.name(),
        id = secret.join("id").display(),
        key = secret.join("key").display(),
    );
    let mut cluster = Cluster::of(&server.endpoint())
        .config(&keys)
        .without_service()
        .start();
    let client = client_of(cluster.worker(0));
    let refused = open(&client, &path).expect_err("the secret is wrong");
    assert!(matches!(refused, Error::PermissionDenied(_)), "{refused:?}");
    assert!(refused.should_use_origin());
    let text = refused.to_string();
    assert!(
        text.contains(bucket.name()) && text.contains("credentials") && !text.contains("hunter2"),
        "{text}"
    );

    let text = open(&client, "s3a://no-such-bucket-here/k")
        .expect_err("no bucket")
        .to_string();
    assert!(text.contains("no-such-bucket-here"), "{text}");
    let refused = open(&client, &format!("{path}-gone")).expect_err("no object");
    assert!(refused.should_use_origin(), "{refused}");
    let refused =
        open(&client, &format!("oss://{}/k", bucket.name())).expect_err("no OSS store is configured");
    assert!(matches!(refused, Error::Bypass { .. }), "{refused:?}");
    assert!(
        refused.to_string().contains(&format!("oss://{}", bucket.name())),
        "{refused}"
    );
}

#[test]
fn a_client_of_a_daemon_without_its_origin_is_told_so_in_time() {
    let proxy = FaultProxy::start(S3Server::shared().address());
    let endpoint = proxy.endpoint();
    drop(proxy);
    let mut cluster = Cluster::of(&endpoint).config("").without_service().start();
    let client = client_of(cluster.worker(0));
    let begun = Instant::now();
    let refused = open(&client, "s3a://bucket/k").expect_err("nobody listens there");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(refused.should_use_origin(), "{refused}");
    let text = refused.to_string();
    assert!(
        text.contains(&endpoint) && text.contains("cannot connect"),
        "{text}"
    );
}

fn cli(arguments: &[&str]) -> ProcessBuilder {
    Process::binary("cachelet")
        .args(arguments)
        .env_remove("CACHELET_SOCKET_DIR")
        .env_remove("CACHELET_TOKEN_FILE")
        .env_remove("CACHELET_SERVICE")
}

#[test]
fn the_command_line_says_which_argument_is_wrong() {
    for (arguments, parts) in [
        (&["cat", "lake/k"] as &[&str], ["'lake/k'", "scheme://bucket/key"]),
        (&["cat", "gs://lake/k"], ["'gs://lake/k'", "known schemes"]),
        (&["cat", "s3://lake/k", "--range", "9-1"], ["'9-1'", "--range"]),
        (&["stat", "s3://lake/"], ["'s3://lake/'", "empty"]),
        (&["stat"], ["not provided", "<"]),
        (
            &["cat", "s3://lake/k", "--worker", "tcp://x"],
            ["'tcp://x'", "--worker"],
        ),
        (&["cta", "s3://lake/k"], ["'cta'", "similar"]),
    ] {
        let finished = cli(arguments).run(DEADLINE);
        assert_eq!(finished.code(), USAGE, "{arguments:?}: {}", finished.stderr);
        for part in parts {
            assert!(
                finished.stderr.contains(part),
                "{arguments:?}: no {part:?} in {}",
                finished.stderr
            );
        }
        assert!(finished.stdout.is_empty());
    }
    let gone = [
        "cat",
        "s3://lake/k",
        "--worker",
        "tcp://127.0.0.1:1",
        "--token-file",
        "/no/such/secret",
    ];
    assert_one_line(
        &cli(&gone).run(DEADLINE),
        USAGE,
        &["--token-file", "/no/such/secret", "No such file"],
    );
}

#[test]
fn commands_without_a_daemon_or_a_service_say_where_they_looked() {
    const UNAVAILABLE: i32 = 69;
    let dir = TestDir::new("cli");
    let (empty, gone) = (
        dir.path().display().to_string(),
        dir.join("gone").display().to_string(),
    );
    for command in ["cat", "stat"] {
        let finished = cli(&[command, "s3://lake/k", "--socket-dir", &empty]).run(DEADLINE);
        assert_one_line(&finished, UNAVAILABLE, &[&empty, "is cacheletd running"]);
        let finished = cli(&[command, "s3://lake/k", "--socket-dir", &gone]).run(DEADLINE);
        assert_one_line(&finished, UNAVAILABLE, &[&gone, "No such file", "mounted there?"]);
    }
    let finished = cli(&["status", "--socket-dir", &empty]).run(DEADLINE);
    assert_one_line(&finished, UNAVAILABLE, &[&empty, "is cacheletd running"]);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let finished = cli(&["status", "--service", &nobody]).run(DEADLINE);
    assert_one_line(&finished, UNAVAILABLE, &[&nobody[7..], "efused"]);
}

#[test]
fn commands_pass_on_what_the_daemon_says() {
    const NOT_FOUND: i32 = 66;
    const UNAVAILABLE: i32 = 69;
    const PERMISSION: i32 = 77;
    let (bucket, cluster) = over_s3();
    let mut cluster = cluster.start();
    let sockets = cluster.worker(0).socket_dir().display().to_string();
    let remote = format!("tcp://{}", cluster.worker(0).remote_address());
    let (path, _) = put(&bucket, "k", 1, 100_000);
    let gone = format!("{path}-gone");
    for command in ["cat", "stat"] {
        let run = |path: &str| cli(&[command, path, "--socket-dir", &sockets]).run(DEADLINE);
        run(&path).expect_success();
        assert_one_line(&run(&gone), NOT_FOUND, &["no such object", "k-gone"]);
        let other = format!("oss://{}/k", bucket.name());
        assert_one_line(&run(&other), UNAVAILABLE, &[&other, "no store is configured"]);
    }
    // Another secret than the cluster's.
    let dir = TestDir::new("cli");
    std::fs::write(dir.join("token"), "hunter2 hunter2 hunter2").unwrap();
    let token = dir.join("token").display().to_string();
    let finished = cli(&["cat", &path, "--worker", &remote, "--token-file", &token]).run(DEADLINE);
    assert_one_line(&finished, PERMISSION, &["secret", "remote.secret_file"]);
    assert!(!finished.stderr.contains("hunter2"));
    // A file that cannot be written: nothing is left of it.
    let to: PathBuf = dir.join("no/such/directory/out");
    let shown = to.display().to_string();
    let finished = cli(&["cat", &path, "--socket-dir", &sockets, "--to", &shown]).run(DEADLINE);
    assert_one_line(&finished, USAGE, &[&shown, "No such file"]);
}
