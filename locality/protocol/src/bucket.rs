//! Which buckets a store serves. Workers choose a store by it and the locality service follows them, so both must choose
//! alike.

use std::fmt;

use crate::ids::BucketName;

/// One entry of a store's `buckets`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum BucketPattern {
    /// Every bucket whose name begins so; empty: all of them.
    Prefix(String),
    /// Exactly this bucket.
    Name(BucketName),
}

impl BucketPattern {
    /// Whether the store serves `bucket`.
    pub fn matches(&self, bucket: &BucketName) -> bool {
        match self {
            Self::Name(name) => name == bucket,
            Self::Prefix(prefix) => bucket.as_str().starts_with(prefix.as_str()),
        }
    }

    /// Of two patterns that match a bucket, the one with the greater value wins.
    pub fn specificity(&self) -> usize {
        match self {
            Self::Name(_) => usize::MAX,
            Self::Prefix(prefix) => prefix.len(),
        }
    }
}

impl fmt::Display for BucketPattern {
    /// As it is configured: the name, or the prefix and `*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_more_specific_than_any_prefix_and_a_longer_prefix_than_a_shorter() {
        let bucket = BucketName::new("logs-eu").unwrap();
        let patterns = ["", "logs-", "logs-eu"].map(|prefix| BucketPattern::Prefix(prefix.to_owned()));
        let name = BucketPattern::Name(bucket.clone());
        assert!(
            patterns
                .iter()
                .chain([&name])
                .all(|pattern| pattern.matches(&bucket))
        );
        assert!(patterns.is_sorted_by_key(BucketPattern::specificity));
        assert!(name.specificity() > patterns[2].specificity());
        assert!(!BucketPattern::Prefix("log-".to_owned()).matches(&bucket));
        assert_eq!(
            (patterns[1].to_string(), name.to_string()),
            ("logs-*".into(), "logs-eu".into())
        );
    }
}
