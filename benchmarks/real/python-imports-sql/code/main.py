import json
import os

import boto3
import sqlalchemy as sql

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

table = sql.Table("sales", sql.MetaData(), sql.Column("region", sql.String), sql.Column("amount", sql.Integer))
query = sql.select(table.c.region).where(table.c.amount > event["least"])
print(" ".join(str(query).split()), boto3.__name__)
