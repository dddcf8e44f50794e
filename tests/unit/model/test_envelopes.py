"""Messages that other services wrap, as their documentation shows them."""

from __future__ import annotations

import base64
import gzip
import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoagent.model.envelopes import recognise

JOB = {"requestId": "r1", "s3Key": "code.zip"}
TEXT = json.dumps(JOB)
SNS = {
    "Type": "Notification",
    "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
    "TopicArn": "arn:aws:sns:us-west-2:123456789012:jobs",
    "Message": TEXT,
    "Timestamp": "2012-05-02T00:54:06.655Z",
    "SignatureVersion": "1",
    "Signature": "EXAMPLEw6JRN...",
    "SigningCertURL": "https://sns.us-west-2.amazonaws.com/x.pem",
    "UnsubscribeURL": "https://sns.us-west-2.amazonaws.com/?Action=Unsubscribe",
}
EVENT_BRIDGE = {
    "version": "0",
    "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718",
    "detail-type": "job",
    "source": "app",
    "account": "111122223333",
    "time": "2017-12-22T18:43:48Z",
    "region": "us-west-1",
    "resources": [],
    "detail": JOB,
}
S3 = {
    "Records": [
        {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": "us-west-2",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": "code"}, "object": {"key": "my+code.zip", "size": 1024}},
        }
    ]
}
S3_TEST = {
    "Service": "Amazon S3",
    "Event": "s3:TestEvent",
    "Time": "2014-10-13T15:57:02.089Z",
    "Bucket": "bucketname",
    "RequestId": "5582815E1AEA5ADF",
    "HostId": "8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR+YstdA6Knx4Ip8EXAMPLE",
}
WRAPPED = {
    "SNS envelope": SNS,
    "SNS subscription confirmation": SNS | {"Type": "SubscriptionConfirmation", "SubscribeURL": "https://x"},
    "EventBridge event": EVENT_BRIDGE,
    "S3 event": S3,
    "S3 test event": S3_TEST,
    "Lambda event of SQS records": {"Records": [{"messageId": "1", "body": TEXT, "eventSource": "aws:sqs"}]},
    "Lambda event of SNS records": {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": TEXT}}]},
    "Kinesis event": {"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": "e30="}}]},
    "DynamoDB stream event": {"Records": [{"eventSource": "aws:dynamodb", "dynamodb": {}}]},
    "Lambda event": {"Records": [{"eventSource": "aws:other"}]},
    "Lambda destination record": {"requestContext": {}, "requestPayload": JOB, "responsePayload": JOB},
    "API Gateway event": {"httpMethod": "POST", "path": "/", "headers": {}, "body": TEXT},
    "CloudEvents envelope": {"specversion": "1.0", "id": "1", "source": "/", "type": "job", "data": JOB},
    "SQS message as it was received": {"MessageId": "1", "ReceiptHandle": "x", "Body": TEXT},
    "SendMessage request": {"QueueUrl": "http://x", "MessageBody": TEXT},
    "Celery message": {"body": "W10=", "content-encoding": "utf-8", "headers": {}, "properties": {}},
    "JSON array": [JOB, JOB],
    "JSON text within a JSON string": TEXT,
    'field "request_id"': {"request_id": "r1"},
    'field "RequestID"': {"RequestID": "r1"},
    'job within the field "job"': {"job": JOB},
    'job within the field "payload"': {"payload": TEXT},
}
ENCODED = {
    "base64": base64.b64encode(TEXT.encode()).decode(),
    "base64 of the URL's alphabet": base64.urlsafe_b64encode(json.dumps(JOB | {"x": "??>>~~"}).encode())
    .decode()
    .rstrip("="),
    "base64 in lines": base64.encodebytes(TEXT.encode() * 1).decode(),
    "base64 in a string": json.dumps(base64.b64encode(TEXT.encode()).decode()),
    "gzip in base64": base64.b64encode(gzip.compress(TEXT.encode(), mtime=0)).decode(),
    "URL-encoded JSON": quote(TEXT),
    "XML": "<job><requestId>r1</requestId></job>",
    "form data": "requestId=r1&s3Key=code.zip",
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_is_named_with_the_way_out(name: str):
    envelope = recognise(json.dumps(WRAPPED[name]))
    assert envelope is not None
    assert envelope.name == name
    assert str(envelope) == f"{name}: {envelope.advice}"


def test_an_sns_envelope_says_what_to_turn_on():
    assert "raw message delivery" in str(recognise(json.dumps(SNS, indent=2)))


@pytest.mark.parametrize("name", ENCODED)
def test_an_encoding_is_named(name: str):
    envelope = recognise("\ufeff " + ENCODED[name] + "\n")
    assert envelope is not None
    assert name.startswith(envelope.name)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "{}",
        "null",
        "7",
        '"text"',
        "hello world",
        "hello",
        "deadbeefdeadbeef",
        '{"a": 1}',
        "[" * 9999,
    ],
)
def test_other_text_is_no_wrapper(body: str):
    assert recognise(body) is None


@settings(deadline=None)
@given(
    st.text(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["Records", "body", "Message", "TopicArn", "eventSource", "detail", "job", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ).map(json.dumps)
)
def test_any_text_is_examined_without_an_error(body: str):
    envelope = recognise(body)
    assert envelope is None or str(envelope).isprintable()
