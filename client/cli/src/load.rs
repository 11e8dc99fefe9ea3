//! `cachelet load`: objects brought into the cache before anybody reads them.
//!
//! In this order: which objects ([`objects`]), which of their blocks go where ([`plan`]), the workers bring them in
//! ([`transfer`]), what came of it ([`report`]). No byte of an object comes here. What is loaded is one generation, named
//! by the caller's own listing or HEAD, or by the daemon where its policy allows that.

mod bandwidth;
mod objects;
mod plan;
mod report;
mod transfer;

use std::time::Instant;

use crate::arguments::{Common, Load, Output};
use crate::failure::Failure;
use crate::fleet::Fleet;
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress;
use crate::service::Service;

use plan::Planner;
use report::Report;
use transfer::Transfer;

pub(crate) fn run(common: &Common, load: &Load) -> Result<(), Failure> {
    // Before any thread is started.
    let interrupt = Interrupt::hold()?;
    let service = Service::find(common)?;
    let fleet = Fleet::gather(common, &service)?;
    let owners = fleet.owners(&load.nodes)?;
    if owners.len() < usize::from(load.replication) {
        return Err(Failure::usage(format!(
            "--replication {} takes as many nodes whose workers are ready; there is {}: {}",
            load.replication,
            owners.len(),
            fleet.members[owners[0]].node
        )));
    }
    if !load.dry_run {
        fleet.reachable(&owners)?;
    }
    let objects = objects::find(load, &fleet, &owners, &interrupt)?;
    let planner = Planner {
        service: &service,
        fleet: &fleet,
        objects: &objects.wanted,
    };
    let began = Instant::now();
    let plan = planner.plan(&owners, load.replication)?;
    let mut report = Report::new(&fleet, &objects, &plan);
    if load.dry_run {
        report.dry_run = true;
        report.warnings = report.too_much(&fleet);
    } else {
        for warning in report.too_much(&fleet) {
            progress::say(&warning);
        }
        let transfer = Transfer::new(&planner, &owners, load, &interrupt);
        report.add(transfer.run(plan), began.elapsed());
    }
    report.interrupted = interrupt.came();
    match common.output {
        Output::Json => output::print_json(&report)?,
        Output::Text => output::print(&report.text())?,
    }
    report.outcome()
}
