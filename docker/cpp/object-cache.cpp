// object-cache take OBJECTS UNITS FOLDER: write to FOLDER the objects of an earlier build that a compilation
// would give again. object-cache keep OBJECTS UNITS FOLDER OUTPUT BYTES: write the objects of this build to
// OUTPUT for the next build, at most BYTES. Run both in the root of the code.
//
// UNITS has the compile command of each source, each ended by a NUL. The object of the first command is
// FOLDER/000000.o. Beside it are the messages of its compilation (000000.txt) and the files that the compiler
// and the assembler have read (000000.d, 000000.s.d). An object without 000000.d comes from OBJECTS.
//
// An object is used again only if its command and the content of all files that it depends on are the same,
// and if no other file could now be found by an #include. Objects are not kept if their compilation had
// messages, read files outside the code and the image, or used the time.
//
// OBJECTS may be missing or damaged. An earlier build of the same function has written it, and nobody else
// (docs/adr/0029).
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <sys/statvfs.h>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

constexpr std::string_view magic = "objects 1\n";
constexpr std::uint64_t spare_bytes = 1 << 20; // of the disk, so that the run does not count as one that filled it
const std::set<std::string, std::less<>> source_endings = {".cpp", ".cc", ".cxx", ".c++", ".c"};
const std::set<std::string, std::less<>> header_endings = {"",     ".h",   ".hh",  ".hpp", ".hxx", ".h++",
                                                           ".inl", ".ipp", ".tpp", ".tcc", ".inc", ".def"};

std::optional<std::string> content(const fs::path &path)
{
    std::error_code error;
    if (!fs::is_regular_file(path, error))
        return {};
    std::ifstream file(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    return file.bad() || !file.is_open() ? std::nullopt : std::optional(std::move(text));
}

// ---- SHA-256 (FIPS 180-4)

constexpr std::array<std::uint32_t, 64> constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

void add_block(std::array<std::uint32_t, 8> &state, const unsigned char *block)
{
    std::array<std::uint32_t, 64> w;
    for (int i = 0; i < 16; i++)
        w[i] = std::uint32_t(block[4 * i]) << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        auto s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
        auto s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; i++) {
        auto t1 = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i];
        auto t2 = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const std::array<std::uint32_t, 8> added = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++)
        state[i] += added[i];
}

// Return the digest in hexadecimal.
std::string sha256(const std::string &text)
{
    std::array<std::uint32_t, 8> state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    auto bytes = reinterpret_cast<const unsigned char *>(text.data());
    std::size_t whole = text.size() / 64 * 64;
    for (std::size_t at = 0; at < whole; at += 64)
        add_block(state, bytes + at);
    std::string rest = text.substr(whole) + '\x80';
    rest.resize((rest.size() + 8 + 63) / 64 * 64 - 8);
    for (int shift = 56; shift >= 0; shift -= 8)
        rest += char(std::uint64_t(text.size()) * 8 >> shift);
    for (std::size_t at = 0; at < rest.size(); at += 64)
        add_block(state, reinterpret_cast<const unsigned char *>(rest.data()) + at);
    std::string hex;
    for (auto word : state)
        for (int shift = 28; shift >= 0; shift -= 4)
            hex += "0123456789abcdef"[word >> shift & 15];
    return hex;
}

// ---- the files of the code

// What a file of the code makes of an object that depends on it.
struct Traits {
    std::string digest;
    bool may_keep = true;    // whether its text gives the same object at any time
    bool any_name = false;   // whether it could ask for files other than headers by name
};

// Remove the ends of lines that are continued, as the compiler does.
std::string joined_lines(const std::string &text)
{
    std::string joined;
    for (std::size_t at = 0; at < text.size(); at++) {
        if (text[at] == '\\') {
            auto end = text.find_first_not_of(" \t\r\f\v", at + 1);
            if (end != text.npos && text[end] == '\n') {
                at = end;
                continue;
            }
        }
        joined += text[at];
    }
    return joined;
}

bool has(std::string_view text, std::string_view part)
{
    return text.find(part) != text.npos;
}

// Whether a line is `#include` with the literal name of a header.
bool includes_a_header(std::string_view line)
{
    auto skip = [&line] { line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size())); };
    skip();
    if (!line.starts_with('#'))
        return false;
    line.remove_prefix(1);
    skip();
    if (!line.starts_with("include"))
        return false;
    line.remove_prefix(7);
    skip();
    if (line.empty() || (line.front() != '"' && line.front() != '<'))
        return false;
    auto end = line.find(line.front() == '"' ? '"' : '>', 1);
    if (end == line.npos)
        return false;
    fs::path name(line.substr(1, end - 1));
    line.remove_prefix(end + 1);
    line.remove_suffix(line.ends_with('\r'));
    skip();
    return header_endings.contains(name.extension().string()) && (line.empty() || line.starts_with("//"));
}

Traits traits_of(const std::string &text)
{
    Traits traits{sha256(text)};
    std::string joined = joined_lines(text);
    for (auto time : {"__DATE__", "__TIME__", "__TIMESTAMP__"})
        traits.may_keep = traits.may_keep && !has(joined, time);
    traits.any_name = has(joined, "__has_include") || has(joined, "__has_embed");
    std::string_view rest = joined;
    while (!rest.empty()) {
        auto line = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(std::min(line.size() + 1, rest.size()));
        if (has(line, "ragma") && has(line, "dependency")) // compares the times of two files
            traits.may_keep = false;
        bool is_directive = has(line, "#") || has(line, "%:") || has(line, "\?\?=");
        if (is_directive && (has(line, "include") || has(line, "import") || has(line, "embed")))
            traits.any_name = traits.any_name || !includes_a_header(line);
    }
    return traits;
}

class Code {
public:
    // Return the traits of a file; nothing if it cannot be read.
    const std::optional<Traits> &traits(const std::string &path)
    {
        auto [found, is_new] = known_.try_emplace(path);
        if (is_new)
            if (auto text = content(path))
                found->second = traits_of(*text);
        return found->second;
    }

    // Return the digest of all names of files, or of those that have an ending of headers. A new file may be
    // found in place of another one, and `__has_include` may find it.
    const std::string &names(bool any)
    {
        std::string &digest = names_[any];
        if (digest.empty()) {
            std::set<std::string> names;
            std::error_code error;
            for (fs::recursive_directory_iterator entry(".", error), end; !error && entry != end; entry.increment(error))
                if (entry->is_symlink(error))
                    names.insert(entry->path().string() + " -> " + fs::read_symlink(entry->path(), error).string());
                else if (!entry->is_directory(error) && (any || header_endings.contains(entry->path().extension().string())))
                    names.insert(entry->path().string());
            std::string all;
            for (const auto &name : names)
                all.append(name).push_back('\0');
            digest = error ? "unreadable" : sha256(all);
        }
        return digest;
    }

private:
    std::map<std::string, std::optional<Traits>> known_;
    std::string names_[2];
};

// ---- dependencies, as the compiler and the assembler write them for make

Words dependencies(const std::string &rule)
{
    Words paths;
    std::string path;
    auto finish = [&] {
        if (!path.empty())
            paths.push_back(std::exchange(path, {}));
    };
    for (std::size_t at = std::min(rule.find(": "), rule.size() - 1) + 1; at < rule.size(); at++) {
        char c = rule[at], next = at + 1 < rule.size() ? rule[at + 1] : '\0';
        if (c == '\\' && next == '\n')
            at++, finish();
        else if ((c == '\\' && std::strchr(" \t#:", next) && next) || (c == '$' && next == '$'))
            path += next, at++;
        else if (std::strchr(" \t\n", c))
            finish();
        else
            path += c;
    }
    finish();
    return paths;
}

enum class Place { image, code, elsewhere };

Place place_of(const std::string &path)
{
    fs::path normal = fs::path(path).lexically_normal();
    if (!fs::path(path).is_absolute())
        return normal.string().starts_with("..") ? Place::elsewhere : Place::code;
    if (normal != fs::path(path))
        return Place::elsewhere;
    return path.starts_with("/usr/") || path.starts_with("/nanosupervisor/") ? Place::image : Place::elsewhere;
}

// ---- records: the object of a unit, and all that it depends on

struct Record {
    Words header; // the command, whether any name counts, the digest of names; then the path and digest of each file
    std::string_view object;
};

using Records = std::map<std::string, Record, std::less<>>;

Words split(std::string_view text)
{
    Words words;
    for (std::size_t end; (end = text.find('\0')) != text.npos; text.remove_prefix(end + 1))
        words.emplace_back(text.substr(0, end));
    return words;
}

std::uint64_t number(std::string_view bytes)
{
    std::uint64_t value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
}

// Return the records by command, up to the first damaged one. They refer to the text.
Records records_in(std::string_view text)
{
    Records records;
    if (!text.starts_with(magic))
        return records;
    text.remove_prefix(magic.size());
    while (text.size() >= 16) {
        std::uint64_t header_bytes = number(text), object_bytes = number(text.substr(8));
        text.remove_prefix(16);
        if (header_bytes > text.size() || object_bytes > text.size() - header_bytes)
            break;
        Words header = split(text.substr(0, header_bytes));
        if (header.size() < 5 || header.size() % 2 == 0)
            break;
        std::string command = header[0];
        records[command] = {std::move(header), text.substr(header_bytes, object_bytes)};
        text.remove_prefix(header_bytes + object_bytes);
    }
    return records;
}

bool is_current(const Record &record, Code &code)
{
    if (record.header[2] != code.names(record.header[1] == "any"))
        return false;
    for (std::size_t at = 3; at < record.header.size(); at += 2) {
        if (place_of(record.header[at]) != Place::code)
            return false;
        const auto &traits = code.traits(record.header[at]);
        if (!traits || traits->digest != record.header[at + 1])
            return false;
    }
    return true;
}

// Return the header of the record of a unit that was compiled in this build; nothing if it must not be kept.
std::optional<Words> header_of(const std::string &command, const std::string &stem, Code &code)
{
    auto messages = content(stem + ".txt"), read = content(stem + ".d"), assembled = content(stem + ".s.d");
    if (!messages || !messages->empty() || !read || !assembled)
        return {};
    std::set<std::string> paths;
    for (const auto &rule : {*read, *assembled})
        for (auto &path : dependencies(rule))
            paths.insert(std::move(path));
    bool any_name = false;
    Words header = {command, "", ""};
    for (const auto &path : paths) {
        Place place = place_of(path);
        if (place == Place::image)
            continue;
        if (place == Place::elsewhere || !code.traits(path) || !code.traits(path)->may_keep)
            return {};
        any_name = any_name || code.traits(path)->any_name;
        header.insert(header.end(), {path, code.traits(path)->digest});
    }
    header[1] = any_name ? "any" : "headers";
    header[2] = code.names(any_name);
    return header.size() < 5 ? std::nullopt : std::optional(header);
}

std::string packed(const Words &header, std::string_view object)
{
    std::string text;
    for (const auto &word : header)
        text.append(word).push_back('\0');
    std::uint64_t sizes[2] = {text.size(), object.size()};
    return std::string(reinterpret_cast<const char *>(sizes), sizeof sizes).append(text).append(object);
}

std::string stem_of(const fs::path &folder, std::size_t index)
{
    std::string name = std::to_string(index);
    return (folder / (std::string(6 - std::min<std::size_t>(name.size(), 6), '0') + name)).string();
}

// Write a file whole or not at all.
bool write_file(const std::string &path, std::string_view text)
{
    std::ofstream file(path + ".part", std::ios::binary);
    file.write(text.data(), std::streamsize(text.size()));
    file.close();
    std::error_code error;
    if (file)
        fs::rename(path + ".part", path, error);
    if (!file || error)
        fs::remove(path + ".part", error);
    return bool(file);
}

void take(const Records &records, const Words &commands, const fs::path &folder)
{
    Code code;
    for (std::size_t index = 0; index < commands.size(); index++) {
        auto found = records.find(commands[index]);
        if (found != records.end() && is_current(found->second, code))
            write_file(stem_of(folder, index) + ".o", found->second.object);
    }
}

// Write nothing if no object is new.
void keep(const Records &records, const Words &commands, const fs::path &folder, const fs::path &output, std::uint64_t most)
{
    Code code;
    bool is_new = false;
    std::string text(magic);
    for (std::size_t index = 0; index < commands.size(); index++) {
        std::string stem = stem_of(folder, index), record;
        if (!fs::exists(stem + ".d")) {
            if (auto found = records.find(commands[index]); found != records.end())
                record = packed(found->second.header, found->second.object);
        } else if (auto header = header_of(commands[index], stem, code)) {
            if (auto object = content(stem + ".o")) {
                record = packed(*header, *object);
                is_new = true;
            }
        }
        if (text.size() + record.size() <= most)
            text += record;
    }
    struct statvfs disk;
    if (is_new && text.size() > magic.size() && !statvfs(output.parent_path().c_str(), &disk) &&
        disk.f_bavail * disk.f_bsize >= text.size() + spare_bytes)
        write_file(output.string(), text);
}

} // namespace

int main(int count, char **arguments)
{
    std::string_view task = count > 1 ? arguments[1] : "";
    if (count < 5 || (task == "keep" && count != 7))
        return 2;
    std::string old = content(arguments[2]).value_or("");
    Records records = records_in(old);
    Words commands = split(content(arguments[3]).value_or(""));
    if (task == "take")
        take(records, commands, arguments[4]);
    else if (task == "keep")
        keep(records, commands, arguments[4], arguments[5], std::stoull(arguments[6]));
}
