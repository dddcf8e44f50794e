"use strict";

const fs = require("node:fs");
const { parse } = require("csv-parse/sync");

const event = JSON.parse(fs.readFileSync(process.env.PAYLOAD_FILE, "utf8"));

const text = ["id,customer,city,cents"];
for (let at = 0; at < event.rows; at += 1) {
  text.push(`${at},"Customer ""${at % 50}"", Ltd.",${event.cities[at % event.cities.length]},${(at * 7919) % 100000}`);
}
const rows = parse(text.join("\n"), { columns: true, cast: (value, context) => (context.column === "cents" && !context.header ? Number(value) : value) });
const totals = {};
for (const row of rows) totals[row.city] = (totals[row.city] || 0) + row.cents;
console.log(rows.length, rows[3].customer, JSON.stringify(totals));
