"use strict";

const fs = require("node:fs");
const jwt = require("jsonwebtoken");

const event = JSON.parse(fs.readFileSync(process.env.PAYLOAD_FILE, "utf8"));

let accepted = 0;
const refused = {};
for (let user = 0; user < event.users; user += 1) {
  const claims = { sub: `user-${user}`, scope: event.scopes, iat: 1700000000, exp: user % 7 ? 4000000000 : 1700000001 };
  const token = jwt.sign(claims, event.key, { algorithm: "HS256" });
  try {
    accepted += jwt.verify(user % 5 ? token : token.slice(0, -2), event.key).sub === `user-${user}` ? 1 : 0;
  } catch (error) {
    refused[error.message] = (refused[error.message] || 0) + 1;
  }
}
console.log(accepted, JSON.stringify(refused, Object.keys(refused).sort()));
