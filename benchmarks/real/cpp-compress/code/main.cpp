#include <cstdint>
#include <iostream>
#include <map>
#include <queue>
#include <string>
#include <tuple>
#include <vector>

#include "event.hpp"

struct Node {
    int left = -1, right = -1;
    unsigned char byte = 0;
};

static void codes_below(const std::vector<Node> &nodes, int at, const std::string &code, std::map<unsigned char, std::string> &codes)
{
    if (nodes[at].left < 0) {
        codes[nodes[at].byte] = code;
        return;
    }
    codes_below(nodes, nodes[at].left, code + '0', codes);
    codes_below(nodes, nodes[at].right, code + '1', codes);
}

static std::vector<Node> tree_of(const std::string &text)
{
    std::map<unsigned char, long> counts;
    for (unsigned char byte : text)
        counts[byte]++;
    std::vector<Node> nodes;
    std::priority_queue<std::pair<long, int>, std::vector<std::pair<long, int>>, std::greater<>> waiting;
    for (auto [byte, count] : counts) {
        waiting.emplace(count, int(nodes.size()));
        nodes.push_back({-1, -1, byte});
    }
    while (waiting.size() > 1) {
        auto [left_count, left] = waiting.top();
        waiting.pop();
        auto [right_count, right] = waiting.top();
        waiting.pop();
        waiting.emplace(left_count + right_count, int(nodes.size()));
        nodes.push_back({left, right, 0});
    }
    return nodes;
}

int main()
{
    long lines = number(read_event(), "lines");
    std::string text;
    for (long at = 0; at < lines; at++)
        text += "line " + std::to_string(at) + ": value " + std::to_string(at * 7919 % 1000) + '\n';
    std::vector<Node> nodes = tree_of(text);
    std::map<unsigned char, std::string> codes;
    int root = int(nodes.size()) - 1;
    codes_below(nodes, root, "", codes);
    std::vector<bool> bits;
    for (unsigned char byte : text)
        for (char bit : codes[byte])
            bits.push_back(bit == '1');
    std::string unpacked;
    int at = root;
    for (bool bit : bits) {
        at = bit ? nodes[at].right : nodes[at].left;
        if (nodes[at].left < 0) {
            unpacked += char(nodes[at].byte);
            at = root;
        }
    }
    uint64_t hash = 1469598103934665603U;
    for (unsigned char byte : unpacked)
        hash = (hash ^ byte) * 1099511628211U;
    std::cout << text.size() << ' ' << (bits.size() + 7) / 8 << ' ' << (unpacked == text) << ' ' << std::hex << hash << '\n';
}
