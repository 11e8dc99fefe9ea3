//! The status page for people: one HTML document that refreshes itself and needs nothing else.

use std::fmt::{self, Display, Write};

use bytesize::ByteSize;

use crate::api::{NodeEntry, StatusAnswer, WorkerStateName};

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>Cachelet locality</title><style>
:root { --ink: #1c2430; --dim: #667080; --line: #d9dee6; --back: #f6f7f9; --card: #fff; --good: #1a7f4b; --warn: #9a6700; --bad: #b42318; --bar: #3b6fd4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --dim: #95a0b0; --line: #2c3440; --back: #12161c; --card: #1a2029; --good: #4cc38a; --warn: #e2a336; --bad: #f2705f; --bar: #6c98f0; } }
body { margin: 0; padding: 1.5rem; font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); }
main { max-width: 80rem; margin: auto; } h1 { font-size: 1.3rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { margin: .2rem 0; color: var(--dim); } .cards { display: flex; flex-wrap: wrap; gap: .7rem; margin-top: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; min-width: 7.5rem; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; } .card span { color: var(--dim); font-size: .85rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; } th { color: var(--dim); font-weight: 600; }
tr:last-child td { border-bottom: 0; } td.n, th.n { text-align: right; } small { color: var(--dim); display: block; }
.ready { color: var(--good); } .draining { color: var(--warn); } .lost { color: var(--bad); }
progress { width: 6rem; height: .5rem; accent-color: var(--bar); vertical-align: middle; }
</style></head><body><main>
"#;

/// The page.
pub(super) fn page(status: &StatusAnswer) -> String {
    let mut page = String::from(HEAD);
    // Writing to a String cannot fail.
    let _ = write_page(&mut page, status);
    page
}

fn write_page(page: &mut String, status: &StatusAnswer) -> fmt::Result {
    let class = if status.ready { "ready" } else { "lost" };
    writeln!(
        page,
        "<h1>Cachelet locality <small>version {}, up {}</small></h1><p class=\"{class}\">{}</p>",
        Text(&status.version),
        Age(status.uptime_ms),
        Text(&status.ready_message)
    )?;
    let sum = |of: fn(&NodeEntry) -> u64| total(status.nodes.iter().map(of));
    let live = status
        .nodes
        .iter()
        .filter(|node| node.state != WorkerStateName::Lost)
        .count();
    page.push_str("<div class=\"cards\">");
    card(page, live, "live workers")?;
    card(page, ByteSize(sum(|n| n.used_bytes)).display(), "cached")?;
    card(page, ByteSize(sum(|n| n.capacity_bytes)).display(), "capacity")?;
    card(page, sum(|n| n.blocks), "blocks held")?;
    card(page, sum(|n| n.sessions.into()), "sessions")?;
    card(page, status.objects, "objects known")?;
    card(page, ByteSize(status.index_bytes).display(), "index memory")?;
    card(page, HitShare::of(status), "bytes read locally")?;
    if let Some(bytes) = status.block_bytes {
        card(page, ByteSize(bytes).display(), "block size")?;
    }
    page.push_str("</div><h2>Workers</h2>");
    if status.nodes.is_empty() {
        page.push_str(
            "<p>None has registered. Workers report to this replica's gRPC side; check their <code>service</code> address.</p>",
        );
    } else {
        page.push_str(
            "<div class=\"scroll\"><table><tr><th>node</th><th>state</th><th class=\"n\">last heard</th><th>cache</th>\
             <th class=\"n\">blocks</th><th class=\"n\">sessions</th><th class=\"n\">local</th><th class=\"n\">peers</th>\
             <th class=\"n\">origin</th><th>descriptors</th><th>addresses</th></tr>\n",
        );
        status.nodes.iter().try_for_each(|node| row(page, node))?;
        page.push_str("</table></div>");
    }
    page.push_str(
        "<p>The same for programs: <a href=\"/status.json\">/status.json</a>, <a href=\"/v1/nodes\">/v1/nodes</a>, \
         <a href=\"/metrics\">/metrics</a>. One object: <code>/v1/objects?path=s3a://bucket/key</code>.</p>\
         </main></body></html>\n",
    );
    Ok(())
}

/// Of what workers say: whatever that is, it adds up to something.
fn total(figures: impl Iterator<Item = u64>) -> u64 {
    figures.fold(0, u64::saturating_add)
}

fn card(page: &mut String, value: impl Display, label: &str) -> fmt::Result {
    write!(
        page,
        "<div class=\"card\"><b>{value}</b><span>{label}</span></div>"
    )
}

fn row(page: &mut String, node: &NodeEntry) -> fmt::Result {
    let state = match node.state {
        WorkerStateName::Ready if !node.synced => ("ready", "ready, reporting"),
        WorkerStateName::Ready => ("ready", "ready"),
        WorkerStateName::Draining => ("draining", "draining"),
        WorkerStateName::Lost => ("lost", "lost"),
    };
    let grants = if node.grants_enabled { "yes" } else { "no" };
    write!(
        page,
        "<tr><td>{}<small>{} epoch {}</small></td><td class=\"{}\">{}</td><td class=\"n\">{} ago</td>",
        Text(&node.node),
        Text(&node.uuid),
        node.epoch,
        state.0,
        state.1,
        Age(node.lease_age_ms)
    )?;
    write!(
        page,
        "<td><progress max=\"{}\" value=\"{}\"></progress> {} of {}",
        node.capacity_bytes.max(1),
        node.used_bytes,
        ByteSize(node.used_bytes).display(),
        ByteSize(node.capacity_bytes).display()
    )?;
    if node.unlinked_held_bytes > 0 {
        let held = ByteSize(node.unlinked_held_bytes).display();
        write!(page, "<small>{held} evicted, still held</small>")?;
    }
    write!(
        page,
        "</td><td class=\"n\">{}</td><td class=\"n\">{}</td>",
        node.blocks, node.sessions
    )?;
    for bytes in [node.local_bytes, node.peer_bytes, node.origin_bytes] {
        write!(page, "<td class=\"n\">{}</td>", ByteSize(bytes).display())?;
    }
    write!(page, "<td>{grants}</td><td>")?;
    for (name, address) in [
        ("data", &node.data_address),
        ("admin", &node.admin_address),
        ("zone", &node.zone),
    ] {
        if !address.is_empty() {
            write!(page, "<small>{name} {}</small>", Text(address))?;
        }
    }
    page.push_str("</td></tr>\n");
    Ok(())
}

/// Text in HTML: nothing that a worker says is markup.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}

/// Milliseconds for people.
struct Age(u64);

impl Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        match seconds {
            0..10 => write!(f, "{:.1} s", self.0 as f64 / 1000.0),
            10..120 => write!(f, "{seconds} s"),
            120..7200 => write!(f, "{} min", seconds / 60),
            7200..172_800 => write!(f, "{} h", seconds / 3600),
            _ => write!(f, "{} days", seconds / 86_400),
        }
    }
}

/// The share of bytes that came from the reader's own node.
struct HitShare {
    local: u64,
    all: u64,
}

impl HitShare {
    fn of(status: &StatusAnswer) -> Self {
        let local = total(status.nodes.iter().map(|n| n.local_bytes));
        let others = total(status.nodes.iter().flat_map(|n| [n.peer_bytes, n.origin_bytes]));
        Self {
            local,
            all: local.saturating_add(others),
        }
    }
}

impl Display for HitShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.all == 0 {
            return f.write_str("-");
        }
        write!(f, "{:.1} %", self.local as f64 * 100.0 / self.all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_is_never_markup() {
        assert_eq!(Text("<script>\"'&").to_string(), "&lt;script&gt;&quot;&#39;&amp;");
    }

    #[test]
    fn ages_are_told_in_the_unit_that_fits() {
        let shown: Vec<String> = [900, 61_000, 600_000, 90_000_000, 1_000_000_000]
            .map(|ms| Age(ms).to_string())
            .into();
        assert_eq!(shown, ["0.9 s", "61 s", "10 min", "25 h", "11 days"]);
    }
}
