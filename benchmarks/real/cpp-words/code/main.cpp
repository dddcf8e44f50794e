#include <algorithm>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "event.hpp"

static size_t distance(const std::string &left, const std::string &right)
{
    std::vector<size_t> above(right.size() + 1), here(right.size() + 1);
    for (size_t column = 0; column <= right.size(); column++)
        above[column] = column;
    for (size_t row = 1; row <= left.size(); row++) {
        here[0] = row;
        for (size_t column = 1; column <= right.size(); column++) {
            size_t changed = above[column - 1] + (left[row - 1] != right[column - 1]);
            here[column] = std::min({changed, above[column] + 1, here[column - 1] + 1});
        }
        std::swap(above, here);
    }
    return above[right.size()];
}

int main()
{
    long words = number(read_event(), "words");
    const std::vector<std::string> syllables{"ka", "mo", "ri", "tes", "lan", "o", "vi"};
    std::map<std::string, long> counts;
    for (long at = 0; at < words; at++) {
        std::string word;
        for (long part = 0; part <= at % 3 + 1; part++)
            word += syllables[(at * 31 + part * part * 7 + at / 11) % syllables.size()];
        counts[word]++;
    }
    std::vector<std::pair<std::string, long>> sorted(counts.begin(), counts.end());
    std::stable_sort(sorted.begin(), sorted.end(), [](auto &a, auto &b) { return a.second > b.second; });
    std::cout << sorted.size() << '\n';
    for (size_t at = 0; at < 3; at++) {
        std::string closest;
        size_t best = 99;
        for (auto &[word, count] : sorted)
            if (word != sorted[at].first && distance(word, sorted[at].first) < best) {
                best = distance(word, sorted[at].first);
                closest = word;
            }
        std::cout << sorted[at].first << ' ' << sorted[at].second << ' ' << closest << ' ' << best << '\n';
    }
}
