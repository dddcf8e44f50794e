// Does what the input's `case` says; see ../python/main.py.
#include "work.hpp"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static std::string field(const std::string &payload, const std::string &name)
{
    auto at = payload.find("\"" + name + "\":");
    if (at == std::string::npos)
        return "";
    at += name.size() + 3;
    bool quoted = payload[at] == '"';
    auto end = quoted ? payload.find('"', at + 1) : payload.find_first_of(",}", at);
    return quoted ? payload.substr(at + 1, end - at - 1) : payload.substr(at, end - at);
}

static std::string whole(std::istream &&from)
{
    return {std::istreambuf_iterator<char>(from), {}};
}

static void files()
{
    std::filesystem::create_directories("/output/folder/하위");
    std::ofstream("/output/a.txt") << "one";
    std::ofstream("/output/folder/b.json") << "{}";
    std::ofstream("/output/folder/하위/결과 1.csv") << "x,y\n";
    std::filesystem::create_symlink("/etc/passwd", "/output/link");
    mkfifo("/output/pipe", 0600);
}

static std::string quoted(const std::string &text)
{
    std::string out = "\"";
    for (char c : text)
        out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    return out + "\"";
}

int main()
{
    const std::string payload = std::getenv("PAYLOAD"), what = field(payload, "case");
    if (what == "report") {
        std::string in(std::istreambuf_iterator<char>(std::cin), {});
        std::cout << "stdout: 안녕, мир 🌍" << std::endl;
        std::cerr << "stderr: 오류 아님" << std::endl;
        std::cout << "{\"env\": " << quoted(payload) << ", \"file\": "
                  << quoted(whole(std::ifstream(std::getenv("PAYLOAD_FILE")))) << ", \"stdin\": " << quoted(in)
                  << "}" << std::endl;
    } else if (what == "exit") {
        return 3;
    } else if (what == "raise") {
        throw std::runtime_error("없는 키");
    } else if (what == "signal") {
        raise(SIGKILL);
    } else if (what == "hang") {
        sleep(1000);
    } else if (what == "stubborn") {
        signal(SIGTERM, SIG_IGN);
        if (fork() == 0) {
            setsid();
            sleep(1000);
        }
        std::cout << "still here" << std::endl;
        for (;;)
            sleep(1000);
    } else if (what == "oom") {
        allocate(400);
    } else if (what == "oom_child") {
        if (fork() == 0) {
            allocate(400);
            _exit(0);
        }
        wait(nullptr);
    } else if (what == "flood") {
        const std::string line = std::string(999, 'x') + "\n";
        for (int i = 0; i < 20000; i++)
            std::cout << line;
        std::cout << "the end" << std::endl;
    } else if (what == "files") {
        files();
    } else if (what == "files_then_fail") {
        files();
        return 1;
    } else if (what == "peak") {
        auto held = allocate(std::stoul(field(payload, "megabytes")));
        const std::string status = whole(std::ifstream("/proc/self/status"));
        std::cout << std::stoul(status.substr(status.find("RssAnon:") + 8)) * 1024 << std::endl;
    } else if (what == "large_file") {
        std::ofstream("/tmp/f");
        std::filesystem::resize_file("/tmp/f", 600u << 20);
    } else if (what == "large_file_child") {
        if (std::system(("dd if=/dev/zero of=/tmp/f bs=1 count=2 seek=" + std::to_string((512u << 20) - 1)).c_str()))
            return 1;
    } else if (what == "quick") {
        std::cout << field(payload, "say") << std::endl;
    }
}
