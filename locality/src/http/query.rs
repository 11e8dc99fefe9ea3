//! Parameters of a URL's query. `%XX` is decoded; `+` stands for itself, because object keys have it.

/// A parameter whose value is no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value of `{name}` is no percent-encoded UTF-8 text")]
pub(super) struct NotText {
    name: String,
}

/// The decoded value of the first parameter of this name.
pub(super) fn parameter(query: &str, name: &str) -> Result<Option<String>, NotText> {
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let decoded = value.map(|value| {
        decode(value).ok_or_else(|| NotText {
            name: name.to_owned(),
        })
    });
    decoded.transpose()
}

fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_percent_encoding() {
        assert_eq!(
            parameter("x=1&path=s3a%3A%2F%2Fb%2Fa+b%20%25%F0%9F%98%80&path=2", "path"),
            Ok(Some("s3a://b/a+b %😀".to_owned()))
        );
        assert_eq!(parameter("path=", "path"), Ok(Some(String::new())));
        assert_eq!(parameter("pathology=1&xpath=2", "path"), Ok(None));
        assert_eq!(parameter("", "path"), Ok(None));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for query in ["path=%", "path=%2", "path=%zz", "path=%ff", "path=%+1"] {
            assert!(parameter(query, "path").is_err(), "{query}");
        }
    }
}
