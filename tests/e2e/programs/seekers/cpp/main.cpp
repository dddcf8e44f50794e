// See ../python/main.py.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <iostream>
#include <set>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <vector>

extern char **environ;

constexpr size_t most_bytes = 8 << 20;
std::set<std::string> found;
int files = 0;

size_t run_of(std::string_view text, size_t at, const char *alphabet, size_t most)
{
    size_t end = at;
    while (end < text.size() && end - at < most && text[end] && std::strchr(alphabet, text[end]))
        end++;
    return end - at;
}

void look_at(const std::string &place, std::string_view data)
{
    for (size_t at = data.find("cnry"); at != data.npos; at = data.find("cnry", at + 1))
        if (run_of(data, at + 4, "0123456789abcdef", 16) == 16)
            found.insert(place + "\t" + std::string(data.substr(at, 20)));
    for (size_t at = data.find("127."); at != data.npos; at = data.find("127.", at + 1)) {
        std::string address(data.substr(at, run_of(data, at, "0123456789.", 15)));
        if (address != "127.0.0.1" && std::count(address.begin(), address.end(), '.') >= 3)
            found.insert(place + "\t" + address);
    }
}

void memory()
{
    std::ifstream maps("/proc/self/maps");
    std::vector<std::string> lines;
    for (std::string line; std::getline(maps, line);)
        lines.push_back(line);
    int file = open("/proc/self/mem", O_RDONLY);
    static std::vector<char> chunk(4 << 20);
    for (const auto &line : lines) {
        unsigned long start, end;
        char mode;
        if (std::sscanf(line.c_str(), "%lx-%lx %c", &start, &end, &mode) != 3 || mode != 'r' ||
            line.find("[v") != line.npos)
            continue;
        for (unsigned long at = start; at < end; at += chunk.size() - 64) {
            ssize_t got = pread(file, chunk.data(), std::min<size_t>(end - at, chunk.size()), (off_t)at);
            if (got <= 0)
                break;
            look_at("memory", {chunk.data(), (size_t)got});
        }
    }
    close(file);
}

void read_file(const std::string &path)
{
    int file = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0)
        return;
    files++;
    std::string data;
    char part[65536];
    for (ssize_t got; data.size() < most_bytes && (got = read(file, part, sizeof part)) > 0;)
        data.append(part, (size_t)got);
    close(file);
    look_at(path, data);
}

void folder(const std::string &path)
{
    DIR *open_folder = opendir((path + "/").c_str());
    if (!open_folder)
        return;
    std::vector<std::string> names;
    while (dirent *entry = readdir(open_folder))
        if (std::strcmp(entry->d_name, ".") && std::strcmp(entry->d_name, ".."))
            names.push_back(entry->d_name);
    closedir(open_folder);
    for (const auto &name : names) {
        std::string inner = path + "/" + name;
        struct stat info;
        look_at(path, name);
        if (lstat(inner.c_str(), &info))
            continue;
        if (S_ISLNK(info.st_mode)) {
            char target[4096];
            ssize_t length = readlink(inner.c_str(), target, sizeof target);
            if (length > 0)
                look_at(inner, {target, (size_t)length});
        } else if (S_ISDIR(info.st_mode) && inner != "/usr" && inner != "/sys" && name != "task") {
            folder(inner);
        } else if (S_ISREG(info.st_mode) && name != "pagemap" && name != "mem") {
            read_file(inner);
        }
    }
}

int main(int, char **arguments)
{
    memory();
    for (char **each = environ; *each; each++)
        look_at("environment", *each);
    for (char **each = arguments; *each; each++)
        look_at("arguments", *each);
    utsname name;
    uname(&name);
    look_at("uname", name.nodename);
    folder("");
    std::ofstream output("/output/found");
    for (const auto &line : found) {
        std::cout << line << "\n";
        output << line << "\n";
    }
    std::cout << "files\t" << files << "\n";
}
