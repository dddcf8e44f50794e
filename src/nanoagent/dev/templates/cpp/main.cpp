// Greets a person. The input is JSON on standard input. All .cpp files of the folder are one program.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <regex>
#include <string>

int main()
{
    const std::string input(std::istreambuf_iterator<char>(std::cin), {});
    std::smatch found; // enough for this input; bring a JSON library as a header for others
    if (!std::regex_search(input, found, std::regex("\"name\"\\s*:\\s*\"([^\"]*)\""))) {
        std::cerr << "the input has no name\n";
        return 1;
    }
    const std::string greeting = "Hello " + found[1].str() + "!\n";
    std::cout << greeting;

    // Files in OUTPUT_DIR are the output files of the run.
    std::ofstream(std::filesystem::path(std::getenv("OUTPUT_DIR")) / "greeting.txt") << greeting;
}
