//! AWS Signature Version 4 over the exact bytes that are sent.
//!
//! Written here because S3 clients normalize what they sign and send (`a//b`, `./a`, `a/../b`), and tests need objects
//! under just such keys.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

/// Stands for the body's hash: bodies here are big, and sent over loopback.
pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// What a signature covers.
pub(super) struct ToSign<'a> {
    pub(super) method: &'a str,
    /// Percent-encoded, as in the request line.
    pub(super) path: &'a str,
    /// Encoded and sorted, without the question mark.
    pub(super) query: &'a str,
    /// Lower-case names, sorted; `host` and every `x-amz-` header must be there.
    pub(super) headers: &'a [(String, String)],
    /// SHA-256 of the body in hexadecimal, or [`UNSIGNED_PAYLOAD`].
    pub(super) payload_hash: &'a str,
    /// As in `x-amz-date`: `20130524T000000Z`.
    pub(super) timestamp: &'a str,
    pub(super) region: &'a str,
}

/// The value of the `authorization` header.
pub(super) fn authorization(request: &ToSign<'_>, access_key: &str, secret_key: &str) -> String {
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, request.query);
    let mut signed_headers = String::new();
    for (name, value) in request.headers {
        writeln!(canonical, "{name}:{}", value.trim()).expect("writing to a string succeeds");
        if !signed_headers.is_empty() {
            signed_headers.push(';');
        }
        signed_headers.push_str(name);
    }
    write!(canonical, "\n{signed_headers}\n{}", request.payload_hash).expect("writing to a string succeeds");

    let date = &request.timestamp[..8];
    let scope = format!("{date}/{}/s3/aws4_request", request.region);
    let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
    let string_to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{digest}", request.timestamp);

    let mut key = hmac_sha256(format!("AWS4{secret_key}").as_bytes(), date.as_bytes());
    for part in [request.region, "s3", "aws4_request"] {
        key = hmac_sha256(&key, part.as_bytes());
    }
    let signature = hex::encode(hmac_sha256(&key, string_to_sign.as_bytes()));
    format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={signed_headers}, Signature={signature}"
    )
}

/// Percent-encodes everything but the unreserved characters and `/`.
pub(super) fn encode_path(raw: &str) -> String {
    let mut encoded = String::with_capacity(raw.len());
    for byte in raw.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a string succeeds");
        }
    }
    encoded
}

/// The time of `x-amz-date`.
pub(super) fn timestamp(now: SystemTime) -> String {
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, counted in years that begin in March (Howard Hinnant's
    // civil_from_days, for days after 1970).
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut padded = [0_u8; BLOCK];
    if key.len() > BLOCK {
        padded[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        padded[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new()
        .chain_update(padded.map(|byte| byte ^ 0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(padded.map(|byte| byte ^ 0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_signature_is_the_one_of_amazons_own_example() {
        // Amazon S3 API reference, "Signature calculations ... examples", GET object.
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let headers = [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", empty),
            ("x-amz-date", "20130524T000000Z"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let request = ToSign {
            method: "GET",
            path: "/test.txt",
            query: "",
            headers: &headers,
            payload_hash: empty,
            timestamp: "20130524T000000Z",
            region: "us-east-1",
        };
        let header = authorization(
            &request,
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        );
        let signature = header.rsplit('=').next();
        assert_eq!(
            signature,
            Some("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")
        );
    }

    #[test]
    fn timestamps_are_dates_of_the_calendar() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(951_782_400), "20000229T000000Z");
        assert_eq!(at(1_369_353_600), "20130524T000000Z");
        assert_eq!(at(1_735_689_599), "20241231T235959Z");
    }

    #[test]
    fn keys_are_encoded_byte_by_byte() {
        assert_eq!(encode_path("/b/a b%2F+~é"), "/b/a%20b%252F%2B~%C3%A9");
    }
}
