// As python/main.py.
#include <ai_client.hpp>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

static std::string field(const std::string &json, const std::string &name)
{
    std::smatch match;
    std::regex_search(json, match, std::regex("\"" + name + "\":\\s*\"([^\"]*)\""));
    return match[1];
}

int main()
{
    const std::string input(std::istreambuf_iterator<char>(std::cin), {});
    const std::string prompt = field(input, "prompt"), count = field(input, "count");
    const std::vector<ai_client::message> messages{{"system", "Be brief."}, {"user", prompt}};
    std::string pieces;
    auto take = [&pieces](std::string_view piece) { pieces.append(pieces.empty() ? "" : "|").append(piece); };

    std::cout << "generate: " << ai_client::generate(prompt) << '\n';
    std::cout << "limited: "
              << ai_client::generate(count, {.tuning = R"({"num_predict": 3, "temperature": 0})"}) << '\n';
    ai_client::generate_stream(count, take);
    std::cout << "generate_stream: " << pieces << '\n';
    std::cout << "chat: " << ai_client::chat(messages) << '\n';
    pieces.clear();
    ai_client::chat_stream(messages, take);
    std::cout << "chat_stream: " << pieces << std::endl;
    const auto both = ai_client::embed_all({prompt, count});
    std::printf("embed: %.6f %.6f %.6f\n", ai_client::embed(prompt)[0], both[0][7], both[1][7]);
    std::fflush(stdout);
    for (auto model : {"no-such-model", "not-for-functions"}) {
        try {
            ai_client::generate(prompt, {.model = model});
        } catch (const ai_client::error &error) {
            std::cout << "refused: " << error.status << ' ' << error.what() << '\n';
        }
    }
    int answers = 0;
    try {
        for (;; ++answers)
            ai_client::generate("count to 1");
    } catch (const ai_client::error &error) {
        std::cout << "limit: " << answers << ' ' << error.status << ' ' << error.what() << '\n';
    }
}
