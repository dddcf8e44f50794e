"""Keys and buckets as other tools write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.model.object_names import bucket_hint, key_hint


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("my%20code.zip", '"my code.zip"'),
        ("caf%C3%A9%2Fcode.zip", '"café/code.zip"'),
        ("a%20b+c.zip", '"a b c.zip"'),
        ("a+b.zip", '"a b.zip"'),
        ("/code.zip", '"code.zip"'),
        ("//code.zip", '"code.zip"'),
        ("code.zip\n", '"code.zip"'),
        (" code.zip", '"code.zip"'),
        ("folder\\code.zip", '"folder/code.zip"'),
        ("./code.zip", '"code.zip"'),
        ("folder//code.zip", '"folder/code.zip"'),
        ("mine/code.zip", '"code.zip"'),
        ("/mine/my%20code.zip", '"my code.zip"'),
        ("s3://other/folder/code.zip", 's3Bucket to "other" and s3Key to "folder/code.zip"'),
        ("S3://other/code#1.zip", 's3Bucket to "other" and s3Key to "code#1.zip"'),
        ("s3a://other/code.zip", 's3Bucket to "other" and s3Key to "code.zip"'),
        ("arn:aws:s3:::other/code.zip", 's3Bucket to "other" and s3Key to "code.zip"'),
        ("arn:aws-cn:s3:::other/code.zip", 's3Bucket to "other" and s3Key to "code.zip"'),
        ("https://other.s3.amazonaws.com/code.zip", 's3Bucket to "other" and s3Key to "code.zip"'),
        (
            "https://an.other.s3.ap-northeast-2.amazonaws.com/my%20code.zip?X-Amz-Signature=1",
            's3Bucket to "an.other" and s3Key to "my code.zip"',
        ),
        ("https://other.s3-us-west-2.amazonaws.com/code.zip", 's3Bucket to "other" and s3Key to "code.zip"'),
        ("https://OTHER.S3.AMAZONAWS.COM/code.zip", 's3Bucket to "other" and s3Key to "code.zip"'),
        ("https://other.s3.cn-north-1.amazonaws.com.cn/code.zip", 's3Bucket to "other"'),
        ("https://s3.us-east-1.amazonaws.com/other/code.zip", 's3Bucket to "other" and s3Key to "code.zip"'),
        ("https://s3-us-west-2.amazonaws.com/other/code.zip", 's3Bucket to "other" and s3Key to "code.zip"'),
        ("https://s3.cn-north-1.amazonaws.com.cn/other/code.zip", 's3Bucket to "other"'),
    ],
)
def test_a_key_in_another_form_is_told_with_the_right_one(key: str, said: str):
    hint = key_hint("mine", key)
    assert hint is not None
    assert said in hint.en
    for part in said.replace("s3Bucket to ", "").replace("s3Key to ", "").split(" and "):
        assert part in hint.ko


@pytest.mark.parametrize(
    "key", ["code.zip", "folder/code.zip", "100%.zip", "mine", "s3.zip", "https", "한글 코드.zip"]
)
def test_a_plain_key_has_no_hint(key: str):
    assert key_hint("mine", key) is None


@pytest.mark.parametrize(
    ("bucket", "said"),
    [
        ("s3://mine", 'Set it to "mine".'),
        ("s3://mine/", 'Set it to "mine".'),
        ("mine/", 'Set it to "mine".'),
        ("/mine", 'Set it to "mine".'),
        ("arn:aws:s3:::mine", 'Set it to "mine".'),
        ("mine/folder", 'Set it to "mine", and begin s3Key with "folder/".'),
        ("s3://mine/folder/", 'Set it to "mine", and begin s3Key with "folder/".'),
        ("https://mine.s3.amazonaws.com", 'Set it to "mine".'),
        ("https://s3.ap-northeast-2.amazonaws.com/mine", 'Set it to "mine".'),
    ],
)
def test_a_bucket_in_another_form_is_told_with_its_name(bucket: str, said: str):
    hint = bucket_hint(bucket)
    assert hint is not None
    assert said in hint.en
    assert '"mine"' in hint.ko


@pytest.mark.parametrize("bucket", ["Mine", "a", "", "/", "s3://", "my_bucket", "x" * 3000 + "/"])
def test_another_bad_name_has_no_hint(bucket: str):
    assert bucket_hint(bucket) is None


@pytest.mark.parametrize(
    "host",
    [
        "s3.example.com",
        "mine.s3.example.com",
        "mine.amazonaws.com",
        "mine.s4.amazonaws.com",
        "mine.s3.xamazonaws.com",
        "s3amazonaws.com",
        "amazonaws.com",
        ".s3.amazonaws.com",
        "mine..s3.amazonaws.com",
        "mine.s3..amazonaws.com",
    ],
)
def test_an_address_of_another_host_names_no_bucket(host: str):
    for hint in (key_hint("mine", f"https://{host}/a/b"), bucket_hint(f"https://{host}")):
        assert hint is None or "s3Key is an address" not in hint.en
        assert hint is None or '"mine"' not in hint.en


def test_a_name_that_no_address_needs_is_not_examined():
    assert key_hint("mine", "/" + "a" * 2047) is not None
    assert key_hint("mine", "/" + "a" * 2048) is None
    assert bucket_hint("a/" + "a" * 2046) is not None
    assert bucket_hint("a/" + "a" * 2047) is None


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_name_is_examined_without_an_error_and_shown_printable(key: str, bucket: str):
    for hint in (key_hint(bucket, key), bucket_hint(key)):
        assert hint is None or (hint.en.isprintable() and hint.ko.isprintable())
