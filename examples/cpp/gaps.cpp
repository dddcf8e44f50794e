#include "gaps.hpp"

std::map<std::size_t, std::size_t> count_gaps(const std::vector<std::size_t> &ascending)
{
    std::map<std::size_t, std::size_t> gaps;
    for (std::size_t index = 1; index < ascending.size(); ++index)
        ++gaps[ascending[index] - ascending[index - 1]];
    return gaps;
}
