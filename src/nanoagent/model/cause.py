"""The causes of failures that a hint can name. The values are part of the contract (docs/contract.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoagent.model.text import Text


class Cause(StrEnum):
    """The cause of a failure, as a stable key. A result has it in the field `cause`."""

    # --- packages and files of the code
    MODULE_MISSING = "module_missing"  # a package that is neither in the zip nor in the image
    NOT_VENDORED = "not_vendored"  # the same, and requirements.txt or package.json lists the package
    MODULE_NOT_OFFERED = "module_not_offered"  # a standard module that the image or the version does not have
    MODULE_SHADOWED = "module_shadowed"  # a file of the code has the name of a module
    FILE_NOT_IN_ZIP = "file_not_in_zip"  # a file of the author that the code imports
    FILE_NAME_CASE = "file_name_case"  # the zip has the file with other upper and lower case letters
    LOCAL_PATH = "local_path"  # a path of the author's computer
    RUNTIME_INSTALL = "runtime_install"  # pip or npm is called during the run
    COMMAND_MISSING = "command_missing"  # a command that the image does not have
    SYSTEM_LIBRARY_MISSING = "system_library_missing"  # a shared library that is not in the image

    # --- native code for another platform
    NATIVE_ARCHITECTURE = "native_architecture"
    NATIVE_OPERATING_SYSTEM = "native_operating_system"
    NATIVE_MUSL = "native_musl"
    NATIVE_GLIBC = "native_glibc"
    NATIVE_PYTHON_VERSION = "native_python_version"
    NATIVE_NODE_VERSION = "native_node_version"

    # --- the entry file
    ENTRY_MISSING = "entry_missing"
    ENTRY_NAME = "entry_name"
    ENTRY_NESTED = "entry_nested"
    OTHER_RUNTIME = "other_runtime"
    ENTRY_TYPESCRIPT = "entry_typescript"
    ZIP_IN_ZIP = "zip_in_zip"
    NEVER_CALLED = "never_called"  # the entry file only defines a function

    # --- modules of Node.js, and its environment
    ESM_IN_COMMONJS = "esm_in_commonjs"
    COMMONJS_IN_ESM = "commonjs_in_esm"
    REQUIRE_OF_ESM = "require_of_esm"
    ESM_EXTENSION = "esm_extension"
    TOP_LEVEL_AWAIT = "top_level_await"
    BROWSER_API = "browser_api"

    # --- the network
    NO_NETWORK = "no_network"
    EGRESS_REFUSED = "egress_refused"
    HOST_UNKNOWN = "host_unknown"
    LOCAL_SERVICE = "local_service"  # a server on localhost that the run does not have
    NO_CREDENTIALS = "no_credentials"
    SERVER = "server"  # a server that waits for requests

    # --- input and environment
    STDIN_CONSUMED = "stdin_consumed"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    NO_ARGUMENTS = "no_arguments"
    VARIABLE_MISSING = "variable_missing"

    # --- files, processes and memory
    READ_ONLY_PATH = "read_only_path"
    NOT_EXECUTABLE = "not_executable"
    DISK_FULL = "disk_full"
    FILE_TOO_LARGE = "file_too_large"
    OPEN_FILES = "open_files"
    PROCESSES = "processes"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_MEMORY_FILES = "out_of_memory_files"
    ALLOCATION_TOO_LARGE = "allocation_too_large"
    V8_HEAP = "v8_heap"
    RECURSION = "recursion"

    # --- time
    WAITING = "waiting"  # the program used almost no CPU time until its time limit
    COMPUTING = "computing"  # the program used a CPU all the time until its time limit
    DEADLOCK = "deadlock"

    # --- text, time zones, output
    SOURCE_ENCODING = "source_encoding"
    TEXT_ENCODING = "text_encoding"
    BYTE_ORDER_MARK = "byte_order_mark"
    LOCALE_MISSING = "locale_missing"
    TIME_ZONE = "time_zone"
    NOT_FLUSHED = "not_flushed"
    NOTHING_PRINTED = "nothing_printed"

    # --- builds
    GO_MODULE_MISSING = "go_module_missing"
    GO_VERSION = "go_version"
    GO_PACKAGES = "go_packages"
    GO_IMPORT_PATH = "go_import_path"
    CGO = "cgo"
    HEADER_MISSING = "header_missing"
    HEADER_ELSEWHERE = "header_elsewhere"
    UNDEFINED_REFERENCE = "undefined_reference"
    C_LINKAGE = "c_linkage"
    TWO_MAINS = "two_mains"
    TWO_DEFINITIONS = "two_definitions"
    NO_MAIN = "no_main"
    CPP_STANDARD = "cpp_standard"

    # --- programs in Go
    NIL_MAP = "nil_map"


@dataclass(frozen=True, slots=True)
class Hint:
    """The advice for the author of a function, and the cause on which it is based.

    Attributes:
        cause: The cause.
        text: The advice.
    """

    cause: Cause
    text: Text
