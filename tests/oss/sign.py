#!/usr/bin/env python3
"""Signs requests with Alibaba Cloud's own SDK, to check the daemon's OSS signatures against it.

    python3 -m venv .venv && .venv/bin/pip install alibabacloud-oss-v2==1.4.1
    .venv/bin/python tests/oss/sign.py            writes tests/oss/vectors.json
    .venv/bin/python tests/oss/sign.py --check    fails if the committed file differs

The requests are those the daemon sends: every header it adds before signing is signed. The keys are made up.
`cargo test -p cacheletd oss_signature` reads the vectors; it needs no Python.
"""

import datetime
import json
import pathlib
import sys
from urllib.parse import quote

from alibabacloud_oss_v2.signer import SignerV4
from alibabacloud_oss_v2.types import Credentials, HttpRequest, SigningContext

SDK = "alibabacloud-oss-v2==1.4.1"
VECTORS = pathlib.Path(__file__).with_name("vectors.json")
ACCESS_KEY_ID = "LTAIexampleExampleExample"
ACCESS_KEY_SECRET = "exampleSecret/with+signs=0123456789"

RANGED = {"range": "bytes=1048576-9437183", "if-match": '"D41D8CD98F00B204E9800998ECF8427E-7"'}
STANDARD = {"x-oss-range-behavior": "standard"}

# name, method, region, bucket, key, query, headers, security token, time
REQUESTS = [
    ("head", "HEAD", "cn-hangzhou", "lake", "table/part-0.parquet", {}, {}, None, "2026-11-01T00:00:00"),
    ("get", "GET", "cn-hangzhou", "lake", "table/part-0.parquet", {}, {}, None, "2026-11-01T23:59:59"),
    ("ranged conditional get", "GET", "cn-beijing", "lake", "table/part-0.parquet", {}, RANGED | STANDARD, None,
     "2026-02-28T12:00:00"),
    ("of one version", "GET", "cn-hangzhou", "lake", "k", {"versionId": "CAEQARiBgID8rumR2hYiIGUyOTAy+/=~"},
     RANGED | STANDARD, None, "2026-11-01T00:00:00"),
    ("with a security token", "GET", "cn-hangzhou", "lake", "k", {}, RANGED | STANDARD, "CAIS/token+with=signs",
     "2026-11-01T00:00:00"),
    ("of a key that is not ascii", "GET", "eu-central-1", "lake-2", "ключ/文件/é 😀.txt", {"versionId": "v"},
     RANGED | STANDARD, "token", "2026-11-01T00:00:00"),
    ("of a key with every sign", "GET", "cn-hangzhou", "lake", "a b/c=d/100%/%2F/+~-_./[x]{y}|^`\"<>'()*!$@&?#;:,\\", {},
     RANGED | STANDARD, None, "2026-11-01T00:00:00"),
]


def sign(name, method, region, bucket, key, query, headers, token, time):
    """One request, and what the SDK signs it with."""
    url = f"https://{bucket}.oss-{region}.aliyuncs.com/" + quote(key, safe="/")
    if query:
        url += "?" + "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in query.items())
    request = HttpRequest(method, url, headers=dict(headers))
    context = SigningContext(
        product="oss",
        region=region,
        bucket=bucket,
        key=key,
        request=request,
        credentials=Credentials(ACCESS_KEY_ID, ACCESS_KEY_SECRET, token),
        signing_time=datetime.datetime.fromisoformat(time).replace(tzinfo=datetime.timezone.utc),
        additional_headers=set(headers),
    )
    SignerV4().sign(context)
    return {
        "name": name,
        "method": method,
        "region": region,
        "bucket": bucket,
        "key": key,
        "query": query,
        "headers": headers,
        "security_token": token,
        "date": request.headers["x-oss-date"],
        "url": url,
        "string_to_sign": context.string_to_sign,
        "authorization": request.headers["Authorization"],
    }


def main():
    vectors = {
        "generated_by": f"tests/oss/sign.py with {SDK}; see the script for how to run it again",
        "access_key_id": ACCESS_KEY_ID,
        "access_key_secret": ACCESS_KEY_SECRET,
        "vectors": [sign(*request) for request in REQUESTS],
    }
    text = json.dumps(vectors, indent=2, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        if VECTORS.read_text(encoding="utf-8") != text:
            sys.exit(f"{VECTORS} differs from what {SDK} signs: run tests/oss/sign.py and look at the difference")
        print(f"{VECTORS}: {len(REQUESTS)} vectors agree with {SDK}")
    else:
        VECTORS.write_text(text, encoding="utf-8")
        print(f"{VECTORS}: {len(REQUESTS)} vectors written")


if __name__ == "__main__":
    main()
