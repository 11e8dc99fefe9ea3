//! `cachelet locate`: where blocks are, as schedulers ask for it.

use crate::arguments::{Common, Locate, Output};
use crate::failure::{Failure, Kind};
use crate::output;
use crate::service::{Location, PathRequest, Service, part};

pub(crate) fn run(common: &Common, locate: &Locate) -> Result<(), Failure> {
    let service = Service::find(common)?;
    let paths: Vec<_> = locate.paths.iter().map(PathRequest::new).collect();
    let candidates: Vec<_> = locate.candidates.iter().map(ToString::to_string).collect();
    let candidates = (!candidates.is_empty()).then_some(candidates.as_slice());
    let answer = service.locations(candidates, &paths)?;
    let locations: Vec<Location> = part(&answer, "locations")?;
    match common.output {
        Output::Json => output::print_json(&answer)?,
        Output::Text => output::print(&show(&locations))?,
    }
    match locations.iter().find_map(|location| location.error.as_ref()) {
        Some(error) => Err(Failure::new(
            Kind::Usage,
            format!(
                "the locality service refused a path ({}): {}",
                error.code, error.message
            ),
        )),
        None => Ok(()),
    }
}

/// One row a block, and a line for each object that has none to show.
pub(crate) fn show(locations: &[Location]) -> String {
    let mut rows = Vec::new();
    let mut notes = String::new();
    for location in locations {
        for block in &location.blocks {
            let nodes: Vec<_> = block
                .nodes
                .iter()
                .map(|node| match node.state.as_str() {
                    "planned" => format!("{} (planned)", node.node),
                    _ => format!("{} ({})", node.node, node.residency),
                })
                .collect();
            rows.push(vec![
                location.path.clone(),
                block.index.to_string(),
                output::size(block.offset),
                output::size(block.length),
                if nodes.is_empty() {
                    "-".into()
                } else {
                    nodes.join(", ")
                },
            ]);
        }
        if location.blocks.is_empty() {
            let why = match (location.reason.as_deref(), location.size_bytes) {
                (Some("no_workers"), _) => "no worker is registered",
                (Some("unknown_store"), _) => "no worker has a store for it",
                (Some("unknown_size"), _) => "nobody has read it yet, so its size is not known here",
                (_, Some(0)) => "it is empty and has no block",
                _ => "no block is known",
            };
            let why = location
                .error
                .as_ref()
                .map_or(why, |error| error.message.as_str());
            notes.extend([&location.path, ": ", why, "\n"]);
        }
    }
    let mut text = String::new();
    if !rows.is_empty() {
        text.push_str(&output::table(
            &["PATH", "BLOCK", "OFFSET", "LENGTH", "NODES"],
            &rows,
        ));
    }
    text + &notes
}
