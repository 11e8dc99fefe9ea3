//! `cachelet`: read, locate, load and inspect cached objects, and run a cluster on one machine.

mod arguments;
mod cat;
mod connect;
mod dev;
mod failure;
mod fleet;
mod free;
mod interrupt;
mod load;
mod locate;
mod output;
mod place;
mod progress;
mod proof;
mod service;
mod stat;
mod status;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::arguments::{Arguments, Command};
use crate::failure::{EXIT_USAGE, Failure};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(shown) => {
            // The terminal may be gone; there is nobody to tell then.
            let _ = shown.print();
            return match shown.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_USAGE),
            };
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let common = &arguments.common;
    match arguments.command {
        Command::Cat(cat) => cat::run(common, &cat),
        Command::Stat(stat) => stat::run(common, &stat),
        Command::Locate(locate) => locate::run(common, &locate),
        Command::Load(load) => load::run(common, &load),
        Command::Free(free) => free::run(common, free),
        Command::Status(status) => status::run(common, &status),
        Command::Dev(dev) => dev::run(common, &dev),
        Command::DevChild(child) => Err(dev::child::become_child(&child)),
    }
}
