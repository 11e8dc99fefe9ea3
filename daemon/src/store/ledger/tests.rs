//! The ledger beside a model that adds everything up anew after each step.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Reserve(u64),
    Unreserve(usize),
    Create(usize),
    Adopt(u64, u64, u8),
    Commit(usize, u64),
    Relocate(u64, u8),
    Reclaim(u64),
    Lease(u64, u64),
    Release(u64, u64),
    ReleaseSession(u64),
    Foreign(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let (file, session, pick) = (0u64..8, 0u64..4, 0usize..4);
    prop_oneof![
        4 => (1u64..40).prop_map(Op::Reserve),
        1 => pick.clone().prop_map(Op::Unreserve),
        3 => pick.clone().prop_map(Op::Create),
        1 => (file.clone(), 1u64..30, 0u8..3).prop_map(|(f, c, p)| Op::Adopt(f, c, p)),
        4 => (pick, file.clone()).prop_map(|(r, f)| Op::Commit(r, f)),
        2 => (file.clone(), 0u8..3).prop_map(|(f, p)| Op::Relocate(f, p)),
        2 => file.clone().prop_map(Op::Reclaim),
        4 => (session.clone(), file.clone()).prop_map(|(s, f)| Op::Lease(s, f)),
        2 => (session.clone(), file).prop_map(|(s, f)| Op::Release(s, f)),
        1 => session.prop_map(Op::ReleaseSession),
        1 => (1u64..5).prop_map(Op::Foreign),
    ]
}

fn place(code: u8) -> Place {
    [Place::Cached, Place::Unlinked, Place::Quarantined][usize::from(code)]
}

#[derive(Default)]
struct Model {
    reservations: Vec<u64>,
    files: Vec<(u64, u64, Place)>,
    leases: Vec<(u64, u64)>,
    foreign: u64,
}

impl Model {
    fn bytes(&self, place: Place) -> u64 {
        self.files
            .iter()
            .filter(|file| file.2 == place)
            .map(|file| file.1)
            .sum()
    }

    fn totals(&self) -> Totals {
        Totals {
            reserved: self.reservations.iter().sum(),
            committed: self.bytes(Place::Cached),
            unlinked: self.bytes(Place::Unlinked),
            quarantined: self.bytes(Place::Quarantined),
            foreign: self.foreign,
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut (u64, u64, Place)> {
        self.files.iter_mut().find(|file| file.0 == id)
    }

    fn is_leased(&self, file: u64) -> bool {
        self.leases.iter().any(|lease| lease.1 == file)
    }

    fn held(&self, session: u64) -> u64 {
        let charge = |id| {
            self.files
                .iter()
                .find(|file| file.0 == id)
                .map_or(0, |file| file.1)
        };
        self.leases
            .iter()
            .filter(|lease| lease.0 == session)
            .map(|lease| charge(lease.1))
            .sum()
    }
}

proptest! {
    #[test]
    fn the_ledger_agrees_with_adding_everything_up(ops in prop::collection::vec(op(), 0..120)) {
        const QUOTA: u64 = 200;
        let mut ledger = Ledger::new(QUOTA);
        let mut model = Model::default();
        let mut next_file = 100;
        for op in ops {
            let before = model.totals().sum();
            let mut found_on_disk = false;
            match op {
                Op::Reserve(bytes) => {
                    let granted = ledger.reserve(bytes);
                    prop_assert_eq!(granted, before + bytes <= QUOTA);
                    if granted {
                        model.reservations.push(bytes);
                    }
                }
                Op::Unreserve(pick) if pick < model.reservations.len() => {
                    ledger.unreserve(model.reservations.swap_remove(pick));
                }
                Op::Create(pick) if pick < model.reservations.len() => {
                    // Half of the created files get small ids, so that the other operations meet them.
                    let small = (0..8).find(|id| model.find(*id).is_none());
                    let id = small.unwrap_or(next_file);
                    next_file += 1;
                    let bytes = model.reservations.swap_remove(pick);
                    ledger.create(FileId(id), bytes);
                    model.files.push((id, bytes, Place::Cached));
                }
                Op::Adopt(id, charge, code) => {
                    let new = model.find(id).is_none();
                    prop_assert_eq!(ledger.adopt(FileId(id), charge, place(code)), new);
                    if new {
                        model.files.push((id, charge, place(code)));
                        found_on_disk = true;
                    }
                }
                Op::Commit(pick, id) if pick < model.reservations.len() => {
                    let bytes = model.reservations.swap_remove(pick);
                    let cached = model.find(id).is_some_and(|file| {
                        file.1 += bytes;
                        file.2 == Place::Cached
                    });
                    prop_assert_eq!(ledger.commit(FileId(id), bytes), cached);
                }
                Op::Unreserve(_) | Op::Create(_) | Op::Commit(..) => {}
                Op::Relocate(id, code) => {
                    ledger.relocate(FileId(id), place(code));
                    if let Some(file) = model.find(id) {
                        file.2 = place(code);
                    }
                }
                Op::Reclaim(id) => {
                    let charge = model.find(id).map_or(0, |file| file.1);
                    prop_assert_eq!(ledger.reclaim(FileId(id)), charge);
                    model.files.retain(|file| file.0 != id);
                    model.leases.retain(|lease| lease.1 != id);
                }
                Op::Lease(session, id) => {
                    let first = model.find(id).is_some() && !model.is_leased(id);
                    prop_assert_eq!(ledger.lease(SessionId(session), FileId(id)), first);
                    if model.find(id).is_some() && !model.leases.contains(&(session, id)) {
                        model.leases.push((session, id));
                    }
                }
                Op::Release(session, id) => {
                    let had = model.leases.contains(&(session, id));
                    model.leases.retain(|lease| *lease != (session, id));
                    prop_assert_eq!(ledger.release(SessionId(session), FileId(id)), had && !model.is_leased(id));
                }
                Op::ReleaseSession(session) => {
                    let of_session: Vec<u64> =
                        model.leases.iter().filter(|lease| lease.0 == session).map(|lease| lease.1).collect();
                    model.leases.retain(|lease| lease.0 != session);
                    let mut unheld: Vec<u64> =
                        ledger.release_session(SessionId(session)).into_iter().map(|file| file.0).collect();
                    unheld.sort_unstable();
                    let mut expected: Vec<u64> = of_session.into_iter().filter(|id| !model.is_leased(*id)).collect();
                    expected.sort_unstable();
                    prop_assert_eq!(unheld, expected);
                }
                Op::Foreign(bytes) => {
                    ledger.add_foreign(bytes);
                    model.foreign += bytes;
                    found_on_disk = true;
                }
            }
            prop_assert_eq!(ledger.totals(), model.totals());
            prop_assert!(found_on_disk || ledger.totals().sum() <= before.max(QUOTA));
            for session in 0..4 {
                prop_assert_eq!(ledger.held_bytes(SessionId(session)), model.held(session));
                let holds = model.leases.iter().any(|lease| lease.0 == session);
                prop_assert_eq!(ledger.sessions.contains_key(&SessionId(session)), holds);
            }
            for id in 0..8 {
                prop_assert_eq!(ledger.files.get(&FileId(id)).map(|file| file.place), model.find(id).map(|file| file.2));
            }
        }
    }
}

#[test]
fn a_reservation_beyond_the_quota_is_refused_to_the_byte() {
    let mut ledger = Ledger::new(100);
    assert!(ledger.reserve(60));
    assert_eq!((ledger.shortage(40), ledger.shortage(41)), (0, 1));
    assert!(!ledger.reserve(41));
    assert!(!ledger.reserve(u64::MAX));
    assert!(ledger.reserve(40));
}

#[test]
fn evicted_bytes_count_until_they_are_proved_free() {
    let mut ledger = Ledger::new(100);
    assert!(ledger.reserve(100));
    ledger.create(FileId(1), 100);
    ledger.lease(SessionId(1), FileId(1));
    ledger.relocate(FileId(1), Place::Unlinked);
    assert!(!ledger.reserve(1));
    assert!(ledger.release(SessionId(1), FileId(1)));
    assert!(!ledger.reserve(1), "a session's word proves nothing");
    assert_eq!(ledger.reclaim(FileId(1)), 100);
    assert!(ledger.reserve(100));
}
