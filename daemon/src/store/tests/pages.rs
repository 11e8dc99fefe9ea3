//! Writing and reading pages.

use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn objects_of_awkward_sizes_read_back_byte_for_byte() {
    let disk = Disk::new();
    let store = disk.open();
    let sizes = [
        1,
        65_535,
        65_536,
        65_537,
        PAGE_BYTES - 1,
        PAGE_BYTES,
        PAGE_BYTES + 1,
        BLOCK_BYTES - 1,
    ];
    for (number, size) in (0..).zip(sizes) {
        let id = BlockIdentity::new(object(number, size), BlockIndex(0));
        let pages = 0..PageSet::all(size).len();
        let block = fill(&store, &id, pages.clone());
        assert_eq!((block.length(), block.residency()), (size, Residency::All));
        assert_holds(&store, &block, pages);
    }
}

#[test]
fn any_range_of_a_block_reads_what_was_written() {
    let disk = Disk::new();
    let store = disk.open();
    let id = BlockIdentity::new(object(1, 2 * PAGE_BYTES + 70_000), BlockIndex(0));
    let block = fill(&store, &id, 0..3);
    let all: Vec<u8> = (0..3).flat_map(|page| contents(&id, page)).collect();
    let edges = [
        0,
        1,
        65_535,
        65_536,
        65_537,
        200_000,
        PAGE_BYTES - 1,
        PAGE_BYTES,
        PAGE_BYTES + 1,
        block.length(),
    ];
    for start in edges {
        for end in edges.into_iter().filter(|end| *end >= start) {
            let mut buffer = vec![0xee; (end - start) as usize];
            store.read(&block, start..end, &mut buffer).unwrap();
            assert!(buffer == all[start as usize..end as usize], "{start}..{end}");
        }
    }
}

#[test]
fn an_absent_page_is_an_error_and_not_a_hole() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), [0, 2]);
    assert_eq!(block.present(), [0, 2].map(PageIndex).into_iter().collect());
    let mut buffer = vec![0; 2 * PAGE_BYTES as usize];
    let refused = store.read(&block, 0..2 * PAGE_BYTES, &mut buffer);
    assert!(matches!(refused, Err(Error::Absent { missing, .. }) if missing == PageSet::one(PageIndex(1))));
}

#[test]
fn pages_of_the_wrong_length_and_ranges_behind_the_end_are_refused() {
    let disk = Disk::new();
    let store = disk.open();
    let id = BlockIdentity::new(object(1, PAGE_BYTES + 10), BlockIndex(0));
    let block = store.find_or_create(&id).unwrap();
    for (page, length) in [(0, PAGE_BYTES - 1), (1, 9), (1, 11), (2, 0), (2, 10), (200, 10)] {
        let refused = store.write_page(
            &block,
            PageIndex(page),
            &vec![0; length as usize],
            store.reserve(length).unwrap(),
        );
        assert!(
            matches!(refused, Err(Error::Request { .. })),
            "page {page} of {length}: {refused:?}"
        );
    }
    let short = store.write_page(&block, PageIndex(1), &[0; 10], store.reserve(9).unwrap());
    assert!(matches!(short, Err(Error::Request { .. })));
    for (range, length) in [
        (0..PAGE_BYTES + 11, PAGE_BYTES + 11),
        (0..10, 9),
        (5..u64::MAX, 10),
    ] {
        let refused = store.read(&block, range.clone(), &mut vec![0; length as usize]);
        assert!(
            matches!(refused, Err(Error::Request { .. })),
            "{range:?}: {refused:?}"
        );
    }
    assert_eq!(store.ledger().reserved_bytes, 0);
}

#[test]
fn a_block_behind_the_objects_end_is_refused() {
    let disk = Disk::new();
    let store = disk.open();
    for (size, index) in [(0, 0), (BLOCK_BYTES, 1), (1, u32::MAX)] {
        let id = BlockIdentity::new(object(1, size), BlockIndex(index));
        assert!(matches!(
            store.find_or_create(&id),
            Err(Error::NoSuchBlock { .. })
        ));
        assert!(store.find(&id).unwrap().is_none());
    }
    assert_eq!(store.ledger().used_bytes(), 0);
}

#[test]
fn a_page_that_is_present_is_not_written_again() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), [0]);
    let before = store.ledger();
    let other = vec![0xff; PAGE_BYTES as usize];
    let present = store
        .write_page(&block, PageIndex(0), &other, store.reserve(PAGE_BYTES).unwrap())
        .unwrap();
    assert_eq!(present, PageSet::one(PageIndex(0)));
    assert_holds(&store, &block, [0]);
    assert_eq!(store.ledger(), before, "the second reservation is given back");
}

#[test]
fn the_charge_is_exact_and_never_less_than_what_the_disk_gives() {
    let disk = Disk::new();
    let store = disk.open();
    let mut expected = 0;
    for (number, size) in (0..).zip([1, 4097, PAGE_BYTES + 1, BLOCK_BYTES]) {
        let id = BlockIdentity::new(object(number, size), BlockIndex(0));
        let block = fill(&store, &id, 0..PageSet::all(size).len());
        expected += HEADER_CHARGE + size;
        let metadata = std::fs::metadata(disk.path_of(&block)).unwrap();
        assert!(
            metadata.blocks() * 512 <= HEADER_CHARGE + size,
            "{size}: {}",
            metadata.blocks() * 512
        );
        assert_eq!(
            (metadata.len(), metadata.mode() & 0o777),
            (DATA_OFFSET + size, 0o600)
        );
    }
    let ledger = store.ledger();
    assert_eq!((ledger.committed_bytes, ledger.reserved_bytes), (expected, 0));
    assert_eq!((ledger.blocks, ledger.pages), (4, 1 + 1 + 2 + 4));
}

#[test]
fn residency_is_told_when_it_changes_and_only_then() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), [0, 1, 2, 3, 3]);
    store.remove(&block);
    let steps: Vec<Residency> = disk
        .take_events()
        .into_iter()
        .filter_map(|event| match event {
            Event::BlockChanged {
                identity, residency, ..
            } => {
                assert_eq!(&identity, block.identity());
                Some(residency)
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        steps,
        [
            Residency::Some,
            Residency::HalfOrMore,
            Residency::All,
            Residency::None
        ]
    );
}

#[test]
fn many_threads_fill_and_read_one_block() {
    let disk = Disk::new();
    let store = disk.open();
    let id = full_block(1);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, id) = (&store, &id);
            scope.spawn(move || {
                for page in (0..PAGES).map(|page| (page + thread) % PAGES) {
                    let block = store.find_or_create(id).unwrap();
                    assert!(write(store, &block, page).unwrap().contains(PageIndex(page)));
                    assert_holds(store, &block, [page]);
                }
            });
        }
    });
    let ledger = store.ledger();
    assert_eq!(
        (ledger.blocks, ledger.pages, ledger.used_bytes()),
        (1, 4, FULL_CHARGE)
    );
}

#[test]
fn the_daemons_descriptors_are_bounded_and_reopened_on_demand() {
    let disk = Disk::new();
    let store = disk
        .open_with(Config {
            max_open_files: 3,
            ..disk.config()
        })
        .unwrap();
    store.recover();
    let blocks: Vec<_> = (0..10)
        .map(|number| fill(&store, &full_block(number), [0]))
        .collect();
    assert_eq!(store.ledger().open_files, 3);
    for block in &blocks {
        write(&store, block, 1).unwrap();
        assert_holds(&store, block, [0, 1]);
    }
    assert_eq!(store.ledger().open_files, 3);
}

#[test]
fn a_file_that_somebody_else_removed_or_replaced_is_gone_and_not_read() {
    let disk = Disk::new();
    let store = disk
        .open_with(Config {
            max_open_files: 1,
            ..disk.config()
        })
        .unwrap();
    store.recover();
    for replace in [false, true] {
        let block = fill(&store, &full_block(1), [0]);
        // The one descriptor goes to another block.
        assert_holds(&store, &fill(&store, &full_block(2), [0]), [0]);
        let path = disk.path_of(&block);
        // Beside it first: a file made after the removal could get the same inode.
        let copy = disk.directory.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        if replace {
            std::fs::rename(&copy, &path).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        assert!(matches!(read_page(&store, &block, 0), Err(Error::Evicted { .. })));
        assert!(block.is_retired());
        let again = fill(&store, &full_block(1), [0]);
        assert_ne!(again.file_id(), block.file_id());
        assert_holds(&store, &again, [0]);
        store.remove(&again);
    }
}

#[test]
fn objects_share_their_identity_between_blocks() {
    let disk = Disk::new();
    let store = disk.open();
    let size = 3 * BLOCK_BYTES;
    for index in [2, 0, 1] {
        fill(
            &store,
            &BlockIdentity::new(object(1, size), BlockIndex(index)),
            [0],
        );
    }
    let mut seen = Vec::new();
    store.for_each_block(|block| seen.push(block));
    assert_eq!(
        seen.iter()
            .map(|block| block.identity.index().0)
            .collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert!(seen.iter().all(|block| block.pages == PageSet::one(PageIndex(0))));
    assert!(Arc::ptr_eq(seen[0].identity.object(), seen[1].identity.object()));
}
