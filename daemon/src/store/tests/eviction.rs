//! Space: quota, floor, order of eviction, bytes that are held.

use std::fs::File;

use super::*;

const FOUR_BLOCKS: u64 = 4 * FULL_CHARGE;

fn evicted(disk: &Disk) -> Vec<FileId> {
    let evicted = disk.take_events().into_iter().filter_map(|event| match event {
        Event::Evicted { file_id, .. } => Some(file_id),
        _ => None,
    });
    evicted.collect()
}

#[test]
fn a_block_that_was_read_once_makes_room_before_those_that_were_read_again() {
    let disk = Disk::new();
    let store = disk.open_quota(FOUR_BLOCKS);
    let blocks: Vec<_> = (0..4)
        .map(|number| fill(&store, &full_block(number), 0..PAGES))
        .collect();
    let later = store.uptime() + Tuning::default().round;
    for again in [0, 2, 3].map(|number: usize| &blocks[number]) {
        let hash = again.identity().key().hash();
        let pages = PageSet::all(BLOCK_BYTES);
        store.state().eviction.used(again.file_id(), hash, pages, later);
    }
    fill(&store, &full_block(4), 0..PAGES);
    assert_eq!(evicted(&disk), [blocks[1].file_id()]);
    assert!(store.find(&full_block(1)).unwrap().is_none());
    assert_holds(&store, &store.find(&full_block(0)).unwrap().unwrap(), 0..PAGES);
    assert_within_quota(&store);
}

#[test]
fn refill_after_eviction_never_reads_the_old_files_hole() {
    let disk = Disk::new();
    let store = disk.open();
    let id = full_block(1);
    let old = fill(&store, &id, [0]);
    let session = SessionId(1);
    let grant = store.grant(&old, session).unwrap();
    store.remove(&old);
    let new = fill(&store, &id, [1]);
    assert_ne!(new.file_id(), old.file_id());
    assert_eq!(
        new.present(),
        PageSet::one(PageIndex(1)),
        "nothing of the old file counts"
    );

    // The old descriptor keeps the old page, and a page filled later appears only in the new file.
    let held = File::from(grant.fd);
    let mut page = vec![0; PAGE_BYTES as usize];
    held.read_exact_at(&mut page, grant.data_offset).unwrap();
    assert!(page == contents(&id, 0));
    held.read_exact_at(&mut page, grant.data_offset + PAGE_BYTES)
        .unwrap();
    assert!(
        page.iter().all(|byte| *byte == 0),
        "a hole, which the grant's pages never covered"
    );
    assert!(!grant.present.contains(PageIndex(1)));
    let again = store.grant(&new, session).unwrap();
    assert_eq!(
        (again.file_id, again.present),
        (new.file_id(), PageSet::one(PageIndex(1)))
    );
    // And whoever still has the old block in hand cannot write to its file.
    assert!(matches!(write(&store, &old, 2), Err(Error::Evicted { .. })));
    assert!(matches!(read_page(&store, &old, 0), Err(Error::Evicted { .. })));
    assert!(matches!(store.grant(&old, session), Err(Error::Evicted { .. })));
    assert!(matches!(store.begin_fill(&old), Err(Error::Evicted { .. })));
}

#[test]
fn evicted_bytes_count_until_the_last_holder_closes() {
    let disk = Disk::new();
    let store = disk.open_quota(FOUR_BLOCKS);
    let session = SessionId(7);
    let block = fill(&store, &full_block(0), 0..PAGES);
    let grant = store.grant(&block, session).unwrap();
    assert_eq!(store.held_bytes(session), FULL_CHARGE);
    store.remove(&block);
    let ledger = store.ledger();
    assert_eq!(
        (ledger.committed_bytes, ledger.unlinked_held_bytes),
        (0, FULL_CHARGE)
    );
    assert_eq!((ledger.unlinked_files, ledger.open_files), (1, 1));

    // A duplicate that outlives the session, as in a child process, still holds the bytes.
    let copy = grant.fd.try_clone().unwrap();
    drop(grant);
    store.release_session(session);
    assert_eq!((store.reclaim(), store.held_bytes(session)), (0, 0));
    assert!(matches!(
        store.reserve(FOUR_BLOCKS),
        Err(Error::NoSpace {
            held_bytes: FULL_CHARGE,
            ..
        })
    ));

    drop(copy);
    assert_eq!(store.reclaim(), FULL_CHARGE);
    let ledger = store.ledger();
    assert_eq!(
        (ledger.used_bytes(), ledger.unlinked_files, ledger.open_files),
        (0, 0, 0)
    );
    assert_eq!(ledger.reclaimed_bytes, FULL_CHARGE);
    assert_eq!(store.reserve(FOUR_BLOCKS).unwrap().bytes(), FOUR_BLOCKS);
}

#[test]
fn a_session_that_closed_without_a_word_loses_its_leases_with_the_proof() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(0), [0]);
    let grant = store.grant(&block, SessionId(1)).unwrap();
    drop(grant);
    store.remove(&block);
    assert_eq!((store.held_bytes(SessionId(1)), store.ledger().sessions), (0, 0));
    assert_eq!(store.ledger().used_bytes(), 0);
}

#[test]
fn leased_blocks_go_last_and_only_as_many_as_are_missing() {
    let disk = Disk::new();
    let store = disk.open_quota(FOUR_BLOCKS);
    let session = SessionId(1);
    let blocks: Vec<_> = (0..4)
        .map(|number| fill(&store, &full_block(number), 0..PAGES))
        .collect();
    let mut grants: Vec<_> = blocks[..3]
        .iter()
        .map(|block| store.grant(block, session).unwrap())
        .collect();
    // Block 3 was used last, but nobody leases it.
    store.used(blocks[3].file_id(), 1, PageSet::one(PageIndex(0)));
    drop(store.reserve(PAGE_BYTES).unwrap());
    assert_eq!(evicted(&disk), [blocks[3].file_id()]);

    // Now one leased block goes, and its holder is named; asking again takes no second one.
    for _ in 0..3 {
        assert!(matches!(
            store.reserve(FULL_CHARGE + 1),
            Err(Error::NoSpace { .. })
        ));
    }
    let events = disk.take_events();
    let dropped: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Evicted {
                file_id,
                sessions,
                reason,
                ..
            } => Some((*file_id, sessions.clone(), reason.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(dropped, [(blocks[0].file_id(), vec![session], Reason::Space)]);
    drop(grants.remove(0));
    store.release(session, blocks[0].file_id());
    assert!(store.reserve(FULL_CHARGE + 1).is_ok());
    assert!(!blocks[1].is_retired() && !blocks[2].is_retired());
}

#[test]
fn a_block_with_a_fill_in_flight_is_not_evicted() {
    let disk = Disk::new();
    let store = disk.open_quota(FOUR_BLOCKS);
    let block = fill(&store, &full_block(0), 0..PAGES);
    let guard = store.begin_fill(&block).unwrap();
    assert!(matches!(store.reserve(FOUR_BLOCKS), Err(Error::NoSpace { .. })));
    assert!(!block.is_retired());
    drop(guard);
    assert!(store.reserve(FOUR_BLOCKS).is_ok());
    assert!(block.is_retired());
}

#[test]
fn an_invalidated_object_goes_even_during_a_fill_and_its_writer_is_told() {
    let disk = Disk::new();
    let store = disk.open();
    let whole = object(1, 2 * BLOCK_BYTES);
    let blocks = [0, 1].map(|index| {
        fill(
            &store,
            &BlockIdentity::new(Arc::clone(&whole), BlockIndex(index)),
            [0],
        )
    });
    let other = fill(&store, &full_block(2), [0]);
    let guard = store.begin_fill(&blocks[0]).unwrap();
    assert_eq!(store.invalidate(whole.name()).unwrap(), 2);
    assert!(blocks.iter().all(|block| block.is_retired()) && !other.is_retired());
    assert!(matches!(
        write(&store, guard.block(), 1),
        Err(Error::Evicted { .. })
    ));
    assert_eq!(store.ledger().used_bytes(), HEADER_CHARGE + PAGE_BYTES);
}

#[test]
fn a_reservation_splits_and_gives_back_what_is_left() {
    let disk = Disk::new();
    let store = disk.open();
    let mut whole = store.reserve(10).unwrap();
    let part = whole.split(4).unwrap();
    assert!(whole.split(7).is_none());
    assert_eq!(
        (whole.bytes(), part.bytes(), store.ledger().reserved_bytes),
        (6, 4, 10)
    );
    drop(whole);
    assert_eq!(store.ledger().reserved_bytes, 4);
    drop(part);
    assert_eq!(store.ledger().reserved_bytes, 0);
}

#[test]
fn the_quota_holds_while_threads_fill_evict_and_hold() {
    let disk = Disk::new();
    let store = disk.open_quota(FOUR_BLOCKS);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let store = &store;
            scope.spawn(move || {
                let session = SessionId(u64::from(thread));
                for round in 0..24 {
                    let id = full_block((thread * 5 + round) % 9);
                    let page = round % PAGES;
                    // NoSpace and Evicted are what a full cache answers; anything else is a mistake.
                    match store.find_or_create(&id).and_then(|block| {
                        write(store, &block, page)?;
                        assert_within_quota(store);
                        let grant = store.grant(&block, session)?;
                        let mut bytes = vec![0; PAGE_BYTES as usize];
                        assert!(grant.present.contains(PageIndex(page)));
                        let held = File::from(grant.fd);
                        held.read_exact_at(&mut bytes, grant.data_offset + PageIndex(page).start())
                            .unwrap();
                        assert!(bytes == contents(&id, page));
                        drop(held);
                        store.release(session, block.file_id());
                        Ok(())
                    }) {
                        Ok(()) | Err(Error::NoSpace { .. } | Error::Evicted { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    assert_within_quota(store);
                }
            });
        }
    });
    store.reclaim();
    let ledger = store.ledger();
    assert_eq!(
        (ledger.reserved_bytes, ledger.unlinked_held_bytes, ledger.sessions),
        (0, 0, 0)
    );
    let mut charged = 0;
    store.for_each_block(|block| charged += HEADER_CHARGE + block.pages.bytes_in(block.length));
    assert_eq!(ledger.committed_bytes, charged);
}

#[test]
fn a_floor_above_the_free_space_lets_nothing_in() {
    let disk = Disk::new();
    let store = disk
        .open_with(Config {
            min_free_percent: 99,
            ..disk.config()
        })
        .unwrap();
    store.recover();
    assert!(matches!(
        store.reserve(1),
        Err(Error::NoSpace { free_bytes: 0, .. })
    ));
}

#[test]
fn hints_of_use_are_clamped() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(0), [0]);
    let one = PageSet::one(PageIndex(0));
    assert_eq!(store.used(block.file_id(), u64::MAX, one), 64 * PAGE_BYTES);
    assert_eq!(
        store.used(block.file_id(), u64::MAX, PageSet::one(PageIndex(1))),
        0,
        "the page is absent"
    );
    assert_eq!(store.used(FileId(1), 10, one), 0, "nobody has that file");
    assert_eq!(store.ledger().hit_bytes, 64 * PAGE_BYTES);
}

/// Needs the right to mount; what it shows on a small file system is shown by arithmetic above otherwise.
#[test]
fn the_free_space_floor_holds_on_a_small_file_system() {
    let disk = Disk::new();
    let mount_point = disk.config().directory;
    std::fs::create_dir(&mount_point).unwrap();
    let Some(_mount) = grants::Mount::tmpfs(&mount_point, 32 << 20) else {
        return;
    };
    let store = disk
        .open_with(Config {
            min_free_percent: 20,
            quota_bytes: 1 << 30,
            ..disk.config()
        })
        .unwrap();
    store.recover();
    let floor = (32 << 20) / 100 * 20;
    let free = || {
        let disk = nix::sys::statvfs::statvfs(&mount_point).unwrap();
        disk.blocks_available() * disk.fragment_size()
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, free) = (&store, &free);
            scope.spawn(move || {
                for round in 0..12 {
                    let block = store.find_or_create(&full_block(thread * 100 + round)).unwrap();
                    match write(store, &block, 0) {
                        Ok(_) | Err(Error::Evicted { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    assert!(free() >= floor, "{} bytes are free", free());
                }
            });
        }
    });
    assert!(store.ledger().evictions > 0, "48 pages do not fit");
}

#[test]
fn a_page_that_the_disk_has_no_room_for_costs_its_block_and_nothing_else() {
    let disk = Disk::new();
    let mount_point = disk.config().directory;
    std::fs::create_dir(&mount_point).unwrap();
    let Some(_mount) = grants::Mount::tmpfs(&mount_point, 16 << 20) else {
        return;
    };
    let store = disk
        .open_with(Config {
            quota_bytes: 1 << 30,
            ..disk.config()
        })
        .unwrap();
    store.recover();
    let kept = fill(&store, &full_block(1), [0]);
    let block = fill(&store, &full_block(2), [0]);
    let reservation = store.reserve(PAGE_BYTES).unwrap();
    // Somebody else takes the rest of the disk after the reservation.
    let intruder = mount_point.join("intruder");
    let full = std::fs::write(&intruder, vec![1; 32 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let refused = store.write_page(&block, PageIndex(1), &contents(block.identity(), 1), reservation);
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    assert!(block.is_retired() && !kept.is_retired());
    assert_holds(&store, &kept, [0]);
    assert_eq!(store.ledger().used_bytes(), HEADER_CHARGE + PAGE_BYTES);
    std::fs::remove_file(&intruder).unwrap();
    assert_holds(&store, &fill(&store, &full_block(2), 0..PAGES), 0..PAGES);
}

#[test]
fn what_cannot_be_removed_stays_in_the_books_and_a_damaged_file_is_never_shown_again() {
    let disk = Disk::new();
    let store = disk.open_quota(2 * FULL_CHARGE);
    let good = fill(&store, &full_block(1), [0]);
    let bad = fill(&store, &full_block(2), [0, 1]);
    disk.tamper(&bad, DATA_OFFSET, |bytes| bytes[0] ^= 1);
    let before = store.ledger().used_bytes();
    let blocks = disk.v1().join("blocks");
    let Some(_mount) = grants::Mount::read_only(&blocks, &blocks) else {
        return;
    };

    assert!(matches!(
        store.reserve(2 * FULL_CHARGE),
        Err(Error::NoSpace { .. })
    ));
    assert!(
        disk.take_events()
            .iter()
            .any(|event| matches!(event, Event::Failed(Error::Io { .. })))
    );
    assert_eq!(store.ledger().used_bytes(), before);
    assert!(
        store.peek(&full_block(1)).is_some(),
        "what could not make room stays in the cache"
    );
    assert_holds(&store, &good, [0]);

    assert!(matches!(read_page(&store, &bad, 0), Err(Error::Corrupt { .. })));
    assert!(matches!(store.find(&full_block(2)), Err(Error::Io { .. })));
    assert!(matches!(
        store.find_or_create(&full_block(2)),
        Err(Error::Io { .. })
    ));
    assert!(matches!(
        store.grant(&bad, SessionId(1)),
        Err(Error::Evicted { .. })
    ));
    assert_eq!(store.ledger().used_bytes(), before, "the bytes are still there");
}
