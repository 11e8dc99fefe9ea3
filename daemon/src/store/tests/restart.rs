//! What one life leaves to the next.

use super::*;

#[test]
fn a_clean_stop_keeps_the_cache_and_its_trust() {
    let disk = Disk::new();
    let store = disk.open();
    let ids: Vec<_> = (0..3).map(full_block).collect();
    let old: Vec<_> = ids.iter().map(|id| fill(&store, id, [0, 3]).file_id()).collect();
    store.close_clean(PATIENCE).unwrap();
    assert!(disk.v1().join("clean").exists());
    drop(store);

    let store = disk.open_with(disk.config()).unwrap();
    assert!(
        !disk.v1().join("clean").exists(),
        "the marker vouches for one start only"
    );
    // Found by its path before the scan.
    let first = store.find(&ids[0]).unwrap().unwrap();
    assert_eq!(
        (first.file_id(), first.present().len(), first.unverified().len()),
        (old[0], 2, 0)
    );
    assert_holds(&store, &first, [0, 3]);
    let recovery = store.recover();
    assert_eq!((recovery.blocks, recovery.pages), (3, 6));
    assert_eq!(
        store.ledger().committed_bytes,
        3 * (HEADER_CHARGE + 2 * PAGE_BYTES)
    );
    for (id, old) in ids.iter().zip(old) {
        let block = store.find(id).unwrap().unwrap();
        assert_eq!(block.file_id(), old);
        // Pages filled now stand beside the old ones, in the same file.
        write(&store, &block, 1).unwrap();
        assert_holds(&store, &block, [0, 1, 3]);
    }
}

#[test]
fn after_an_unclean_stop_a_page_is_verified_before_it_is_granted() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), 0..PAGES);
    disk.tamper(&block, DATA_OFFSET + 2 * PAGE_BYTES, |bytes| bytes[0] ^= 1);
    drop((store, block));

    let store = disk.open();
    let block = store.find(&full_block(1)).unwrap().unwrap();
    assert_eq!(
        (block.present(), block.unverified()),
        (PageSet::EMPTY, PageSet::all(BLOCK_BYTES))
    );
    assert_eq!(block.residency(), Residency::All, "reports count on it");
    assert!(store.grant(&block, SessionId(1)).unwrap().present.is_empty());
    let wanted = PageSet::span(0..2);
    assert_eq!(store.verify(&block, wanted).unwrap(), wanted);
    assert_eq!(store.grant(&block, SessionId(1)).unwrap().present, wanted);
    // A page that is written again while it waits for its verification is verified instead.
    assert_eq!(
        write(&store, &block, 3).unwrap(),
        wanted.union(PageSet::one(PageIndex(3)))
    );
    assert!(matches!(
        store.verify(&block, PageSet::all(BLOCK_BYTES)),
        Err(Error::Corrupt {
            damage: Damage::Data(PageIndex(2)),
            ..
        })
    ));
    assert!(store.find(&full_block(1)).unwrap().is_none());
}

#[test]
fn a_clean_stop_does_not_whitewash_what_was_never_verified() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), [0, 1]);
    let other = fill(&store, &full_block(2), [0]);
    disk.tamper(&block, DATA_OFFSET + PAGE_BYTES, |bytes| bytes[0] ^= 1);
    drop((store, block, other));

    // Two lives: the first scans, verifies only the other block and stops cleanly; the second does not even scan.
    let store = disk.open();
    let other = store.find(&full_block(2)).unwrap().unwrap();
    store.verify(&other, PageSet::all(BLOCK_BYTES)).unwrap();
    store.close_clean(PATIENCE).unwrap();
    drop((store, other));
    let store = disk.open_with(disk.config()).unwrap();
    store.close_clean(PATIENCE).unwrap();
    drop(store);

    let store = disk.open();
    let block = store.find(&full_block(1)).unwrap().unwrap();
    assert_eq!(
        (block.present(), block.unverified()),
        (PageSet::EMPTY, PageSet::span(0..2))
    );
    assert_eq!(
        store.find(&full_block(2)).unwrap().unwrap().present(),
        PageSet::one(PageIndex(0))
    );
}

#[test]
fn a_stop_before_the_scan_of_a_suspect_directory_leaves_no_marker() {
    let disk = Disk::new();
    let store = disk.open();
    fill(&store, &full_block(1), [0]);
    drop(store);
    let store = disk.open_with(disk.config()).unwrap();
    store.close_clean(PATIENCE).unwrap();
    assert!(!disk.v1().join("clean").exists());
}

#[test]
fn a_closed_store_reads_and_takes_nothing() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), [0]);
    let reservation = store.reserve(PAGE_BYTES).unwrap();
    store.close_clean(PATIENCE).unwrap();
    assert_holds(&store, &block, [0]);
    let page = contents(block.identity(), 1);
    assert!(matches!(
        store.write_page(&block, PageIndex(1), &page, reservation),
        Err(Error::Closed)
    ));
    assert!(matches!(store.find_or_create(&full_block(2)), Err(Error::Closed)));
    assert_eq!(store.ledger().reserved_bytes, 0);
}

#[test]
fn epochs_and_file_ids_only_grow_even_over_a_wipe() {
    let disk = Disk::new();
    let mut last_epoch = Epoch(0);
    let mut last_file = FileId(0);
    for round in 0..4 {
        if round == 3 {
            std::fs::remove_dir_all(disk.v1()).unwrap();
        }
        let store = disk.open();
        let block = fill(&store, &full_block(round), []);
        // Within one second a wiped directory could only repeat an epoch that began in it.
        assert!(store.epoch() > last_epoch || round == 3);
        assert!(round == 3 || block.file_id() > last_file);
        assert_eq!(block.file_id().0 >> 32, store.epoch().0);
        (last_epoch, last_file) = (store.epoch(), block.file_id());
    }
}

#[test]
fn an_epoch_file_from_the_future_is_exceeded_and_an_absurd_one_refused() {
    let disk = Disk::new();
    drop(disk.open());
    let path = disk.v1().join("epoch");
    std::fs::write(&path, "4000000000\n").unwrap();
    assert_eq!(disk.open().epoch(), Epoch(4_000_000_001));
    std::fs::write(&path, "nonsense").unwrap();
    assert!(disk.open().epoch() > Epoch(1_700_000_000));
    for absurd in ["4294967295", "18446744073709551615"] {
        std::fs::write(&path, absurd).unwrap();
        let message = disk.open_with(disk.config()).unwrap_err().to_string();
        assert!(
            message.contains("epoch") && message.contains("remove"),
            "{message}"
        );
    }
}

#[test]
fn files_of_a_later_epoch_came_from_elsewhere_and_are_not_used() {
    let disk = Disk::new();
    drop(disk.open());
    let path = disk.v1().join("epoch");
    std::fs::write(&path, "4000000000").unwrap();
    let store = disk.open();
    fill(&store, &full_block(1), [0]);
    drop(store);
    std::fs::write(&path, "1").unwrap();
    let store = disk.open();
    assert!(store.find(&full_block(1)).unwrap().is_none());
    assert_eq!(store.ledger().corruptions, 1);
}

#[test]
fn files_without_their_final_name_are_swept_at_start() {
    let disk = Disk::new();
    drop(disk.open());
    std::fs::write(disk.v1().join("tmp/00aa"), "half a header").unwrap();
    std::fs::write(disk.v1().join("tmp/epoch.new"), "1").unwrap();
    drop(disk.open());
    assert_eq!(disk.files_in("tmp"), 0);
}

#[test]
fn a_lowered_quota_evicts_the_oldest_and_another_block_size_everything() {
    let disk = Disk::new();
    let store = disk.open();
    let blocks: Vec<_> = (0..4)
        .map(|number| fill(&store, &full_block(number), 0..PAGES))
        .collect();
    let hour = Duration::from_hours(1);
    for (age, block) in (1..).zip(&blocks) {
        // Block 0 was used most recently, block 3 longest ago.
        let then = std::time::SystemTime::now() - age * hour;
        let times = std::fs::FileTimes::new().set_accessed(then).set_modified(then);
        File::options()
            .write(true)
            .open(disk.path_of(block))
            .unwrap()
            .set_times(times)
            .unwrap();
    }
    drop((store, blocks));
    let store = disk.open_quota(2 * FULL_CHARGE + 10);
    assert_within_quota(&store);
    let kept: Vec<bool> = (0..4)
        .map(|number| store.find(&full_block(number)).unwrap().is_some())
        .collect();
    assert_eq!(kept, [true, true, false, false]);
    drop(store);

    let config = Config {
        block_size: BlockSize::new(2 * BLOCK_BYTES).unwrap(),
        ..disk.config()
    };
    let store = disk.open_with(config).unwrap();
    let recovery = store.recover();
    assert_eq!((recovery.blocks, recovery.corruptions), (0, 0));
    assert_eq!((store.ledger().used_bytes(), disk.files_in("quarantine")), (0, 0));
}

#[test]
fn invalidation_waits_for_the_scan_and_reaches_what_that_finds() {
    let disk = Disk::new();
    let store = disk.open();
    fill(&store, &full_block(1), [0]);
    drop(store);
    let store = disk.open_with(disk.config()).unwrap();
    let forgotten = std::thread::scope(|scope| {
        let invalidating = scope.spawn(|| store.invalidate(full_block(1).object().name()));
        store.recover();
        invalidating.join().unwrap()
    });
    assert_eq!(forgotten.unwrap(), 1);
    assert_eq!(store.ledger().blocks, 0);
}

#[test]
fn space_is_given_out_once_the_scan_is_over() {
    let disk = Disk::new();
    let store = disk.open_with(disk.config()).unwrap();
    std::thread::scope(|scope| {
        let (told, waiting) = std::sync::mpsc::channel();
        let waiter = scope.spawn({
            let store = store.clone();
            move || {
                told.send(()).unwrap();
                store
                    .reserve(1)
                    .map(|reservation| (reservation.bytes(), store.ledger().recovered))
            }
        });
        waiting.recv().unwrap();
        store.recover();
        assert_eq!(waiter.join().unwrap().unwrap(), (1, true));
    });
}
