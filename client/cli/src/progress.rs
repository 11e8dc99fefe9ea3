//! How far something long has come: a bar on a terminal, a line now and then elsewhere. All of it on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
const TEMPLATE: &str =
    "{bar:40} {percent:>3}% {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left{msg}";

/// See the module's text.
pub(crate) struct Progress {
    verb: &'static str,
    total_bytes: u64,
    bytes: u64,
    began: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins now; `verb` is what is done to the bytes, as `loaded`.
    pub(crate) fn begin(verb: &'static str, total_bytes: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template(TEMPLATE).expect("the template is a constant that a test draws");
            ProgressBar::new(total_bytes).with_style(style)
        });
        let now = Instant::now();
        Self {
            verb,
            total_bytes,
            bytes: 0,
            began: now,
            said: now,
            bar,
        }
    }

    /// So many bytes are done, of what was said to be all.
    pub(crate) fn at(&mut self, bytes: u64) {
        self.bytes = bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        } else if self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            say(&line(self.verb, bytes, self.total_bytes, self.began.elapsed()));
        }
    }

    /// Something that is worth knowing meanwhile.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on standard error.
pub(crate) fn say(text: &str) {
    // The terminal may be gone; there is nobody to tell then.
    let _ = writeln!(io::stderr(), "cachelet: {text}");
}

/// Bytes a second.
pub(crate) fn rate(bytes: u64, elapsed: Duration) -> u64 {
    (u128::from(bytes) * 1000 / elapsed.as_millis().max(1)) as u64
}

fn line(verb: &str, bytes: u64, total_bytes: u64, elapsed: Duration) -> String {
    let rate = rate(bytes, elapsed);
    let left = match total_bytes.saturating_sub(bytes).checked_div(rate) {
        Some(seconds) => format!("{seconds} s left"),
        None => "none yet".into(),
    };
    format!(
        "{verb} {} of {}, {}/s, {left}",
        output::size(bytes),
        output::size(total_bytes),
        output::size(rate),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_template_can_be_drawn_and_a_line_says_how_long_it_will_take() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        let text = line("loaded", 1 << 30, 3 << 30, Duration::from_secs(10));
        assert_eq!(text, "loaded 1.0 GiB of 3.0 GiB, 102.4 MiB/s, 20 s left");
        assert!(line("loaded", 0, 1, Duration::ZERO).ends_with("none yet"));
    }
}
