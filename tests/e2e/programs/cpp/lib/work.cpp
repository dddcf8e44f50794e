#include "work.hpp"

std::vector<char> allocate(std::size_t megabytes)
{
    return std::vector<char>(megabytes << 20, 'x');
}
