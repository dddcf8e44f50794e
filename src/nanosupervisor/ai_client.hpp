// Ask a language model from a function: `#include <ai_client.hpp>`, then `std::cout <<
// ai_client::generate("Hello");`.
//
// Speaks Ollama's API to the address in AI_ENDPOINT or OLLAMA_HOST, over plain HTTP. It is on the C++ image's
// include path; a file of that name in the function's folder has precedence. It needs only C++20 and POSIX.
// The clients for Python, Node.js and Go in this folder have the same calls and the same error messages.
#pragma once

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

namespace ai_client {

// The request to the model failed.
class error : public std::runtime_error {
public:
    explicit error(const std::string &what, int http_status = 0) : std::runtime_error(what), status(http_status) {}

    const int status; // the server's HTTP status if it refused the request (429: a limit is reached), else 0
};

// Options of a call. An empty option means the default.
struct options {
    std::string model = {};   // default: the job's modelId (LLM_MODEL)
    std::string system = {};  // the system prompt, for generate
    std::string format = {};  // JSON: "\"json\"", or a schema for the answer
    std::string tuning = {};  // JSON object of options of the model: R"({"temperature": 0, "num_predict": 50})"
    // The longest time without data. The first answer of a large model includes the time to load it.
    double timeout_s = 300;
};

// A message of a conversation.
struct message {
    std::string role; // system, user, assistant
    std::string content;
};

// A function that receives the pieces of an answer. If it throws, the call closes the connection and throws
// the same.
using on_text = std::function<void(std::string_view piece)>;

// Complete a prompt and return the model's whole answer. Throws `error`.
std::string generate(const std::string &prompt, const options &how = {});

// Complete a prompt, and pass the answer to `take` in pieces as the model writes it. Throws `error`; also if
// the answer ends before it is complete.
void generate_stream(const std::string &prompt, const on_text &take, const options &how = {});

// Continue a conversation, oldest message first, and return the content of the model's answer. A string is
// one message of the user. Throws `error`.
std::string chat(const std::vector<message> &messages, const options &how = {});
std::string chat(std::initializer_list<message> messages, const options &how = {}); // else chat({…}) is ambiguous
std::string chat(const std::string &message, const options &how = {});

// Continue a conversation, and pass the answer to `take` in pieces, as generate_stream does.
void chat_stream(const std::vector<message> &messages, const on_text &take, const options &how = {});
void chat_stream(std::initializer_list<message> messages, const on_text &take, const options &how = {});
void chat_stream(const std::string &message, const on_text &take, const options &how = {});

// Return the embedding vector of a text, or of several texts in the same order. Throws `error`.
std::vector<double> embed(const std::string &text, const options &how = {});
std::vector<std::vector<double>> embed_all(const std::vector<std::string> &texts, const options &how = {});

// --- JSON

namespace detail {

inline constexpr std::size_t error_text_max = 500; // bytes of the server's text in an error message

// Return the part of a text that fits into an error message, without an incomplete UTF-8 character at its end.
inline std::string shortened(std::string_view text)
{
    std::size_t end = std::min(text.size(), error_text_max);
    while (end > 0 && end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80)
        --end;
    return std::string(text.substr(0, end));
}

inline std::string quoted(std::string_view text)
{
    static constexpr char digits[] = "0123456789abcdef";
    std::string out = "\"";
    for (char letter : text) {
        auto code = static_cast<unsigned char>(letter);
        if (letter == '"' || letter == '\\') {
            out += '\\';
            out += letter;
        } else if (code < 0x20) {
            out += "\\u00";
            out += digits[code >> 4];
            out += digits[code & 15];
        } else {
            out += letter;
        }
    }
    return out += '"';
}

struct value {
    enum class kind { null, boolean, number, text, list, object };

    kind is = kind::null;
    bool truth = false;
    double number = 0;
    std::string text = {};
    std::vector<value> items = {};       // of a list, or the values of an object
    std::vector<std::string> names = {}; // the names of an object's values

    // Return an object's member, or nullptr.
    const value *find(std::string_view name) const
    {
        for (std::size_t index = names.size(); index-- > 0;) // the last of equal names, as in other parsers
            if (names[index] == name)
                return &items[index];
        return nullptr;
    }
};

class not_json : public std::exception {};

// Reads one JSON text (RFC 8259).
class parser {
public:
    explicit parser(std::string_view text) : rest_(text) {}

    value whole()
    {
        value read = any(0);
        skip_space();
        if (!rest_.empty())
            throw not_json();
        return read;
    }

private:
    static constexpr int deepest = 200;

    value any(int depth)
    {
        skip_space();
        if (rest_.empty() || depth > deepest)
            throw not_json();
        switch (rest_.front()) {
        case '{':
            return container(value::kind::object, '}', depth);
        case '[':
            return container(value::kind::list, ']', depth);
        case '"':
            return {value::kind::text, false, 0, string()};
        case 't':
            return word("true", {value::kind::boolean, true});
        case 'f':
            return word("false", {value::kind::boolean});
        case 'n':
            return word("null", {});
        default:
            return number();
        }
    }

    value container(value::kind kind, char close, int depth)
    {
        value read{kind};
        rest_.remove_prefix(1);
        if (next_is(close))
            return read;
        do {
            if (kind == value::kind::object) {
                skip_space();
                read.names.push_back(string());
                if (!next_is(':'))
                    throw not_json();
            }
            read.items.push_back(any(depth + 1));
        } while (next_is(','));
        if (!next_is(close))
            throw not_json();
        return read;
    }

    value word(std::string_view text, value meaning)
    {
        if (!rest_.starts_with(text))
            throw not_json();
        rest_.remove_prefix(text.size());
        return meaning;
    }

    value number()
    {
        value read{value::kind::number};
        std::size_t digit = rest_.front() == '-' ? 1 : 0; // from_chars would also accept "-inf"
        auto [end, problem] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), read.number);
        if (rest_.size() <= digit || rest_[digit] < '0' || rest_[digit] > '9' || problem == std::errc::invalid_argument)
            throw not_json();
        rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
        return read;
    }

    std::string string()
    {
        if (rest_.empty() || rest_.front() != '"')
            throw not_json();
        rest_.remove_prefix(1);
        std::string read;
        for (;;) {
            std::size_t plain = rest_.find_first_of("\"\\");
            if (plain == rest_.npos)
                throw not_json();
            read += rest_.substr(0, plain);
            char found = rest_[plain];
            rest_.remove_prefix(plain + 1);
            if (found == '"')
                return read;
            escape(read);
        }
    }

    void escape(std::string &read)
    {
        if (rest_.empty())
            throw not_json();
        char letter = rest_.front();
        rest_.remove_prefix(1);
        static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        if (std::size_t at = letters.find(letter); at != letters.npos) {
            read += meanings[at];
        } else if (letter == 'u') {
            append_utf8(read, code_point());
        } else {
            throw not_json();
        }
    }

    // Read the digits after \u, and a second \u if they are the first half of a surrogate pair. Half a pair
    // is U+FFFD.
    std::uint32_t code_point()
    {
        std::uint32_t first = code_unit();
        if (first >= 0xd800 && first < 0xdc00 && rest_.starts_with("\\u")) {
            std::string_view before = rest_;
            rest_.remove_prefix(2);
            std::uint32_t second = code_unit();
            if (second >= 0xdc00 && second < 0xe000)
                return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            rest_ = before;
        }
        return first >= 0xd800 && first < 0xe000 ? 0xfffd : first;
    }

    std::uint32_t code_unit()
    {
        std::uint32_t unit = 0;
        auto end = rest_.data() + std::min<std::size_t>(rest_.size(), 4);
        if (std::from_chars(rest_.data(), end, unit, 16).ptr != rest_.data() + 4)
            throw not_json();
        rest_.remove_prefix(4);
        return unit;
    }

    static void append_utf8(std::string &out, std::uint32_t code)
    {
        auto add = [&out](std::uint32_t byte) { out += static_cast<char>(byte); };
        if (code < 0x80) {
            add(code);
        } else if (code < 0x800) {
            add(0xc0 | code >> 6);
            add(0x80 | (code & 0x3f));
        } else if (code < 0x10000) {
            add(0xe0 | code >> 12);
            add(0x80 | (code >> 6 & 0x3f));
            add(0x80 | (code & 0x3f));
        } else {
            add(0xf0 | code >> 18);
            add(0x80 | (code >> 12 & 0x3f));
            add(0x80 | (code >> 6 & 0x3f));
            add(0x80 | (code & 0x3f));
        }
    }

    bool next_is(char wanted)
    {
        skip_space();
        if (rest_.empty() || rest_.front() != wanted)
            return false;
        rest_.remove_prefix(1);
        return true;
    }

    void skip_space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size())); }

    std::string_view rest_;
};

// --- the connection

struct endpoint {
    std::string whole, host, port, path;
};

inline std::string variable(const char *name)
{
    const char *set = std::getenv(name);
    return set ? set : "";
}

// Return the server's address. OLLAMA_HOST may have no scheme, as in Ollama's own programs.
inline endpoint endpoint_in_use()
{
    std::string name = "AI_ENDPOINT", whole = variable("AI_ENDPOINT");
    if (whole.empty()) {
        name = "OLLAMA_HOST";
        whole = variable("OLLAMA_HOST");
        if (!whole.empty() && whole.find("://") == whole.npos)
            whole = "http://" + whole;
    }
    if (whole.empty())
        whole = "http://127.0.0.1:11434"; // Ollama's default
    while (whole.ends_with('/'))
        whole.pop_back();
    if (!whole.starts_with("http://"))
        throw error(name + " must start with http:// (this client does not support https), but is '" + whole + "'");
    std::string_view rest = std::string_view(whole).substr(7);
    std::string_view authority = rest.substr(0, rest.find('/'));
    endpoint found{whole, "", "80", std::string(rest.substr(authority.size()))};
    std::size_t colon = authority.rfind(':'), bracket = authority.rfind(']');
    if (colon != authority.npos && (bracket == authority.npos || colon > bracket)) {
        found.port = authority.substr(colon + 1);
        authority = authority.substr(0, colon);
    }
    if (authority.starts_with('[') && authority.ends_with(']'))
        authority = authority.substr(1, authority.size() - 2);
    found.host = authority;
    return found;
}

// A connection for one request.
class connection {
public:
    connection(const endpoint &where, double timeout_s) : where_(where), timeout_s_(timeout_s)
    {
        addrinfo wanted{}, *found = nullptr;
        wanted.ai_socktype = SOCK_STREAM;
        if (int problem = getaddrinfo(where.host.c_str(), where.port.c_str(), &wanted, &found); problem != 0)
            throw error(unreachable() + gai_strerror(problem));
        std::unique_ptr<addrinfo, void (*)(addrinfo *)> addresses(found, freeaddrinfo);
        for (const addrinfo *address = found; address && socket_ < 0; address = address->ai_next)
            try_one(*address);
        if (socket_ < 0)
            fail(unreachable());
    }

    ~connection()
    {
        if (socket_ >= 0)
            close(socket_);
    }

    connection(const connection &) = delete;
    connection &operator=(const connection &) = delete;

    void send_all(std::string_view bytes)
    {
        while (!bytes.empty()) {
            ssize_t sent = send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
            if (sent < 0 && errno == EINTR)
                continue;
            if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
                return; // the server may have answered before it closed the connection
            if (sent < 0)
                fail(unreachable());
            bytes.remove_prefix(static_cast<std::size_t>(sent));
        }
    }

    // Receive the next line, without its end: a line of the answer's head, or the line before or after a chunk.
    std::string line()
    {
        std::size_t end;
        while ((end = waiting().find('\n')) == std::string::npos)
            if (waiting().size() > line_max || !receive())
                throw error(incomplete());
        std::string taken(waiting().substr(0, end));
        begin_ += end + 1;
        answered_ = true;
        if (taken.ends_with('\r'))
            taken.pop_back();
        return taken;
    }

    // Pass the next bytes to `take`, at most `count`. Return their number; 0 at the end.
    std::size_t some(std::size_t count, const std::function<void(std::string_view)> &take)
    {
        if (waiting().empty() && !receive())
            return 0;
        std::string_view bytes = waiting().substr(0, count);
        begin_ += bytes.size();
        take(bytes);
        return bytes.size();
    }

    std::string incomplete() const
    {
        return answered_ ? "the model server's answer ended before it was complete"
                         : unreachable() + "it closed the connection without an answer";
    }

private:
    static constexpr std::size_t line_max = 65536;

    void try_one(const addrinfo &address)
    {
        socket_ = socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, address.ai_protocol);
        if (socket_ < 0)
            return;
        timeval timeout{};
        timeout.tv_sec = static_cast<time_t>(timeout_s_);
        timeout.tv_usec = static_cast<suseconds_t>(std::fmod(timeout_s_, 1) * 1e6);
        setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
        setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
        if (connect(socket_, address.ai_addr, address.ai_addrlen) == 0)
            return;
        int reason = errno;
        close(socket_);
        socket_ = -1;
        errno = reason;
    }

    // The bytes that have been received and not taken yet.
    std::string_view waiting() const { return std::string_view(buffer_).substr(begin_); }

    bool receive()
    {
        char bytes[65536];
        ssize_t got;
        do
            got = recv(socket_, bytes, sizeof bytes, 0);
        while (got < 0 && errno == EINTR);
        if (got < 0)
            fail(answered_ ? incomplete() + ": " : unreachable());
        buffer_.erase(0, std::exchange(begin_, 0));
        buffer_.append(bytes, static_cast<std::size_t>(got));
        return got > 0;
    }

    std::string unreachable() const { return "the model server at " + where_.whole + " cannot be reached: "; }

    // Throw an error for errno.
    [[noreturn]] void fail(const std::string &message) const
    {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINPROGRESS || errno == ETIMEDOUT) {
            char seconds[32];
            auto end = std::to_chars(seconds, seconds + sizeof seconds, timeout_s_).ptr;
            throw error("the model server at " + where_.whole + " did not answer within " +
                        std::string(seconds, end) + " s");
        }
        throw error(message + std::strerror(errno));
    }

    const endpoint where_;
    const double timeout_s_;
    int socket_ = -1;
    std::string buffer_;
    std::size_t begin_ = 0; // the bytes before it have been taken
    bool answered_ = false;
};

// --- HTTP

struct head {
    int status = 0;
    std::string reason;
    bool chunked = false;
    bool has_length = false;
    std::size_t length = 0;
};

inline std::string lower(std::string_view text)
{
    std::string out(text);
    std::transform(out.begin(), out.end(), out.begin(), [](char letter) {
        return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
    });
    return out;
}

inline head read_head(connection &link)
{
    head read;
    do {
        read = {};
        std::string status = link.line();
        if (!status.starts_with("HTTP/1.") || status.size() < 12)
            throw error("the model server's answer is not HTTP: '" + shortened(status) + "'");
        std::from_chars(status.data() + 9, status.data() + 12, read.status);
        read.reason = status.size() > 13 ? status.substr(13) : "";
        for (std::string line; !(line = link.line()).empty();) {
            std::size_t colon = std::min(line.find(':'), line.size());
            std::string name = lower(line.substr(0, colon));
            std::string_view text = std::string_view(line).substr(std::min(colon + 1, line.size()));
            text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
            if (name == "transfer-encoding")
                read.chunked = lower(text).find("chunked") != std::string::npos;
            else if (name == "content-length")
                read.has_length = std::from_chars(text.data(), text.data() + text.size(), read.length).ec == std::errc();
        }
    } while (read.status >= 100 && read.status < 200);
    return read;
}

// Pass exactly `count` bytes of the body to `take`.
inline void read_exactly(connection &link, std::size_t count, const on_text &take)
{
    while (count > 0) {
        std::size_t got = link.some(count, take);
        if (got == 0)
            throw error(link.incomplete());
        count -= got;
    }
}

// Pass the body's bytes to `take` as they arrive.
inline void read_body(connection &link, const head &head, const on_text &take)
{
    if (head.chunked) {
        for (;;) {
            std::string line = link.line();
            std::size_t count = 0;
            if (std::from_chars(line.data(), line.data() + line.size(), count, 16).ec != std::errc())
                throw error(link.incomplete());
            if (count == 0)
                return;
            read_exactly(link, count, take);
            link.line();
        }
    }
    if (head.has_length)
        return read_exactly(link, head.length, take);
    while (link.some(std::string::npos, take) > 0) {
    }
}

// Return the server's reason for an error: Ollama's `error` field, OpenAI's `error.message`, else the text.
inline std::string reason_of(const std::string &text)
{
    try {
        value answer = parser(text).whole();
        const value *reason = answer.find("error");
        if (reason && reason->find("message"))
            reason = reason->find("message");
        if (reason && reason->is == value::kind::text)
            return reason->text;
    } catch (const not_json &) {
        // Use the text.
    }
    std::size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
    return first == text.npos ? "" : text.substr(first, last - first + 1);
}

// Send a request, and pass the answer's bytes to `take` as they arrive.
inline void post(const std::string &path, const std::string &body, double timeout_s, const on_text &take)
{
    endpoint where = endpoint_in_use();
    connection link(where, timeout_s);
    std::string host = where.host.find(':') == where.host.npos ? where.host : "[" + where.host + "]";
    link.send_all("POST " + where.path + path + " HTTP/1.1\r\nHost: " + host + ":" + where.port +
                  "\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
                  "\r\nConnection: close\r\n\r\n" + body);
    head head = read_head(link);
    if (head.status == 200)
        return read_body(link, head, take);
    std::string body_text;
    try {
        read_body(link, head, [&body_text](std::string_view bytes) {
            body_text += bytes;
            if (body_text.size() >= 65536)
                throw error("enough");
        });
    } catch (const error &) {
        // The bytes that have arrived are enough.
    }
    std::string reason = reason_of(body_text);
    throw error("the model server at " + where.whole + " answered " + std::to_string(head.status) + ": " +
                    shortened(reason.empty() ? head.reason : reason),
                head.status);
}

// --- requests and answers

inline std::string request(const std::string &fields, bool stream, const options &how)
{
    std::string model = how.model.empty() ? variable("LLM_MODEL") : how.model;
    std::string body = "{\"model\": " + quoted(model.empty() ? "llama3:8b" : model) + ", " + fields;
    if (!how.system.empty())
        body += ", \"system\": " + quoted(how.system);
    if (!how.format.empty())
        body += ", \"format\": " + how.format;
    if (!how.tuning.empty())
        body += ", \"options\": " + how.tuning;
    return body + (stream ? ", \"stream\": true}" : ", \"stream\": false}");
}

inline value parse(const std::string &text)
{
    value answer;
    try {
        answer = parser(text).whole();
    } catch (const not_json &) {
        throw error("the model server's answer is not JSON: '" + shortened(text) + "'");
    }
    if (answer.is != value::kind::object)
        throw error("the model server's answer is not a JSON object: '" + shortened(text) + "'");
    // After the first byte, Ollama can report an error only in the body. The status is 200.
    if (answer.find("error"))
        throw error("the model server failed: " + reason_of(text));
    return answer;
}

// Send a request and return the JSON object of the whole answer.
inline value ask(const std::string &path, const std::string &fields, const options &how)
{
    std::string answer;
    post(path, request(fields, false, how), how.timeout_s, [&answer](std::string_view bytes) { answer += bytes; });
    return parse(answer);
}

// Send a request and pass the JSON objects of the answer, one for each line, to `take`. The bytes of a line
// may arrive in any number of pieces.
inline void ask_in_pieces(const std::string &path, const std::string &fields, const options &how,
                          const std::function<void(const value &)> &take)
{
    std::string begun;
    bool done = false;
    auto line = [&](const std::string &text) {
        if (text.find_first_not_of(" \t\r\n") == text.npos)
            return;
        value part = parse(text);
        const value *last = part.find("done");
        done = last && last->truth;
        take(part);
    };
    post(path, request(fields, true, how), how.timeout_s, [&](std::string_view bytes) {
        for (std::size_t end; (end = bytes.find('\n')) != bytes.npos; bytes.remove_prefix(end + 1))
            line(std::exchange(begun, {}) + std::string(bytes.substr(0, end)));
        begun += bytes;
    });
    line(begun);
    if (!done)
        throw error("the model server's answer ended before it was complete");
}

inline std::string text_of(const value *answer, const char *field)
{
    const value *text = answer ? answer->find(field) : nullptr;
    if (!text || text->is != value::kind::text)
        throw error(std::string("the model server's answer has no text in '") + field + "'");
    return text->text;
}

inline std::string prompt_field(const std::string &prompt) { return "\"prompt\": " + quoted(prompt); }

inline std::string messages_field(const std::vector<message> &messages)
{
    std::string list;
    for (const message &each : messages)
        list += (list.empty() ? "" : ", ") + ("{\"role\": " + quoted(each.role)) + ", \"content\": " +
                quoted(each.content) + "}";
    return "\"messages\": [" + list + "]";
}

} // namespace detail

// --- the calls

inline std::string generate(const std::string &prompt, const options &how)
{
    detail::value answer = detail::ask("/api/generate", detail::prompt_field(prompt), how);
    return detail::text_of(&answer, "response");
}

inline void generate_stream(const std::string &prompt, const on_text &take, const options &how)
{
    detail::ask_in_pieces("/api/generate", detail::prompt_field(prompt), how,
                          [&take](const detail::value &part) { take(detail::text_of(&part, "response")); });
}

inline std::string chat(const std::vector<message> &messages, const options &how)
{
    return detail::text_of(detail::ask("/api/chat", detail::messages_field(messages), how).find("message"), "content");
}

inline std::string chat(std::initializer_list<message> messages, const options &how)
{
    return chat(std::vector<message>(messages), how);
}

inline std::string chat(const std::string &text, const options &how)
{
    return chat(std::vector<message>{{"user", text}}, how);
}

inline void chat_stream(const std::vector<message> &messages, const on_text &take, const options &how)
{
    detail::ask_in_pieces("/api/chat", detail::messages_field(messages), how, [&take](const detail::value &part) {
        take(detail::text_of(part.find("message"), "content"));
    });
}

inline void chat_stream(std::initializer_list<message> messages, const on_text &take, const options &how)
{
    chat_stream(std::vector<message>(messages), take, how);
}

inline void chat_stream(const std::string &text, const on_text &take, const options &how)
{
    chat_stream(std::vector<message>{{"user", text}}, take, how);
}

inline std::vector<std::vector<double>> embed_all(const std::vector<std::string> &texts, const options &how)
{
    std::string list;
    for (const std::string &text : texts)
        list += (list.empty() ? "" : ", ") + detail::quoted(text);
    detail::value answer = detail::ask("/api/embed", "\"input\": [" + list + "]", how);
    const detail::value *found = answer.find("embeddings");
    if (!found || found->items.size() != texts.size())
        throw error("the model server's answer has no 'embeddings' for " + std::to_string(texts.size()) + " texts");
    std::vector<std::vector<double>> vectors;
    for (const detail::value &vector : found->items)
        for (vectors.emplace_back(); const detail::value &item : vector.items)
            vectors.back().push_back(item.number);
    return vectors;
}

inline std::vector<double> embed(const std::string &text, const options &how)
{
    return embed_all({text}, how).front();
}

} // namespace ai_client
