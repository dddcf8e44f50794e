"""Programs in Go that were used to write the rules."""

from __future__ import annotations

from typing import Final

from nanoagent.model.cause import Cause
from support.catalogue.program import Program, go


def _main(body: str, *imports: str) -> str:
    lines = "".join(f'\t"{name}"\n' for name in imports)
    return f"package main\n\nimport (\n{lines})\n\nfunc main() {{\n{body}\n}}\n"


PROGRAMS: Final[tuple[Program, ...]] = (
    go("gin", _main("\tgin.Default()", "github.com/gin-gonic/gin"), Cause.GO_MODULE_MISSING),
    go(
        "a module in go.mod",
        _main("\tfmt.Println(uuid.NewString())", "fmt", "github.com/google/uuid"),
        Cause.GO_MODULE_MISSING,
        files={"go.mod": "module f\n\ngo 1.22\n\nrequire github.com/google/uuid v1.6.0\n"},
    ),
    go(
        "cgo", 'package main\n\n// #include <stdio.h>\nimport "C"\n\nfunc main() { C.puts(nil) }\n', Cause.CGO
    ),
    go(
        "a newer Go",
        _main('\tfmt.Println("x")', "fmt"),
        Cause.GO_VERSION,
        files={"go.mod": "module f\n\ngo 1.99\n"},
    ),
    go(
        "two packages",
        _main('\tfmt.Println("x")', "fmt"),
        Cause.GO_PACKAGES,
        files={"util.go": "package util\n"},
    ),
    go(
        "two mains",
        _main('\tfmt.Println("x")', "fmt"),
        Cause.TWO_DEFINITIONS,
        files={"old.go": _main('\tfmt.Println("y")', "fmt")},
    ),
    go(
        "a lock",
        _main('\tvar wg sync.WaitGroup\n\twg.Add(1)\n\tfmt.Println("x")\n\twg.Wait()', "fmt", "sync"),
        Cause.DEADLOCK,
    ),
    go(
        "a nil map",
        _main('\tvar counts map[string]int\n\tcounts["a"]++\n\tfmt.Println(counts)', "fmt"),
        Cause.NIL_MAP,
    ),
    go(
        "http",
        _main(
            '\t_, err := http.Get("https://api.example.com")\n\tif err != nil {\n\t\tlog.Fatal(err)\n\t}',
            "log",
            "net/http",
        ),
        Cause.NO_NETWORK,
    ),
    go(
        "a web server",
        _main('\tfmt.Println("listening")\n\thttp.ListenAndServe(":8080", nil)', "fmt", "net/http"),
        Cause.SERVER,
        timeout_ms=1500,
    ),
    go(
        "a read-only path",
        _main(
            '\tif err := os.WriteFile("/etc/app.conf", nil, 0o644); err != nil {\n\t\tpanic(err)\n\t}', "os"
        ),
        Cause.READ_ONLY_PATH,
    ),
    go(
        "a time zone",
        _main('\t_, err := time.LoadLocation("Asia/Seul")\n\tif err != nil {\n\t\tpanic(err)\n\t}', "time"),
        Cause.TIME_ZONE,
    ),
    go(
        "a writer",
        _main('\tw := bufio.NewWriter(os.Stdout)\n\tfmt.Fprintln(w, "result")', "bufio", "fmt", "os"),
        Cause.NOT_FLUSHED,
    ),
    go(
        "sleep",
        _main('\tfmt.Println("x")\n\ttime.Sleep(time.Hour)', "fmt", "time"),
        Cause.WAITING,
        timeout_ms=1500,
    ),
    # --- no hint
    go("an index", _main("\txs := []int{1}\n\ti := 5\n\tfmt.Println(xs[i])", "fmt"), None),
    go("log.Fatal", _main('\tlog.Fatal("bad input")', "log"), None),
    go("an unused variable", _main("\tx := 1\n", "fmt"), None),
)
