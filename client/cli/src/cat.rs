//! `cachelet cat`: an object's bytes, through the cache.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cachelet_client::{Object, Stats};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::arguments::{Cat, Common, Output};
use crate::connect;
use crate::failure::{Failure, Kind};
use crate::output;

/// Read at once from held files. Large enough that a read's cost is the copy, small enough to stay in the processor's
/// cache.
const STEP_BYTES: usize = 1 << 20;
/// Read at once from another node: a request each.
const REMOTE_STEP_BYTES: usize = 8 << 20;

pub(crate) fn run(common: &Common, cat: &Cat) -> Result<(), Failure> {
    let client = connect::client(common, cat.verify)?;
    let began = Instant::now();
    let first = match cat.range {
        Some(crate::arguments::ByteRange::Between(first, _) | crate::arguments::ByteRange::From(first)) => {
            first
        }
        Some(crate::arguments::ByteRange::Last(_)) | None => 0,
    };
    let first_range = first..first.saturating_add(STEP_BYTES as u64);
    let object = connect::open(&client, &cat.path, &cat.access, Some(first_range))?;
    let size_bytes = object.size_bytes();
    let range = match cat.range {
        None => 0..size_bytes,
        Some(range) => range.within(size_bytes).ok_or_else(|| {
            Failure::usage(format!(
                "--range begins behind the end of {}, which has {size_bytes} bytes",
                cat.path
            ))
        })?,
    };
    let length = range.end - range.start;
    // What follows the first step comes in while that is written.
    object.prefetch(range.start..range.end.min(range.start.saturating_add(PREFETCH_BYTES)));
    let source = Source {
        object: &object,
        range,
        step_bytes: if common.worker.is_some() {
            REMOTE_STEP_BYTES
        } else {
            STEP_BYTES
        },
    };
    let sink = match &cat.to {
        Some(path) => copy_to_file(&source, path)?,
        None => {
            let to_terminal = io::stdout().is_terminal();
            copy(&source, &mut standard_output()?, "standard output", !to_terminal)?
        }
    };
    let report = Report {
        bytes: length,
        elapsed: began.elapsed(),
        stats: client.stats(),
    };
    if sink == Sink::Open && (cat.stats || (common.output == Output::Json && cat.to.is_some())) {
        report.show(common.output, &object, cat)?;
    }
    Ok(())
}

/// Asked for at once, before readahead takes over.
const PREFETCH_BYTES: u64 = 16 << 20;

/// Whether whoever takes the bytes took them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Open,
    /// The reader of a pipe has seen enough: no failure.
    Closed,
}

/// Standard output without the line buffer that text goes through.
fn standard_output() -> Result<File, Failure> {
    let descriptor = io::stdout().as_fd().try_clone_to_owned();
    descriptor
        .map(File::from)
        .map_err(|error| Failure::io("duplicating standard output", &error))
}

/// What is copied, and in which steps.
struct Source<'a> {
    object: &'a Object,
    range: Range<u64>,
    step_bytes: usize,
}

fn copy(source: &Source<'_>, out: &mut dyn Write, name: &str, may_draw: bool) -> Result<Sink, Failure> {
    let Source {
        object,
        range,
        step_bytes,
    } = source;
    let bar = progress(range.end - range.start, may_draw);
    let mut buf = vec![0; *step_bytes];
    let mut at = range.start;
    // Requests begin where pages do, but for the first.
    let mut step = step_bytes - (at % *step_bytes as u64) as usize;
    while at < range.end {
        let count = step.min(usize::try_from(range.end - at).unwrap_or(step));
        let read = object.read_at(&mut buf[..count], at)?;
        match out.write_all(&buf[..read]) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Sink::Closed),
            Err(error) => return Err(Failure::io(format_args!("writing to {name}"), &error)),
        }
        at += read as u64;
        step = *step_bytes;
        bar.inc(read as u64);
    }
    bar.finish_and_clear();
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io(format_args!("writing to {name}"), &error))
        }
        _ => Ok(Sink::Open),
    }
}

/// Writes beside the file and renames: what has the name is complete.
fn copy_to_file(source: &Source<'_>, path: &Path) -> Result<Sink, Failure> {
    if path.is_dir() {
        return Err(Failure::usage(format!(
            "--to {} is a directory: name a file",
            path.display()
        )));
    }
    let shown = path.display().to_string();
    if path.exists() && !path.is_file() {
        // A device or a pipe: there is nothing to rename.
        let mut file = File::options()
            .write(true)
            .open(path)
            .map_err(|error| Failure::io(format_args!("opening --to {shown}"), &error))?;
        return copy(source, &mut file, &shown, true);
    }
    let partial = Partial::create(path)?;
    let sink = copy(source, &mut &partial.file, &shown, true)?;
    partial.complete(path)?;
    Ok(sink)
}

/// A file that is removed unless it becomes complete.
struct Partial {
    file: File,
    path: PathBuf,
    complete: bool,
}

impl Partial {
    fn create(target: &Path) -> Result<Self, Failure> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let path = target.with_file_name(name);
        let file = File::create(&path)
            .map_err(|error| Failure::io(format_args!("creating --to {}", target.display()), &error))?;
        Ok(Self {
            file,
            path,
            complete: false,
        })
    }

    fn complete(mut self, target: &Path) -> Result<(), Failure> {
        std::fs::rename(&self.path, target)
            .map_err(|error| Failure::io(format_args!("renaming to {}", target.display()), &error))?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.complete {
            // It is of no use to anybody, and may be gone with its directory.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A bar on standard error, if that is a terminal that the bytes do not go to.
fn progress(length: u64, may_draw: bool) -> ProgressBar {
    if !may_draw || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{bar:40} {percent:>3}% {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    )
    .expect("the template is a constant that a test draws");
    ProgressBar::new(length).with_style(style)
}

struct Report {
    bytes: u64,
    elapsed: Duration,
    stats: Stats,
}

impl Report {
    fn show(&self, output: Output, object: &Object, cat: &Cat) -> Result<(), Failure> {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let rate = self.bytes as f64 / seconds;
        let Stats {
            local_bytes,
            inline_bytes,
            remote_bytes,
            round_trips,
            ..
        } = self.stats;
        let text = match output {
            Output::Json => {
                let counters: serde_json::Map<_, _> = self
                    .stats
                    .fields()
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value.into()))
                    .collect();
                output::json(&json!({
                    "path": cat.path.to_string(),
                    "etag": object.generation().etag.as_str(),
                    "size_bytes": object.size_bytes(),
                    "bytes": self.bytes,
                    "seconds": seconds,
                    "bytes_per_second": rate,
                    "stats": counters,
                }))
            }
            Output::Text => format!(
                "{} in {seconds:.3} s, {:.2} GB/s: {} from held files, {} inline, {} remote; {round_trips} round trips",
                output::size(self.bytes),
                rate / 1e9,
                output::size(local_bytes),
                output::size(inline_bytes),
                output::size(remote_bytes),
            ),
        };
        if output == Output::Json && cat.to.is_some() {
            return output::print(&format!("{text}\n"));
        }
        writeln!(io::stderr(), "{text}")
            .map_err(|error| Failure::new(Kind::Internal, format!("writing to standard error: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_bars_template_can_be_drawn() {
        let template = "{bar:40} {percent:>3}% {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
        assert!(ProgressStyle::with_template(template).is_ok());
    }

    #[test]
    fn an_incomplete_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("out");
        drop(Partial::create(&target).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        Partial::create(&target).unwrap().complete(&target).unwrap();
        assert!(target.exists());
    }
}
