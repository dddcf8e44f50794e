'use strict';
// The Node.js spare: a process that has started already and waits for its one job.
//
// This script runs once, in the image's build, and leaves a startup snapshot:
//
//   node --expose-internals --snapshot-blob /nanosupervisor/spare.blob --build-snapshot spare.js
//
// A process that is started from it, as `/usr/bin/node index.js` with the environment variable
// NODE_OPTIONS=--snapshot-blob=/nanosupervisor/spare.blob, has no start-up of Node.js left to do. It says 'r' on
// descriptor 3, waits there for its job, and becomes what `node index.js` would have become.
//
// To user code nothing differs, stack traces included, because nothing is imitated: the snapshot's main function
// is Node.js's own `internal/main/run_main_module`, compiled by Node.js, and what it calls are Node.js's own
// functions. Only its `require` is ours. The first thing that the script calls is `prepareMainThreadExecution`,
// which reads environment, arguments and working directory; there the process waits. A bound function carries the
// script's arguments, since those show in no stack trace.
//
// What differs all the same: /proc/self/environ is the spare's own; SharedArrayBuffer, Atomics and WebAssembly come
// last in the order of the global names; the module loader's frames in a worker thread's stack traces are named
// `Object..js` and `Function._load`. V8 takes its heap limit from the container's memory limit at the spare's start. Node.js
// refuses a snapshot that does not fit it: then no spare comes up, and programs are started plainly.
//
// The internals are reached in the build alone; the snapshot's own list of what users may require is the plain
// one again. The options come by environment because what stands on the command line would show in
// `process.execArgv` of worker threads and in /proc/self/cmdline.
//
// `prepareMainThreadExecution` is what a run goes through.

const fs = require('fs');

const JOB = 3;
const HEADER_BYTES = 12; // length of what follows, and the two counts
const COUNT_BYTES = 8;
const WORK = '/work';
const ARGUMENTS = ['/usr/bin/node', 'index.js'];
const ADD_ON = '/nanosupervisor/spare.node';

// What acts before a program's first line, in the C library, OpenSSL, ICU, V8 or Node.js itself.
const ACTS_AT_START = /^(NODE_|UV_|V8_|ICU_|OPENSSL_|SSL_|LC_|LANGUAGE|LD_|MALLOC_|GLIBC_)/;
const LANG = 'C.UTF-8';

// --- Node.js's own parts

const { emitWarning } = process;
process.removeAllListeners('warning'); // that internals are none of ours is known here
process.emitWarning = () => {};
const loadedByPlainNode = process.moduleLoadList.filter((name) => !name.endsWith(' sea')); // of this build alone
const { internalBinding, primordials } = require('internal/test/binding');
const asyncBinding = internalBinding('async_wrap');
const performanceBinding = internalBinding('performance');
const { Pipe } = internalBinding('pipe_wrap');

const { Console } = require('internal/console/constructor');
const preExecution = require('internal/process/pre_execution');
const runMainModule = internalBinding('builtins').compileFunction('internal/main/run_main_module');
const ownParts = {
  'internal/process/pre_execution': { ...preExecution, prepareMainThreadExecution },
  'internal/options': require('internal/options'),
  'internal/modules/run_main': require('internal/modules/run_main'),
  'internal/modules/cjs/loader': require('internal/modules/cjs/loader'),
};

// --- the job

function fill(bytes, start = 0) {
  for (let got = start; got < bytes.length;) {
    const more = fs.readSync(JOB, bytes, got, bytes.length - got);
    if (more === 0) process.reallyExit(0); // the sandbox was not needed
    got += more;
  }
  return bytes;
}

// Buffer.alloc alone: everything else takes from a pool, whose state a program can see.
function receive() {
  fs.writeSync(JOB, 'r');
  const header = fill(Buffer.alloc(HEADER_BYTES));
  const bytes = Buffer.alloc(COUNT_BYTES + header.readUInt32LE(0));
  header.copy(bytes, 0, HEADER_BYTES - COUNT_BYTES);
  return parse(fill(bytes, COUNT_BYTES));
}

function parse(bytes) {
  const argumentCount = bytes.readUInt32LE(0);
  const text = bytes.toString('utf8', COUNT_BYTES);
  const strings = text.split('\0');
  return {
    bytes,
    exact: !text.includes('\ufffd'),
    arguments: strings.slice(0, argumentCount),
    environment: strings.slice(argumentCount, -1).map((entry) => {
      const middle = entry.indexOf('=', 1);
      return [entry.slice(0, middle), entry.slice(middle + 1)];
    }),
  };
}

function fits(job) {
  return job.exact &&
    job.arguments.length === ARGUMENTS.length &&
    job.arguments.every((argument, index) => argument === ARGUMENTS[index]) &&
    job.environment.every(([name, value]) => !ACTS_AT_START.test(name) && (name !== 'LANG' || value === LANG));
}

// --- what a new process would find

function replaceEnvironment(entries) {
  for (const name of Object.keys(process.env)) delete process.env[name];
  for (const [name, value] of entries) process.env[name] = value;
}

// The time spent waiting is not the program's: its clocks start now. Asking for the up-time also sets the event
// loop's clock, by which timers are due. Worker threads take their clocks from the process, the add-on's part.
function restartClocks(addOn) {
  const { constants, milestones } = performanceBinding;
  milestones[constants.NODE_PERFORMANCE_MILESTONE_TIME_ORIGIN_TIMESTAMP] = addOn.restartClocks();
  process.uptime();
  const now = Number(process.hrtime.bigint());
  for (const name of ['TIME_ORIGIN', 'NODE_START', 'V8_START', 'ENVIRONMENT'])
    milestones[constants[`NODE_PERFORMANCE_MILESTONE_${name}`]] = now;
}

// The numbers that the build's own asynchronous operations took.
function restartAsyncIds() {
  const { async_id_fields: fields, constants } = asyncBinding;
  fields[constants.kAsyncIdCounter] = 1;
}

// --- the run

function loadAddOn() {
  const module = { exports: {} };
  process.dlopen(module, ADD_ON);
  return module.exports;
}

function prepareMainThreadExecution(expandArgv1) {
  const addOn = loadAddOn();
  const job = receive();
  process.chdir(WORK);
  if (!fits(job)) addOn.execute(job.bytes); // does not return
  fs.closeSync(JOB);
  replaceEnvironment(job.environment);
  restartClocks(addOn);
  restartAsyncIds();
  console.Console = Console; // V8 loses it from its own console object
  return preExecution.prepareMainThreadExecution(expandArgv1);
}

// Node.js makes its output pipes non-blocking: output that does not fit is lost when the program calls
// process.exit or throws. Its documentation promises synchronous writes. A proxy, because its toString() is
// that of a native function.
function keepOutput() {
  Pipe.prototype.open = new Proxy(Pipe.prototype.open, {
    apply(open, pipe, [descriptor, ...rest]) {
      const failed = Reflect.apply(open, pipe, [descriptor, ...rest]);
      if (!failed && (descriptor === 1 || descriptor === 2)) pipe.setBlocking(true);
      return failed;
    },
  });
}

// --- warming up: what most runs go through is in the snapshot compiled

// Descriptor 1 of the build is a pipe, as a run's is.
function warmUpConsole() {
  const net = require('net');
  const socket = new net.Socket({ fd: 1, readable: false, writable: true });
  new Console({ stdout: socket, stderr: socket }).log('warmed up: %s', 'console', { and: ['inspect'] });
  socket.destroy();
}

// In a folder of its own: which package.json there are on the way up is remembered.
function warmUpModules() {
  const folder = fs.mkdtempSync('/nanosupervisor/warm-');
  const { Module } = ownParts['internal/modules/cjs/loader'];
  fs.writeFileSync(`${folder}/package.json`, '{"type": "commonjs"}');
  fs.writeFileSync(`${folder}/other.js`, 'module.exports = 1;');
  fs.writeFileSync(`${folder}/index.js`, 'require("fs"); require("./other");');
  Module._load(`${folder}/index.js`, null, false);
  for (const id of ['loader', 'translators', 'resolve', 'load', 'module_job'])
    require(`internal/modules/esm/${id}`);
  for (const cache of [Module._cache, Module._pathCache])
    for (const name of Object.keys(cache)) delete cache[name];
  // Node.js asserts that no user code has run before its modules are set up, and none has.
  require('internal/modules/helpers').hasStartedUserCJSExecution = () => false;
  fs.rmSync(folder, { recursive: true });
}

// A program can see where in their pool small buffers lie: it is renewed, and as far used as in a new process.
function renewBufferPool() {
  while (Buffer.allocUnsafe(8).byteOffset !== 0);
}

function warmUpJob() {
  const environment = Object.entries(process.env);
  fits(parse(Buffer.from('\0\0\0\0\0\0\0\0A=B\0')));
  replaceEnvironment(environment);
}

// --- the build

function hideInternals() {
  const { loadBuiltinModule } = require('internal/modules/helpers');
  const BuiltinModule = loadBuiltinModule('fs').constructor;
  const isPublic = (id) => !id.startsWith('internal/');
  BuiltinModule.setRealmAllowRequireByUsers([...BuiltinModule.map.keys()].filter(isPublic));
  process.moduleLoadList.splice(0, Infinity, ...loadedByPlainNode);
  process.emitWarning = emitWarning;
}

warmUpConsole();
warmUpModules();
warmUpJob();
keepOutput();
renewBufferPool();
hideInternals();
internalBinding('mksnapshot').setDeserializeMainFunction(
  runMainModule.bind(undefined, process, (id) => ownParts[id], internalBinding, primordials));
