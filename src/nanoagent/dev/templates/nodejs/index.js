// Greets a person. The input is JSON on standard input.
"use strict";

const fs = require("node:fs");
const path = require("node:path");

const { name } = JSON.parse(fs.readFileSync(0, "utf8"));

console.log(`Hello ${name}!`);

// Files in OUTPUT_DIR are the output files of the run.
fs.writeFileSync(path.join(process.env.OUTPUT_DIR, "greeting.txt"), `Hello ${name}!\n`);
