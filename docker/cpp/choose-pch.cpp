// choose-pch FOLDER SOURCE PLACE...: prints which of FOLDER's precompiled headers may be included ahead of SOURCE.
//
// Prints the header's path, or nothing when there is none to use. Run in the root of the code. The places are folders
// of the code: there names in quotes are looked for first, and names in angle brackets last.
//
// A precompiled header must not change what a program means: neither give it a name that it has not asked for
// (a forgotten #include, a clash under `using namespace std`), nor take a macro's effect from it. So one is used
// only when SOURCE begins with #include lines that bring at least all that it brings. Standard headers may be
// included in any order and repeatedly ([using.headers]), so there it changes nothing but the time.
//
// FOLDER/covers has a line for every standard header: its name, then which of those that matter here it includes.
// FOLDER/roots has the system's folders of headers. FOLDER/chain has a line for every
// precompiled header, best first: its name, then what must have been included.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string, std::less<>>;
using Table = std::vector<std::pair<std::string, std::vector<std::string>>>;

constexpr int deepest = 8; // of the code's own headers within each other

std::string content(const fs::path &path)
{
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

Table table(const fs::path &path)
{
    Table rows;
    std::istringstream lines(content(path));
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string first;
        words >> first;
        rows.emplace_back(first, std::vector<std::string>(std::istream_iterator<std::string>(words), {}));
    }
    return rows;
}

// The #include lines that a source begins with. Whatever is not understood ends them.
class Leading {
public:
    Leading(const Table &covers, std::vector<fs::path> places, std::vector<fs::path> roots)
        : places_(std::move(places)), roots_(std::move(roots))
    {
        for (const auto &[header, covered] : covers)
            known_[header] = &covered;
    }

    // Returns whether the file has nothing else in it.
    bool read(const fs::path &path, int depth = 0)
    {
        if (depth > deepest)
            return false;
        std::string text = content(path);
        if (text.find("\\\n") != std::string::npos || text.find("\\\r") != std::string::npos)
            return false; // lines that are continued: to be read with more care than is worth it
        std::string_view rest = text;
        int guards = 0;
        for (;;) {
            if (!skip_blank(rest))
                return false;
            if (rest.empty())
                return guards == 0;
            if (rest.front() != '#')
                return false;
            std::string line = without_comment(take_line(rest));
            std::istringstream words(line.substr(1));
            std::string directive, argument, more;
            words >> directive;
            if (directive.starts_with("include")) { // the name may follow without a space
                std::string name = line.substr(line.find("include") + 7);
                if (!include(name, path.parent_path(), depth))
                    return false;
            } else if (words >> argument && words >> more) {
                return false;
            } else if (directive == "ifndef") {
                if (!guard(argument, rest))
                    return false;
                ++guards;
            } else if (directive == "endif" && argument.empty() && guards > 0) {
                --guards;
            } else if (directive != "pragma" || argument != "once") {
                return false;
            }
        }
    }

    const Names &brought() const { return brought_; }

private:
    // Skip white space and comments; false when a comment has no end.
    static bool skip_blank(std::string_view &rest)
    {
        for (;;) {
            rest.remove_prefix(std::min(rest.find_first_not_of(" \t\r\n\f\v"), rest.size()));
            if (rest.starts_with("//")) {
                take_line(rest);
            } else if (rest.starts_with("/*")) {
                auto end = rest.find("*/", 2);
                if (end == rest.npos)
                    return false;
                rest.remove_prefix(end + 2);
            } else {
                return true;
            }
        }
    }

    static std::string take_line(std::string_view &rest)
    {
        std::string line(rest.substr(0, rest.find('\n')));
        rest.remove_prefix(std::min(line.size() + 1, rest.size()));
        return line;
    }

    static std::string without_comment(std::string line)
    {
        return line.substr(0, line.find("//"));
    }

    static std::string_view trimmed(std::string_view text)
    {
        auto first = text.find_first_not_of(" \t\r"), last = text.find_last_not_of(" \t\r");
        return first == text.npos ? std::string_view() : text.substr(first, last - first + 1);
    }

    bool include(std::string_view argument, const fs::path &folder, int depth)
    {
        argument = trimmed(argument);
        if (argument.size() < 3)
            return false;
        bool quoted = argument.front() == '"' && argument.back() == '"';
        std::string name(argument.substr(1, argument.size() - 2));
        if (!quoted && (argument.front() != '<' || argument.back() != '>'))
            return false;
        if (quoted && fs::exists(folder / name))
            return read(folder / name, depth + 1);
        if (quoted)
            if (auto own = found(places_, name); !own.empty())
                return read(own, depth + 1);
        // A header of the image that is not the system's comes after the code's.
        if (auto own = found(places_, name); !own.empty() && found(roots_, name).empty())
            return read(own, depth + 1);
        auto header = known_.find(name);
        if (header == known_.end())
            return false;
        brought_.insert(header->second->begin(), header->second->end());
        return true;
    }

    // The path of that name in the first of the folders that has it; empty if none has.
    static fs::path found(const std::vector<fs::path> &folders, const std::string &name)
    {
        for (const auto &folder : folders)
            if (fs::exists(folder / name))
                return folder / name;
        return {};
    }

    // An include guard: `#ifndef NAME` and then `#define NAME`. Names that mean something to the standard library
    // are those with an underscore in front, and NDEBUG.
    bool guard(const std::string &name, std::string_view &rest)
    {
        if (name.empty() || name.front() == '_' || name == "NDEBUG" || !guards_.insert(name).second)
            return false;
        if (!skip_blank(rest))
            return false;
        std::istringstream words(without_comment(take_line(rest)));
        std::string define, defined, more;
        words >> define >> defined;
        return define == "#define" && defined == name && !(words >> more);
    }

    std::map<std::string, const std::vector<std::string> *, std::less<>> known_;
    std::vector<fs::path> places_, roots_;
    Names brought_;
    Names guards_;
};

std::vector<fs::path> lines(const fs::path &path)
{
    std::istringstream text(content(path));
    std::vector<fs::path> found;
    for (std::string line; std::getline(text, line);)
        found.emplace_back(line);
    return found;
}

} // namespace

int main(int count, char **arguments)
{
    fs::path folder = arguments[1];
    Table covers = table(folder / "covers");
    Leading leading(covers, {arguments + 3, arguments + count}, lines(folder / "roots"));
    leading.read(arguments[2]);
    for (const auto &[name, needed] : table(folder / "chain")) {
        bool covered = true;
        for (const auto &header : needed)
            covered = covered && leading.brought().contains(header);
        if (covered) {
            std::cout << (folder / name).string() << '\n';
            break;
        }
    }
}
