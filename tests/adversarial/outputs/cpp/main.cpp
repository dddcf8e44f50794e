// See ../python/main.py. Its daemon counts in memory that the two files are mapped to.
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char *const FIRST = "1 count", *const LARGE = "5 large", *const LAST = "9 count";

static void write(const std::string &path, const std::string &content) {
    std::ofstream(path, std::ios::binary) << content;
}

static volatile std::uint64_t *mapped(const char *path) {
    int file = open(path, O_RDWR | O_CREAT, 0644);
    if (file < 0 || ftruncate(file, 8))
        _exit(3);
    return static_cast<std::uint64_t *>(mmap(nullptr, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
}

static void leave_a_writer() {
    volatile std::uint64_t *first = mapped(FIRST), *last = mapped(LAST);
    if (fork() == 0) {
        setsid();
        for (int number : {SIGTERM, SIGHUP, SIGINT})
            signal(number, SIG_IGN);
        if (fork() == 0)
            for (std::uint64_t number = 1;; number++) {
                *first = number;
                *last = number;
            }
        _exit(0);
    }
    while (!*last)
        usleep(1000);
}

static void leave_a_socket(const char *path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(server, reinterpret_cast<sockaddr *>(&address), sizeof address) || listen(server, 1))
        _exit(4);
}

int main() {
    std::filesystem::current_path("/output");
    write("a file", "honest\n");
    std::filesystem::create_hard_link("a file", "hard link");
    std::filesystem::create_symlink("/etc/passwd", "link");
    std::filesystem::create_symlink("/proc/self/environ", "link to proc");
    std::filesystem::create_symlink("/etc", "link to a folder");
    mkfifo("pipe", 0600);
    leave_a_socket("socket");
    for (const char *name : {"new\nline", "\xff\xfe", "...", "%2e%2e", "a?b#c"})
        write(name, name);
    std::filesystem::create_directory("closed");
    write("closed/in", "in");
    chmod("closed", 0);
    write("unreadable", "unreadable");
    chmod("unreadable", 0);
    write("set-user-id", "suid");
    chmod("set-user-id", 06755);
    write("sparse", "");
    std::filesystem::resize_file("sparse", 9 << 20);
    std::string deep = "deep";
    for (int i = 0; i < 40; i++)
        deep += "/d";
    std::filesystem::create_directories(deep);
    write(LARGE, std::string(6 << 20, 'x'));
    leave_a_writer();
    std::puts("left");
}
