import json
import os

from jinja2 import DictLoader, Environment

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

PAGES = {
    "base": "<!doctype html><title>{% block title %}{% endblock %}</title><main>{% block main %}{% endblock %}</main>",
    "order": """{% extends "base" %}
{% block title %}Order {{ number }}{% endblock %}
{% block main %}
<h1>Thank you, {{ customer | title }}</h1>
<table>
{%- for item in items | sort(attribute="name") %}
<tr class="{{ loop.cycle("odd", "even") }}"><td>{{ item.name }}</td><td>{{ item.count }}</td>
<td>{{ "%.2f" | format(item.count * item.price) }}</td></tr>
{%- else %}<tr><td>nothing</td></tr>
{%- endfor %}
</table>
{% endblock %}""",
}
environment = Environment(loader=DictLoader(PAGES), autoescape=True)
items = [
    {"name": f"{event['names'][at % len(event['names'])]} <{at}>", "count": at % 7 + 1, "price": at * 1.25}
    for at in range(event["rows"])
]
page = environment.get_template("order").render(number=event["number"], customer=event["customer"], items=items)
print(len(page))
print("\n".join(page.splitlines()[:6]))
