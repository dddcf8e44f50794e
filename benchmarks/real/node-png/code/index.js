"use strict";

const fs = require("node:fs");
const { createHash } = require("node:crypto");
const { PNG } = require("pngjs");

const event = JSON.parse(fs.readFileSync(process.env.PAYLOAD_FILE, "utf8"));

const { width, height } = event;
const picture = new PNG({ width, height });
for (let y = 0; y < height; y += 1) {
  for (let x = 0; x < width; x += 1) {
    const isBar = y > height - (event.values[Math.floor((x * event.values.length) / width)] / 100) * height;
    picture.data.set(isBar ? [40, x % 256, 160, 255] : [250, 250, 245, 255], (y * width + x) * 4);
  }
}
const small = new PNG({ width: width / 4, height: height / 4 });
for (let at = 0; at < small.width * small.height; at += 1) {
  const [x, y] = [at % small.width, Math.floor(at / small.width)];
  for (let part = 0; part < 4; part += 1) {
    let sum = 0;
    for (let near = 0; near < 16; near += 1) {
      sum += picture.data[((y * 4 + (near >> 2)) * width + x * 4 + (near & 3)) * 4 + part];
    }
    small.data[at * 4 + part] = sum >> 4;
  }
}
const read = PNG.sync.read(PNG.sync.write(small));
console.log(read.width, read.height, createHash("sha256").update(read.data).digest("hex").slice(0, 16));
