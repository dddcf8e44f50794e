// Summary and histogram of measurements. The input is the file PAYLOAD_FILE, which can have any size.
"use strict";

const fs = require("node:fs");
const path = require("node:path");

const { sensor, unit, values } = JSON.parse(fs.readFileSync(process.env.PAYLOAD_FILE, "utf8"));

const sorted = [...values].sort((a, b) => a - b);
const quantile = (share) => {
  const position = share * (sorted.length - 1);
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (position - below) * (sorted[above] - sorted[below]);
};
const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
const deviation = Math.sqrt(sorted.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (sorted.length - 1));
const summary = {
  sensor,
  unit,
  count: sorted.length,
  mean,
  deviation,
  minimum: sorted[0],
  median: quantile(0.5),
  p95: quantile(0.95),
  maximum: sorted.at(-1),
};

const bins = Array(8).fill(0);
const width = (summary.maximum - summary.minimum) / bins.length || 1;
for (const value of sorted) {
  bins[Math.min(Math.floor((value - summary.minimum) / width), bins.length - 1)] += 1;
}
const bars = bins.map((count, index) => {
  const height = (100 * count) / Math.max(...bins);
  return `<rect x="${index * 40}" y="${100 - height}" width="36" height="${height}" fill="#4477aa"/>`;
});

// The worker uploads the files in OUTPUT_DIR, also those in subfolders.
const output = process.env.OUTPUT_DIR;
fs.mkdirSync(path.join(output, "charts"));
fs.writeFileSync(path.join(output, "summary.json"), JSON.stringify(summary, null, 2) + "\n");
fs.writeFileSync(
  path.join(output, "charts", "histogram.svg"),
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 100">${bars.join("")}</svg>\n`,
);

const blocks = "▁▂▃▄▅▆▇█";
const sparkline = bins.map((count) => blocks[Math.ceil((7 * count) / Math.max(...bins))]).join("");
console.log(`${sensor}: ${mean.toFixed(2)} ± ${deviation.toFixed(2)} ${unit} ${sparkline}`);
