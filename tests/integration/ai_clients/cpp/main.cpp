// As python/main.py.
#include <ai_client.hpp>

#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

using Pieces = std::vector<std::string>;

static std::string to_hex(std::string_view text)
{
    static const char digits[] = "0123456789abcdef";
    std::string out;
    for (unsigned char byte : text) {
        out += digits[byte >> 4];
        out += digits[byte & 15];
    }
    return out;
}

static std::string from_hex(const std::string &text)
{
    std::string out;
    for (std::size_t at = 0; at + 1 < text.size(); at += 2)
        out += static_cast<char>(std::stoi(text.substr(at, 2), nullptr, 16));
    return out;
}

static std::string joined(const std::vector<double> &vector)
{
    std::ostringstream out;
    for (std::size_t index = 0; index < vector.size(); ++index)
        out << (index ? "," : "") << vector[index];
    return out.str();
}

static Pieces call(std::string name, const std::string &text)
{
    ai_client::options how;
    if (name.ends_with("-briefly")) {
        name.resize(name.size() - std::string_view("-briefly").size());
        how.timeout_s = 0.3;
    }
    Pieces pieces;
    auto take = [&pieces](std::string_view piece) { pieces.emplace_back(piece); };
    if (name == "generate")
        return {ai_client::generate(text, how)};
    if (name == "generate-tuned")
        return {ai_client::generate(
            text,
            {.model = "other", .system = "Be brief.", .format = R"("json")", .tuning = R"({"temperature": 0})"})};
    if (name == "chat")
        return {ai_client::chat({{"user", text}}, how)};
    if (name == "embed")
        return {joined(ai_client::embed(text))};
    if (name == "embed-both") {
        auto vectors = ai_client::embed_all({text, "다른"});
        return {joined(vectors[0]) + ";" + joined(vectors[1])};
    }
    if (name == "generate-stream") {
        ai_client::generate_stream(text, take, how);
    } else if (name == "chat-stream") {
        ai_client::chat_stream(text, take, how);
    } else if (name == "stop") {
        struct enough {};
        try {
            ai_client::generate_stream(text, [&take](std::string_view piece) {
                take(piece);
                throw enough();
            });
        } catch (const enough &) {
        }
    } else {
        std::abort();
    }
    return pieces;
}

int main()
{
    for (std::string endpoint, name, text; std::cin >> endpoint >> name >> text;) {
        setenv("AI_ENDPOINT", endpoint.c_str(), 1);
        try {
            std::string line = "ok ";
            for (const auto &piece : call(name, from_hex(text)))
                line += (line == "ok " ? "" : ",") + to_hex(piece);
            std::cout << line << std::endl;
        } catch (const ai_client::error &error) {
            std::cout << "error " << error.status << ' ' << to_hex(error.what()) << std::endl;
        }
    }
}
