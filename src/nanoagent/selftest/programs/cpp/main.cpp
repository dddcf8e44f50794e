// The self-test program; ../python/main.py describes its input and output.
#include <arpa/inet.h>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <netdb.h>
#include <sstream>
#include <string>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <system_error>
#include <unistd.h>
#include <vector>

using std::string;
using Words = std::vector<string>;

static long must(long result) {
  if (result == -1) throw std::system_error(errno, std::generic_category());
  return result;
}

static string call(const Words &words) {
  long numbers[7] = {};
  for (size_t i = 0; i < words.size() && i < 7; i++) numbers[i] = std::stol(words[i]);
  must(syscall(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]));
  return "";
}

static string write_to(const Words &words) {
  close(must(open(words[0].c_str(), O_WRONLY | O_CREAT, 0644)));
  return "";
}

static string read_all(const Words &words) {
  int file = must(open(words[0].c_str(), O_RDONLY));
  string text;
  char buffer[4096];
  ssize_t count;
  while ((count = read(file, buffer, sizeof buffer)) > 0) text.append(buffer, count);
  int error = errno;
  close(file);
  errno = error;
  must(count);
  return text;
}

static string names(const Words &words) {
  DIR *folder = opendir(words[0].c_str());
  if (!folder) must(-1);
  string text;
  while (dirent *entry = readdir(folder)) {
    string name = entry->d_name;
    if (name != "." && name != "..") text += name + "\n";
  }
  closedir(folder);
  return text;
}

static string space(const Words &words) {
  struct statvfs found;
  must(statvfs(words[0].c_str(), &found));
  return std::to_string(found.f_blocks * found.f_frsize) + " " + std::to_string(found.f_files);
}

static string connect_to(const Words &words) {
  addrinfo hints{}, *found;
  hints.ai_flags = AI_NUMERICHOST;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(words[0].c_str(), words[1].c_str(), &hints, &found)) throw std::system_error(EINVAL, std::generic_category());
  int file = must(socket(found->ai_family, SOCK_STREAM, 0));
  timeval patience{1, 0};
  setsockopt(file, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  int result = connect(file, found->ai_addr, found->ai_addrlen);
  int error = errno == EINPROGRESS ? ETIMEDOUT : errno;
  freeaddrinfo(found);
  close(file);
  errno = error;
  must(result);
  return "";
}

static string environment(const Words &) {
  string text;
  for (char **variable = environ; *variable; variable++) text += string(*variable, strcspn(*variable, "=")) + "\n";
  return text;
}

static string leave_daemon(const Words &) {
  pid_t pid = fork();
  if (pid == 0) {
    setsid();
    if (fork() == 0) sleep(1000);
    _exit(0);
  }
  waitpid(pid, nullptr, 0);
  return "";
}

static string end(const Words &words) {
  const string &limit = words[0];
  if (limit == "fork")
    for (;;) {
      pid_t pid = fork();
      if (pid == 0) sleep(1000);
      if (pid == -1) _exit(1);
    }
  if (limit == "memory")
    for (;;) memset(malloc(1 << 20), 'x', 1 << 20);
  if (limit == "file") {
    rlimit size;
    getrlimit(RLIMIT_FSIZE, &size);
    int file = must(open("/tmp/large", O_WRONLY | O_CREAT, 0644));
    must(pwrite(file, "x", 1, size.rlim_cur - 1));
    must(pwrite(file, "x", 1, size.rlim_cur));
  }
  if (limit == "time") {
    signal(SIGTERM, SIG_IGN);
    for (;;) sleep(1000);
  }
  return "";
}

static const std::map<string, std::function<string(const Words &)>> OPERATIONS = {
    {"call", call},
    {"write", write_to},
    {"read", read_all},
    {"names", names},
    {"space", space},
    {"connect", connect_to},
    {"signal", [](const Words &words) { return must(kill(stoi(words[0]), stoi(words[1]))), string(); }},
    {"link", [](const Words &words) { return must(symlink(words[0].c_str(), words[1].c_str())), string(); }},
    {"environment", environment},
    {"daemon", leave_daemon},
    {"end", end},
};

static string answer(const string &line) {
  std::istringstream stream(line);
  string operation;
  stream >> operation;
  Words words{std::istream_iterator<string>(stream), {}};
  try {
    string text = OPERATIONS.at(operation)(words);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    for (char &character : text)
      if (character == '\n') character = '\x1e';
    return text.empty() ? "done" : "done " + text;
  } catch (const std::system_error &error) {
    if (operation == "end") throw;
    return "error " + std::to_string(error.code().value());
  }
}

int main() {
  for (string line; std::getline(std::cin, line);)
    if (!line.empty()) std::cout << answer(line) << std::endl;
}
