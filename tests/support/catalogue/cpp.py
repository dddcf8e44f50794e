"""Programs in C++ that were used to write the rules."""

from __future__ import annotations

from typing import Final

from nanoagent.model.cause import Cause
from support.catalogue.program import Program, cpp

_SERVER: Final = """
#include <netinet/in.h>
#include <sys/socket.h>
#include <iostream>
int main() {
    int s = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(8080);
    bind(s, (sockaddr *)&a, sizeof a);
    listen(s, 5);
    std::cout << "waiting" << std::endl;
    accept(s, nullptr, nullptr);
}
"""

PROGRAMS: Final[tuple[Program, ...]] = (
    cpp("boost", "#include <boost/algorithm/string.hpp>\nint main() {}\n", Cause.HEADER_MISSING),
    cpp(
        "curl",
        "#include <iostream>\n#include <curl/curl.h>\nint main() { curl_global_init(0); }\n",
        Cause.HEADER_MISSING,
    ),
    cpp(
        "a header in a folder",
        '#include "shapes.h"\nint main() { return area(); }\n',
        Cause.HEADER_ELSEWHERE,
        files={"lib/geometry/shapes.h": "inline int area() { return 0; }\n"},
    ),
    cpp(
        "a declaration only",
        "int compute(int);\nint main() { return compute(3); }\n",
        Cause.UNDEFINED_REFERENCE,
    ),
    cpp(
        "two programs",
        "int shared() { return 0; }\n",
        Cause.TWO_MAINS,
        files={"app.cpp": "int main() { return 1; }\n", "test.cpp": "int main() { return 1; }\n"},
    ),
    cpp("no main", "#include <iostream>\nvoid run() { std::cout << 1; }\n", Cause.NO_MAIN),
    cpp(
        "a vector",
        "#include <vector>\nint main() { std::vector<char> v(std::size_t(1) << 45, 'x'); return v[5]; }\n",
        Cause.ALLOCATION_TOO_LARGE,
    ),
    cpp(
        "a file that grows",
        "#include <string>\n#include <vector>\nint main() {\n  std::vector<std::string> v;\n"
        "  for (;;) v.emplace_back(100000, 'x');\n}\n",
        Cause.OUT_OF_MEMORY,
        memory_mb=64,
    ),
    cpp("a web server", _SERVER, Cause.SERVER, timeout_ms=1500),
    cpp(
        "a loop",
        '#include <cstdio>\nint main() { std::puts("x"); std::fflush(stdout); volatile int n = 0; for (;;)'
        " n = n + 1; }\n",
        Cause.COMPUTING,
        timeout_ms=1500,
    ),
    cpp(
        "_exit",
        '#include <iostream>\n#include <unistd.h>\nint main() { std::cout << "result"; _exit(0); }\n',
        Cause.NOT_FLUSHED,
    ),
    cpp(
        "a time zone",
        "#include <chrono>\n#include <iostream>\nint main() { std::cout <<"
        ' std::chrono::locate_zone("Asia/Seul")->name(); }\n',
        Cause.TIME_ZONE,
    ),
    cpp(
        "a locale",
        '#include <iostream>\n#include <locale>\nint main() { std::cout.imbue(std::locale("fr_FR.UTF-8"));'
        " }\n",
        Cause.LOCALE_MISSING,
    ),
    # --- no hint
    cpp("a semicolon", "#include <iostream>\nint main() { std::cout << 1 }\n", None),
    cpp("out of range", "#include <vector>\nint main() { std::vector<int> v(3); return v.at(5); }\n", None),
    cpp("return 3", '#include <iostream>\nint main() { std::cerr << "bad input\\n"; return 3; }\n', None),
)
