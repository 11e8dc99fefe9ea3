//! The body of `POST /v1/locations`, read with limits and with errors that name the field.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, Serialize};

/// Asks where objects' blocks are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LocationsRequest {
    /// Names of the nodes where the caller's executors are; nothing else is answered. Absent or `null`: every node.
    /// Empty: no node. Names without a worker are allowed and never answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Vec<String>>,
    /// The objects. An entry may be just the path as a string.
    pub paths: Vec<PathRequest>,
}

/// An object, and its generation as far as the caller knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PathRequest {
    /// `scheme://bucket/key`; the key stands as it is, nothing is decoded.
    pub path: String,
    /// The generation that the caller means, with or without quotes: another one's residency is not answered. Absent:
    /// the newest generation that a worker confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The object's size. Absent: that of the newest generation that a worker confirmed, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// What one request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Entries of `paths`.
    pub max_paths: usize,
    /// Entries of `candidates`.
    pub max_candidates: usize,
}

/// A body that is no request.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRequest {
    /// Not the expected JSON.
    #[error("cannot read the request: {0}")]
    Json(#[from] serde_json::Error),
    /// More entries than are allowed.
    #[error("`{field}` has {count} entries, one request may have {limit}: send several requests")]
    TooMany {
        /// The field.
        field: &'static str,
        /// Its entries.
        count: usize,
        /// The limit.
        limit: usize,
    },
}

impl LocationsRequest {
    /// Reads a body. What exceeds a limit is counted, not kept: memory stays within the limits whatever is sent.
    pub fn parse(body: &[u8], limits: RequestLimits) -> Result<Self, InvalidRequest> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let read = RequestSeed(limits).deserialize(&mut deserializer)?;
        deserializer.end()?;
        let bounded = [
            ("paths", read.paths.count, limits.max_paths),
            ("candidates", read.candidates_count, limits.max_candidates),
        ];
        if let Some((field, count, limit)) = bounded.into_iter().find(|(_, count, limit)| count > limit) {
            return Err(InvalidRequest::TooMany { field, count, limit });
        }
        Ok(Self {
            candidates: read.candidates,
            paths: read.paths.kept,
        })
    }
}

struct Read {
    candidates: Option<Vec<String>>,
    candidates_count: usize,
    paths: Bounded<PathRequest>,
}

/// The first entries of a list, and how many it had.
struct Bounded<T> {
    kept: Vec<T>,
    count: usize,
}

struct RequestSeed(RequestLimits);

impl<'de> DeserializeSeed<'de> for RequestSeed {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Read, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RequestSeed {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"an object such as {"paths": ["s3a://bucket/key"]}"#)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        let mut candidates = None;
        let mut paths = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "paths" if paths.is_some() => return Err(A::Error::duplicate_field("paths")),
                "candidates" if candidates.is_some() => return Err(A::Error::duplicate_field("candidates")),
                "paths" => {
                    paths = Some(map.next_value_seed(List {
                        field: "paths",
                        limit: self.0.max_paths,
                        entry: PathSeed,
                    })?);
                }
                "candidates" => {
                    candidates = Some(map.next_value_seed(Optional(List {
                        field: "candidates",
                        limit: self.0.max_candidates,
                        entry: TextSeed,
                    }))?);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let candidates = candidates.flatten();
        Ok(Read {
            candidates_count: candidates.as_ref().map_or(0, |list| list.count),
            candidates: candidates.map(|list| list.kept),
            paths: paths.ok_or_else(|| A::Error::missing_field("paths"))?,
        })
    }
}

/// `null` or a list.
struct Optional<S>(List<S>);

impl<'de, S: DeserializeSeed<'de> + Copy> DeserializeSeed<'de> for Optional<S> {
    type Value = Option<Bounded<S::Value>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de> + Copy> Visitor<'de> for Optional<S> {
    type Value = Option<Bounded<S::Value>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list in `{}`", self.0.field)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

/// A list of which at most `limit` entries are kept.
struct List<S> {
    field: &'static str,
    limit: usize,
    entry: S,
}

impl<'de, S: DeserializeSeed<'de> + Copy> DeserializeSeed<'de> for List<S> {
    type Value = Bounded<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, S: DeserializeSeed<'de> + Copy> Visitor<'de> for List<S> {
    type Value = Bounded<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list in `{}`", self.field)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        let named =
            |count: usize, error: A::Error| A::Error::custom(format!("{}[{count}]: {error}", self.field));
        while kept.len() < self.limit {
            match list.next_element_seed(self.entry) {
                Ok(Some(entry)) => kept.push(entry),
                Ok(None) => {
                    let count = kept.len();
                    return Ok(Bounded { kept, count });
                }
                Err(error) => return Err(named(kept.len(), error)),
            }
        }
        let mut count = kept.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Bounded { kept, count })
    }
}

#[derive(Clone, Copy)]
struct TextSeed;

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        serde::Deserialize::deserialize(deserializer)
    }
}

#[derive(Clone, Copy)]
struct PathSeed;

impl<'de> DeserializeSeed<'de> for PathSeed {
    type Value = PathRequest;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<PathRequest, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PathSeed {
    type Value = PathRequest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a path or an object such as {"path": "s3a://bucket/key", "size_bytes": 1}"#)
    }

    fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<PathRequest, E> {
        self.visit_string(path.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, path: String) -> Result<PathRequest, E> {
        Ok(PathRequest {
            path,
            ..PathRequest::default()
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PathRequest, A::Error> {
        fn value<'de, T: serde::Deserialize<'de>, A: MapAccess<'de>>(
            map: &mut A,
            field: &str,
        ) -> Result<T, A::Error> {
            map.next_value()
                .map_err(|error| A::Error::custom(format!("`{field}`: {error}")))
        }
        let mut path = None;
        let mut etag = None;
        let mut size_bytes = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "path" if path.is_some() => return Err(A::Error::duplicate_field("path")),
                "etag" if etag.is_some() => return Err(A::Error::duplicate_field("etag")),
                "size_bytes" if size_bytes.is_some() => return Err(A::Error::duplicate_field("size_bytes")),
                "path" => path = Some(value(&mut map, "path")?),
                "etag" => etag = Some(value::<Option<String>, _>(&mut map, "etag")?),
                "size_bytes" => size_bytes = Some(value::<Option<u64>, _>(&mut map, "size_bytes")?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(PathRequest {
            path: path.ok_or_else(|| A::Error::missing_field("path"))?,
            etag: etag.flatten(),
            size_bytes: size_bytes.flatten(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: RequestLimits = RequestLimits {
        max_paths: 3,
        max_candidates: 2,
    };

    fn parse(body: &str) -> Result<LocationsRequest, InvalidRequest> {
        LocationsRequest::parse(body.as_bytes(), LIMITS)
    }

    fn refused(body: &str) -> String {
        parse(body).unwrap_err().to_string()
    }

    #[test]
    fn a_path_may_be_a_string_or_an_object() {
        let request = parse(
            r#"{"paths": ["s3a://b/k", {"path": "s3://b/l", "etag": "\"e\"", "size_bytes": 7, "later": [1]}]}"#,
        )
        .unwrap();
        assert_eq!(request.candidates, None);
        assert_eq!(request.paths[0].path, "s3a://b/k");
        assert_eq!(
            (request.paths[1].etag.as_deref(), request.paths[1].size_bytes),
            (Some("\"e\""), Some(7))
        );
    }

    #[test]
    fn absent_and_null_candidates_are_everybody_and_an_empty_list_is_nobody() {
        assert_eq!(parse(r#"{"paths": []}"#).unwrap().candidates, None);
        assert_eq!(
            parse(r#"{"candidates": null, "paths": []}"#).unwrap().candidates,
            None
        );
        assert_eq!(
            parse(r#"{"candidates": [], "paths": []}"#).unwrap().candidates,
            Some(Vec::new())
        );
    }

    #[test]
    fn an_error_names_the_field() {
        for (body, named) in [
            (
                r#"{"paths": ["a", {"path": "b", "size_bytes": "12"}]}"#,
                "paths[1]: `size_bytes`",
            ),
            (
                r#"{"paths": ["a", {"path": "b", "size_bytes": -1}]}"#,
                "paths[1]: `size_bytes`",
            ),
            (r#"{"paths": [{"path": "b", "etag": 7}]}"#, "paths[0]: `etag`"),
            (r#"{"paths": [{"etag": "e"}]}"#, "paths[0]: missing field `path`"),
            (r#"{"paths": [7]}"#, "paths[0]: invalid type"),
            (r#"{"paths": "s3a://b/k"}"#, "a list in `paths`"),
            (r#"{"paths": ["a"], "candidates": "n"}"#, "a list in `candidates`"),
            (r#"{"paths": ["a"], "candidates": ["n", 3]}"#, "candidates[1]"),
            (r#"{"paths": [], "paths": []}"#, "duplicate field `paths`"),
            (r#"{"candidates": []}"#, "missing field `paths`"),
            ("[]", "an object such as"),
            ("", "EOF"),
            (r#"{"paths": []} x"#, "trailing"),
        ] {
            let message = refused(body);
            assert!(message.contains(named), "{body}: {message}");
        }
    }

    #[test]
    fn more_than_the_limit_is_counted_and_refused() {
        assert_eq!(
            refused(r#"{"paths": ["a", "b", "c", "d", "e"]}"#),
            "`paths` has 5 entries, one request may have 3: send several requests"
        );
        assert!(refused(r#"{"paths": [], "candidates": ["a", "b", "c"]}"#).starts_with("`candidates` has 3"));
        assert_eq!(parse(r#"{"paths": ["a", "b", "c"]}"#).unwrap().paths.len(), 3);
    }

    #[test]
    fn deep_nesting_overflows_no_stack() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert!(parse(&format!(r#"{{"later": {deep}, "paths": []}}"#)).is_ok());
        assert!(parse(&format!(r#"{{"paths": {deep}}}"#)).is_err());
        assert!(parse(&deep).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = LocationsRequest::parse(&body, LIMITS);
        }

        #[test]
        fn a_request_reads_as_it_was_written(
            candidates in prop::option::of(prop::collection::vec(".{0,9}", 0..3)),
            paths in prop::collection::vec((".{0,20}", prop::option::of(".{0,9}"), prop::option::of(any::<u64>())), 0..4),
        ) {
            let request = LocationsRequest {
                candidates,
                paths: paths.into_iter().map(|(path, etag, size_bytes)| PathRequest { path, etag, size_bytes }).collect(),
            };
            let limits = RequestLimits { max_paths: 4, max_candidates: 3 };
            let body = serde_json::to_vec(&request).unwrap();
            prop_assert_eq!(LocationsRequest::parse(&body, limits).unwrap(), request);
        }
    }
}
