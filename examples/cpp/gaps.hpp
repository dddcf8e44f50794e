#pragma once

#include <cstddef>
#include <map>
#include <vector>

// How often each distance between neighbours occurs in an ascending sequence.
std::map<std::size_t, std::size_t> count_gaps(const std::vector<std::size_t> &ascending);
