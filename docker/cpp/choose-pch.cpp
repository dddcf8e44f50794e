// choose-pch FOLDER SOURCE DIRECTORY...: print the path of the precompiled header in FOLDER to include before
// SOURCE.
//
// It prints nothing if no header can be used. Run it in the root of the code. The directories are those of
// the code to search for headers: first for names in quotes, last for names in angle brackets.
//
// A precompiled header must not change the meaning of a program. It must not add a name for which the program
// has no #include, and must not remove the effect of a macro. So a header is used only if SOURCE begins with
// #include lines that include at least the same headers. Standard headers may be included in any order and
// repeatedly ([using.headers]), so then nothing changes but the compile time.
//
// FOLDER/covers has a line for each standard header: its name, then the headers of the precompiled sets that
// it includes. FOLDER/roots has the system's directories of headers. FOLDER/chain has a line for each
// precompiled header, best first: its name, then the headers that SOURCE must include.
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

constexpr int max_depth = 8; // of the code's own headers that include each other

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

// The #include lines at the beginning of a source, up to the first line that is not understood.
class Leading {
public:
    Leading(const Table &covers, std::vector<fs::path> directories, std::vector<fs::path> roots)
        : directories_(std::move(directories)), roots_(std::move(roots))
    {
        for (const auto &[header, covered] : covers)
            known_[header] = &covered;
    }

    // Read a file; return whether it has nothing else in it.
    bool read(const fs::path &path, int depth = 0)
    {
        if (depth > max_depth)
            return false;
        std::string text = content(path);
        if (text.find("\\\n") != std::string::npos || text.find("\\\r") != std::string::npos)
            return false; // continued lines are not understood
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
            if (directive.starts_with("include")) { // no space is needed before the name
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
    // Skip white space and comments; return false if a comment has no end.
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
            if (auto own = found(directories_, name); !own.empty())
                return read(own, depth + 1);
        // The image's own headers are searched after the code's, the system's before.
        if (auto own = found(directories_, name); !own.empty() && found(roots_, name).empty())
            return read(own, depth + 1);
        auto header = known_.find(name);
        if (header == known_.end())
            return false;
        brought_.insert(header->second->begin(), header->second->end());
        return true;
    }

    // Return the path of that name in the first folder that has it; empty if no folder has it.
    static fs::path found(const std::vector<fs::path> &folders, const std::string &name)
    {
        for (const auto &folder : folders)
            if (fs::exists(folder / name))
                return folder / name;
        return {};
    }

    // Whether `#ifndef NAME` and the next line are an include guard. The name must have no meaning for the
    // standard library, as names that begin with an underscore and NDEBUG have.
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
    std::vector<fs::path> directories_, roots_;
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
