"use strict";

const fs = require("node:fs");
const _ = require("lodash");

const event = JSON.parse(fs.readFileSync(process.env.PAYLOAD_FILE, "utf8"));

const visits = _.range(event.visits).map((at) => ({
  user: `u${(at * 31) % 97}`,
  page: event.pages[(at * 7) % event.pages.length],
  seconds: (at * 13) % 300,
}));
const byPage = _(visits)
  .groupBy("page")
  .mapValues((group) => ({ visits: group.length, users: _.uniqBy(group, "user").length, seconds: _.sumBy(group, "seconds") }))
  .toPairs()
  .orderBy([(pair) => pair[1].seconds, "0"], ["desc", "asc"])
  .value();
console.log(JSON.stringify(byPage));
console.log(JSON.stringify(_.take(_.orderBy(_.toPairs(_.countBy(visits, "user")), ["1", "0"], ["desc", "asc"]), 3)));
