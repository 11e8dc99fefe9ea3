//! What is wrong with a configuration file, on one line: where, the key, its value and what to do.
//!
//! Parsers quote the file over several lines, secrets that somebody put there by mistake included. This takes no more than
//! a position and a message from them, and never shows the value of a key that sounds like a secret's. It knows nothing of
//! any format but that a line is `key = value`, so no parser is a dependency of this crate.

use std::ops::Range;

/// Longest piece of the file that is shown.
const MAX_SHOWN_CHARS: usize = 120;
/// In a key's name: its value may be a secret.
const SECRET_WORDS: [&str; 5] = ["secret", "password", "token", "credential", "key"];

/// One line about a file's `text`: a parser's `message` about the bytes at `span`, told to somebody who will edit the file.
pub fn problem(text: &str, span: Option<Range<usize>>, message: &str) -> String {
    let message = message.trim().replace('\n', "; ");
    // serde's words for what a type wants, in words of the file.
    let message = message
        .replace(
            "expected parsable string",
            "expected a size such as \"512MiB\" or \"100GiB\"",
        )
        .replace(
            "expected a duration",
            "expected a duration such as \"500ms\" or \"30s\"",
        );
    let remedy = if message.starts_with("missing field") {
        "add it"
    } else if message.starts_with("unknown field") {
        "correct its name or remove it"
    } else if message.starts_with("duplicate key") {
        "keep one of them"
    } else {
        "correct it"
    };
    // Of what is missing at the top there is no place: the parser points at the first byte.
    let place = span.filter(|span| !(remedy == "add it" && span.len() <= 1));
    match place.and_then(|span| shown_line(text, span.start)) {
        Some((number, line)) => format!("line {number}: {line}: {message}; {remedy}"),
        None => format!("{message}; {remedy}"),
    }
}

/// The number and the harmless part of the line that has the byte `at`.
fn shown_line(text: &str, at: usize) -> Option<(usize, String)> {
    let before = text.get(..at.min(text.len()))?;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[start..].lines().next().unwrap_or_default().trim();
    let number = before.matches('\n').count() + 1;
    let header = line.starts_with('[');
    let shown = match line.split_once('=') {
        _ if header => line.to_owned(),
        Some((key, _)) if is_secret(key) => format!("{} = (not shown)", key.trim()),
        Some(_) if !is_secret(line) => line.to_owned(),
        // Part of a longer value, or something else that nobody can tell to be harmless.
        _ => "(not shown)".to_owned(),
    };
    Some((number, shown.chars().take(MAX_SHOWN_CHARS).collect()))
}

fn is_secret(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[cache]\nquota = \"lots\"\nsecret_access_key = \"hunter2\"\n\"\"\"\nhunter3\n";

    fn at(needle: &str, message: &str) -> String {
        let start = TEXT.find(needle).unwrap();
        problem(TEXT, Some(start..start + needle.len()), message)
    }

    #[test]
    fn key_value_and_remedy_are_on_one_line() {
        assert_eq!(
            at(
                "\"lots\"",
                "invalid value: string \"lots\", expected parsable string"
            ),
            "line 2: quota = \"lots\": invalid value: string \"lots\", expected a size such as \"512MiB\" or \"100GiB\"; \
             correct it"
        );
        assert_eq!(
            at("[cache]", "missing field `directory`"),
            "line 1: [cache]: missing field `directory`; add it"
        );
        assert_eq!(
            problem(TEXT, Some(0..1), "missing field `local`"),
            "missing field `local`; add it"
        );
        assert_eq!(problem(TEXT, None, "a\nb\n"), "a; b; correct it");
    }

    #[test]
    fn nothing_that_may_be_a_secret_is_shown() {
        let shown = at(
            "secret_access_key",
            "unknown field `secret_access_key`, expected `name`",
        );
        assert_eq!(
            shown,
            "line 3: secret_access_key = (not shown): unknown field `secret_access_key`, expected `name`; \
             correct its name or remove it"
        );
        assert!(!at("hunter3", "expected `=`").contains("hunter"));
        assert!(!at("\"hunter2\"", "unclosed string").contains("hunter"));
    }

    #[test]
    fn any_span_is_survived() {
        for span in [0..0, TEXT.len()..TEXT.len(), usize::MAX - 1..usize::MAX] {
            assert!(!problem(TEXT, Some(span), "x").contains('\n'));
        }
        assert!(!problem("ü", Some(1..2), "x").is_empty());
    }
}
