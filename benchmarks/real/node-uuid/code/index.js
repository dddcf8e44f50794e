"use strict";

const fs = require("node:fs");
const { createHash } = require("node:crypto");
const uuid = require("uuid");

const event = JSON.parse(fs.readFileSync(process.env.PAYLOAD_FILE, "utf8"));

const space = uuid.v5(event.domain, uuid.v5.DNS);
const ids = Array.from({ length: event.names }, (_, at) => uuid.v5(`object/${at}`, space));
const valid = ids.filter((id) => uuid.validate(id) && uuid.version(id) === 5).length;
console.log(space, valid, new Set(ids).size, ids.slice().sort()[0]);
console.log(createHash("sha256").update(ids.join()).digest("hex").slice(0, 16));
