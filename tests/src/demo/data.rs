//! What the demo reads: TPC-H as Parquet in an S3 server, or files of many sizes in a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Error, Stop};
use crate::spark::find_or_make_tpch;
use crate::{Bucket, deterministic_bytes, sha256_hex};

/// The name under which workers know the directory of [`generate`].
pub(super) const DIRECTORY_STORE: &str = "demo";
/// A directory store does not cache files that changed less than 2 s ago: a clock tick could hide another change.
const SETTLED: Duration = Duration::from_millis(2100);

/// An object, and the file with the same content.
#[derive(Debug, Clone)]
pub(super) struct DemoObject {
    /// Its key, or its path beneath the directory.
    pub(super) key: String,
    /// As clients name it: `s3a://bucket/key`, `file://store/key`.
    pub(super) path: String,
    pub(super) size: u64,
    /// Of what was uploaded, in hexadecimal.
    pub(super) sha256: String,
    pub(super) file: PathBuf,
}

/// The TPC-H tables as files; made once a machine.
pub(super) fn tpch(scale_factor: &str, stop: &Stop) -> Result<Vec<PathBuf>, Error> {
    let found = find_or_make_tpch(scale_factor);
    // Ctrl-C ends the script, too.
    stop.check()?;
    Ok(found?)
}

/// Puts files into a bucket.
pub(super) fn upload(
    files: &[PathBuf],
    scale_factor: &str,
    bucket: &Bucket,
    stop: &Stop,
) -> Result<Vec<DemoObject>, Error> {
    let put = |file: &PathBuf| {
        stop.check()?;
        let content = fs::read(file).map_err(Error::file("read", file))?;
        let name = file
            .file_name()
            .expect("a listed file has a name")
            .to_string_lossy();
        let stored = bucket.put(&format!("sf{scale_factor}/{name}"), &content);
        Ok(DemoObject {
            path: format!("s3a://{}/{}", bucket.name(), stored.key),
            key: stored.key,
            size: stored.size_bytes,
            sha256: stored.sha256,
            file: file.clone(),
        })
    };
    files.iter().map(put).collect()
}

/// Writes files of sizes around every boundary there is: nothing, inline, chunk, page, block.
pub(super) fn generate(root: &Path, stop: &Stop) -> Result<Vec<DemoObject>, Error> {
    const MIB: u64 = 1 << 20;
    let sizes = [
        0,
        1,
        16 << 10,
        (64 << 10) + 1,
        MIB - 1,
        MIB,
        MIB + 1,
        24 * MIB,
        128 * MIB + 1,
    ];
    let mut objects = Vec::new();
    for (seed, size) in (0..).zip(sizes) {
        stop.check()?;
        let key = format!("{size}-bytes");
        let file = root.join(&key);
        let content = deterministic_bytes(seed, size);
        fs::write(&file, &content).map_err(Error::file("write", &file))?;
        objects.push(DemoObject {
            path: format!("file://{DIRECTORY_STORE}/{key}"),
            key,
            size,
            sha256: sha256_hex(&content),
            file,
        });
    }
    let settled = Instant::now() + SETTLED;
    while Instant::now() < settled {
        stop.check()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(objects)
}
