//! Flipped bits, torn and swapped files, and where they end up.

use super::format::{Decoded, Header};
use super::*;

/// Small enough to damage often: one page and a bit.
const SIZE: u64 = PAGE_BYTES + 3 * 65_536 + 100;

fn id() -> BlockIdentity {
    BlockIdentity::new(object(1, SIZE), BlockIndex(0))
}

/// A cache with one whole block that nobody has open.
fn one_block() -> (Disk, Vec<u8>, PathBuf) {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &id(), 0..2);
    let path = disk.path_of(&block);
    store.close_clean(PATIENCE).unwrap();
    drop(store);
    disk.take_events();
    let bytes = std::fs::read(&path).unwrap();
    (disk, bytes, path)
}

/// Whether a store that starts on this file, after an unclean stop, gives it up; panics if it shows a wrong byte. A file
/// that claims no page any more has nothing left to be wrong about.
fn is_detected(disk: &Disk) -> bool {
    let store = disk.open();
    let Some(block) = store.find(&id()).unwrap() else {
        return true;
    };
    for page in 0..2 {
        match read_page(&store, &block, page) {
            Ok(bytes) => assert!(bytes == contents(&id(), page), "a wrong byte of page {page}"),
            Err(Error::Corrupt { .. }) => return true,
            Err(Error::Absent { missing, .. }) => {
                return block.unverified().is_empty() && !missing.is_empty();
            }
            Err(error) => panic!("{error}"),
        }
    }
    false
}

#[test]
fn every_flipped_bit_of_a_header_a_word_or_a_present_pages_checksums_is_detected() {
    let (_disk, mut bytes, _) = one_block();
    let key = id().key();
    let present = |bytes: &[u8]| format::presence(bytes, &key.object, key.index, SIZE);
    assert!(matches!(Header::decode(&bytes), Decoded::Header(_)));
    assert_eq!(present(&bytes), Ok(PageSet::all(SIZE)));
    let header = 0..8 * 4096;
    let words = 8 * 4096..8 * (4096 + 8 * 128);
    let checksums = 8 * 8192..8 * (8192 + 2 * 64);
    for bit in header.clone().chain(words).chain(checksums) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if header.contains(&bit) {
            assert!(matches!(Header::decode(&bytes), Decoded::Damaged(_)), "bit {bit}");
        } else {
            assert!(matches!(present(&bytes), Err(Damage::Word(_))), "bit {bit}");
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_flipped_bit_of_each_kind_is_detected_from_start_to_read() {
    let (disk, good, path) = one_block();
    let byte = |at: u64| 8 * at;
    let data = |at: u64| byte(DATA_OFFSET + at);
    let mut bits = vec![
        byte(0),
        byte(8),
        byte(12),
        byte(16) + 5,
        byte(60),
        byte(100) + 7,
        byte(4095),
    ];
    bits.extend([
        byte(4096),
        byte(4104) + 63,
        byte(4112),
        byte(8192) + 31,
        byte(8192 + 76),
    ]);
    bits.extend([
        data(0),
        data(65_535) + 7,
        data(PAGE_BYTES - 1),
        data(PAGE_BYTES),
        data(SIZE - 1) + 7,
    ]);
    bits.extend((0..10).map(|n| data((n * 7_919 * 31) % SIZE) + n % 8));
    for bit in bits {
        let mut bytes = good.clone();
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        assert!(is_detected(&disk), "bit {bit}");
    }
    std::fs::write(&path, &good).unwrap();
    assert!(!is_detected(&disk), "the undamaged file is no false alarm");
}

#[test]
fn a_file_cut_or_grown_at_any_place_is_detected() {
    let (disk, good, path) = one_block();
    let whole = good.len();
    let mut lengths: Vec<usize> = (0..whole).step_by(512 * 307).collect();
    lengths.extend([
        1,
        12,
        4095,
        4096,
        4097,
        8192,
        16_383,
        16_384,
        65_535,
        65_536,
        whole - 1,
        whole + 1,
    ]);
    for length in lengths {
        let mut bytes = good.clone();
        bytes.resize(length, 0);
        std::fs::write(&path, &bytes).unwrap();
        assert!(is_detected(&disk), "{length} of {whole} bytes");
        assert!(!path.exists());
    }
}

#[test]
fn a_file_torn_at_any_sector_is_detected() {
    // The tail never reached the disk: zeros, as a file system leaves them after a power loss.
    let (disk, good, path) = one_block();
    for cut in (0..good.len())
        .step_by(512 * 211)
        .chain([512, 4096, 4608, 8192, 65_536, good.len() - 512])
    {
        let mut bytes = good.clone();
        bytes[cut..].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        assert!(is_detected(&disk), "cut at {cut}");
    }
}

#[test]
fn exchanged_files_are_detected_and_refilled() {
    let disk = Disk::new();
    let store = disk.open();
    let ids = [full_block(1), full_block(2)];
    let paths = ids.each_ref().map(|id| disk.path_of(&fill(&store, id, 0..PAGES)));
    store.close_clean(PATIENCE).unwrap();
    drop(store);
    let aside = disk.directory.path().join("aside");
    std::fs::rename(&paths[0], &aside).unwrap();
    std::fs::rename(&paths[1], &paths[0]).unwrap();
    std::fs::rename(&aside, &paths[1]).unwrap();

    let store = disk.open();
    for id in &ids {
        assert!(store.find(id).unwrap().is_none());
        let block = fill(&store, id, 0..PAGES);
        assert_holds(&store, &block, 0..PAGES);
    }
    let ledger = store.ledger();
    assert_eq!((ledger.corruptions, ledger.quarantined_files), (2, 2));
    assert!(disk.take_events().iter().any(|event| {
        matches!(event, Event::Corrupt { damage: Damage::Misplaced, path, .. } if path.exists())
    }));
}

#[test]
fn damage_found_while_serving_quarantines_the_file_and_the_refill_has_a_new_one() {
    let disk = Disk::new();
    let store = disk.open();
    let block = fill(&store, &full_block(1), 0..PAGES);
    let session = SessionId(1);
    let grant = store.grant(&block, session).unwrap();
    disk.take_events();
    disk.tamper(&block, DATA_OFFSET + PAGE_BYTES + 77, |bytes| bytes[3] ^= 4);
    assert_holds(&store, &block, [0]);
    let found = read_page(&store, &block, 1);
    assert!(
        matches!(&found, Err(error @ Error::Corrupt { damage: Damage::Data(PageIndex(1)), .. })
        if error.wants_new_file())
    );

    let events = disk.take_events();
    assert!(matches!(&events[0], Event::Corrupt { path, .. } if path.exists()));
    assert!(
        matches!(&events[1], Event::Evicted { file_id, sessions, reason: Reason::Corrupt(_), .. }
        if *file_id == block.file_id() && *sessions == [session])
    );
    assert!(matches!(
        &events[2],
        Event::BlockChanged {
            residency: Residency::None,
            ..
        }
    ));
    let ledger = store.ledger();
    assert_eq!(
        (ledger.quarantined_bytes, ledger.committed_bytes),
        (FULL_CHARGE, 0)
    );
    assert_eq!(
        store.held_bytes(session),
        FULL_CHARGE,
        "its holder still has it open"
    );

    let again = fill(&store, &full_block(1), 0..PAGES);
    assert_ne!(again.file_id(), block.file_id());
    assert_holds(&store, &again, 0..PAGES);
    drop(grant);
}

#[test]
fn a_flipped_word_or_checksum_under_a_serving_store_is_detected_on_read() {
    for at in [format::WORDS_OFFSET, CRC_OFFSET, CRC_OFFSET + 60] {
        let disk = Disk::new();
        let store = disk.open();
        let block = fill(&store, &full_block(1), [0]);
        assert_ne!(store.page_word(&block, PageIndex(0)).unwrap(), 0);
        assert_eq!(store.page_word(&block, PageIndex(1)).unwrap(), 0);
        disk.tamper(&block, at, |bytes| bytes[2] ^= 1);
        assert!(matches!(
            store.page_word(&block, PageIndex(0)),
            Err(Error::Corrupt { .. })
        ));
    }
}

#[test]
fn quarantine_keeps_a_bounded_number_of_files_and_counts_their_bytes() {
    let disk = Disk::new();
    let store = disk.open();
    let damaged = MAX_QUARANTINED_FILES as u32 + 3;
    for number in 0..damaged {
        let block = fill(&store, &full_block(number), [0]);
        disk.tamper(&block, DATA_OFFSET, |bytes| bytes[0] ^= 1);
        assert!(matches!(read_page(&store, &block, 0), Err(Error::Corrupt { .. })));
    }
    let kept = MAX_QUARANTINED_FILES as u64 * (HEADER_CHARGE + PAGE_BYTES);
    let ledger = store.ledger();
    assert_eq!(disk.files_in("quarantine"), MAX_QUARANTINED_FILES);
    assert_eq!((ledger.quarantined_bytes, ledger.used_bytes()), (kept, kept));
    assert_eq!(ledger.corruptions, u64::from(damaged));
    drop(store);

    // The next life counts them again, and gives them up when space is needed for blocks.
    let store = disk.open();
    let ledger = store.ledger();
    assert_eq!(ledger.quarantined_files as usize, MAX_QUARANTINED_FILES);
    assert!((1..=kept).contains(&ledger.quarantined_bytes));
    assert!(store.reserve(64 << 20).is_ok());
    assert_eq!(disk.files_in("quarantine"), 0);
}

#[test]
fn a_file_of_an_unknown_version_is_left_alone_and_counted() {
    let (disk, mut bytes, path) = one_block();
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    bytes[12..16].fill(0);
    let crc = cachelet_protocol::integrity::crc32c(&bytes[..4096]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();

    let store = disk.open();
    assert!(matches!(
        store.find(&id()),
        Err(Error::Foreign { version: 2, .. })
    ));
    assert!(matches!(
        store.find_or_create(&id()),
        Err(Error::Foreign { version: 2, .. })
    ));
    let ledger = store.ledger();
    assert_eq!(
        (ledger.foreign_files, ledger.blocks, ledger.corruptions),
        (1, 0, 0)
    );
    assert!(ledger.foreign_bytes > SIZE && store.ledger().reserved_bytes == 0);
    assert!(std::fs::read(&path).unwrap() == bytes);
}

#[test]
fn stray_files_are_left_alone_and_whatever_has_a_blocks_name_is_not_trusted() {
    let (disk, _, path) = one_block();
    let stray = path.with_file_name("notes.txt");
    std::fs::write(&stray, "mine").unwrap();
    let other = disk.directory.path().join("other");
    for attempt in 0..4 {
        std::fs::remove_file(&path).unwrap();
        match attempt {
            0 => std::os::unix::fs::symlink(&other, &path).unwrap(),
            1 => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            2 => std::fs::write(&path, "").unwrap(),
            _ => std::fs::write(&path, vec![0; DATA_OFFSET as usize + SIZE as usize]).unwrap(),
        }
        let store = disk.open();
        match store.find(&id()) {
            Ok(None) => std::fs::write(&path, "to be removed").unwrap(),
            Err(Error::Io { .. }) => assert_eq!(attempt, 0, "a symbolic link is not followed, nor moved"),
            other => panic!("{other:?}"),
        }
        assert!(store.ledger().foreign_files >= 1);
    }
    assert_eq!(std::fs::read_to_string(&stray).unwrap(), "mine");
    assert!(!other.exists());
}

#[test]
fn headers_of_the_longest_ids_fit_and_read_as_written() {
    let name = ObjectName {
        store: StoreIdentity::new("s".repeat(512)).unwrap(),
        path: format!("oss://{}/{}", "b".repeat(255), "k".repeat(1024))
            .parse()
            .unwrap(),
    };
    let generation = Generation {
        etag: Etag::new("e".repeat(256)).unwrap(),
        size_bytes: u64::from(u32::MAX),
    };
    let header = Header {
        file_id: FileId(u64::MAX),
        block_size: BlockSize::new(1 << 20).unwrap(),
        identity: BlockIdentity::of(name, generation, BlockIndex(3)),
    };
    let bytes = header.encode();
    assert_eq!(bytes.len(), 4096);
    assert!(matches!(Header::decode(&bytes), Decoded::Header(decoded) if decoded == header));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_header_decoder_panic(
        noise in proptest::collection::vec(proptest::num::u8::ANY, 0..5000),
        at in 16usize..4000,
    ) {
        // As they are, and with a good checksum around them, so that the fields behind it are reached too.
        let _ = Header::decode(&noise);
        let mut bytes = Header {
            file_id: FileId(1),
            block_size: BlockSize::new(1 << 20).unwrap(),
            identity: id(),
        }
        .encode();
        let end = (at + noise.len()).min(4096);
        bytes[at..end].copy_from_slice(&noise[..end - at]);
        bytes[12..16].fill(0);
        let crc = cachelet_protocol::integrity::crc32c(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let _ = Header::decode(&bytes);
    }
}
