//! A disk that fails, or is slow: no byte is wrong, no read fails, and the disk is out of use as long as that lasts.

use std::path::Path;
use std::time::{Duration, Instant};

use cachelet_client::{Client, Object};
use cachelet_tests::{
    Bucket, Cluster, ClusterBuilder, DiskOperation, FaultyDisk, GrantSetup, S3Server, Worker, wait_until,
};

use super::support::{MIB, assert_content, client_of, exact_client_of, open, put, read_all};

const SIZE: u64 = 3 * MIB + 17;
/// How long a disk may take to be found out, or to come back.
const NOTICED: Duration = Duration::from_secs(60);
/// How long an offline disk is left alone in these tests.
const RETRY: &str = "disk_retry = \"500ms\"";

/// A worker whose cache is on a disk that can be made to fail, and what is read through it.
struct Scene {
    // Dropped in this order: the disk goes last.
    cluster: Cluster,
    bucket: Bucket,
    disk: FaultyDisk,
    /// Seeds of the objects there are.
    objects: Vec<u64>,
    next: u64,
}

impl Scene {
    /// `None`, after saying so, where there can be no such disk.
    fn begin(seed: u64, cache: &str) -> Option<Self> {
        Self::with(seed, cache, |cluster| cluster)
    }

    fn with(seed: u64, cache: &str, change: impl FnOnce(ClusterBuilder) -> ClusterBuilder) -> Option<Self> {
        let disk = FaultyDisk::mount(seed)?;
        let server = S3Server::shared();
        let cluster = Cluster::of(&server.endpoint())
            .without_service()
            .cache_on(disk.path())
            .block_size("4MiB")
            .quota("40MiB")
            .cache_config(cache);
        let cluster = change(cluster).start();
        Some(Self {
            cluster,
            bucket: server.bucket(),
            disk,
            objects: Vec::new(),
            next: seed * 1000,
        })
    }

    fn worker(&mut self) -> &mut Worker {
        self.cluster.worker(0)
    }

    fn path(&self, seed: u64) -> String {
        format!("s3a://{}/object-{seed}", self.bucket.name())
    }

    /// Puts another object, which nothing has read yet.
    fn put(&mut self) -> u64 {
        self.next += 1;
        let seed = self.next;
        put(&self.bucket, &format!("object-{seed}"), seed, SIZE);
        self.objects.push(seed);
        seed
    }

    fn open(&self, client: &Client, seed: u64) -> Object {
        open(client, &self.path(seed)).unwrap_or_else(|error| panic!("opening {seed}: {error}"))
    }

    /// Reads an object as a new process does, and as one does that holds it for long. How long the slower one took.
    fn read(&mut self, seed: u64) -> Duration {
        let began = Instant::now();
        let client = client_of(self.worker());
        check(&self.open(&client, seed), seed);
        began.elapsed()
    }

    fn state(&mut self) -> String {
        let status = self.worker().status();
        let state = status["cache"]["disks"][0]["state"].as_str();
        state.unwrap_or_else(|| panic!("no disk in {status}")).to_owned()
    }

    /// Reads what is there and something new, again and again, until the disk is in this state.
    fn read_until(&mut self, state: &str, held: &[(Object, u64)]) {
        let began = Instant::now();
        while self.state() != state {
            assert!(
                began.elapsed() < NOTICED,
                "the disk is {}, not {state}",
                self.state()
            );
            self.read_everything(held);
        }
    }

    fn read_everything(&mut self, held: &[(Object, u64)]) {
        let seed = self.put();
        // Few, so that what is read last was read before and is cached.
        if self.objects.len() > 8 {
            self.objects.remove(0);
        }
        self.read(seed);
        for seed in self.objects.clone() {
            self.read(seed);
        }
        held.iter().for_each(|(object, seed)| check(object, *seed));
    }

    /// Nothing is left of the faults: what is evicted is proved free, and nothing waits.
    fn settle(&mut self) {
        let worker = self.cluster.worker(0);
        wait_until(NOTICED, "nothing is held any more", || {
            worker.count("/cache/unlinked_held_bytes") == 0 && worker.count("/cache/reserved_bytes") == 0
        });
        assert_eq!(worker.temporary_files(), Vec::<std::path::PathBuf>::new());
    }
}

#[track_caller]
fn check(object: &Object, seed: u64) {
    let bytes = read_all(object).unwrap_or_else(|error| panic!("reading {seed}: {error}"));
    assert_eq!(bytes.len() as u64, SIZE);
    assert_content(seed, 0, &bytes);
}

/// One kind of operation fails now and then, then always, then never again.
fn survives(seed: u64, operation: DiskOperation) {
    let Some(mut scene) = Scene::begin(seed, RETRY) else {
        return;
    };
    println!("seed {seed}");
    let client = exact_client_of(scene.worker());
    let held: Vec<_> = (0..3)
        .map(|_| {
            let seed = scene.put();
            let object = scene.open(&client, seed);
            check(&object, seed);
            (object, seed)
        })
        .collect();
    assert!(client.descriptors_held() > 0, "descriptors come over FUSE");

    scene.disk.fail(operation, 0.01);
    (0..4).for_each(|_| scene.read_everything(&held));
    let rare = scene.disk.failures();

    scene.disk.fail(operation, 1.0);
    scene.read_until("offline", &held);
    let failures = scene.disk.failures();
    assert!(failures > rare, "{operation:?} was never met");
    let passed = scene.worker().count("/read_bytes/pass_through");
    scene.read_everything(&held);
    assert!(
        scene.worker().count("/read_bytes/pass_through") > passed,
        "reads go to the origin, past the cache"
    );
    let metrics = scene.worker().metrics();
    assert!(
        metrics.contains("cachelet_disk_strikes_total{kind=\"error\"}"),
        "{metrics}"
    );

    scene.disk.heal();
    scene.read_until("healthy", &held);
    let log = scene.worker().process().log();
    for state in ["suspect", "offline", "probation", "healthy"] {
        assert!(
            log.contains(&format!("to={state}")),
            "no line says {state}:\n{log}"
        );
    }
    // The cache is in use again: what was read once comes without the origin.
    let seed = scene.put();
    scene.read(seed);
    let origin = scene.worker().count("/fill_bytes/origin");
    let passed = scene.worker().count("/read_bytes/pass_through");
    scene.read(seed);
    assert_eq!(scene.worker().count("/fill_bytes/origin"), origin);
    assert_eq!(scene.worker().count("/read_bytes/pass_through"), passed);
    println!(
        "{operation:?}: {rare} failures at 1 %, {} at 100 %",
        failures - rare
    );
    drop((held, client));
    scene.settle();
    scene.worker().stop();
}

#[test]
fn a_disk_that_fails_reads_is_taken_out_of_use_and_comes_back() {
    survives(901, DiskOperation::Read);
}

#[test]
fn a_disk_that_fails_writes_is_taken_out_of_use_and_comes_back() {
    survives(902, DiskOperation::Write);
}

#[test]
fn a_disk_that_fails_fsyncs_is_taken_out_of_use_and_comes_back() {
    survives(903, DiskOperation::Sync);
}

#[test]
fn a_disk_that_fails_renames_is_taken_out_of_use_and_comes_back() {
    survives(904, DiskOperation::Rename);
}

#[test]
fn a_disk_that_fails_opens_is_taken_out_of_use_and_comes_back() {
    survives(905, DiskOperation::Open);
}

#[test]
fn an_error_of_the_disk_in_the_middle_of_an_inline_reply_is_made_up_for_by_the_origin() {
    for seed in [910, 911, 912] {
        let inline = |cluster: ClusterBuilder| cluster.grants(GrantSetup::Missing);
        let Some(mut scene) = Scene::with(seed, RETRY, inline) else {
            return;
        };
        scene.disk.fail(DiskOperation::Read, 0.2);
        // What fails in the kernel's readahead is read again: not every failure is met.
        let passed = (0..40).find_map(|_| {
            let seed = scene.put();
            scene.read(seed);
            let passed = scene.worker().count("/read_bytes/pass_through");
            (passed > 0).then_some(passed)
        });
        let passed = passed.expect("the file failed while it was sent from");
        println!("seed {seed}: {passed} bytes of a reply came from the origin");
        let metrics = scene.worker().metrics();
        assert!(metrics.contains("cachelet_broken_sessions_total 0"), "{metrics}");
        scene.disk.heal();
        scene.settle();
    }
}

#[test]
fn reads_past_a_slow_disk_are_right_and_take_about_as_long_as_the_origin() {
    const DELAY: Duration = Duration::from_millis(500);
    let cache = format!("{RETRY}\nslow_disk = \"500ms\"");
    let Some(mut scene) = Scene::begin(906, &cache) else {
        return;
    };
    let client = exact_client_of(scene.worker());
    let warm = scene.put();
    let held = scene.open(&client, warm);
    check(&held, warm);
    let usual = scene.read(warm);

    scene.disk.slow_down(DELAY);
    let cold = scene.put();
    let first = scene.read(cold);
    let began = Instant::now();
    let mut longest = first;
    while scene.state() != "offline" {
        assert!(began.elapsed() < NOTICED, "the disk is {}", scene.state());
        longest = longest.max(scene.read(warm));
    }
    // Of what was asked for while it was slow nothing is waited for any more.
    let mut around: Vec<Duration> = [warm, cold, warm, cold].map(|seed| scene.read(seed)).into();
    check(&held, warm);
    around.sort_unstable();
    println!(
        "every operation {DELAY:?} slower: usually {usual:?}, the first read {first:?}, at most {longest:?} until the disk \
         was offline, then {around:?}"
    );
    // A read of the disk takes four operations at the least, and the first read waits until the disk is found out.
    assert!(first < Duration::from_secs(30), "{first:?}");

    scene.disk.heal();
    wait_until(NOTICED, "the disk is healthy again", || {
        scene.state() == "healthy"
    });
    check(&held, warm);
    drop((held, client));
    scene.settle();
    scene.worker().stop();
}

#[test]
fn a_file_that_could_not_be_removed_is_gone_before_a_stop_vouches_for_the_cache() {
    let Some(mut scene) = Scene::begin(907, RETRY) else {
        return;
    };
    let seed = scene.put();
    scene.read(seed);
    // Neither put aside nor removed: its page is damaged, and then nothing can be done about the file.
    let file = scene.worker().block_files().remove(0);
    let relative = file.strip_prefix(scene.disk.path()).expect("it is on the disk");
    flip(&scene.disk.backing().join(relative), (1 << 20) + 5);
    scene.disk.fail(DiskOperation::Rename, 1.0);
    scene.disk.fail(DiskOperation::Unlink, 1.0);
    let client = Client::new(cachelet_client::Options {
        verify_reads: true,
        ..super::support::options_for(scene.worker().socket_dir())
    });
    check(&scene.open(&client, seed), seed);
    assert_eq!(scene.worker().block_files().len(), 1, "it is still there");
    drop(client);
    scene.disk.heal();
    scene.worker().stop();
    assert!(scene.worker().block_files().is_empty(), "the stop removed it");
    scene.worker().start();
    scene.read(seed);
}

#[test]
fn damage_on_the_disk_is_found_by_the_scrubber_and_the_next_read_is_right() {
    let server = S3Server::shared();
    let bucket = server.bucket();
    let mut cluster = Cluster::of(&server.endpoint())
        .without_service()
        .block_size("4MiB")
        .cache_config("scrub_rate = \"64MiB\"\nscrub_period = \"1s\"")
        .start();
    let worker = cluster.worker(0);
    let client = exact_client_of(worker);
    let objects: Vec<_> = (920..923)
        .map(|seed| {
            let (path, _) = put(&bucket, &format!("object-{seed}"), seed, SIZE);
            let object = open(&client, &path).expect("it exists");
            check(&object, seed);
            (object, seed)
        })
        .collect();
    wait_until(NOTICED, "the scrubber has read it all", || {
        worker.count("/cache/scrub/bytes") >= 3 * SIZE
    });
    assert_eq!(worker.count("/cache/quarantined_files"), 0);
    flip(&worker.block_files().remove(1), (1 << 20) + 2 * MIB + 77);
    wait_until(NOTICED, "the scrubber has found it", || {
        worker.count("/cache/scrub/findings") == 1
    });
    assert_eq!(worker.count("/cache/quarantined_files"), 1);
    // Who held the file is asked to close it; what is read next comes from a new one.
    wait_until(NOTICED, "the client has closed it", || {
        client.stats().grants_dropped == 1
    });
    let origin = worker.count("/fill_bytes/origin");
    objects.iter().for_each(|(object, seed)| check(object, *seed));
    assert_eq!(worker.count("/fill_bytes/origin"), origin + SIZE);
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the directory is ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("within the file");
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).expect("the disk has room");
}
