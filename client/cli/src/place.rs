//! What `load` and `free` are about: one object, or all beneath a prefix.

use std::fmt;
use std::str::FromStr;

use cachelet_protocol::ids::{BucketName, ObjectPath, Scheme};

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Object(ObjectPath),
    Prefix(Prefix),
}

/// All objects of a bucket whose keys begin alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) scheme: Scheme,
    pub(crate) bucket: BucketName,
    /// Empty, or with a slash at its end.
    pub(crate) key: String,
}

impl Place {
    /// The same as a prefix.
    pub(crate) fn recursive(self) -> Self {
        match self {
            Self::Prefix(_) => self,
            Self::Object(ObjectPath { scheme, bucket, key }) => Self::Prefix(Prefix {
                scheme,
                bucket,
                key: format!("{key}/"),
            }),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.ends_with('/') {
            return text.parse().map(Self::Object).map_err(|error| {
                format!("{error}; all objects beneath a prefix are scheme://bucket/prefix/, all of a bucket scheme://bucket/")
            });
        }
        let expected = || {
            format!(
                "{text:?} is no prefix: expected scheme://bucket/prefix/, or scheme://bucket/ for all of it"
            )
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let (bucket, key) = rest.split_once('/').ok_or_else(expected)?;
        Ok(Self::Prefix(Prefix {
            scheme: scheme.parse().map_err(|error| format!("{error}"))?,
            bucket: BucketName::new(bucket).map_err(|error| format!("{error}"))?,
            key: key.to_owned(),
        }))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(path) => path.fmt(f),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.bucket, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_tells_a_prefix_from_an_object() {
        let place = |text: &str| text.parse::<Place>().unwrap();
        assert_eq!(place("s3a://lake/t/p").to_string(), "s3://lake/t/p");
        assert!(matches!(place("s3a://lake/t/p"), Place::Object(_)));
        assert_eq!(place("s3a://lake/t/p").recursive(), place("s3://lake/t/p/"));
        assert_eq!(place("s3://lake/t/").recursive(), place("s3://lake/t/"));
        let Place::Prefix(all) = place("oss://lake/") else {
            panic!("a prefix");
        };
        assert_eq!((all.scheme, all.key.as_str()), (Scheme::Oss, ""));
        for bad in [
            "",
            "/",
            "lake/t/",
            "s3://lake",
            "s3:///",
            "s3://",
            "gs://lake/t/",
            "s3:///t/",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
