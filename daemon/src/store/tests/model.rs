//! The whole store beside a model: whatever happens, a page is absent or right, and the books balance.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Write(u32, u32),
    Read(u32, u32),
    Grant(u32, u64),
    Close(u64),
    Evict(u64),
    Remove(u32),
    Flip(u32, u32),
    Restart(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let (object, page, session) = (0u32..5, 0..PAGES, 0u64..3);
    prop_oneof![
        8 => (object.clone(), page.clone()).prop_map(|(o, p)| Op::Write(o, p)),
        6 => (object.clone(), page.clone()).prop_map(|(o, p)| Op::Read(o, p)),
        4 => (object.clone(), session.clone()).prop_map(|(o, s)| Op::Grant(o, s)),
        2 => session.prop_map(Op::Close),
        2 => (1u64..12).prop_map(Op::Evict),
        1 => object.clone().prop_map(Op::Remove),
        1 => (object, page).prop_map(|(o, p)| Op::Flip(o, p)),
        1 => any::<bool>().prop_map(Op::Restart),
    ]
}

/// Descriptors that clients hold, with what they may read there.
type Held = HashMap<u64, Vec<(BlockIdentity, Grant)>>;

fn check_held(held: &Held, flipped: &HashSet<FileId>) {
    for (id, grant) in held
        .values()
        .flatten()
        .filter(|(_, grant)| !flipped.contains(&grant.file_id))
    {
        let file = File::from(grant.fd.try_clone().unwrap());
        for page in grant.present.iter() {
            let mut bytes = vec![0; PAGE_BYTES as usize];
            file.read_exact_at(&mut bytes, grant.data_offset + page.start())
                .unwrap();
            assert!(
                bytes == contents(id, page.0),
                "a held descriptor shows a wrong page"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_page_is_absent_or_right(ops in prop::collection::vec(op(), 1..60)) {
        let quota = 2 * FULL_CHARGE + 5 * HEADER_CHARGE;
        let disk = Disk::new();
        let mut store = disk.open_quota(quota);
        let mut held = Held::new();
        // Flipped under the store: readers of descriptors see it unless they verify; the store must.
        let mut flipped = HashSet::new();
        for op in ops {
            match op {
                Op::Write(number, page) => match store.find_or_create(&full_block(number)) {
                    Ok(block) => match write(&store, &block, page) {
                        Ok(present) => prop_assert!(present.contains(PageIndex(page))),
                        Err(Error::NoSpace { .. } | Error::Evicted { .. } | Error::Corrupt { .. }) => {}
                        Err(error) => panic!("{error}"),
                    },
                    Err(Error::NoSpace { .. }) => {}
                    Err(error) => panic!("{error}"),
                },
                Op::Read(number, page) => {
                    if let Some(block) = store.find(&full_block(number)).unwrap() {
                        match read_page(&store, &block, page) {
                            Ok(bytes) => prop_assert!(bytes == contents(block.identity(), page)),
                            Err(Error::Absent { .. }) => {}
                            Err(Error::Corrupt { file_id, .. }) => prop_assert!(flipped.contains(&file_id)),
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                Op::Grant(number, session) => {
                    if let Some(block) = store.find(&full_block(number)).unwrap() {
                        let grant = store.grant(&block, SessionId(session)).unwrap();
                        held.entry(session).or_default().push((full_block(number), grant));
                    }
                }
                Op::Close(session) => {
                    held.remove(&session);
                    store.release_session(SessionId(session));
                }
                Op::Evict(pages) => match store.reserve(pages * PAGE_BYTES) {
                    Ok(_) | Err(Error::NoSpace { .. }) => {}
                    Err(error) => panic!("{error}"),
                },
                Op::Remove(number) => {
                    if let Some(block) = store.find(&full_block(number)).unwrap() {
                        store.remove(&block);
                        prop_assert!(store.find(&full_block(number)).unwrap().is_none());
                    }
                }
                Op::Flip(number, page) => {
                    if let Some(block) = store.find(&full_block(number)).unwrap()
                        && block.residency() != Residency::None
                    {
                        disk.tamper(&block, DATA_OFFSET + PageIndex(page).start(), |bytes| bytes[5] ^= 0x40);
                        flipped.insert(block.file_id());
                    }
                }
                Op::Restart(clean) => {
                    if clean {
                        store.close_clean(PATIENCE).unwrap();
                    }
                    // Clients keep what they hold; the new life cannot know.
                    drop(store);
                    store = disk.open_quota(quota);
                }
            }
            assert_within_quota(&store);
            check_held(&held, &flipped);
            let mut charged = 0;
            store.for_each_block(|block| charged += HEADER_CHARGE + block.pages.bytes_in(block.length));
            prop_assert_eq!(store.ledger().committed_bytes, charged);
            prop_assert_eq!(store.ledger().reserved_bytes, 0);
        }
        drop(held);
        store.reclaim();
        prop_assert_eq!(store.ledger().unlinked_held_bytes, 0, "nothing leaks");
    }
}
