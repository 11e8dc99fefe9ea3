//! Tables for people, JSON for programs.

use std::io::{self, Write};

use bytesize::ByteSize;
use serde::Serialize;

use crate::failure::Failure;

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("writing to standard output", &error))
        }
        _ => Ok(()),
    }
}

/// Writes a value as JSON and a line's end.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&format!("{}\n", json(value)))
}

/// A value as JSON.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("these values have text keys and finite numbers")
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// Rows under headings, each column as wide as its widest cell. Columns of numbers are flush right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(headings[column].chars().count())
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let numeric: Vec<bool> = (0..headings.len())
        .map(|column| {
            let mut cells = rows.iter().map(|row| row[column].as_str());
            !rows.is_empty() && cells.all(is_number)
        })
        .collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (column, cell) in cells.enumerate() {
            let space = " ".repeat(widths[column] - cell.chars().count());
            let (before, after) = if numeric[column] {
                (space.as_str(), "")
            } else {
                ("", space.as_str())
            };
            let gap = if column == 0 { "" } else { "  " };
            text.extend([gap, before, cell, after]);
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut headings.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// A number, a size with its unit, or the lack of one.
fn is_number(cell: &str) -> bool {
    let number = cell.split_once(' ').map_or(cell, |(number, _)| number);
    cell == "-" || number.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_and_numbers_are_flush_right() {
        let rows = vec![
            vec!["node-1".into(), "5".into(), "x".into()],
            vec!["n".into(), "1000".into(), "-".into()],
        ];
        let expected = "NODE    BLOCKS  NOTE\nnode-1       5  x\nn         1000  -\n";
        assert_eq!(table(&["NODE", "BLOCKS", "NOTE"], &rows), expected);
    }
}
