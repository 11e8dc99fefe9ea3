//! Written pages reach the disk, or their file leaves the cache.

use std::os::fd::OwnedFd;

use super::*;

/// A file whose fdatasync always fails, as that of a disk whose writeback failed: a pipe's.
fn failing() -> Arc<File> {
    let (reader, _) = std::io::pipe().unwrap();
    Arc::new(File::from(OwnedFd::from(reader)))
}

/// Makes the next fdatasync of a dirty block's file fail.
fn fail_sync_of(store: &BlockStore, block: &Block) {
    let mut state = store.state();
    drop(state.dirty.remove(block.file_id()));
    state
        .dirty
        .wrote(block.file_id(), 1, &failing(), Duration::ZERO, 9);
}

#[test]
fn dirty_pages_are_synced_once() {
    let disk = Disk::new();
    let store = disk.open();
    fill(&store, &full_block(1), [0]);
    let dirty_bytes = store.ledger().dirty_bytes;
    assert_eq!(dirty_bytes, HEADER_CHARGE + PAGE_BYTES);
    store.sync_dirty(Duration::from_secs(3600)).unwrap();
    assert_eq!(store.ledger().syncs, 0, "it has not waited for an hour");
    for _ in 0..2 {
        store.sync_dirty(Duration::ZERO).unwrap();
        let ledger = store.ledger();
        assert_eq!((ledger.dirty_bytes, ledger.syncs, ledger.failed_syncs), (0, 1, 0));
    }
}

#[test]
fn many_files_are_synced_by_several_threads() {
    let disk = Disk::new();
    let store = disk.open();
    for number in 0..40 {
        fill(
            &store,
            &BlockIdentity::new(object(number, 10), BlockIndex(0)),
            [0],
        );
    }
    store.sync_dirty(Duration::ZERO).unwrap();
    let ledger = store.ledger();
    assert_eq!((ledger.dirty_bytes, ledger.syncs, ledger.blocks), (0, 40, 40));
}

#[test]
fn a_file_that_cannot_be_brought_to_disk_leaves_the_cache_and_is_never_tried_again() {
    let disk = Disk::new();
    let store = disk.open();
    let id = full_block(1);
    let (bad, good) = (fill(&store, &id, 0..PAGES), fill(&store, &full_block(2), [1]));
    let session = SessionId(3);
    let grant = store.grant(&bad, session).unwrap();
    disk.take_events();
    fail_sync_of(&store, &bad);
    assert!(matches!(
        store.sync_dirty(Duration::ZERO),
        Err(Error::Sync { failed: 1, .. })
    ));
    store.sync_dirty(Duration::ZERO).unwrap();
    let ledger = store.ledger();
    assert_eq!((ledger.syncs, ledger.failed_syncs, ledger.dirty_bytes), (1, 1, 0));

    // Its holder is told; nobody finds or reads it any more, and it is gone from the disk.
    let told = disk.take_events().into_iter().any(|event| match event {
        Event::Evicted {
            file_id,
            sessions,
            reason,
            ..
        } => (file_id, sessions, reason) == (bad.file_id(), vec![session], Reason::WriteFailed),
        _ => false,
    });
    assert!(told);
    assert!(!disk.path_of(&bad).exists());
    assert!(matches!(store.grant(&bad, session), Err(Error::Evicted { .. })));
    assert!(matches!(read_page(&store, &bad, 0), Err(Error::Evicted { .. })));
    assert!(store.find(&id).unwrap().is_none());
    drop(grant);
    let new = fill(&store, &id, [2]);
    assert_ne!(new.file_id(), bad.file_id());
    assert_holds(&store, &new, [2]);
    assert_holds(&store, &good, [1]);
    store.close_clean(PATIENCE).unwrap();
    drop(store);
    let store = disk.open();
    assert_eq!(store.ledger().blocks, 2);
}

/// As if the block's file should be gone and could not be removed.
fn ban(store: &BlockStore, block: &Block) {
    let mut state = store.state();
    let key = block.identity().key();
    block.set_retired(true);
    state.index.remove(&key);
    state.files.remove(&block.file_id());
    state.eviction.forget(block.file_id());
    state.banned.insert(key, block.file_id());
}

#[test]
fn a_stop_removes_the_files_that_could_not_be_removed_before() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), 0..PAGES);
    fill(&store, &full_block(2), [0]);
    ban(&store, &block);
    store.close_clean(PATIENCE).unwrap();
    assert_eq!(
        store.ledger().committed_bytes,
        HEADER_CHARGE + PAGE_BYTES,
        "its bytes are free"
    );
    drop((store, block));
    let store = disk.open();
    assert!(store.find(&full_block(1)).unwrap().is_none());
    assert!(store.find(&full_block(2)).unwrap().is_some());
}

#[test]
fn a_stop_vouches_for_nothing_while_a_file_that_must_not_be_used_is_still_there() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), 0..PAGES);
    ban(&store, &block);
    // What cannot be removed as a file is, here, a directory.
    let path = disk.path_of(&block);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(
        store.close_clean(PATIENCE),
        Err(Error::NotRemoved { files: 1 })
    ));
    assert!(!disk.v1().join("clean").exists());
}
