// The self-test program; ../python/main.py describes its input and output.
const child = require("child_process");
const fs = require("fs");
const net = require("net");
const os = require("os");

class SystemError extends Error {
  constructor(number) {
    super();
    this.errno = -number;
  }
}

// Node.js cannot make system calls by number. Every Debian has perl, which can.
const PERL = "my ($call, @with) = map { $_ + 0 } @ARGV; exit(syscall($call, @with) == -1 ? 0 + $! : 0)";

function connect(address, port) {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host: address, port: Number(port), timeout: 1000 });
    socket.on("connect", () => socket.destroy(resolve()));
    socket.on("timeout", () => socket.destroy(reject(new SystemError(os.constants.errno.ETIMEDOUT))));
    socket.on("error", reject);
  });
}

function exceedFileSize() {
  const limits = fs.readFileSync("/proc/self/limits", "utf8");
  const maxBytes = Number(/Max file size\s+(\d+)/.exec(limits)[1]);
  const file = fs.openSync("/tmp/large", "w");
  fs.writeSync(file, "x", maxBytes - 1);
  fs.writeSync(file, "x", maxBytes);
}

async function end(limit) {
  if (limit === "fork") {
    for (;;) {
      await new Promise((resolve) => {
        const made = child.spawn("sleep", ["1000"], { stdio: "ignore" });
        made.on("spawn", resolve);
        made.on("error", () => process.exit(1));
      });
    }
  }
  const held = [];
  while (limit === "memory") held.push(Buffer.alloc(1 << 20, "x"));
  if (limit === "file") exceedFileSize();
  if (limit === "time") {
    process.on("SIGTERM", () => {});
    await new Promise(() => setInterval(() => {}, 1000));
  }
}

const OPERATIONS = {
  call(...numbers) {
    const { status } = child.spawnSync("perl", ["-e", PERL, ...numbers], { stdio: "ignore" });
    if (status !== 0) throw new SystemError(status);
  },
  write: (path) => fs.closeSync(fs.openSync(path, fs.constants.O_WRONLY | fs.constants.O_CREAT, 0o644)),
  read: (path) => fs.readFileSync(path, "utf8"),
  names: (folder) => fs.readdirSync(folder).join("\n"),
  space(folder) {
    const found = fs.statfsSync(folder);
    return `${found.blocks * found.bsize} ${found.files}`;
  },
  connect,
  signal: (pid, number) => void process.kill(Number(pid), Number(number)),
  link: (target, path) => fs.symlinkSync(target, path),
  environment: () => Object.keys(process.env).join("\n"),
  daemon: () => child.spawn("sleep", ["1000"], { detached: true, stdio: "ignore" }).unref(),
  end,
};

async function answer(line) {
  const [operation, ...words] = line.split(" ");
  try {
    const text = await OPERATIONS[operation](...words);
    return typeof text === "string" ? "done " + text.trim().replaceAll("\n", "\x1e") : "done";
  } catch (error) {
    if (error.errno === undefined || operation === "end") throw error;
    return `error ${-error.errno}`;
  }
}

async function main() {
  for (const line of fs.readFileSync(0, "utf8").split("\n").filter(Boolean)) {
    process.stdout.write((await answer(line)) + "\n");
  }
}

main();
