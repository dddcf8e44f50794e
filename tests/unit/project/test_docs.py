"""What the documentation names is there, and what it shows is what the code says."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from nanoagent import config
from nanoagent.dev.sender import language
from nanoagent.jobs import environment
from nanoagent.model import message
from nanoagent.model.job import JobDefaults
from nanoagent.model.result import OUTCOMES, Blame, ErrorType, Result, Settle
from nanoagent.telemetry.metrics import Metrics
from support.services import recorder

ROOT: Final = Path(__file__).parents[3]
SOURCE: Final = ROOT / "src/nanoagent"
READMES: Final = ("README.md", "README.ko.md")
CONFIGURATION: Final = ("docs/configuration.md", "docs/configuration.ko.md")
DOCUMENTS: Final = sorted(
    str(path.relative_to(ROOT))
    for path in chain(ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"), (ROOT / "deploy").rglob("*.md"))
)
GENERATED: Final = {"docs/benchmarks/evictions.md", "docs/benchmarks/results.md", "docs/benchmarks/real.md"}
WRAPPED: Final = [name for name in DOCUMENTS if name not in GENERATED | {"CHANGELOG.md"}]
RECORDS: Final = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))

FENCE: Final = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN: Final = re.compile(r"`([^`\n]+)`")
LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)
MAKE: Final = re.compile(r"(?:^|[\s(])make ([a-z][a-z-]*)")
VARIABLE: Final = re.compile(r"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=.*)?")
FILE_IN_FOLDER: Final = re.compile(r"(?:[\w.-]+/)+[\w.-]+\.(?:py|md|c|h|json|toml|txt|sh|svg|service)")

# Where a path that is named may start; modules are named from the package on.
ROOTS: Final = (ROOT, SOURCE, ROOT / "src/nanosupervisor")
TOP_FOLDERS: Final = {"src", "docs", "deploy", "docker", "examples", "scripts", "tests", ".ci"}
SDK_VARIABLE: Final = re.compile(r"AWS_[A-Z0-9_]+|DOCKER_HOST")
KERNEL_CONSTANT: Final = re.compile(r"(?:CAP|CLONE|PR)_[A-Z_]+")


@cache
def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def spans(name: str) -> list[str]:
    """What stands between backticks, outside of code blocks."""
    return SPAN.findall(FENCE.sub("", read(name)))


def code(name: str) -> list[str]:
    """Every piece of code in a document, spans and the lines of blocks."""
    return [*spans(name), *chain.from_iterable(block.splitlines() for block in FENCE.findall(read(name)))]


def tables(name: str) -> list[list[str]]:
    """The cells of every row of every table."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in FENCE.sub("", read(name)).splitlines()
        if line.startswith("| ")
    ]


@pytest.fixture(scope="module")
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("gen_docs", ROOT / "scripts/gen_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "gen_docs", module)
        spec.loader.exec_module(module)
    return module


# --- tables made from the code


def test_the_tables_are_what_the_code_says(generator, capsys):
    assert generator.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_table_is_shown_and_then_rewritten(generator, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    for name in READMES + CONFIGURATION:
        (tmp_path / name).write_text(read(name).replace("`SQS_QUEUE_URL` |", "`SQS_OLD_NAME` |"))
    assert generator.main(["--check"], tmp_path) == 1
    assert "-| `SQS_OLD_NAME` |" in capsys.readouterr().out
    assert generator.main([], tmp_path) == 0
    for name in READMES + CONFIGURATION:
        assert (tmp_path / name).read_text() == read(name)


def test_a_document_without_its_markers_is_refused(generator):
    with pytest.raises(ValueError, match="settings:begin"):
        generator.regenerated("# Nothing here", {"settings": ""}, "page.md")


def test_every_setting_is_in_exactly_one_group(generator):
    grouped = [name for group in generator.GROUPS for name in group.settings]
    assert sorted(grouped) == sorted(config.Settings.model_fields)


@pytest.mark.parametrize("name", CONFIGURATION)
def test_every_setting_has_one_row(name):
    rows = [row[0] for row in tables(name) if len(row) == 3 and VARIABLE.fullmatch(row[0].strip("`"))]
    known = [f"`{field.upper()}`" for field in config.Settings.model_fields if "_" in field]
    assert sorted(rows) == sorted(known)


@pytest.mark.parametrize("name", READMES)
def test_every_ending_has_one_row_with_its_label(name):
    shown = [(row[0], row[5]) for row in tables(name) if len(row) == 6 and row[0] != "`errorType`"]
    endings = [(f"`{kind}`" if kind else "-", f"`{outcome.label}`") for kind, outcome in OUTCOMES.items()]
    assert [row for row in shown if not row[0].startswith("---")] == endings


def test_the_korean_words_are_complete_and_none_is_left_over(generator):
    assert generator.SETTINGS_KO.keys() == config.Settings.model_fields.keys()
    assert generator.OUTCOMES_KO.keys() == OUTCOMES.keys()
    assert generator.BLAME_KO.keys() == set(Blame)
    assert generator.SETTLE_KO.keys() == set(Settle)


def test_a_default_in_words_is_in_words_in_both_languages(generator):
    english, korean = generator.LANGUAGES
    in_words = {
        language.readme: {
            name for name in config.Settings.model_fields if language.default_mark in language.describe(name)
        }
        for language in (english, korean)
    }
    assert in_words[english.readme] == in_words[korean.readme]
    computed = {
        name for name, field in config.Settings.model_fields.items() if field.default_factory is not None
    }
    assert computed <= in_words[english.readme]


@pytest.mark.parametrize("names", [READMES, CONFIGURATION], ids=["readme", "configuration"])
def test_both_languages_have_the_same_sections_and_the_same_code(names):
    english, korean = (read(name) for name in names)
    assert FENCE.findall(english) == FENCE.findall(korean)
    levels = [
        [len(heading.split()[0]) for heading in re.findall(r"^#+ .", FENCE.sub("", text), re.MULTILINE)]
        for text in (english, korean)
    ]
    assert levels[0] == levels[1]
    assert [len(row) for row in tables(names[0])] == [len(row) for row in tables(names[1])]


@pytest.mark.parametrize("name", READMES)
def test_a_readme_is_short(name):
    assert len(read(name).splitlines()) <= 160


# --- what is named is there


def _anchors(name: str) -> set[str]:
    """As GitHub makes them from headings."""
    headings = HEADING.findall(FENCE.sub("", read(name)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name):
    lost = []
    for link in LINK.findall(FENCE.sub("", read(name))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (
            anchor and anchor not in _anchors(str(target.resolve().relative_to(ROOT)))
        ):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_exists(name):
    paths = [span.split("::")[0] for span in spans(name)]
    named = [
        path
        for path in paths
        if FILE_IN_FOLDER.fullmatch(path) or (path.split("/")[0] in TOP_FOLDERS and " " not in path)
    ]
    assert [path for path in named if not any((root / path).exists() for root in ROOTS)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_test_that_is_named_exists(name):
    named = [span.split("::") for span in spans(name) if "::" in span]
    missing = [
        "::".join(pair)
        for pair in named
        if not re.search(rf"^(?:async )?def {pair[1]}\(", read(pair[0]), re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_that_is_named_exists(name):
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = {target for piece in code(name) for target in MAKE.findall(piece)}
    assert named <= targets


def test_every_make_target_is_told_to_someone():
    told = {target for name in DOCUMENTS for piece in code(name) for target in MAKE.findall(piece)}
    assert {"demo", "test", "dev", "setup", "check", "format", "lock", "images"} <= told


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_environment_variable_that_is_named_is_known(name):
    a_job = message.parse_job('{"requestId": "a", "s3Key": "b"}', JobDefaults("bucket", "model", 128))
    known = {field.upper() for field in config.Settings.model_fields}
    known |= set(environment.environment_of(a_job)) | set(ErrorType) | set(language.VARIABLES)
    named = {match[1] for span in spans(name) if (match := VARIABLE.fullmatch(span))}
    assert {
        variable
        for variable in named - known
        if not SDK_VARIABLE.fullmatch(variable) and not KERNEL_CONSTANT.fullmatch(variable)
    } == set()


def test_the_architecture_says_where_each_setting_acts():
    known = {field.upper() for field in config.Settings.model_fields}
    assert known <= {variable for row in tables("docs/architecture.md") for variable in SPAN.findall(row[0])}


# --- metrics, messages, permissions


def test_the_metrics_that_are_listed_are_those_there_are():
    families = Metrics().registry.collect()
    real = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    listed = {row[0].strip("`") for row in tables("docs/operations.md") if row[0].startswith("`worker_")}
    assert listed == real


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_metric_that_is_named_exists(name):
    families = Metrics().registry.collect()
    real = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert set(re.findall(r"`(worker_\w+)", read(name))) <= real


@cache
def _sentences() -> list[str]:
    """Every text in the code; the parts of an f-string are texts of their own."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")]
    texts = [
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return texts + [
        path.read_text(encoding="utf-8") for path in (ROOT / "scripts").iterdir() if path.is_file()
    ]


@pytest.mark.parametrize("readme", READMES)
def test_the_readmes_name_the_fields_of_a_result_that_authors_read(readme):
    names = {field.encode_name for field in msgspec.structs.fields(Result)}
    others = {
        "requestId",
        "functionId",
        "runtime",
        "llmTokenCount",
        "start",
        "isolation",
        "reuse",
        "workerId",
        "attempt",
    }
    others |= {name for name in names if name.endswith(("TruncatedBytes", "Url"))}
    text = read(readme)
    assert [name for name in sorted(names - others) if f"`{name}`" not in text] == []


def _troubles() -> list[str]:
    section = read("docs/operations.md").split("## Troubleshooting")[1]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize("message", _troubles())
def test_every_message_in_the_troubleshooting_table_is_one_of_the_codes(message):
    parts = [part.removeprefix("FAILED: ") for part in message.split("…") if part.strip(" .")]
    assert parts
    assert [part for part in parts if not any(part.rstrip() in text for text in _sentences())] == []


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("iam-policy.json", recorder.worker_adapters(SOURCE)),
        ("iam-policy-sender.json", [SOURCE / "dev/sender/delivery.py"]),
        ("iam-policy-secrets.json", [SOURCE / "secrets/aws.py"]),
        ("iam-policy-reader.json", [SOURCE / "dev/jobs/outputs.py"]),
        ("iam-policy-deployer.json", sorted((SOURCE / "dev/functions").glob("*.py"))),
    ],
)
def test_a_policy_allows_the_calls_that_stand_in_the_code(name, modules):
    # Quick; tests/e2e/test_iam.py holds the real thing to it.
    calls = recorder.operations_in(*modules)
    allowed = recorder.grants_of(json.loads(read(f"deploy/{name}")))
    # Both services that keep secrets call KMS themselves, with the worker's permission.
    by_services = {"kms:Decrypt"} if name == "iam-policy-secrets.json" else set()
    assert {grant.action for grant in allowed} == {recorder.ACTIONS[call] for call in calls} | by_services


# --- form


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@pytest.mark.parametrize("name", WRAPPED)
def test_prose_is_wrapped_at_100_columns(name):
    prose = [line for line in FENCE.sub("", read(name)).splitlines() if not line.startswith(("|", "#"))]
    # A line of one word, such as a link, cannot be shorter.
    assert [line for line in prose if _columns(line) > 100 and " " in line.strip("* ")] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(name):
    uneven, cells = [], None
    for line in FENCE.sub("", read(name)).splitlines():
        row = line.strip()
        if not row.startswith("|"):
            cells = None
            continue
        number = len(re.findall(r"(?<!\\)\|", SPAN.sub("", row)))
        cells = cells or number
        if number != cells:
            uneven.append(row)
    assert uneven == []


def test_the_changelog_has_a_place_for_what_comes_next():
    assert re.search(r"^## \[Unreleased\]$", read("CHANGELOG.md"), re.MULTILINE)


def test_the_records_are_numbered_without_a_gap_and_listed():
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))
    listed = LINK.findall(read("docs/adr/README.md"))
    assert listed == [path.name for path in RECORDS]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_context_decision_consequences_and_evidence(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.name[:4]} ")
    sections = [heading for heading in HEADING.findall(text)[1:] if heading[0].isupper()]
    assert sections == ["Context", "Decision", "Consequences", "Evidence"]


def test_every_document_that_the_code_names_exists():
    # Not the AI client, which names a document of Ollama's.
    sources = chain(
        SOURCE.rglob("*.py"), (ROOT / "src/nanosupervisor").glob("*.[ch]"), [ROOT / "pyproject.toml"]
    )
    named = {
        name
        for path in sources
        for name in re.findall(r"\bdocs/[\w./-]*\w", path.read_text(encoding="utf-8"))
    }
    assert named
    # Records may be named by their number alone.
    assert {name for name in named if not list(ROOT.glob(f"{name}*"))} == set()


def test_the_picture_is_an_image_for_light_and_dark_with_words_for_those_who_cannot_see_it():
    picture = read("docs/architecture.svg")
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()}  # noqa: S314 - our own file
    assert {"title", "desc"} <= tags
    assert "script" not in tags
    assert "prefers-color-scheme: dark" in picture


def test_an_example_that_needs_an_input_is_sent_with_one():
    command = re.compile(r"^.*nanoagent send (?:\./)?examples/.*$", re.MULTILINE)
    for path in (*(ROOT / name for name in READMES), *(ROOT / "docs").rglob("*.md")):
        for line in command.findall(path.read_text(encoding="utf-8")):
            assert "--input" in line, f"{path.name}: {line}"
