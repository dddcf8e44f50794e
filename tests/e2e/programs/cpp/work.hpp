#pragma once
#include <cstddef>
#include <vector>

std::vector<char> allocate(std::size_t megabytes);
