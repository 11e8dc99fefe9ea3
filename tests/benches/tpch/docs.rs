//! The table of `docs/benchmarks.md`, between two markers, and the plot `docs/images/tpch.svg`.

use std::fmt::Write as _;
use std::io;

use cachelet_tests::repository_root;
use cachelet_tests::table::bytes;

use super::report::Report;

const BEGIN: &str = "<!-- tpch: written by make bench-tpch UPDATE_DOCS=1 -->";
const END: &str = "<!-- tpch: end -->";

/// What the plot shows, from the slowest to the fastest: others differ too little from these.
const SHOWN: [(&str, &str); 4] = [
    ("s3a", "#c44e52"),
    ("cold", "#dd8452"),
    ("warm", "#4c72b0"),
    ("local", "#8c8c8c"),
];

pub(super) fn update(report: &Report) -> io::Result<()> {
    let docs = repository_root().join("docs");
    std::fs::create_dir_all(docs.join("images"))?;
    std::fs::write(docs.join("images/tpch.svg"), plot(report))?;
    let path = docs.join("benchmarks.md");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => "# Benchmarks\n".to_owned(),
        Err(error) => return Err(error),
    };
    std::fs::write(path, with_section(&text, &section(report)))
}

/// The text with what is between the markers replaced; without markers, they come at the end.
fn with_section(text: &str, section: &str) -> String {
    let found = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = found.map_or_else(
        || (format!("{}\n\n", text.trim_end()), "\n"),
        |(before, after)| (before.to_owned(), after),
    );
    format!("{before}{BEGIN}\n{section}{END}{after}")
}

fn section(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!(
        "Spark {} (`local[2]`), TPC-H scale factor {}, {} queries, in turn query by query in one run; S3 server behind a \
         proxy with\n30 ms to the first byte and 90 MB/s a connection. Requests and bytes are counted at the S3 server.",
        report.spark,
        report.scale_factor,
        report.contenders[0].query_seconds.len(),
    ));
    line(String::new());
    line("| | seconds | beside local | stock S3A takes | GET | HEAD | LIST | from the origin |".to_owned());
    line("|---|---:|---:|---:|---:|---:|---:|---:|".to_owned());
    for contender in &report.contenders {
        let ratios = report.ratios[contender.name];
        let traffic = contender.traffic;
        let counts = if contender.behind_proxy {
            format!(
                "{} | {} | {} | {}",
                traffic.gets,
                traffic.heads,
                traffic.lists,
                bytes(traffic.data_bytes)
            )
        } else {
            "- | - | - | -".to_owned()
        };
        line(format!(
            "| {} | {:.1} | {:.2}x | {:.1}x | {counts} |",
            contender.label, contender.seconds, ratios.local, ratios.s3a
        ));
    }
    line(String::new());
    line("![Seconds by query](images/tpch.svg)".to_owned());
    text
}

/// Width of a bar, and the space between queries.
const BAR: f64 = 8.0;
const GAP: f64 = 10.0;
/// Where the bars begin, and how high the highest is.
const LEFT: f64 = 44.0;
const TOP: f64 = 40.0;
const HEIGHT: f64 = 220.0;

/// Bars for each query, seconds upwards.
fn plot(report: &Report) -> String {
    let shown: Vec<_> = SHOWN
        .iter()
        .filter_map(|(name, colour)| {
            let contender = report
                .contenders
                .iter()
                .find(|contender| contender.name == *name)?;
            Some((contender, *colour))
        })
        .collect();
    let most = shown
        .iter()
        .flat_map(|(contender, _)| contender.query_seconds.values())
        .fold(1.0_f64, |most, seconds| most.max(*seconds));
    let step = BAR * shown.len() as f64 + GAP;
    let queries: Vec<&String> = report.contenders[0].query_seconds.keys().collect();
    let (width, bottom) = (LEFT + step * queries.len() as f64 + GAP, TOP + HEIGHT);
    let mut svg = String::new();
    let mut draw =
        |element: std::fmt::Arguments<'_>| writeln!(svg, "{element}").expect("a string takes everything");
    draw(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">",
        bottom + 30.0
    ));
    draw(format_args!(
        "<title>TPC-H, scale factor {}, Spark {}: seconds by query</title>",
        report.scale_factor, report.spark
    ));
    draw(format_args!(
        "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    ));
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let y = bottom - share * HEIGHT;
        draw(format_args!(
            "<path d=\"M{LEFT} {y:.1}H{width:.0}\" stroke=\"#ddd\"/>"
        ));
        draw(format_args!(
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{:.1} s</text>",
            LEFT - 5.0,
            y + 4.0,
            share * most
        ));
    }
    for (index, (contender, colour)) in shown.iter().enumerate() {
        let x = LEFT + 190.0 * index as f64;
        draw(format_args!(
            "<rect x=\"{x:.0}\" y=\"12\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"
        ));
        draw(format_args!(
            "<text x=\"{:.0}\" y=\"21\">{} ({:.1} s)</text>",
            x + 14.0,
            contender.label,
            contender.seconds
        ));
        for (place, query) in queries.iter().enumerate() {
            let seconds = contender.query_seconds[*query];
            let height = seconds / most * HEIGHT;
            draw(format_args!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{BAR}\" height=\"{height:.1}\" fill=\"{colour}\">\
                 <title>{query}, {}: {seconds:.2} s</title></rect>",
                LEFT + GAP + step * place as f64 + BAR * index as f64,
                bottom - height,
                contender.label
            ));
        }
    }
    for (place, query) in queries.iter().enumerate() {
        draw(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{query}</text>",
            LEFT + GAP + step * place as f64 + BAR * shown.len() as f64 / 2.0,
            bottom + 16.0
        ));
    }
    draw(format_args!("</svg>"));
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_where_it_is_and_added_where_it_is_not() {
        let first = with_section("# Benchmarks\n", "one\n");
        assert_eq!(first, format!("# Benchmarks\n\n{BEGIN}\none\n{END}\n"));
        let text = first.replace("# Benchmarks", "# Head") + "tail\n";
        assert_eq!(
            with_section(&text, "two\n"),
            format!("# Head\n\n{BEGIN}\ntwo\n{END}\ntail\n")
        );
    }
}
