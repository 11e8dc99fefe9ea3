//! Starting on directories and values that work or do not.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_second_store_on_the_directory_is_refused_with_the_holders_pid() {
    let disk = Disk::new();
    let first = disk.open();
    let message = disk.open_with(disk.config()).unwrap_err().to_string();
    assert!(
        message.contains(&format!("pid {}", std::process::id())),
        "{message}"
    );
    assert!(
        message.contains(&disk.config().directory.display().to_string()),
        "{message}"
    );
    drop(first);
    disk.open_with(disk.config()).unwrap();
}

#[test]
fn directories_are_private() {
    let disk = Disk::new();
    let store = disk.open();
    for folder in ["", "blocks", "blocks/00", "blocks/ff", "tmp", "quarantine"] {
        let mode = std::fs::metadata(disk.v1().join(folder))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700, "{folder}");
    }
    for file in ["lock", "epoch"] {
        let mode = std::fs::metadata(disk.v1().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    drop(store);
}

#[test]
fn values_that_cannot_work_are_refused_with_key_value_and_remedy() {
    let disk = Disk::new();
    let refused = |config: Config| match disk.open_with(config) {
        Err(Error::Config { key, value, reason }) => (key, value, reason),
        other => panic!("{other:?}"),
    };
    let (key, value, _) = refused(Config {
        quota_bytes: FULL_CHARGE - 1,
        ..disk.config()
    });
    assert_eq!((key, value), ("quota_bytes", (FULL_CHARGE - 1).to_string()));
    let (key, value, _) = refused(Config {
        min_free_percent: 100,
        ..disk.config()
    });
    assert_eq!((key, value.as_str()), ("min_free_percent", "100"));
    let (key, value, _) = refused(Config {
        max_open_files: 0,
        ..disk.config()
    });
    assert_eq!((key, value.as_str()), ("max_open_files", "0"));

    let file = disk.directory.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    for directory in [file.clone(), file.join("below"), "/proc/cachelet".into()] {
        let (key, value, reason) = refused(Config {
            directory: directory.clone(),
            ..disk.config()
        });
        assert_eq!((key, value), ("directory", directory.display().to_string()));
        assert!(reason.contains("writ") || reason.contains("may"), "{reason}");
    }
}

#[test]
fn a_read_only_directory_is_refused() {
    let disk = Disk::new();
    drop(disk.open());
    let directory = disk.config().directory;
    let Some(_mount) = grants::Mount::read_only(&directory, &directory) else {
        return;
    };
    let message = disk.open_with(disk.config()).unwrap_err().to_string();
    assert!(
        message.contains("cannot lock") && message.contains("may write"),
        "{message}"
    );
}

#[test]
fn no_users_byte_is_part_of_a_path() {
    let disk = Disk::new();
    let store = disk.open();
    for key in [
        "../../escape",
        "a/b",
        "..",
        "nul\0byte",
        "x".repeat(1024).as_str(),
        "ключ/😀",
    ] {
        let name = ObjectName {
            store: StoreIdentity::new("test").unwrap(),
            path: format!("s3://bucket/{key}").parse().unwrap(),
        };
        let generation = Generation {
            etag: Etag::new("e").unwrap(),
            size_bytes: 10,
        };
        let block = fill(&store, &BlockIdentity::of(name, generation, BlockIndex(0)), [0]);
        let path = disk.path_of(&block);
        assert!(path.starts_with(disk.v1().join("blocks")) && path.exists());
        let file_name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            file_name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'.'),
            "{file_name}"
        );
    }
    assert_eq!(store.ledger().blocks, 6);
}
