// Reads the input of a function, without a library for JSON.
#pragma once
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>

inline long number(const std::string &text, const std::string &key)
{
    auto at = text.find('"' + key + '"');
    if (at == std::string::npos)
        throw std::runtime_error("no " + key);
    return std::stol(text.substr(text.find(':', at) + 1));
}

inline std::string read_event()
{
    std::ifstream file(std::getenv("PAYLOAD_FILE"));
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}
