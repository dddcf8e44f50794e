"""Signatures of Version 4, compared with AWS's published example and with botocore."""

from __future__ import annotations

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoagent.aws import sigv4
from nanoagent.aws.sigv4 import Scope

EMPTY_HASH = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_published_example_of_a_signed_get_is_reproduced():
    """Amazon S3 API Reference, "Signature Calculations for the Authorization Header", "GET Object"."""
    signed_at = "20130524T000000Z"
    headers = {
        "host": "examplebucket.s3.amazonaws.com",
        "range": "bytes=0-9",
        "x-amz-content-sha256": EMPTY_HASH,
        "x-amz-date": signed_at,
    }
    assert sigv4.authorization(
        "/test.txt",
        headers,
        payload_hash=EMPTY_HASH,
        scope=Scope("us-east-1", "s3"),
        access_key="AKIAIOSFODNN7EXAMPLE",
        secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        signed_at=signed_at,
    ) == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


NAMES = st.from_regex(r"x-amz-[a-z][a-z0-9-]{0,12}", fullmatch=True)
# All that a header may have, spaces at its ends and repeated ones included.
VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
PATHS = st.from_regex(r"/[A-Za-z0-9%._~/-]{0,40}", fullmatch=True)
SECRETS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=40)


@settings(max_examples=400)
@given(
    path=PATHS,
    headers=st.dictionaries(NAMES, VALUES, max_size=6),
    etag=VALUES,
    region=st.sampled_from(["us-east-1", "ap-northeast-2", "us-gov-west-1", "auto"]),
    access_key=st.from_regex(r"[A-Z0-9]{1,20}", fullmatch=True),
    secret_key=SECRETS,
    at=st.integers(0, 4_000_000_000),
)
def test_each_signature_is_that_of_botocore(  # noqa: PLR0917 - the parts of a request
    path: str,
    headers: dict[str, str],
    etag: str,
    region: str,
    access_key: str,
    secret_key: str,
    at: int,
):
    signed_at = sigv4.timestamp(at)
    sent = headers | {"x-amz-content-sha256": EMPTY_HASH, "x-amz-date": signed_at, "if-none-match": etag}
    request = AWSRequest("GET", url=f"https://bucket.s3.{region}.amazonaws.com{path}", headers=sent)
    request.context["timestamp"] = signed_at
    signer = S3SigV4Auth(Credentials(access_key, secret_key), "s3", region)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    signer._inject_signature_to_request(request, signer.signature(text, request))

    ours = sigv4.authorization(
        path,
        {**sent, "host": f"bucket.s3.{region}.amazonaws.com"},
        payload_hash=EMPTY_HASH,
        scope=Scope(region, "s3"),
        access_key=access_key,
        secret_key=secret_key,
        signed_at=signed_at,
    )

    assert ours == request.headers["Authorization"]
