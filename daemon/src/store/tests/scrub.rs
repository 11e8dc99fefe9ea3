//! The scrubber: what it finds, and what it leaves alone.

use super::*;

/// One whole pass; how many bytes it read.
fn pass(store: &BlockStore) -> u64 {
    store.sync_dirty(Duration::ZERO).unwrap();
    let mut position = ScrubPosition::default();
    std::iter::from_fn(|| store.scrub_page(&mut position).unwrap()).sum()
}

#[test]
fn a_pass_reads_every_page_that_is_there_once_and_finds_nothing_in_sound_files() {
    let disk = Disk::new();
    let store = disk.open();
    fill(&store, &full_block(1), [0, 3]);
    fill(&store, &full_block(2), 0..PAGES);
    // A last page that is no multiple of anything.
    fill(
        &store,
        &BlockIdentity::new(object(3, PAGE_BYTES + 12_345), BlockIndex(0)),
        0..2,
    );
    disk.take_events();
    let (pages, tables) = (7 * PAGE_BYTES + 12_345, 8 * 16_384);
    assert_eq!(pass(&store), pages + tables);
    let ledger = store.ledger();
    assert_eq!(
        (ledger.scrubbed_bytes, ledger.scrub_findings, ledger.scrub_passes),
        (pages + tables, 0, 1)
    );
    assert!(disk.take_events().is_empty());
    assert_eq!(pass(&store), pages + tables);
}

#[test]
fn a_flipped_bit_anywhere_in_a_blocks_file_is_found_within_one_pass() {
    // Header, word, checksum, data in the first chunk, the last byte of the last page.
    for at in [
        100,
        4096 + 8,
        8192 + 64,
        DATA_OFFSET + PAGE_BYTES + 9,
        DATA_OFFSET + BLOCK_BYTES - 8,
    ] {
        let disk = Disk::new();
        let store = disk.open();
        let bad = fill(&store, &full_block(1), 0..PAGES);
        let good = fill(&store, &full_block(2), 0..PAGES);
        store.sync_dirty(Duration::ZERO).unwrap();
        disk.tamper(&bad, at, |bytes| bytes[0] ^= 4);
        pass(&store);
        assert_eq!(store.ledger().scrub_findings, 1, "at {at}");
        assert_eq!(
            (store.ledger().quarantined_files, disk.files_in("quarantine")),
            (1, 1)
        );
        assert!(bad.is_retired() && !good.is_retired());
        assert!(
            store.find(&full_block(1)).unwrap().is_none(),
            "the next reader fills a new file"
        );
        assert_holds(&store, &good, 0..PAGES);
    }
}

#[test]
fn what_is_being_filled_or_waits_for_the_disk_is_passed_over() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), [0]);
    let mut position = ScrubPosition::default();
    assert_eq!(
        store.scrub_page(&mut position).unwrap(),
        None,
        "it is not on disk yet"
    );
    store.sync_dirty(Duration::ZERO).unwrap();
    let filling = store.begin_fill(&block).unwrap();
    assert_eq!(store.scrub_page(&mut ScrubPosition::default()).unwrap(), None);
    drop(filling);
    assert!(store.scrub_page(&mut ScrubPosition::default()).unwrap().is_some());
}

#[test]
fn a_pass_changes_neither_the_order_of_eviction_nor_the_kept_descriptors() {
    let disk = Disk::new();
    let store = disk.open_quota(4 * FULL_CHARGE);
    let blocks: Vec<_> = (0..4)
        .map(|number| fill(&store, &full_block(number), 0..PAGES))
        .collect();
    store.sync_dirty(Duration::ZERO).unwrap();
    let order = |store: &BlockStore| store.state().eviction.idle().collect::<Vec<_>>();
    let (before, open_files) = (order(&store), store.ledger().open_files);
    pass(&store);
    assert_eq!((order(&store), store.ledger().open_files), (before, open_files));
    // A file that goes while it is scrubbed is free at once.
    let mut position = ScrubPosition::default();
    store.scrub_page(&mut position).unwrap();
    blocks.iter().for_each(|block| store.remove(block));
    assert_eq!(store.ledger().unlinked_held_bytes, 0);
    assert_eq!(store.scrub_page(&mut position).unwrap(), None);
}

#[test]
fn pages_that_nobody_verified_since_a_crash_are_verified_by_a_pass() {
    let disk = Disk::new();
    let store = disk.open();
    fill(&store, &full_block(1), 0..PAGES);
    drop(store);
    let store = disk.open();
    let block = store.find(&full_block(1)).unwrap().unwrap();
    assert!(block.present().is_empty());
    pass(&store);
    assert_eq!(block.present(), PageSet::all(BLOCK_BYTES));
}
