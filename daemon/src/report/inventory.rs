//! What this worker holds, as reports say it: 64-block segments, and which of them changed for whom.
//!
//! Plain state without I/O. The store's events feed it; every stream to a replica of the locality service has a
//! subscription that collects the segments that changed since it was last drained.

use std::collections::{HashMap, HashSet};

use cachelet_protocol::block::BlockIndex;
use cachelet_protocol::grpc;
use cachelet_protocol::ids::{Generation, ObjectName, PathId};
use cachelet_protocol::residency::{Residency, SegmentResidency};

/// 64 blocks of one generation of one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SegmentKey {
    path_id: PathId,
    generation: Generation,
    index: u32,
}

#[derive(Debug, Clone, Copy)]
struct SegmentState {
    residency: SegmentResidency,
    confirmed_unix_ms: u64,
}

/// A stream's place in [`Inventory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Subscription(u64);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    segments: HashMap<SegmentKey, SegmentState>,
    changed: HashMap<Subscription, HashSet<SegmentKey>>,
    next_subscription: u64,
}

impl Inventory {
    /// Says what is held of a block now.
    pub(super) fn set(
        &mut self,
        name: &ObjectName,
        generation: &Generation,
        block: BlockIndex,
        residency: Residency,
        confirmed_unix_ms: u64,
    ) {
        let (index, place) = SegmentResidency::place(block);
        let key = SegmentKey {
            path_id: name.path_id(),
            generation: generation.clone(),
            index,
        };
        let state = self.segments.entry(key.clone()).or_insert(SegmentState {
            residency: SegmentResidency::default(),
            confirmed_unix_ms,
        });
        if state.residency.get(place) == residency && !state.residency.is_empty() {
            return;
        }
        // Only what comes in confirms a generation; an eviction says nothing about it.
        if residency > state.residency.get(place) {
            state.confirmed_unix_ms = state.confirmed_unix_ms.max(confirmed_unix_ms);
        }
        state.residency.set(place, residency);
        if state.residency.is_empty() {
            self.segments.remove(&key);
        }
        for changed in self.changed.values_mut() {
            changed.insert(key.clone());
        }
    }

    /// Starts collecting changes for a stream.
    pub(super) fn subscribe(&mut self) -> Subscription {
        let subscription = Subscription(self.next_subscription);
        self.next_subscription += 1;
        self.changed.insert(subscription, HashSet::new());
        subscription
    }

    /// Stops collecting.
    pub(super) fn unsubscribe(&mut self, subscription: Subscription) {
        self.changed.remove(&subscription);
    }

    /// Everything held, for a full report; what had changed before is part of it.
    pub(super) fn everything(&mut self, subscription: Subscription) -> Vec<grpc::Segment> {
        if let Some(changed) = self.changed.get_mut(&subscription) {
            changed.clear();
        }
        self.segments
            .iter()
            .map(|(key, state)| report(key, Some(state)))
            .collect()
    }

    /// The segments that changed since they were last taken, each with its state now.
    pub(super) fn changes(&mut self, subscription: Subscription) -> Vec<grpc::Segment> {
        let changed = self
            .changed
            .get_mut(&subscription)
            .map(std::mem::take)
            .unwrap_or_default();
        changed
            .iter()
            .map(|key| report(key, self.segments.get(key)))
            .collect()
    }
}

fn report(key: &SegmentKey, state: Option<&SegmentState>) -> grpc::Segment {
    let residency = state.map(|state| state.residency).unwrap_or_default();
    grpc::Segment {
        path_id: key.path_id.as_bytes().to_vec(),
        etag: key.generation.etag.as_str().to_owned(),
        size_bytes: key.generation.size_bytes,
        index: key.index,
        low_bits: residency.low_bits,
        high_bits: residency.high_bits,
        confirmed_unix_ms: state.map(|state| state.confirmed_unix_ms).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachelet_protocol::ids::{Etag, StoreIdentity};
    use proptest::prelude::*;

    fn name(key: u8) -> ObjectName {
        ObjectName {
            store: StoreIdentity::new("s").unwrap(),
            path: format!("s3://bucket/k{key}").parse().unwrap(),
        }
    }

    fn generation(number: u8) -> Generation {
        Generation {
            etag: Etag::new(format!("e{number}")).unwrap(),
            size_bytes: 1 << 40,
        }
    }

    fn bits(segment: &grpc::Segment) -> SegmentResidency {
        SegmentResidency {
            low_bits: segment.low_bits,
            high_bits: segment.high_bits,
        }
    }

    #[test]
    fn what_was_found_on_disk_confirms_no_generation_and_what_is_filled_does() {
        let mut inventory = Inventory::default();
        let subscription = inventory.subscribe();
        inventory.set(&name(1), &generation(1), BlockIndex(0), Residency::All, 0);
        assert_eq!(inventory.everything(subscription)[0].confirmed_unix_ms, 0);
        inventory.set(&name(1), &generation(1), BlockIndex(1), Residency::All, 9);
        inventory.set(&name(1), &generation(1), BlockIndex(2), Residency::All, 0);
        assert_eq!(inventory.everything(subscription)[0].confirmed_unix_ms, 9);
    }

    #[test]
    fn a_change_is_reported_once_to_each_subscription() {
        let mut inventory = Inventory::default();
        let (first, second) = (inventory.subscribe(), inventory.subscribe());
        inventory.set(&name(1), &generation(1), BlockIndex(70), Residency::All, 5);
        for subscription in [first, second] {
            let changes = inventory.changes(subscription);
            assert_eq!(
                (changes.len(), changes[0].index, bits(&changes[0]).get(6)),
                (1, 1, Residency::All)
            );
            assert!(inventory.changes(subscription).is_empty());
        }
        inventory.set(&name(1), &generation(1), BlockIndex(70), Residency::All, 6);
        assert!(inventory.changes(first).is_empty(), "nothing changed");
        inventory.set(&name(1), &generation(1), BlockIndex(70), Residency::None, 7);
        assert!(
            bits(&inventory.changes(first)[0]).is_empty(),
            "an eviction is reported"
        );
        assert!(inventory.everything(first).is_empty());
    }

    proptest! {
        #[test]
        fn a_full_report_and_the_deltas_after_it_tell_the_state(
            before in prop::collection::vec((0_u8..3, 0_u8..2, 0_u32..130, 0_u8..4), 0..40),
            after in prop::collection::vec((0_u8..3, 0_u8..2, 0_u32..130, 0_u8..4), 0..40),
        ) {
            let state = |number| [Residency::None, Residency::Some, Residency::HalfOrMore, Residency::All][number as usize];
            let mut inventory = Inventory::default();
            let mut model = HashMap::new();
            let subscription = inventory.subscribe();
            let mut told = HashMap::new();
            for (round, changes) in [before, after].into_iter().enumerate() {
                for (key, version, block, number) in changes {
                    inventory.set(&name(key), &generation(version), BlockIndex(block), state(number), 1);
                    model.insert((name(key).path_id(), generation(version).etag.as_str().to_owned(), block), state(number));
                }
                let segments =
                    if round == 0 { inventory.everything(subscription) } else { inventory.changes(subscription) };
                for segment in segments {
                    let path_id = PathId::from_bytes(segment.path_id.clone().try_into().unwrap());
                    told.insert((path_id, segment.etag.clone(), segment.index), bits(&segment));
                }
            }
            for ((path_id, etag, block), residency) in model {
                let (index, place) = SegmentResidency::place(BlockIndex(block));
                let segment = told.get(&(path_id, etag, index)).copied().unwrap_or_default();
                prop_assert_eq!(segment.get(place), residency);
            }
        }
    }
}
