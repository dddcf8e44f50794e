'use strict';
// Does what the input's `case` says; see ../python/main.py.
const fs = require('fs');

// What the interpreter holds before the code begins is not the run's: it waited for the run.
function anonymousBytes() {
  return Number(fs.readFileSync('/proc/self/status', 'utf8').match(/RssAnon:\s+(\d+)/)[1]) * 1024;
}
const heldAtFirst = anonymousBytes();
const { spawn, spawnSync } = require('child_process');

const MB = 1024 * 1024;
const payload = JSON.parse(process.env.PAYLOAD);
const wait = () => setInterval(() => {}, 1000);

function allocate(megabytes) {
  const held = [];
  for (let i = 0; i < megabytes; i++) held.push(Buffer.alloc(MB, 1));
  return held;
}

function files() {
  fs.mkdirSync('/output/folder/하위', { recursive: true });
  fs.writeFileSync('/output/a.txt', 'one');
  fs.writeFileSync('/output/folder/b.json', '{}');
  fs.writeFileSync('/output/folder/하위/결과 1.csv', 'x,y\n');
  fs.symlinkSync('/etc/passwd', '/output/link');
  spawnSync('mkfifo', ['/output/pipe']);
}

const cases = {
  report() {
    const stdin = fs.readFileSync(0, 'utf8');
    const file = fs.readFileSync(process.env.PAYLOAD_FILE, 'utf8');
    console.log('stdout: 안녕, мир 🌍');
    console.error('stderr: 오류 아님');
    console.log(JSON.stringify({ env: process.env.PAYLOAD, file, stdin }));
  },
  exit() { process.exit(3); },
  raise() { throw new Error('없는 키'); },
  signal() { process.kill(process.pid, 'SIGKILL'); wait(); },
  hang: wait,
  stubborn() {
    process.on('SIGTERM', () => {});
    spawn('sh', ['-c', "trap '' TERM; sleep 1000"], { detached: true, stdio: 'inherit' });
    console.log('still here');
    wait();
  },
  oom() { allocate(400); },
  oom_child() { spawnSync(process.execPath, ['-e', 'const h=[];for(let i=0;i<400;i++)h.push(Buffer.alloc(1048576,1))']); },
  flood() {
    const line = 'x'.repeat(999) + '\n';
    for (let i = 0; i < 20; i++) fs.writeSync(1, line.repeat(1000));
    console.log('the end');
  },
  files,
  files_then_fail() { files(); process.exit(1); },
  peak() {
    const held = allocate(payload.megabytes);
    console.log(anonymousBytes() - heldAtFirst);
    held.length = 0;
  },
  large_file() {
    fs.writeFileSync('/tmp/f', '');
    fs.truncateSync('/tmp/f', 600 * MB);
  },
  large_file_child() {
    process.exit(spawnSync('dd', ['if=/dev/zero', 'of=/tmp/f', 'bs=1', 'count=2', `seek=${512 * MB - 1}`]).status === 0 ? 0 : 1);
  },
  quick() { console.log(payload.say); },
};

cases[payload.case]();
