'use strict';
// The standby process of Node.js: a process that has started already and waits for its one job.
//
// This script runs once, in the image's build, and writes a startup snapshot:
//
//   node --expose-internals --snapshot-blob /nanosupervisor/standby.blob --build-snapshot standby.js
//
// The zygote (docker/nodejs/zygote.c) forks a process that starts from the snapshot, as `/usr/bin/node index.js` with the
// environment variable NODE_OPTIONS=--snapshot-blob=/nanosupervisor/standby.blob. Its start-up is then already done. The
// process sends 'r' on descriptor 3, waits there for its job (job.h), and then does the same as
// `node index.js`.
//
// In the main thread, user code sees no difference in stack traces, because the snapshot runs Node.js's own code.
// The snapshot's main function is Node.js's `internal/main/run_main_module`. Only the `require` of that module
// is replaced. The module first calls `prepareMainThreadExecution`, which reads environment, arguments and
// working directory. This script replaces that function, and waits for the job in it. A bound function passes the
// arguments to the module, because a bound function is not in stack traces.
//
// These differences remain. /proc/self/environ shows the variables of the standby process. The order of the
// global names is another: SharedArrayBuffer, Atomics and WebAssembly are the last. The module loader's frames in
// a worker thread's stack traces are named `Object..js` and `Function._load`. V8 reads the container's memory
// limit for its heap limit when the standby process starts, not when the run starts.
//
// Node.js refuses a snapshot of another build. Then no standby process starts, and programs are started with
// execve.
//
// Only the build has access to Node.js's internals: in the snapshot, users may require the same modules as in a
// plain process. The options are in the environment, because options on the command line would be visible in
// `process.execArgv` of worker threads and in /proc/self/cmdline.

const fs = require('fs');

const JOB = 3;
const HEADER_BYTES = 12; // struct job: the length of the strings, and the two counts
const COUNT_BYTES = 8;
const WORK = '/work';
const ARGUMENTS = ['/usr/bin/node', 'index.js'];
const ADD_ON = '/nanosupervisor/standby.node';

// Variables that the C library, OpenSSL, ICU, V8 or Node.js reads before a program's first line.
const READ_AT_START = /^(NODE_|UV_|V8_|ICU_|OPENSSL_|SSL_|LC_|LANGUAGE|LD_|MALLOC_|GLIBC_)/;
const LANG = 'C.UTF-8';

// --- Node.js's own parts

const { emitWarning } = process;
process.removeAllListeners('warning'); // warnings about the use of internals
process.emitWarning = () => {};
const loadedByPlainNode = process.moduleLoadList.filter((name) => !name.endsWith(' sea')); // only the build loads it
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
    if (more === 0) process.reallyExit(0); // the sandbox is not needed
    got += more;
  }
  return bytes;
}

// Use only Buffer.alloc, because other functions use the buffer pool, and a program can see the pool's state.
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

// Whether this process can do the same as a new process would. If not, the job's program is executed.
function fits(job) {
  return job.exact &&
    job.arguments.length === ARGUMENTS.length &&
    job.arguments.every((argument, index) => argument === ARGUMENTS[index]) &&
    job.environment.every(([name, value]) => !READ_AT_START.test(name) && (name !== 'LANG' || value === LANG));
}

// --- the state of a new process

function replaceEnvironment(entries) {
  for (const name of Object.keys(process.env)) delete process.env[name];
  for (const [name, value] of entries) process.env[name] = value;
}

// Set the clocks as if the process had started now. The call of process.uptime also sets the event loop's
// clock, which decides when timers are due. The add-on sets the clocks that worker threads copy.
function restartClocks(addOn) {
  const { constants, milestones } = performanceBinding;
  milestones[constants.NODE_PERFORMANCE_MILESTONE_TIME_ORIGIN_TIMESTAMP] = addOn.restartClocks();
  process.uptime();
  const now = Number(process.hrtime.bigint());
  for (const name of ['TIME_ORIGIN', 'NODE_START', 'V8_START', 'ENVIRONMENT'])
    milestones[constants[`NODE_PERFORMANCE_MILESTONE_${name}`]] = now;
}

// Asynchronous operations of the build have used the first numbers. Start again with 1.
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
  console.Console = Console; // the snapshot does not keep it
  return preExecution.prepareMainThreadExecution(expandArgv1);
}

// Node.js makes its output pipes non-blocking. Then output that does not fit into a pipe is lost when the
// program calls process.exit or throws, although the documentation of Node.js promises synchronous writes. This
// function makes the pipes blocking again. It uses a proxy, because a proxy's toString() looks like that of
// a native function.
function makeOutputBlocking() {
  Pipe.prototype.open = new Proxy(Pipe.prototype.open, {
    apply(open, pipe, [descriptor, ...rest]) {
      const failed = Reflect.apply(open, pipe, [descriptor, ...rest]);
      if (!failed && (descriptor === 1 || descriptor === 2)) pipe.setBlocking(true);
      return failed;
    },
  });
}

// --- warm-up: the snapshot then has the code that most runs use in compiled form

// Descriptor 1 of the build is a pipe, like that of a run.
function warmUpConsole() {
  const net = require('net');
  const socket = new net.Socket({ fd: 1, readable: false, writable: true });
  new Console({ stdout: socket, stderr: socket }).log('warmed up: %s', 'console', { and: ['inspect'] });
  socket.destroy();
}

// Use a new folder, because Node.js caches which parent folders have a package.json.
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
  // Node.js asserts that no user code has run before its modules are set up. The code above was not user code,
  // but Node.js cannot know that.
  require('internal/modules/helpers').hasStartedUserCJSExecution = () => false;
  fs.rmSync(folder, { recursive: true });
}

// A program can see the position of small buffers in the buffer pool. Start a new pool, and use as much of it
// as a new process has used.
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
makeOutputBlocking();
renewBufferPool();
hideInternals();
internalBinding('mksnapshot').setDeserializeMainFunction(
  runMainModule.bind(undefined, process, (id) => ownParts[id], internalBinding, primordials));
