// See ../python/main.py.
'use strict';
const fs = require('fs');
const os = require('os');

const MARK = /cnry[0-9a-f]{16}|127\.(?!0\.0\.1\b)\d+\.\d+\.\d+/g;
const MOST_BYTES = 8 << 20;
const PAGEMAPS = new Set(['pagemap', 'mem']);
const LEFT_OUT = new Set(['/usr', '/sys']);
const found = new Set();
let files = 0;

function lookAt(place, data) {
  for (const [mark] of data.toString('latin1').matchAll(MARK)) found.add(`${place}\t${mark}`);
}

function memory() {
  const file = fs.openSync('/proc/self/mem', 'r');
  const chunk = Buffer.alloc(4 << 20);
  for (const line of fs.readFileSync('/proc/self/maps', 'latin1').trim().split('\n')) {
    const [range, mode] = line.split(' ');
    if (!mode.startsWith('r') || line.includes('[v')) continue;
    const [start, end] = range.split('-').map((number) => BigInt(`0x${number}`));
    for (let at = start; at < end; at += BigInt(chunk.length - 64)) {
      const length = end - at < chunk.length ? Number(end - at) : chunk.length;
      try {
        lookAt('memory', chunk.subarray(0, fs.readSync(file, chunk, 0, length, at)));
      } catch {
        break;
      }
    }
  }
}

function readFile(path) {
  let file;
  try {
    file = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  } catch {
    return;
  }
  files += 1;
  const parts = [];
  try {
    for (let left = MOST_BYTES; left > 0;) {
      const part = Buffer.alloc(Math.min(left, 64 << 10));
      const got = fs.readSync(file, part);
      if (got === 0) break;
      parts.push(part.subarray(0, got));
      left -= got;
    }
  } catch {
    // what was read counts
  }
  fs.closeSync(file);
  lookAt(path, Buffer.concat(parts));
}

function folder(path) {
  let names;
  try {
    names = fs.readdirSync(path || '/');
  } catch {
    return;
  }
  for (const name of names) {
    const inner = `${path}/${name}`;
    lookAt(path, name);
    try {
      const info = fs.lstatSync(inner);
      if (info.isSymbolicLink()) lookAt(inner, fs.readlinkSync(inner));
      else if (info.isDirectory() && !LEFT_OUT.has(inner) && name !== 'task') folder(inner);
      else if (info.isFile() && !PAGEMAPS.has(name)) readFile(inner);
    } catch {
      // gone, or not ours to see
    }
  }
}

memory();
lookAt('environment', JSON.stringify(process.env));
lookAt('arguments', JSON.stringify(process.argv));
lookAt('uname', os.hostname() + os.version());
folder('');
const said = [...found].sort().join('\n');
console.log(`${said}\nfiles\t${files}`);
fs.writeFileSync('/output/found', `${said}\n`);
