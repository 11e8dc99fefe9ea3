//! Where a store is reached: scheme, host and port, and nothing else.

use std::net::IpAddr;

/// An endpoint, as parsed from `http(s)://host[:port]`. The host is in lower case; default ports are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    https: bool,
    host: String,
    port: Option<u16>,
}

impl Endpoint {
    /// Parses an endpoint; the error says what is wrong with the text.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (https, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("does not begin with https:// or http://"),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err("carries a user or password: remove them");
        }
        if rest.contains(['/', '?', '#']) {
            return Err("has a path: keep only the host and port");
        }
        let authority: http::uri::Authority = rest.parse().map_err(|_| "has no valid host and port")?;
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() {
            return Err("has no valid host and port");
        }
        if rest.len() > authority.host().len() && authority.port_u16().is_none_or(|port| port == 0) {
            return Err("has no valid port: use 1 to 65535");
        }
        let default_port = if https { 443 } else { 80 };
        Ok(Self {
            https,
            host,
            port: authority.port_u16().filter(|port| *port != default_port),
        })
    }

    /// The endpoint of a host at the default port.
    pub(super) fn https(host: &str) -> Self {
        Self {
            https: true,
            host: host.to_owned(),
            port: None,
        }
    }

    /// AWS's S3 host for a region.
    pub(super) fn aws_host(region: &str) -> String {
        let suffix = if region.starts_with("cn-") {
            "amazonaws.com.cn"
        } else {
            "amazonaws.com"
        };
        format!("s3.{region}.{suffix}")
    }

    pub(super) fn is_https(&self) -> bool {
        self.https
    }

    /// `host`, or `host:port` if the port is not the scheme's own.
    pub(super) fn host_and_port(&self) -> String {
        self.port
            .map_or_else(|| self.host.clone(), |port| format!("{}:{port}", self.host))
    }

    /// `scheme://host[:port]`.
    pub(super) fn url(&self) -> String {
        format!(
            "{}://{}",
            if self.https { "https" } else { "http" },
            self.host_and_port()
        )
    }

    /// `scheme://bucket.host[:port]`.
    pub(super) fn url_with_bucket(&self, bucket: &str) -> String {
        format!(
            "{}://{bucket}.{}",
            if self.https { "https" } else { "http" },
            self.host_and_port()
        )
    }

    /// The region in an OSS endpoint: `oss-cn-hangzhou-internal.aliyuncs.com` is `cn-hangzhou`.
    pub(super) fn oss_region(&self) -> Option<String> {
        let label = self.host.strip_suffix(".aliyuncs.com")?.strip_prefix("oss-")?;
        let region = label.strip_suffix("-internal").unwrap_or(label);
        // `oss-accelerate` and `oss-accelerate-overseas` belong to no region.
        (is_region(region) && !region.starts_with("accelerate")).then(|| region.to_owned())
    }

    pub(super) fn is_ip_address(&self) -> bool {
        self.ip().is_some()
    }

    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Whether no bucket's name can stand in front of the host.
    pub(super) fn is_local(&self) -> bool {
        self.is_ip_address() || self.is_loopback()
    }

    fn ip(&self) -> Option<IpAddr> {
        self.host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .ok()
    }

    /// Whether `text` is spelled the way a client's fingerprint spells a host.
    pub(super) fn is_host_and_port(text: &str) -> bool {
        Self::parse(&format!("http://{text}")).is_ok_and(|endpoint| endpoint.host_and_port() == text)
            || Self::parse(&format!("https://{text}")).is_ok_and(|endpoint| endpoint.host_and_port() == text)
    }
}

/// Whether a text can be a region: it becomes part of host names and of signatures.
pub(super) fn is_region(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

/// Whether a text can be a bucket of a store behind HTTP. Callers choose it, and it becomes part of host names and
/// paths: `evil.example.com?` or `..` must not lead a signed request elsewhere.
pub(super) fn is_remote_bucket(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_scheme_a_host_and_a_port() {
        let url = |text: &str| Endpoint::parse(text).map(|endpoint| endpoint.url());
        assert_eq!(
            url("https://S3.Example.com/").as_deref(),
            Ok("https://s3.example.com")
        );
        assert_eq!(
            url("https://s3.example.com:443").as_deref(),
            Ok("https://s3.example.com")
        );
        assert_eq!(
            url("http://127.0.0.1:9000").as_deref(),
            Ok("http://127.0.0.1:9000")
        );
        assert_eq!(url("http://[::1]:9000").as_deref(), Ok("http://[::1]:9000"));
        for bad in [
            "",
            "s3.example.com",
            "ftp://a",
            "https://",
            "https:///x",
            "https://a/b",
            "https://a?x=1",
            "https://key:secret@a",
            "https://a:0",
            "https://a:99999",
            "https://a:",
            "https://a b",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_is_told_from_names_that_only_look_like_it() {
        let loopback = |text: &str| Endpoint::parse(text).unwrap().is_loopback();
        assert!(loopback("http://localhost:1") && loopback("http://127.8.9.1") && loopback("http://[::1]"));
        assert!(!loopback("http://127.0.0.1.example.com") && !loopback("http://localhost.example.com"));
    }

    #[test]
    fn an_oss_endpoint_names_its_region() {
        let region = |host: &str| Endpoint::https(host).oss_region();
        assert_eq!(
            region("oss-cn-hangzhou.aliyuncs.com").as_deref(),
            Some("cn-hangzhou")
        );
        assert_eq!(
            region("oss-cn-hangzhou-internal.aliyuncs.com").as_deref(),
            Some("cn-hangzhou")
        );
        assert_eq!(region("oss-accelerate.aliyuncs.com"), None);
        assert_eq!(region("s3.oss-cn-hangzhou.aliyuncs.com"), None);
        assert_eq!(region("oss.example.com"), None);
    }
}
