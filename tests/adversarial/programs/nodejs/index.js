// See ../python/main.py.
'use strict';
const child_process = require('child_process');
const crypto = require('crypto');
const dns = require('dns');
const fs = require('fs');
const net = require('net');
const os = require('os');
const worker_threads = require('worker_threads');

const CODE = '/work/index.js';
const PLACES = ['/tmp', '/output', '/work', '/input', '/dev/shm'];
const held = []; // descriptors that the daemon is to inherit

// --- leave

const perl = (code) => {
  const { status, stderr } = child_process.spawnSync('perl', ['-MErrno', '-e', code]);
  if (status) throw Object.assign(new Error(), { code: String(stderr) });
};
const orDie = (call) => `defined(${call}) or (print STDERR grep { $!{$_} } keys %! and exit 1)`;
const command = (...words) => child_process.execFileSync(words[0], words.slice(1), { stdio: 'ignore' });
const listen = (address) => new Promise((resolve, reject) => {
  const server = net.createServer().once('error', reject);
  server.listen(address, () => { held.push(server._handle.fd); resolve(server); });
});

async function leaveTimeWait() {
  const server = await listen({ host: '127.0.0.1', port: 0 });
  const accepted = new Promise((resolve) => server.once('connection', resolve));
  const near = net.connect(server.address().port, '127.0.0.1');
  const far = await accepted;
  const closed = new Promise((resolve) => far.once('close', resolve));
  far.resume();
  near.end();
  await closed;
}

function leaveCode() {
  fs.appendFileSync(CODE, '\nprocess.exit(3);\n');
  fs.mkdirSync('/work/node_modules');
  fs.renameSync(CODE, `${CODE}.old`);
  fs.writeFileSync(CODE, 'process.exit(3);');
}

function leaveDeletedFile() {
  held.push(fs.openSync('/tmp/deleted', 'w'));
  fs.writeSync(held.at(-1), Buffer.alloc(1 << 20));
  fs.unlinkSync('/tmp/deleted');
}

function leaveDaemon() {
  const stdio = ['ignore', 'inherit', 'inherit', ...held.filter((descriptor) => descriptor > 2)];
  child_process.spawn('sleep', ['1000'], { detached: true, stdio }).unref();
  child_process.spawn('flock', [CODE, 'sleep', '1000'], { detached: true, stdio }).unref();
}

const TRACES = {
  files: () => PLACES.forEach((place) => fs.writeFileSync(`${place}/left`, 'left')),
  code: leaveCode,
  program: () => fs.appendFileSync(process.execPath, ''),
  'shared memory': () => perl(orDie('shmget(1234, 4096, 01666)')),
  semaphores: () => perl(orDie('semget(1234, 1, 01666)')),
  'message queue': () => perl(orDie('msgget(1234, 01666)')),
  'POSIX queue': () => fs.openSync('/dev/mqueue/left', 'a+'),
  'abstract socket': () => listen('\0left'),
  listener: () => listen({ host: '127.0.0.1', port: 7777 }),
  'time wait': leaveTimeWait,
  environment: () => { process.env.LEFT = 'left'; },
  'working folder': () => process.chdir('/tmp'),
  umask: () => process.umask(0),
  limits: () => command('prlimit', '--nofile=128:128', '--pid', String(process.pid)),
  signals: () => process.on('SIGTERM', () => {}),
  niceness: () => os.setPriority(5),
  affinity: () => command('taskset', '--pid', '1', String(process.pid)),
  'oom score': () => fs.writeFileSync('/proc/self/oom_score_adj', '0'),
  hostname: () => fs.writeFileSync('/proc/sys/kernel/hostname', 'left'),
  sysctl: () => fs.writeFileSync('/proc/sys/net/ipv4/ip_local_port_range', '1 2'),
  lock: () => {}, // the daemon's: there is no call for it here
  'deleted file': leaveDeletedFile,
  terminal: () => held.push(fs.openSync('/dev/ptmx', 'r+')),
  timer: () => setTimeout(() => {}, 1e6).unref(),
  daemon: leaveDaemon,
};

async function leave(trace) {
  try {
    await TRACES[trace]();
    return 'done';
  } catch (error) {
    return error.code || String(error);
  }
}

// --- look

function listing(path) {
  const found = [];
  const info = fs.lstatSync(path);
  const size = info.isDirectory() ? '' : ` ${info.size}`;
  found.push(`${path} ${info.mode.toString(8)}${size}`);
  if (info.isDirectory()) for (const name of fs.readdirSync(path)) found.push(...listing(`${path}/${name}`));
  return found.sort();
}

function links(folder) {
  const found = [];
  for (const name of fs.readdirSync(folder)) {
    try {
      found.push(`${name} ${fs.readlinkSync(`${folder}/${name}`)}`);
    } catch {
      continue; // the listing's own
    }
  }
  return found.sort().join('\n');
}

function draw() {
  const streams = {
    'Math.random': Math.random(),
    'crypto.randomBytes': crypto.randomBytes(8).toString('hex'),
    'crypto.randomUUID': crypto.randomUUID(),
    'crypto.getRandomValues': crypto.webcrypto.getRandomValues(new Uint32Array(2)).join(),
    'crypto.randomInt': crypto.randomInt(2 ** 47),
  };
  return Object.entries(streams).map(([name, value]) => `${name}: ${value}`).join('\n');
}

const LOOKS = {
  read: (path) => fs.readFileSync(path, 'utf8'),
  list: (path) => listing(path).join('\n'),
  names: (path) => fs.readdirSync(path).sort().join('\n'),
  links,
  link: (path) => fs.readlinkSync(path),
  digest: (path) => crypto.createHash('sha256').update(fs.readFileSync(path)).digest('hex'),
  space: (path) => `${fs.statfsSync(path).bfree} ${fs.statfsSync(path).ffree}`,
  variables: () => Object.entries(process.env).map(([name, value]) => `${name}=${value}`).sort().join('\n'),
  random: draw,
};

function look(item) {
  const [verb, path] = item.split(' ');
  try {
    return LOOKS[verb](path);
  } catch (error) {
    return error.code || String(error);
  }
}

// --- try

const MOST_MS = 10_000;
const { ENODATA, ENOENT, ETIMEDOUT } = os.constants.errno;

// There are no system calls in Node.js but those of its own functions: Perl makes them, each attack in a child of
// its own. What became of them goes to descriptor 3, which the children do not have.
const CALLS = String.raw`
  use POSIX ();
  my @attacks = <STDIN>;
  chomp @attacks;
  open STDIN, '<', '/dev/null';
  open my $answers, '>&=', 3;
  $answers->autoflush(1);
  sub argument {
    my ($word, $results) = @_;
    my ($kind, $rest) = $word =~ /^(.)(.*)$/;
    return "$rest\0" if $kind eq '@';
    return pack('H*', $rest) if $kind eq '#';
    return "\0" x $rest if $kind eq '*';
    return $results->{$rest} if $kind eq '$';
    return $$ if $word eq 'self';
    return $word =~ /^0x/ ? hex $word : 0 + $word;
  }
  sub attempt {
    my @steps = split / ; /, shift;
    my ($at, $again, %results) = (0, scalar @steps);
    alarm 10;
    while ($at < @steps) {
      my ($verb, @words) = split / /, $steps[$at++];
      if ($verb eq 'loop') { $again = $at; next }
      return 255 if $verb ne 'call';
      my @arguments = map { argument($_, \%results) } @words;
      $results{$at} = syscall($arguments[0], @arguments[1 .. $#arguments]);
      return $! + 0 if $results{$at} == -1;
      $at = $again if $at == @steps;
    }
    return 0;
  }
  for my $attack (@attacks) {
    my $child = fork;
    die unless defined $child;
    if (!$child) {
      close $answers;
      POSIX::_exit(attempt($attack));
    }
    waitpid $child, 0;
    print $answers ($? & 127 ? -($? & 127) : $? >> 8), "\n";
  }
`;

const isCalls = (attack) => !STEPS[attack.split(' ')[0]];

function callAll(attacks) {
  const options = { input: attacks.join('\n'), stdio: ['pipe', 1, 2, 'pipe'] };
  const said = String(child_process.spawnSync('perl', ['-e', CALLS], options).output[3]).split('\n');
  const killed = String(-os.constants.signals.SIGKILL); // Perl with its child, where memory was what was attacked
  return Object.fromEntries(attacks.map((attack, number) => [attack, said[number] || killed]));
}

function readSome(path) {
  if (!fs.readSync(fs.openSync(path), Buffer.alloc(1))) throw Object.assign(new Error(), { errno: -ENODATA });
}

const connected = (address) => new Promise((resolve, reject) => {
  const near = net.connect(address).once('connect', resolve).once('error', reject);
  near.setTimeout(MOST_MS, () => reject(Object.assign(new Error(), { errno: -ETIMEDOUT })));
});

const resolved = (name) => new Promise((resolve, reject) => {
  dns.lookup(name, (error) => (error ? reject(Object.assign(error, { errno: -ENOENT })) : resolve()));
});

const STEPS = {
  read: readSome,
  write: (path) => fs.writeSync(fs.openSync(path, fs.constants.O_WRONLY), '0'),
  create: (path) => fs.openSync(path, fs.constants.O_WRONLY | fs.constants.O_CREAT),
  list: (path) => fs.readdirSync(path),
  link: (path) => fs.readlinkSync(path),
  connect: (host, port) => connected({ host, port }),
  unix: (name) => connected({ path: name.replace('@', '\0') }),
  resolve: resolved,
};

async function attempt(attack) {
  const [verb, ...words] = attack.split(' ');
  try {
    await STEPS[verb](...words);
    return '0';
  } catch (error) {
    // Of a name with several addresses there is one error for each.
    const { errno } = error.errors ? error.errors.at(-1) : error;
    return String(errno === undefined ? error : -errno);
  }
}

// --- do

const sleeper = (stdio = 'ignore') => child_process.spawn('sleep', ['1000'], { stdio });

function forkBomb() {
  for (;;) {
    const child = sleeper();
    child.on('error', () => process.exit(1));
    if (child.pid === undefined) process.exit(1);
  }
}

function threadBomb() {
  const more = () => {
    const thread = new worker_threads.Worker('setTimeout(() => {}, 1e6)', { eval: true });
    thread.on('error', () => process.exit(1));
    thread.on('online', more);
  };
  more();
  return new Promise(() => {});
}

function memoryBombInAChild() {
  const bomb = 'const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1));';
  child_process.spawnSync(process.execPath, ['-e', bomb]);
}

async function closeStreams() {
  fs.closeSync(1);
  fs.closeSync(2);
  await new Promise((resolve) => setTimeout(resolve, 100));
  process.exit(0);
}

function fillTheDisk() {
  const file = fs.openSync('/tmp/full', 'w');
  for (;;) fs.writeSync(file, Buffer.alloc(1 << 20));
}

function stopEveryone() {
  sleeper();
  process.kill(-1, 'SIGSTOP');
  process.kill(process.pid, 'SIGSTOP');
}

async function killEveryone() {
  const child = sleeper();
  const ended = new Promise((resolve) => child.once('exit', (code, signal) => resolve(signal)));
  process.kill(-1, 'SIGKILL');
  if (await ended !== 'SIGKILL') process.exit(9);
}

async function writeForEver() {
  const loop = 'i=0; while :; do i=$(( (i + 1) % 50 )); echo $i >/output/$i; done';
  child_process.spawn('sh', ['-c', loop], { detached: true, stdio: 'inherit' }).unref();
  await new Promise((resolve) => setTimeout(resolve, 50));
}

// Node.js waits for its children, whether one wants it or not: Perl need not.
const zombies = () => child_process.spawnSync('perl', ['-e', 'while (defined(my $child = fork)) { exit unless $child }']);

function overflowTheStack() {
  overflowTheStack();
}

function ignoreSigterm() {
  process.on('SIGTERM', () => {});
  setInterval(() => {}, 1000);
  return new Promise(() => {});
}

const ENDINGS = {
  'kill everyone': killEveryone,
  daemon: leaveDaemon,
  'fork bomb': forkBomb,
  'thread bomb': threadBomb,
  'memory bomb in a child': memoryBombInAChild,
  'close streams': closeStreams,
  'fill the disk': fillTheDisk,
  'stop everyone': stopEveryone,
  'write for ever': writeForEver,
  'ignore SIGTERM': ignoreSigterm,
  zombies,
  'overflow the stack': overflowTheStack,
};

async function main() {
  const request = JSON.parse(fs.readFileSync(0, 'utf8'));
  for (const ending of request.do ?? []) {
    await ENDINGS[ending]();
    fs.writeSync(1, 'alive\n');
    process.exit(0);
  }
  const results = {};
  for (const trace of request.leave ?? []) results[trace] = await leave(trace);
  for (const item of request.look ?? []) results[item] = look(item);
  const attacks = request.try ?? [];
  Object.assign(results, callAll(attacks.filter(isCalls)));
  for (const attack of attacks.filter((one) => !isCalls(one))) results[attack] = await attempt(attack);
  fs.writeSync(1, JSON.stringify(results));
  process.exit(0);
}

main();
