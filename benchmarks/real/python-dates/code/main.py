import datetime as dt
import json
import os
from zoneinfo import ZoneInfo

from dateutil import rrule
from dateutil.relativedelta import relativedelta

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

start = dt.datetime.fromisoformat(event["start"])
end = start + relativedelta(months=event["months"])
workdays = rrule.rrule(rrule.DAILY, dtstart=start, until=end, byweekday=range(5))
payments = list(rrule.rrule(rrule.MONTHLY, dtstart=start, until=end, bymonthday=-1))
print("working days", sum(1 for _ in workdays), "payments", len(payments), payments[1].date())
for zone in event["zones"]:
    local = [payment.replace(tzinfo=ZoneInfo("Asia/Seoul")).astimezone(ZoneInfo(zone)) for payment in payments]
    print(zone, local[0].isoformat(), local[6].isoformat(), len({moment.utcoffset() for moment in local}))
