//! The figures, for people and for programs.

use std::fmt;

use cacheletd::store::eviction::{Eviction, Tuning};
use serde::Serialize;

use super::optimum::{self, ByBlocks, ByFrequency};
use super::replay::{Hits, Lru, Policy, replay};
use super::trace::Trace;

/// All traces.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) traces: Vec<Outcome>,
}

/// What became of one trace.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) trace: &'static str,
    pub(crate) cache_bytes: u64,
    pub(crate) blocks: u32,
    pub(crate) contenders: Vec<Contender>,
}

/// What one contender found in the cache.
#[derive(Debug, Serialize)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) hit_ratio_by_bytes: f64,
    pub(crate) hit_ratio_by_requests: f64,
    /// By bytes, on the way from LRU (0) to the optimum by pages (1). None where LRU is about as good as can be.
    pub(crate) way_to_optimum_by_pages: Option<f64>,
    /// By bytes, on the way from LRU (0) to Belady's rule for blocks (1).
    pub(crate) way_to_optimum_by_blocks: Option<f64>,
    pub(crate) remark: String,
}

/// An optimum that exceeds LRU by less leaves nothing to gain.
const NO_WAY: f64 = 0.02;

/// Variants of the policy, each with one thing changed.
#[expect(clippy::too_many_lines, reason = "a list")]
pub(crate) fn variants() -> Vec<(&'static str, Tuning)> {
    let d = Tuning::default;
    let seconds = std::time::Duration::from_secs;
    vec![
        ("ours", d()),
        (
            "round 0 s: every touch counts",
            Tuning {
                round: seconds(0),
                ..d()
            },
        ),
        (
            "round 10 s",
            Tuning {
                round: seconds(10),
                ..d()
            },
        ),
        (
            "round 300 s",
            Tuning {
                round: seconds(300),
                ..d()
            },
        ),
        (
            "half-life 1, fixed",
            Tuning {
                half_life: [1.0; 2],
                ..d()
            },
        ),
        (
            "half-life 4, fixed",
            Tuning {
                half_life: [4.0; 2],
                ..d()
            },
        ),
        (
            "half-life 8, fixed",
            Tuning {
                half_life: [8.0; 2],
                ..d()
            },
        ),
        (
            "half-life 4 to 1/4",
            Tuning {
                half_life: [4.0, 0.25],
                ..d()
            },
        ),
        (
            "half-life 16 to 1/4",
            Tuning {
                half_life: [16.0, 0.25],
                ..d()
            },
        ),
        (
            "worth at most 4",
            Tuning {
                most_worth: 4.0,
                ..d()
            },
        ),
        (
            "worth at most 16",
            Tuning {
                most_worth: 16.0,
                ..d()
            },
        ),
        ("margin 1", Tuning { margin: 1.0, ..d() }),
        ("margin 2", Tuning { margin: 2.0, ..d() }),
        ("probation 10 %, fixed", Tuning { adapt: 0.0, ..d() }),
        (
            "probation from 5 %",
            Tuning {
                probation: [0.05, 0.9],
                ..d()
            },
        ),
        (
            "probation from 20 %",
            Tuning {
                probation: [0.2, 0.9],
                ..d()
            },
        ),
        ("adapts at 1", Tuning { adapt: 1.0, ..d() }),
        ("adapts at 16", Tuning { adapt: 16.0, ..d() }),
        ("trust 0", Tuning { trust: 0.0, ..d() }),
        ("trust 1", Tuning { trust: 1.0, ..d() }),
        ("trust 4", Tuning { trust: 4.0, ..d() }),
        ("forgets LRU's lead in 8 fillings", Tuning { forget: 8.0, ..d() }),
        (
            "never forgets LRU's lead",
            Tuning {
                forget: f64::INFINITY,
                ..d()
            },
        ),
        (
            "no ghosts",
            Tuning {
                ghosts_per_file: 0,
                ..d()
            },
        ),
        (
            "2 ghosts a file",
            Tuning {
                ghosts_per_file: 2,
                ..d()
            },
        ),
        (
            "4 ghosts a file",
            Tuning {
                ghosts_per_file: 4,
                ..d()
            },
        ),
    ]
}

/// Every contender on one trace.
pub(crate) fn replay_all(trace: &Trace, tunings: &[(&'static str, Tuning)]) -> Outcome {
    let pages = optimum::by_pages(trace);
    let blocks = replay(trace, &mut ByBlocks::new(trace));
    let lru = replay(trace, &mut Lru::default());
    let way = |hits: Hits, to: Hits| {
        let all = to.by_bytes() - lru.by_bytes();
        (all > NO_WAY).then(|| (hits.by_bytes() - lru.by_bytes()) / all)
    };
    let contender = |name, hits: Hits, remark| Contender {
        name,
        hit_ratio_by_bytes: hits.by_bytes(),
        hit_ratio_by_requests: hits.by_requests(),
        way_to_optimum_by_pages: way(hits, pages),
        way_to_optimum_by_blocks: way(hits, blocks),
        remark,
    };
    let none = String::new;
    let mut contenders = vec![
        contender("optimum by pages", pages, none()),
        contender("Belady's rule by blocks", blocks, none()),
        contender(
            "known frequencies by blocks",
            replay(trace, &mut ByFrequency::new(trace)),
            none(),
        ),
        contender("LRU", lru, none()),
    ];
    // What there is to gain from not holding whole blocks: 6 % of tables for each page included.
    let mut by_pages = Eviction::new(trace.cache_bytes, Tuning::default());
    let hits = replay(&trace.by_pages(), &mut by_pages);
    contenders.push(contender("ours, each page a file", hits, by_pages.remark()));
    for (name, tuning) in tunings {
        let mut policy = Eviction::new(trace.cache_bytes, tuning.clone());
        let hits = replay(trace, &mut policy);
        contenders.push(contender(name, hits, policy.remark()));
    }
    Outcome {
        trace: trace.name,
        cache_bytes: trace.cache_bytes,
        blocks: trace.blocks,
        contenders,
    }
}

impl Report {
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("figures and names are JSON") + "\n"
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |way: Option<f64>| way.map_or_else(|| "-".to_owned(), |way| format!("{way:.2}"));
        writeln!(f, "Hit ratios in per cent; seed {}.", self.seed)?;
        for outcome in &self.traces {
            let (cache, blocks) = (outcome.cache_bytes >> 30, outcome.blocks);
            writeln!(f, "\n{} ({blocks} blocks, a cache of {cache} GiB)", outcome.trace)?;
            writeln!(
                f,
                "  {:32} {:>8} {:>8} {:>22}",
                "", "bytes", "requests", "way to: pages, blocks"
            )?;
            for contender in &outcome.contenders {
                writeln!(
                    f,
                    "  {:32} {:8.1} {:8.1} {:>14} {:>7}  {}",
                    contender.name,
                    contender.hit_ratio_by_bytes * 100.0,
                    contender.hit_ratio_by_requests * 100.0,
                    way(contender.way_to_optimum_by_pages),
                    way(contender.way_to_optimum_by_blocks),
                    contender.remark,
                )?;
            }
        }
        Ok(())
    }
}
