'use strict';
// Runs one small program at a time, by plain `node index.js` or by a standby process, in a container without the
// supervisor, whose part of the protocol on descriptor 3 this plays. See node_identity.py.
//
// Standard input: a JSON object per line, {arm, files, payload, environment, arguments, idle_ms, job}. Standard
// output: one per line in answer, {status, signal, stdout, stderr, milliseconds}; the texts byte by byte (latin1).

const { execFileSync, spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const readline = require('node:readline');

const WORK = '/work';
const PAYLOAD_FILE = '/input/payload.json';
const ENVIRONMENT = { PATH: '/usr/local/bin:/usr/bin:/bin', HOME: '/tmp', LANG: 'C.UTF-8' };

// The image says how a standby process is started: variables, then the command.
const [, ...lines] = fs.readFileSync('/nanosupervisor/interpreter', 'utf8').trim().split('\n');
const command = lines.filter((line) => !line.includes('='));
// Without the zygote: a standby process then starts alone, as after a fork of the zygote.
const isPreload = (line) => line.startsWith('LD_PRELOAD=');
const variables = Object.fromEntries(lines.filter((line) => line.includes('=') && !isPreload(line)).map(split));

function split(entry) {
  const middle = entry.indexOf('=');
  return [entry.slice(0, middle), entry.slice(middle + 1)];
}

function lay(program) {
  for (const name of fs.readdirSync(WORK)) fs.rmSync(path.join(WORK, name), { recursive: true });
  for (const [name, text] of Object.entries(program.files)) {
    const file = path.join(WORK, name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, text);
  }
  fs.writeFileSync(PAYLOAD_FILE, program.payload);
}

// A real pipe: what `child_process` calls one is a socket.
function pipe() {
  const name = '/tmp/pipe';
  execFileSync('mkfifo', [name]);
  const both = fs.openSync(name, 'r+'); // so that the others need not wait for each other
  const reading = fs.openSync(name, 'r');
  const writing = fs.openSync(name, 'w');
  fs.closeSync(both);
  fs.unlinkSync(name);
  return { reading, writing };
}

// Standard input as the supervisor makes it: an anonymous pipe with room for the whole input. A program may open
// /dev/stdin again after the end, which would wait for a writer if the pipe had a name. Node.js makes no such pipe.
const HOLD_A_PIPE = 'pipe(R, W); fcntl(W, 1031, 1 << 20); $| = 1; print fileno(R), " ", fileno(W); sleep 60'; // F_SETPIPE_SZ

async function inputOf(program) {
  const holder = spawn('perl', ['-e', HOLD_A_PIPE], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [descriptors] = await once(holder.stdout, 'data');
  const [reading, writing] = descriptors.toString().split(' ').map((fd) => `/proc/${holder.pid}/fd/${fd}`);
  const input = fs.openSync(reading, 'r');
  const feed = fs.openSync(writing, 'w');
  const end = once(holder, 'exit');
  holder.kill('SIGKILL');
  await end;
  fs.writeSync(feed, program.payload);
  fs.closeSync(feed);
  return input;
}

async function textOf(fd) {
  const chunks = [];
  for await (const chunk of new net.Socket({ fd, readable: true, writable: false })) chunks.push(chunk);
  return Buffer.concat(chunks).toString('latin1');
}

function environmentOf(program) {
  return { ...ENVIRONMENT, PAYLOAD_FILE, ...program.environment };
}

function jobOf(program) {
  const entries = Object.entries(environmentOf(program)).map(([name, value]) => `${name}=${value}`);
  const strings = [...program.arguments, ...entries];
  const body = Buffer.from(strings.map((string) => `${string}\0`).join(''), program.encoding);
  const head = Buffer.alloc(12);
  [body.length, program.arguments.length, entries.length].forEach((value, index) => head.writeUInt32LE(value, index * 4));
  return Buffer.concat([head, body]);
}

function startPlain(program, streams) {
  const [file, ...rest] = program.arguments;
  return spawn(file, rest, {
    cwd: WORK, detached: true, env: environmentOf(program), stdio: streams,
  });
}

function startStandby(streams) {
  return spawn(command[0], command.slice(1), {
    cwd: '/', detached: true, env: { ...ENVIRONMENT, ...variables }, stdio: [...streams, 'pipe'],
  });
}

async function dispatch(program, job) {
  job.on('error', () => {}); // of a process that has ended
  const [ready] = await once(job, 'data');
  if (ready.toString() !== 'r') throw new Error(`a standby process said ${ready}`);
  await new Promise((resolve) => setTimeout(resolve, program.idle_ms));
  if (program.job) job.write(jobOf(program));
  else job.end();
}

async function run(program) {
  lay(program);
  const [out, err] = [pipe(), pipe()];
  const streams = [await inputOf(program), out.writing, err.writing];
  const isStandby = program.arm === 'standby';
  let started = performance.now();
  const child = isStandby ? startStandby(streams) : startPlain(program, streams);
  const end = once(child, 'exit');
  streams.forEach((fd) => fs.closeSync(fd));
  const texts = Promise.all([textOf(out.reading), textOf(err.reading)]);
  if (isStandby) {
    await dispatch(program, child.stdio[3]);
    started = performance.now();
  }
  const [status, signal] = await end;
  const milliseconds = performance.now() - started;
  // Warnings name the process.
  const [stdout, stderr] = (await texts).map((text) => text.replaceAll(`(node:${child.pid})`, '(node:PID)'));
  return { status, signal, stdout, stderr, milliseconds };
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(await run(JSON.parse(line)))}\n`);
  }
}

main();
