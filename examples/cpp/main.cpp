// Prime numbers below a limit, which is read from standard input. gaps.cpp is the second file of the program.
#include "gaps.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <regex>
#include <string>
#include <vector>

// Returns a number from the JSON input. This program needs no JSON library for that.
static std::size_t number(const std::string &json, const std::string &name, std::size_t otherwise)
{
    std::smatch match;
    const std::regex field("\"" + name + "\"\\s*:\\s*(\\d+)");
    return std::regex_search(json, match, field) ? std::stoul(match[1]) : otherwise;
}

static std::vector<std::size_t> primes_below(std::size_t limit)
{
    std::vector<bool> composite(limit);
    std::vector<std::size_t> primes;
    for (std::size_t candidate = 2; candidate < limit; ++candidate) {
        if (composite[candidate])
            continue;
        primes.push_back(candidate);
        for (std::size_t multiple = candidate * candidate; multiple < limit; multiple += candidate)
            composite[multiple] = true;
    }
    return primes;
}

int main()
{
    const std::string input(std::istreambuf_iterator<char>(std::cin), {});
    const std::size_t limit = number(input, "limit", 1000);
    const auto primes = primes_below(limit);
    const auto gaps = count_gaps(primes);

    // The worker uploads the files in OUTPUT_DIR, also those in subfolders.
    const std::filesystem::path output = std::getenv("OUTPUT_DIR");
    std::filesystem::create_directory(output / "tables");
    std::ofstream list(output / "tables" / "primes.txt");
    for (const auto prime : primes)
        list << prime << '\n';
    std::ofstream report(output / "report.csv");
    report << "gap,count\n";
    for (const auto &[gap, count] : gaps)
        report << gap << ',' << count << '\n';

    std::cout << "π(" << limit << ") = " << primes.size() << ", the widest gap is "
              << (gaps.empty() ? 0 : gaps.rbegin()->first) << std::endl;
    return list.flush() && report.flush() ? 0 : 1;
}
