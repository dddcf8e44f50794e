// See ../python/main.py.
#include <arpa/inet.h>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <list>
#include <map>
#include <netdb.h>
#include <random>
#include <sched.h>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace fs = std::filesystem;
using std::string;

static const string CODE = "/work/main.cpp";
static const char *const PLACES[] = {"/tmp", "/output", "/work", "/input", "/dev/shm"};

static void must(long result) {
  if (result == -1) throw std::system_error(errno, std::generic_category());
}

static void write_file(const string &path, const string &text = "left", int flags = O_CREAT | O_TRUNC) {
  int file = open(path.c_str(), O_WRONLY | flags, 0644);
  must(file);
  ssize_t written = write(file, text.data(), text.size());
  int error = errno;
  close(file);
  errno = error;
  must(written);
}

// --- leave

static void leave_files() {
  for (auto place : PLACES) write_file(string(place) + "/left");
}

static void leave_code() {
  write_file(CODE, "#error changed\n", O_APPEND);
  fs::rename(CODE, CODE + ".old");
  write_file(CODE, "#error replaced\n");
}

static int listener(uint16_t port) {
  int server = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  must(bind(server, (sockaddr *)&address, sizeof address));
  must(listen(server, 5));
  return server;
}

static void leave_abstract_socket() {
  int server = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, "\0left", 5);
  must(bind(server, (sockaddr *)&address, sizeof address.sun_family + 5));
  must(listen(server, 5));
}

static void leave_time_wait() {
  int server = listener(0);
  sockaddr_in address{};
  socklen_t length = sizeof address;
  getsockname(server, (sockaddr *)&address, &length);
  int near = socket(AF_INET, SOCK_STREAM, 0);
  must(connect(near, (sockaddr *)&address, sizeof address));
  int far = accept(server, nullptr, nullptr);
  close(near);
  char byte;
  must(read(far, &byte, 1));
  close(far);
  close(server);
}

static void leave_signals() {
  signal(SIGTERM, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, nullptr);
}

static void leave_limits() {
  rlimit limit{128, 128};
  must(setrlimit(RLIMIT_NOFILE, &limit));
}

static void leave_affinity() {
  cpu_set_t set, one;
  CPU_ZERO(&one);
  must(sched_getaffinity(0, sizeof set, &set));
  int first = 0;
  while (!CPU_ISSET(first, &set)) first++;
  CPU_SET(first, &one);
  must(sched_setaffinity(0, sizeof one, &one));
}

static void leave_lock() { must(flock(open(CODE.c_str(), O_RDONLY), LOCK_EX)); }

static void leave_deleted_file() {
  int file = open("/tmp/deleted", O_RDWR | O_CREAT, 0600);
  must(write(file, string(1 << 20, '\0').data(), 1 << 20));
  unlink("/tmp/deleted");
}

static void leave_timer() {
  itimerval timer{{0, 0}, {1000, 0}};
  must(setitimer(ITIMER_REAL, &timer, nullptr));
}

// It inherits every descriptor that the other traces have opened.
static void leave_daemon() {
  pid_t child = fork();
  if (child == 0) {
    setsid();
    if (fork() == 0) sleep(1000);
    _exit(0);
  }
  waitpid(child, nullptr, 0);
}

static const std::map<string, std::function<void()>> TRACES = {
    {"files", leave_files},
    {"code", leave_code},
    {"program", [] { write_file("/slot/program", "", O_APPEND); }},
    {"shared memory", [] { must(shmget(1234, 4096, 01666)); }},
    {"semaphores", [] { must(semget(1234, 1, 01666)); }},
    {"message queue", [] { must(msgget(1234, 01666)); }},
    {"POSIX queue", [] { must(open("/dev/mqueue/left", O_CREAT | O_RDWR, 0600)); }},
    {"abstract socket", leave_abstract_socket},
    {"listener", [] { listener(7777); }},
    {"time wait", leave_time_wait},
    {"environment", [] { setenv("LEFT", "left", 1); }},
    {"working folder", [] { must(chdir("/tmp")); }},
    {"umask", [] { umask(0); }},
    {"limits", leave_limits},
    {"signals", leave_signals},
    {"niceness", [] { must(setpriority(PRIO_PROCESS, 0, 5)); }},
    {"affinity", leave_affinity},
    {"oom score", [] { write_file("/proc/self/oom_score_adj", "0"); }},
    {"hostname", [] { must(sethostname("left", 4)); }},
    {"sysctl", [] { write_file("/proc/sys/net/ipv4/ip_local_port_range", "1 2"); }},
    {"lock", leave_lock},
    {"deleted file", leave_deleted_file},
    {"attribute", [] { must(setxattr(CODE.c_str(), "user.left", "left", 4, 0)); }},
    {"terminal", [] { must(open("/dev/ptmx", O_RDWR | O_NOCTTY)); }},
    {"timer", leave_timer},
    {"daemon", leave_daemon},
};

static string leave(const string &trace) {
  try {
    TRACES.at(trace)();
  } catch (const std::system_error &error) {
    return strerrorname_np(error.code().value());
  }
  return "done";
}

// --- look

static string joined(const std::set<string> &lines) {
  string all;
  for (auto &line : lines) all += (all.empty() ? "" : "\n") + line;
  return all;
}

static string contents(const string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::system_error(errno, std::generic_category());
  return {std::istreambuf_iterator<char>(file), {}};
}

static void list_into(const string &path, std::set<string> &found) {
  struct stat info;
  must(lstat(path.c_str(), &info));
  std::ostringstream line;
  line << path << ' ' << std::oct << info.st_mode << std::dec;
  if (!S_ISDIR(info.st_mode)) line << ' ' << info.st_size;
  found.insert(line.str());
  if (S_ISDIR(info.st_mode))
    for (auto &entry : fs::directory_iterator(path)) list_into(entry.path(), found);
}

static string listing(const string &path) {
  std::set<string> found;
  list_into(path, found);
  return joined(found);
}

static string names(const string &path) {
  std::set<string> found;
  for (auto &entry : fs::directory_iterator(path)) found.insert(entry.path().filename());
  return joined(found);
}

static string links(const string &path) {
  std::set<string> found;
  for (auto &entry : fs::directory_iterator(path)) {
    std::error_code error;
    auto target = fs::read_symlink(entry.path(), error);
    if (!error) found.insert(entry.path().filename().string() + " " + target.string());
  }
  return joined(found);
}

static string space(const string &path) {
  struct statvfs room;
  must(statvfs(path.c_str(), &room));
  return std::to_string(room.f_bfree) + " " + std::to_string(room.f_ffree);
}

static string attributes(const string &path) {
  char list[1024];
  ssize_t size = listxattr(path.c_str(), list, sizeof list);
  must(size);
  return {list, (size_t)size};
}

static string environment(const string &) {
  std::set<string> found;
  for (char **at = environ; *at; at++) found.insert(*at);
  return joined(found);
}

static string draw(const string &) {
  std::random_device device;
  unsigned long bytes;
  must(getrandom(&bytes, sizeof bytes, 0));
  std::ostringstream lines;
  lines << "std::random_device: " << device() << device() << "\n"
        << "getrandom: " << bytes << "\n"
        << "arc4random: " << arc4random() << arc4random() << "\n"
        << "layout of memory: " << (void *)&lines;
  return lines.str();
}

static const std::map<string, std::function<string(const string &)>> LOOKS = {
    {"read", contents},
    {"list", listing},
    {"names", names},
    {"links", links},
    {"link", [](const string &path) { return fs::read_symlink(path).string(); }},
    {"digest", [](const string &path) { return std::to_string(std::hash<string>{}(contents(path))); }},
    {"space", space},
    {"attributes", attributes},
    {"variables", environment},
    {"random", draw},
};

static string look(const string &item) {
  auto blank = item.find(' ');
  try {
    return LOOKS.at(item.substr(0, blank))(blank == string::npos ? "" : item.substr(blank + 1));
  } catch (const std::system_error &error) {
    return strerrorname_np(error.code().value());
  }
}

// --- try

static const unsigned MOST_SECONDS = 10;

static std::vector<string> split(const string &text, const string &separator) {
  std::vector<string> parts;
  size_t at = 0;
  for (size_t end; (end = text.find(separator, at)) != string::npos; at = end + separator.size())
    parts.push_back(text.substr(at, end - at));
  parts.push_back(text.substr(at));
  return parts;
}

// What a word stands for; buffers are put aside for as long as the call needs them.
static long argument(const string &word, std::map<size_t, long> &results, std::list<string> &buffers) {
  string rest = word.substr(1);
  switch (word[0]) {
    case '@': buffers.push_back(rest); break;
    case '*': buffers.emplace_back(std::stoul(rest), '\0'); break;
    case '#':
      buffers.emplace_back();
      for (size_t i = 0; i < rest.size(); i += 2) buffers.back() += (char)std::stoi(rest.substr(i, 2), nullptr, 16);
      break;
    case '$': return results[std::stoul(rest)];
    default: return word == "self" ? getpid() : word[0] == '-' ? std::stol(word) : (long)std::stoul(word, nullptr, 0);
  }
  return (long)buffers.back().data();
}

static long system_call(const std::vector<string> &words, std::map<size_t, long> &results) {
  std::list<string> buffers;
  long a[7] = {};
  for (size_t i = 1; i < words.size(); i++) a[i - 1] = argument(words[i], results, buffers);
  long result = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
  must(result);
  return result;
}

static void fail(int error) {
  errno = error;
  must(-1);
}

static void read_some(const string &path) {
  int file = open(path.c_str(), O_RDONLY);
  must(file);
  char byte;
  ssize_t got = read(file, &byte, 1);
  must(got);
  if (got == 0) fail(ENODATA);
}

static void connect_to(const string &host, const string &port) {
  addrinfo hints{}, *found;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found)) fail(EINVAL);
  must(connect(socket(found->ai_family, SOCK_STREAM, 0), found->ai_addr, found->ai_addrlen));
}

static void connect_to_unix(const string &name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, name.data(), name.size());
  if (name[0] == '@') address.sun_path[0] = 0;
  must(connect(socket(AF_UNIX, SOCK_STREAM, 0), (sockaddr *)&address, sizeof address.sun_family + name.size()));
}

static void resolve(const string &name) {
  addrinfo *found;
  if (getaddrinfo(name.c_str(), "80", nullptr, &found)) fail(ENOENT);
}

static void step(const std::vector<string> &words) {
  auto &verb = words[0], &path = words[1];
  if (verb == "read") read_some(path);
  else if (verb == "write") write_file(path, "0", 0);
  else if (verb == "create") must(open(path.c_str(), O_WRONLY | O_CREAT, 0644));
  else if (verb == "list") names(path);
  else if (verb == "link") fs::read_symlink(path);
  else if (verb == "connect") connect_to(path, words[2]);
  else if (verb == "unix") connect_to_unix(path);
  else if (verb == "resolve") resolve(path);
  else _exit(255);
}

static void go_through(const std::vector<string> &steps) {
  std::map<size_t, long> results;
  size_t at = 0, again = steps.size();
  while (at < steps.size()) {
    auto words = split(steps[at++], " ");
    if (words[0] == "loop") again = at;
    else if (words[0] == "call") results[at] = system_call(words, results);
    else step(words);
    if (at == steps.size()) at = again;
  }
}

static string attempt(const string &attack) {
  pid_t child = fork();
  if (child == 0) {
    alarm(MOST_SECONDS);
    try {
      go_through(split(attack, " ; "));
    } catch (const std::system_error &error) {
      _exit(error.code().value());
    }
    _exit(0);
  }
  int status;
  must(waitpid(child, &status, 0));
  return std::to_string(WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
}

// --- do

static pid_t sleeper() {
  pid_t child = fork();
  if (child == 0) {
    sleep(1000);
    _exit(0);
  }
  return child;
}

static void fork_bomb() {
  for (;;)
    if (fork() < 0) _exit(1);
}

static void thread_bomb() {
  for (;;) std::thread([] { sleep(1000); }).detach();
}

static void memory_bomb_in_a_child() {
  pid_t child = fork();
  if (child == 0)
    for (;;) memset(malloc(1 << 20), 1, 1 << 20);
  waitpid(child, nullptr, 0);
}

static void close_streams() {
  close(1);
  close(2);
  usleep(100'000);
  _exit(0);
}

static void fill_the_disk() {
  string block(1 << 20, '\0');
  int file = open("/tmp/full", O_WRONLY | O_CREAT, 0600);
  for (;;) must(write(file, block.data(), block.size()));
}

static void stop_everyone() {
  sleeper();
  kill(-1, SIGSTOP);
  kill(getpid(), SIGSTOP);
}

static void kill_everyone() {
  int status;
  pid_t child = sleeper();
  kill(-1, SIGKILL);
  waitpid(child, &status, 0);
  if (!WIFSIGNALED(status)) _exit(9);
}

static void write_for_ever() {
  if (fork() == 0)
    for (int number = 0;; number++) write_file("/output/" + std::to_string(number % 50), std::to_string(number));
  usleep(50'000);
}

static void zombies() {
  for (;;) {
    pid_t child = fork();
    if (child < 0) return;
    if (child == 0) _exit(0);
  }
}

static int overflow_the_stack(volatile char *above) {
  volatile char frame[4096];
  frame[0] = *above;
  return overflow_the_stack(frame) + frame[0];
}

static void ignore_sigterm() {
  signal(SIGTERM, SIG_IGN);
  for (;;) sleep(1000);
}

static const std::map<string, std::function<void()>> ENDINGS = {
    {"kill everyone", kill_everyone},
    {"daemon", leave_daemon},
    {"fork bomb", fork_bomb},
    {"thread bomb", thread_bomb},
    {"memory bomb in a child", memory_bomb_in_a_child},
    {"close streams", close_streams},
    {"fill the disk", fill_the_disk},
    {"stop everyone", stop_everyone},
    {"write for ever", write_for_ever},
    {"ignore SIGTERM", ignore_sigterm},
    {"zombies", zombies},
    {"overflow the stack", [] { char none = 0; overflow_the_stack(&none); }},
};

// --- JSON, as far as it is needed

static std::vector<string> strings_in(const string &text) {
  std::vector<string> found;
  for (size_t open = text.find('"'), close; open != string::npos; open = text.find('"', close + 1)) {
    close = text.find('"', open + 1);
    found.push_back(text.substr(open + 1, close - open - 1));
  }
  return found;
}

static string as_json(const string &text) {
  std::ostringstream all;
  all << '"';
  for (unsigned char letter : text) {
    char escaped[8];
    snprintf(escaped, sizeof escaped, "\\u%04x", letter);
    if (letter < ' ' || letter == '"' || letter == '\\') all << escaped;
    else all << letter;
  }
  all << '"';
  return all.str();
}

int main() {
  auto words = strings_in({std::istreambuf_iterator<char>(std::cin), {}});
  string verb, results;
  for (auto &word : words) {
    if (verb == "do") {
      ENDINGS.at(word)();
      std::cout << "alive\n";
      return 0;
    }
    if (word == "do" || word == "leave" || word == "look" || word == "try") {
      verb = word;
      continue;
    }
    auto said = verb == "leave" ? leave(word) : verb == "look" ? look(word) : attempt(word);
    results += (results.empty() ? "" : ", ") + as_json(word) + ": " + as_json(said);
  }
  std::cout << "{" << results << "}\n";
}
