//! Where a block belongs when nobody holds it yet: weighted rendezvous hashing.
//!
//! Every node gets a score for every block from (object, block, node name, weight) alone; the highest wins. A node that
//! joins or leaves moves only the blocks it wins or had won, and a rollout moves nothing because the key is the node's
//! name, not its worker's UUID. Scores come from integer hashing and `libm`'s pure-Rust logarithm, so that every build on
//! every platform ranks alike.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::block::BlockIndex;
use crate::ids::{NodeName, PathId};

/// A node's share of the blocks: a power of two, from its cache capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u8);

impl Weight {
    /// The weight of a cache of `capacity_bytes`: GiB rounded down to a power of two, at least 1. Steps of two keep the
    /// plan still while capacities differ by a little.
    pub fn of_capacity(capacity_bytes: u64) -> Self {
        Self((capacity_bytes >> 30).max(1).ilog2() as u8)
    }

    /// As a factor.
    pub fn factor(self) -> u64 {
        1 << self.0
    }
}

/// How strongly `node` is drawn to a block. Higher wins; equal scores are broken by name.
pub fn score(object: &PathId, block: BlockIndex, node: &NodeName, weight: Weight) -> f64 {
    weighted(draw(seed(object, block), node), weight)
}

/// What a block brings to every node's draw.
fn seed(object: &PathId, block: BlockIndex) -> u64 {
    let mut key = [0; 20];
    key[..16].copy_from_slice(object.as_bytes());
    key[16..].copy_from_slice(&block.0.to_le_bytes());
    xxh3_64_with_seed(&key, 0)
}

/// 53 uniform bits for a node and a block: what fits a double exactly.
fn draw(seed: u64, node: &NodeName) -> u64 {
    xxh3_64_with_seed(node.as_str().as_bytes(), seed) >> 11
}

fn weighted(draw: u64, weight: Weight) -> f64 {
    // Shifted by a half: uniform in (0, 1), never 0 or 1.
    let uniform = (draw as f64 + 0.5) / (1_u64 << 53) as f64;
    -(weight.factor() as f64) / libm::log(uniform)
}

/// The position in `nodes` of the one that a block belongs to: what [`rank`] puts first, without ranking the rest.
///
/// Among nodes of one weight the greatest draw has the highest score, so a logarithm is taken once a weight and not
/// once a node: a block is placed among thousands of nodes in microseconds.
pub fn winner<'a>(
    object: &PathId,
    block: BlockIndex,
    nodes: impl IntoIterator<Item = (&'a NodeName, Weight)>,
) -> Option<usize> {
    let seed = seed(object, block);
    let mut best: [Option<(u64, usize, &NodeName)>; 64] = [None; 64];
    for (index, (name, weight)) in nodes.into_iter().enumerate() {
        let draw = draw(seed, name);
        let slot = &mut best[usize::from(weight.0)];
        if slot.is_none_or(|(most, _, holder)| draw > most || (draw == most && name < holder)) {
            *slot = Some((draw, index, name));
        }
    }
    best.iter()
        .zip(0..)
        .filter_map(|(slot, exponent)| {
            slot.map(|(draw, index, name)| (weighted(draw, Weight(exponent)), index, name))
        })
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.2.cmp(a.2)))
        .map(|(_, index, _)| index)
}

/// The indices of `nodes` by falling score for a block, at most `count` of them.
pub fn rank(object: &PathId, block: BlockIndex, nodes: &[(NodeName, Weight)], count: usize) -> Vec<usize> {
    let mut scored: Vec<(f64, usize)> = nodes
        .iter()
        .enumerate()
        .map(|(index, (name, weight))| (score(object, block, name, *weight), index))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| nodes[a.1].0.cmp(&nodes[b.1].0)));
    scored.into_iter().take(count).map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes(capacities_gib: &[u64]) -> Vec<(NodeName, Weight)> {
        capacities_gib
            .iter()
            .enumerate()
            .map(|(index, gib)| {
                (
                    NodeName::new(format!("node-{index}")).unwrap(),
                    Weight::of_capacity(gib << 30),
                )
            })
            .collect()
    }

    fn first(object: u128, block: u32, nodes: &[(NodeName, Weight)]) -> usize {
        rank(
            &PathId::from_bytes(object.to_le_bytes()),
            BlockIndex(block),
            nodes,
            1,
        )[0]
    }

    #[test]
    fn committed_scores_do_not_move() {
        let nodes = nodes(&[1, 1, 4, 16]);
        let winners: Vec<usize> = (0..24).map(|block| first(7, block, &nodes)).collect();
        assert_eq!(winners, COMMITTED_WINNERS);
    }

    /// Placement must not change between versions: a mixed cluster would plan every block twice.
    const COMMITTED_WINNERS: [usize; 24] = [
        3, 0, 3, 3, 3, 2, 3, 2, 2, 3, 3, 3, 2, 0, 3, 3, 3, 3, 3, 2, 0, 3, 3, 3,
    ];

    #[test]
    fn weights_are_capacities_in_powers_of_two() {
        for (bytes, factor) in [
            (0, 1),
            (1 << 30, 1),
            (3 << 30, 2),
            (4 << 30, 4),
            (1000 << 30, 512),
        ] {
            assert_eq!(Weight::of_capacity(bytes).factor(), factor, "{bytes}");
        }
    }

    #[test]
    fn blocks_are_spread_by_weight() {
        let nodes = nodes(&[1, 1, 2, 4]);
        let mut counts = [0; 4];
        (0..16_000_u128).for_each(|object| counts[first(object, 0, &nodes)] += 1);
        for (count, share) in counts
            .into_iter()
            .zip([1.0 / 8.0, 1.0 / 8.0, 1.0 / 4.0, 1.0 / 2.0])
        {
            let expected = 16_000.0 * share;
            assert!((f64::from(count) - expected).abs() < expected * 0.1, "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn a_lost_node_moves_only_its_own_blocks(object: u128, block: u32, lost in 0_usize..6) {
            let before = nodes(&[1, 2, 4, 8, 16, 1]);
            let mut after = before.clone();
            let gone = after.remove(lost).0;
            let was = before[first(object, block, &before)].0.clone();
            let is = after[first(object, block, &after)].0.clone();
            prop_assert!(was == is || was == gone);
        }

        #[test]
        fn the_winner_is_the_first_of_the_rank(object: u128, block: u32, capacities in prop::collection::vec(0_u64..64, 0..20)) {
            let nodes = nodes(&capacities);
            let id = PathId::from_bytes(object.to_le_bytes());
            prop_assert_eq!(
                winner(&id, BlockIndex(block), nodes.iter().map(|(name, weight)| (name, *weight))),
                rank(&id, BlockIndex(block), &nodes, 1).first().copied()
            );
        }

        #[test]
        fn the_rank_does_not_depend_on_the_order_of_nodes(object: u128, block: u32) {
            let forward = nodes(&[1, 2, 4, 8]);
            let backward: Vec<_> = forward.iter().rev().cloned().collect();
            let id = PathId::from_bytes(object.to_le_bytes());
            let a: Vec<_> = rank(&id, BlockIndex(block), &forward, 4).into_iter().map(|i| &forward[i].0).collect();
            let b: Vec<_> = rank(&id, BlockIndex(block), &backward, 4).into_iter().map(|i| &backward[i].0).collect();
            prop_assert_eq!(a, b);
        }
    }
}
