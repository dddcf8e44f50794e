// See ../python/main.py.
'use strict';
const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');

const [FIRST, LARGE, LAST] = ['1 count', '5 large', '9 count'];

function count() {
  for (const name of ['SIGTERM', 'SIGHUP', 'SIGINT']) process.on(name, () => {});
  const [first, last] = [FIRST, LAST].map((name) => fs.openSync(name, 'w+'));
  const data = Buffer.alloc(8);
  for (let number = 1; ; number++) {
    data.writeUInt32LE(number);
    fs.writeSync(first, data, 0, 8, 0);
    fs.writeSync(last, data, 0, 8, 0);
  }
}

function leave() {
  fs.writeFileSync('a file', 'honest\n');
  fs.linkSync('a file', 'hard link');
  fs.symlinkSync('/etc/passwd', 'link');
  fs.symlinkSync('/proc/self/environ', 'link to proc');
  fs.symlinkSync('/etc', 'link to a folder');
  execFileSync('mkfifo', ['pipe']);
  for (const name of ['new\nline', '...', '%2e%2e', 'a?b#c']) fs.writeFileSync(name, name);
  fs.writeFileSync(Buffer.from([0xff, 0xfe]), Buffer.from([0xff, 0xfe]));
  fs.mkdirSync('closed');
  fs.writeFileSync('closed/in', 'in');
  fs.chmodSync('closed', 0);
  fs.writeFileSync('unreadable', 'unreadable', { mode: 0 });
  fs.writeFileSync('set-user-id', 'suid');
  fs.chmodSync('set-user-id', 0o6755);
  fs.writeFileSync('sparse', '');
  fs.truncateSync('sparse', 9 << 20);
  fs.mkdirSync('deep' + '/d'.repeat(40), { recursive: true });
  fs.writeFileSync(LARGE, Buffer.alloc(6 << 20, 'x'));
  net.createServer().listen('socket', () => {
    spawn(process.execPath, [__filename, 'count'], { detached: true, stdio: 'ignore' }).unref();
    const timer = setInterval(() => {
      if (!fs.existsSync(LAST) || !fs.statSync(LAST).size) return;
      clearInterval(timer);
      fs.writeSync(1, 'left\n');
      process.kill(process.pid, 'SIGKILL'); // an orderly end would remove the socket
    }, 1);
  });
}

process.chdir('/output');
if (process.argv[2] === 'count') count();
else leave();
