import json
import os
import sqlite3

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

with sqlite3.connect(":memory:") as database:
    database.executescript("""
        create table customers (id integer primary key, name text, city text);
        create table orders (id integer primary key, customer integer references customers, cents integer);
        create index orders_customer on orders (customer);
    """)
    customers = ((at, f"customer {at}", event["cities"][at % len(event["cities"])]) for at in range(event["customers"]))
    database.executemany("insert into customers values (?, ?, ?)", customers)
    orders = ((at, at * 7 % event["customers"], at * 7919 % 10_000) for at in range(event["orders"]))
    database.executemany("insert into orders values (?, ?, ?)", orders)
    totals = database.execute("""
        select city, count(*), sum(cents), max(cents) from orders join customers on customers.id = customer
        group by city having count(*) > 10 order by 3 desc
    """)
    for row in totals:
        print(*row, sep=" | ")
