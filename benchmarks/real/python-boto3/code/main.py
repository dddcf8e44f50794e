import json
import os
from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.stub import ANY, Stubber

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

s3 = boto3.client(
    "s3", region_name=event["region"], aws_access_key_id="benchmark", aws_secret_access_key="benchmark"
)
link = s3.generate_presigned_url("get_object", {"Bucket": event["bucket"], "Key": "a/b.txt"}, ExpiresIn=600)
print(urlsplit(link).netloc, urlsplit(link).path, sorted(parse_qs(urlsplit(link).query)))
with Stubber(s3) as stub:
    contents = [{"Key": f"in/{at}.json", "Size": at * 100} for at in range(event["objects"])]
    stub.add_response("list_objects_v2", {"Contents": contents, "KeyCount": len(contents)}, {"Bucket": event["bucket"]})
    stub.add_response("put_object", {"ETag": '"1"'}, {"Bucket": event["bucket"], "Key": "out.json", "Body": ANY})
    listed = s3.list_objects_v2(Bucket=event["bucket"])["Contents"]
    total = sum(item["Size"] for item in listed)
    print(len(listed), total, s3.put_object(Bucket=event["bucket"], Key="out.json", Body=json.dumps({"total": total}))["ETag"])
