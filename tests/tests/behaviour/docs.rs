//! The documentation names what exists: tests, files, functions, settings, metrics, links.
//!
//! Tables between `<!-- generated: NAME -->` and `<!-- end -->` are made from the code; `UPDATE_DOCS=1` writes them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the workspace is there")
}

fn read(relative: &str) -> String {
    std::fs::read_to_string(root().join(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

fn files_beneath(relative: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(relative)];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory)
            .expect("a readable directory")
            .flatten()
        {
            let path = entry.path();
            let hidden =
                entry.file_name().to_string_lossy().starts_with('.') || entry.file_name() == "target";
            if path.is_dir() && !hidden {
                left.push(path);
            } else if path.extension().is_some_and(|other| other == extension) {
                found.push(path);
            }
        }
    }
    found
}

/// The parts of a text in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_statement_in_the_semantics_names_tests_that_exist() {
    let code: Vec<String> = ["rs", "java"]
        .iter()
        .flat_map(|extension| files_beneath("", extension))
        .map(|path| std::fs::read_to_string(path).expect("readable"))
        .collect();
    let mut statements = 0;
    for statement in read("docs/semantics.md").split("\n- ").skip(1) {
        statements += 1;
        let statement = statement.split("\n\n").next().unwrap_or_default();
        let (_, tests) = statement
            .rsplit_once("Tests:")
            .unwrap_or_else(|| panic!("names no test: {statement}"));
        let mut named = 0;
        for test in quoted(tests) {
            let exists = ["fn", "void"]
                .map(|keyword| format!("{keyword} {test}("))
                .iter()
                .any(|function| code.iter().any(|text| text.contains(function)));
            assert!(exists, "no such test: {test}");
            named += 1;
        }
        assert!(named > 0, "names no test: {statement}");
    }
    assert!(
        statements >= 20,
        "only {statements} statements were found: has the page's form changed?"
    );
}

#[test]
fn the_architecture_names_files_and_functions_that_exist() {
    let page = read("docs/architecture.md");
    let words: Vec<&str> = page.split('`').collect();
    let mut named = 0;
    for place in (1..words.len()).step_by(2) {
        let path = words[place];
        if Path::new(path)
            .extension()
            .is_none_or(|extension| extension != "rs")
        {
            continue;
        }
        let text = read(path);
        // `file.rs` (`function`, `other`)
        if words[place + 1] == " (" {
            let mut at = place + 2;
            loop {
                let function = format!("fn {}", words[at]);
                let exists = text.contains(&format!("{function}(")) || text.contains(&format!("{function}<"));
                assert!(exists, "{path} has no {function}");
                named += 1;
                if words[at + 1].contains(')') {
                    break;
                }
                at += 2;
            }
        }
    }
    assert!(
        named >= 8,
        "only {named} functions were found: has the page's form changed?"
    );
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    for page in files_beneath("", "md") {
        let text = std::fs::read_to_string(&page).expect("readable");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().expect("a file is in a directory").join(target);
            assert!(path.exists(), "{}: {link} leads nowhere", page.display());
        }
    }
}

/// A structure's fields with their texts, as a table. `skip` names fields that are tables of their own.
fn settings(source: &str, structure: &str) -> String {
    let (_, rest) = source
        .split_once(&format!("pub struct {structure} {{"))
        .expect("the structure is there");
    let (body, _) = rest.split_once("\n}").expect("a structure ends");
    let mut table = String::from("| key | meaning |\n|---|---|\n");
    let mut text = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            text.push(doc.trim());
        } else if let Some(field) = line.strip_prefix("pub ") {
            let name = field.split(':').next().expect("a field has a type");
            writeln!(table, "| `{name}` | {} |", text.join(" ").replace('|', "\\|"))
                .expect("a string takes everything");
            text.clear();
        }
    }
    table
}

/// Compares the generated part of a page with what it should be, or writes it.
fn hold(page: &str, name: &str, table: &str) {
    let text = read(page);
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = text
        .split_once(&begin)
        .unwrap_or_else(|| panic!("{page} has no part {name}"));
    let (now, after) = rest.split_once("<!-- end -->").expect("a generated part ends");
    if now == table {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "{page}, part {name}, is not what the code says; run UPDATE_DOCS=1 cargo test -p cachelet-tests docs"
    );
    std::fs::write(
        root().join(page),
        format!("{before}{begin}{table}<!-- end -->{after}"),
    )
    .expect("the page is ours");
}

#[test]
fn the_configuration_page_says_what_the_code_says() {
    let page = "docs/configuration.md";
    let daemon = read("daemon/src/config.rs");
    for (part, structure) in [
        ("worker", "WorkerConfig"),
        ("cache", "CacheConfig"),
        ("local", "LocalConfig"),
        ("remote", "RemoteConfig"),
        ("admin", "AdminConfig"),
        ("locality", "LocalityConfig"),
        ("fill", "FillConfig"),
    ] {
        hold(page, part, &settings(&daemon, structure));
    }
    hold(
        page,
        "store",
        &settings(&read("daemon/src/origin/config.rs"), "StoreConfig"),
    );
    let service = read("locality/src/config.rs");
    let (_, fields) = service.split_once("pub const FIELDS").expect("the list is there");
    let (fields, _) = fields.split_once("\n];").expect("the list ends");
    let mut texts = fields.split('"').skip(1).step_by(2).collect::<Vec<_>>();
    // Quotes within a text are escaped, and split it.
    let mut joined: Vec<String> = Vec::new();
    for text in texts.drain(..) {
        match joined.last_mut() {
            Some(last) if last.ends_with('\\') => {
                last.pop();
                write!(last, "\"{text}").expect("a string takes everything");
            }
            _ => joined.push(text.to_owned()),
        }
    }
    let mut table = String::from("| key | meaning |\n|---|---|\n");
    for pair in joined.chunks(2) {
        writeln!(table, "| `{}` | {} |", pair[0], pair[1]).expect("a string takes everything");
    }
    hold(page, "service", &table);
}

#[test]
fn the_metrics_page_names_every_metric_and_no_other() {
    let names = |source: &str, before: &str, prefix: &str| -> BTreeSet<String> {
        let text = read(source);
        let registered = text
            .split(before)
            .skip(1)
            .filter_map(|rest| rest.split('"').nth(1).map(str::to_owned));
        // The macro that defines the rows, and the tests, name none.
        let registered = registered.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
        registered
            .map(|name| format!("{prefix}{}", name.trim_end_matches("_total")))
            .collect()
    };
    let mut defined = names("daemon/src/metrics.rs", "registry.register(", "cachelet_");
    for kind in ["= \"counter\"", "= \"gauge\"", "= \"histogram\""] {
        defined.extend(names("locality/src/metrics.rs", kind, "cachelet_locality_"));
    }
    let page = read("docs/metrics.md");
    let documented: BTreeSet<String> = quoted(&page)
        .filter(|word| word.starts_with("cachelet_"))
        .map(|word| word.split('{').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(documented, defined);
}
