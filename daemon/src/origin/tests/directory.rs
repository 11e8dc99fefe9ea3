//! Directories: generations, changes under a reader, and keys that try to get out.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cachelet_protocol::ids::{Generation, ObjectPath};
use futures::StreamExt;

use super::super::{ByteStream, Clock, Error, ObjectMeta, RangeRequest, Store, StoreConfig, StoreKind};
use super::server::{build_at, drain};

/// A directory whose clock says that everything in it was written an hour ago.
struct Fixture {
    root: tempfile::TempDir,
    store: Arc<Store>,
}

impl Fixture {
    fn new() -> Self {
        Self::seen_after(Duration::from_hours(1))
    }

    fn seen_after(age: Duration) -> Self {
        let root = tempfile::tempdir().unwrap();
        let clock = Clock::new(move || SystemTime::now() + age);
        let config = StoreConfig {
            root: Some(root.path().to_owned()),
            ..StoreConfig::new("data", StoreKind::File)
        };
        let store = build_at(&config, clock);
        Self { root, store }
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, Error> {
        self.store.head(&object(key)).await
    }

    async fn generation(&self, key: &str) -> Generation {
        self.head(key).await.unwrap().generation.unwrap()
    }

    async fn get(
        &self,
        key: &str,
        generation: Generation,
        range: std::ops::Range<u64>,
    ) -> Result<ByteStream, Error> {
        let request = RangeRequest {
            path: object(key),
            generation,
            version_id: None,
            range,
        };
        self.store.get(&request).await
    }

    async fn read(&self, key: &str) -> Vec<u8> {
        let generation = self.generation(key).await;
        let all = 0..generation.size_bytes;
        let (bytes, error) = drain(self.get(key, generation, all).await.unwrap()).await;
        assert_eq!(error, None);
        bytes
    }
}

fn object(key: &str) -> ObjectPath {
    format!("file://data/{key}").parse().unwrap()
}

fn code<T>(outcome: Result<T, Error>) -> &'static str {
    outcome.err().expect("an error").code()
}

#[tokio::test]
async fn a_file_is_read_as_it_is() {
    let fixture = Fixture::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    for key in ["a", "a b=c/%2F/é/😀", "...", "..a/b", "a+b~%"] {
        fixture.write(&format!("t/{key}"), &bytes);
        assert_eq!(fixture.read(&format!("t/{key}")).await, bytes, "{key}");
    }
    let generation = fixture.generation("t/a").await;
    let (part, error) = drain(fixture.get("t/a", generation, 999_999..2_500_001).await.unwrap()).await;
    assert_eq!((part.as_slice(), error), (&bytes[999_999..2_500_001], None));
}

#[tokio::test]
async fn an_empty_file_has_a_generation_and_no_range() {
    let fixture = Fixture::new();
    fixture.write("empty", b"");
    let generation = fixture.generation("empty").await;
    assert_eq!(generation.size_bytes, 0);
    assert_eq!(
        code(fixture.get("empty", generation, 0..0).await),
        "invalid_range"
    );
}

#[tokio::test]
async fn a_file_that_changed_less_than_two_seconds_ago_is_not_cacheable() {
    let (young, old) = (
        Fixture::seen_after(Duration::ZERO),
        Fixture::seen_after(Duration::from_secs(2)),
    );
    let early = Fixture::seen_after(Duration::ZERO);
    for fixture in [&young, &old, &early] {
        fixture.write("a", b"abc");
    }
    let meta = young.head("a").await.unwrap();
    assert_eq!((meta.generation, meta.size_bytes), (None, 3));
    let generation = old.generation("a").await;
    assert!(old.get("a", generation, 0..3).await.is_ok());

    let stamp = std::os::unix::fs::MetadataExt::ctime(&std::fs::metadata(young.path().join("a")).unwrap());
    assert!(stamp > 0);
    let etag = {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(young.path().join("a")).unwrap();
        let changed_ns = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        cachelet_protocol::ids::Etag::new(format!("i{}-c{changed_ns}", metadata.ino())).unwrap()
    };
    let presented = Generation { etag, size_bytes: 3 };
    assert_eq!(
        code(young.get("a", presented, 0..3).await),
        "not_cacheable",
        "a caller that looked itself is told"
    );
}

#[tokio::test]
async fn a_change_time_in_the_future_is_not_trusted() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a"), b"abc").unwrap();
    let config = StoreConfig {
        root: Some(root.path().to_owned()),
        ..StoreConfig::new("data", StoreKind::File)
    };
    let store = build_at(
        &config,
        Clock::new(|| SystemTime::now() - Duration::from_hours(1)),
    );
    assert_eq!(store.head(&object("a")).await.unwrap().generation, None);
}

#[tokio::test]
async fn every_way_to_change_a_file_changes_its_generation() {
    let fixture = Fixture::new();
    fixture.write("a", b"abc");
    let file = fixture.path().join("a");
    let changes: [&dyn Fn(); 5] = [
        &|| std::fs::write(&file, b"xyz").unwrap(),
        &|| std::fs::write(&file, b"longer").unwrap(),
        &|| {
            // Same bytes, same size, the old modification time put back.
            let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
            std::fs::write(&file, b"LONGER").unwrap();
            std::fs::File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_modified(modified)
                .unwrap();
        },
        &|| {
            std::fs::write(fixture.path().join("b"), b"LONGER").unwrap();
            std::fs::rename(fixture.path().join("b"), &file).unwrap();
        },
        &|| {
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, b"LONGER").unwrap();
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let before = fixture.generation("a").await;
        wait_for_the_next_tick(fixture.path());
        change();
        assert_ne!(fixture.generation("a").await, before, "change {number}");
        assert_eq!(
            code(fixture.get("a", before, 0..1).await),
            "changed",
            "change {number}"
        );
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(code(fixture.head("a").await), "not_found");
}

/// Change times have the resolution of the kernel's tick: touches a file until a new one shows.
fn wait_for_the_next_tick(directory: &Path) {
    use std::os::unix::fs::MetadataExt;
    let probe = directory.join(".tick");
    let touch = || {
        std::fs::write(&probe, b"").unwrap();
        let metadata = std::fs::metadata(&probe).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let first = touch();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while touch() == first {
        assert!(
            std::time::Instant::now() < deadline,
            "the file system's clock stands still"
        );
    }
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_ends_the_stream_in_an_error() {
    let fixture = Fixture::new();
    let size = 4_u64 << 20;
    let change: [&dyn Fn(&Path); 3] = [
        &|file| {
            use std::os::unix::fs::FileExt;
            std::fs::File::options()
                .write(true)
                .open(file)
                .unwrap()
                .write_all_at(b"X", 0)
                .unwrap();
        },
        &|file| {
            std::fs::File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_len(10)
                .unwrap();
        },
        &|file| std::fs::remove_file(file).unwrap(),
    ];
    for (number, change) in change.iter().enumerate() {
        fixture.write("a", &vec![7; usize::try_from(size).unwrap()]);
        wait_for_the_next_tick(fixture.path());
        let generation = fixture.generation("a").await;
        let mut body = fixture.get("a", generation, 0..size).await.unwrap();
        let first = body.next().await.unwrap().unwrap();
        assert!(first.iter().all(|byte| *byte == 7));
        change(&fixture.path().join("a"));
        let (rest, error) = drain(body).await;
        assert_eq!(
            (rest.len(), error.unwrap().code()),
            (0, "changed"),
            "change {number}"
        );
    }
}

#[tokio::test]
async fn no_key_leads_out_of_the_root_or_to_another_keys_file() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    fixture.write("dir/file", b"inside");
    symlink(outside.path(), fixture.path().join("out")).unwrap();
    symlink(outside.path().join("secret"), fixture.path().join("absolute")).unwrap();
    symlink("../../../../../../etc/hostname", fixture.path().join("relative")).unwrap();
    symlink("/proc/self/fd/0", fixture.path().join("magic")).unwrap();
    symlink("loop", fixture.path().join("loop")).unwrap();
    symlink("dir/file", fixture.path().join("link")).unwrap();
    let refused = [
        "../secret",
        "dir/../dir/file",
        "..",
        ".",
        "./dir/file",
        "dir/./file",
        "dir//file",
        "/dir/file",
        "dir/file/",
        "dir/",
        "/etc/hostname",
        "out/secret",
        "absolute",
        "relative",
        "magic",
        "loop",
        "a\0b",
    ];
    for key in refused {
        assert_eq!(code(fixture.head(key).await), "unsupported_key", "{key}");
    }
    assert_eq!(
        fixture.read("link").await,
        b"inside",
        "a link that stays inside is followed"
    );
}

#[tokio::test]
async fn what_is_no_regular_file_is_no_object() {
    let fixture = Fixture::new();
    fixture.write("dir/file", b"x");
    nix::unistd::mkfifo(&fixture.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(fixture.path().join("socket")).unwrap();
    let long = "x".repeat(300);
    for key in [
        "dir",
        "pipe",
        "socket",
        "missing",
        "missing/file",
        "dir/file/below",
        long.as_str(),
    ] {
        assert_eq!(code(fixture.head(key).await), "not_found", "{key}");
    }
}

#[tokio::test]
async fn a_missing_root_is_named_with_a_remedy() {
    let fixture = Fixture::new();
    fixture.store.check().await.unwrap();
    let root = fixture.path().to_owned();
    std::fs::remove_dir(&root).unwrap();
    let text = fixture.store.check().await.unwrap_err().to_string();
    assert!(
        text.contains("root") && text.contains(root.to_str().unwrap()) && text.contains("create it"),
        "{text}"
    );
    std::fs::write(&root, b"").unwrap();
    assert!(
        fixture
            .store
            .check()
            .await
            .unwrap_err()
            .to_string()
            .contains("no directory")
    );
    std::fs::remove_file(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
}
