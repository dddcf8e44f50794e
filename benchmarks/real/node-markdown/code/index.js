"use strict";

const fs = require("node:fs");
const { createHash } = require("node:crypto");
const { marked } = require("marked");

const event = JSON.parse(fs.readFileSync(process.env.PAYLOAD_FILE, "utf8"));

const sections = Array.from({ length: event.versions }, (_, at) => {
  const lines = event.kinds.map((kind, place) => `* **${kind}**: item \`${at}.${place}\` ([#${at * 10 + place}](https://example.org))`);
  return `## ${at}.0.0\n\n${lines.join("\n")}\n\n> quoted ${at}\n\n| a | b |\n| - | - |\n| ${at} | ${at * at} |\n`;
});
const html = marked.parse(`# Changes\n\n${sections.join("\n")}`);
console.log(html.split("<li>").length - 1, html.split("<table>").length - 1);
console.log(createHash("sha256").update(html).digest("hex").slice(0, 16));
