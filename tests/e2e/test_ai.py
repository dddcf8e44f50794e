"""Functions that ask models, by each client, through a real worker: what they get, and what is counted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from nanoagent.dev import sources
from nanoagent.dev.stub_model_server import StubModelServer, answer_words, tokens, vector
from support.agents.worker import PROGRAMS, WorkerUnderTest
from support.programs import packages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

ROOT: Final = Path(__file__).parents[2]
PROMPT: Final = "하늘은 왜 파란가 🙂"
COUNT: Final = "count to 7"
SYSTEM: Final = "Be brief."
INPUT: Final = {"prompt": PROMPT, "count": COUNT}
MODEL: Final = "llama3:8b"
MODELS: Final = "llama3:8b,no-such-model,gpt-4o-mini"
OPENAI_MODEL: Final = "gpt-4o-mini"  # its server has OpenAI's API only
KEY: Final = "sk-of-the-worker"
MAX_REQUESTS: Final = 20
DEADLINE_S: Final = 300  # importing the packages takes a second of CPU, on a machine that may be busy


@dataclass(frozen=True)
class Site:
    """A worker and the model server behind it."""

    worker: WorkerUnderTest
    models: StubModelServer
    openai: StubModelServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with opened_site(stack, tmp_path_factory.mktemp("worker")) as made:
        yield made


@asynccontextmanager
async def opened_site(stack: EmbeddedStack, folder: Path) -> AsyncIterator[Site]:
    async with StubModelServer(key=KEY) as models, StubModelServer(key=KEY, openai_only=True) as openai:
        further = {"url": f"{openai.url}/v1", "models": [OPENAI_MODEL], "key": KEY}
        settings = {
            "AI_UPSTREAMS": json.dumps([further]),
            "AI_ENDPOINT": models.url,
            "AI_API_KEY": KEY,
            "AI_MODELS": MODELS,
            "AI_MAX_REQUESTS": str(MAX_REQUESTS),
            "WORKER_CPUS": "4",
        }
        async with WorkerUnderTest(stack, folder, settings) as worker:
            yield Site(worker, models, openai)


# --- what is due


@dataclass(frozen=True)
class Call:
    """A line that a program prints, and the tokens that its calls cost.

    Attributes:
        name: The line begins with it.
        line: The rest.
        cost: Prompt and completion tokens.
    """

    name: str
    line: str
    cost: int


def answered(name: str, prompt: str, joint: str = "", *, limit: int | None = None, more: str = "") -> Call:
    """An answer; with `joint` between its pieces where it comes in pieces."""
    words = answer_words(prompt, limit)
    pieces = [words[0], *(f" {word}" for word in words[1:])]
    return Call(name, joint.join(pieces) + more, tokens(prompt) + len(words))


def numbers(*values: float) -> str:
    return " ".join(f"{value:.6f}" for value in values)


CHAT: Final = f"{SYSTEM} {PROMPT}"
BOTH: Final = tokens(PROMPT) + tokens(COUNT)
VECTORS: Final = Call(
    "embed",
    numbers(vector(PROMPT)[0], vector(PROMPT)[7], vector(COUNT)[7]),
    tokens(PROMPT) + BOTH,
)
OLLAMA: Final = (
    answered("generate", PROMPT),
    answered("limited", COUNT, limit=3),
    answered("generate_stream", COUNT, "|", more="|"),  # the last piece says that it is the last
    answered("chat", CHAT),
    answered("chat_stream", CHAT, "|", more="|"),
    VECTORS,
)
UNKNOWN: Final = "model 'no-such-model' not found"
FORBIDDEN: Final = (
    "functions on this worker may not use the model 'not-for-functions' "
    f"(AI_MODELS={MODELS}); use an allowed model, or have it added to AI_MODELS"
)
OVER: Final = (
    f"this run has made its {MAX_REQUESTS} requests to models (AI_MAX_REQUESTS={MAX_REQUESTS}); "
    "make fewer, or have AI_MAX_REQUESTS raised"
)


def until_refused(requests_before: int, words: str) -> Call:
    """Calls of `count to 1` until there have been as many requests as there may be."""
    answers = MAX_REQUESTS - requests_before
    return Call("limit", f"{answers} 429 {words}", answers * answered("", "count to 1").cost)


SERVER: Final = "the model server at http://127.0.0.1:11434 answered"
AI_CLIENT: Final = (
    *OLLAMA,
    Call("refused", f"404 {SERVER} 404: {UNKNOWN}", 0),
    Call("refused", f"404 {SERVER} 404: {FORBIDDEN}", 0),
    until_refused(9, f"{SERVER} 429: {OVER}"),
)
OLLAMA_PACKAGE: Final = (
    *OLLAMA,
    Call("refused", f"404 {UNKNOWN}", 0),
    Call("refused", f"404 {FORBIDDEN}", 0),
    Call("models", "true", 0),
    until_refused(10, OVER),
)
COUNTED: Final = answered("with usage", COUNT).cost
TOGETHER: Final = [" ".join(answer_words(f"count to {most}", None)) for most in range(1, 6)]
OPENAI_PACKAGE: Final = (
    answered("chat", CHAT),
    answered("limited", COUNT, limit=3, more=" length 6"),
    Call("chat_stream", "|" + answered("", COUNT, "|").line + "|", COUNTED),
    Call("with usage", f"{COUNTED} 0", COUNTED),
    answered("completion", PROMPT),
    answered("completion_stream", COUNT, "|", more="|"),
    Call("embed", numbers(vector(PROMPT)[0], vector(COUNT)[0]), BOTH),
    Call("refused", f"404 {UNKNOWN}", 0),
    Call("refused", f"404 {FORBIDDEN}", 0),
    Call("models", "true", 0),
    Call("together", ",".join(TOGETHER), sum(3 + most for most in range(1, 6))),
    until_refused(15, OVER),
)


def check(result: dict[str, Any], due: tuple[Call, ...]) -> None:
    assert result["status"] == "SUCCESS", result["stderr"]
    assert result["stdout"].splitlines() == [f"{call.name}: {call.line}" for call in due]
    assert result["llmTokenCount"] == sum(call.cost for call in due)


# --- the programs of docs/ai.md


@dataclass(frozen=True)
class Block:
    """One of them."""

    runtime: str
    text: str

    @property
    def is_official(self) -> bool:
        return (
            re.search(r"^import (openai|ollama)$|require\('(openai|ollama)'\)", self.text, re.MULTILINE)
            is not None
        )


LANGUAGES: Final = {"python": "python", "js": "nodejs", "cpp": "cpp", "go": "go"}
ENTRIES: Final = {"python": "main.py", "nodejs": "index.js", "cpp": "main.cpp", "go": "main.go"}
FENCE: Final = re.compile(r"^```(python|js|cpp|go)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: Final = [
    Block(LANGUAGES[language], text)
    for language, text in FENCE.findall((ROOT / "docs/ai.md").read_text(encoding="utf-8"))
]
# --- ai_client


@pytest.mark.parametrize("runtime", ["python", "nodejs", "cpp", "go"])
async def test_ai_client_works_in_every_language_and_its_tokens_are_counted(site: Site, runtime: str):
    result = await run(site, runtime, await site.worker.upload(PROGRAMS / "ai" / runtime))
    check(result, AI_CLIENT)


@pytest.mark.parametrize("runtime", ["python", "nodejs", "cpp", "go"])
async def test_ai_client_works_with_a_server_that_has_openais_api_only(site: Site, runtime: str):
    asked_before = len(site.openai.log)
    result = await run(
        site, runtime, await site.worker.upload(PROGRAMS / "ai" / runtime), modelId=OPENAI_MODEL
    )
    check(result, AI_CLIENT)
    # All but the one of a model that the other server has, and the two that are refused.
    assert len(site.openai.log) - asked_before == MAX_REQUESTS - 2
    assert {asked.path for asked in site.openai.log} <= {"/v1/chat/completions", "/v1/embeddings"}


async def run(site: Site, runtime: str, key: str, **fields: Any) -> dict[str, Any]:
    defaults = {"runtime": runtime, "memoryMb": 256, "timeoutMs": 240_000, "input": INPUT, "modelId": MODEL}
    message = site.worker.message(s3Key=key, functionId=f"ai-{key}", **(defaults | fields))
    (result,) = await site.worker.run_all([message], deadline_s=DEADLINE_S)
    return result


async def test_a_module_of_its_own_comes_before_the_images(site: Site):
    ours = {
        "nodejs": {
            "index.js": "console.log(require('ai_client'))",
            "node_modules/ai_client.js": "module.exports = 'mine'",
        },
        "cpp": {
            "main.cpp": "#include <ai_client.hpp>\n#include <iostream>\n"
            "int main() { std::cout << mine << '\\n'; }",
            "ai_client.hpp": 'inline const char *mine = "mine";\n',
        },
        "go": {
            "main.go": 'package main\n\nimport (\n\t"fmt"\n\n\t"function/ai_client"\n)\n\n'
            "func main() { fmt.Println(ai_client.Mine) }\n",
            "ai_client/ai_client.go": 'package ai_client\n\nconst Mine = "mine"\n',
        },
    }
    keys = {runtime: await site.worker.upload(files) for runtime, files in ours.items()}
    messages = [site.worker.message(runtime=runtime, s3Key=key) for runtime, key in keys.items()]
    results = await site.worker.run_all(messages)
    assert [(result["stdout"], result["stderr"]) for result in results] == [("mine\n", "")] * len(ours)


async def test_node_modules_are_imported_as_well_as_required(site: Site):
    files = {
        "package.json": '{"type": "module"}',
        "index.js": "import ai, { generate } from 'ai_client';\n"
        "console.log(await generate('count to 2'), ai.generate === generate);\n",
    }
    result = await site.worker.run(runtime="nodejs", s3Key=await site.worker.upload(files), modelId=MODEL)
    assert (result["stdout"], result["stderr"]) == ("1 2 true\n", "")
    assert result["llmTokenCount"] == 5


# --- the official packages, unmodified


class Bundles:
    """The code of all programs that use official packages: for each runtime one zip, unpacked once.

    Its entry runs the program that the input names.
    """

    def __init__(self, site: Site, folder: Path) -> None:
        self._site = site
        self._folder = folder
        self._keys: dict[str, str] = {}

    async def run(self, runtime: str, program: str, model: str = MODEL) -> dict[str, Any]:
        """Run one; skips the test where the packages cannot be had."""
        if runtime not in self._keys:
            try:
                code = await asyncio.to_thread(self._assemble, runtime)
            except packages.UnobtainableError as exc:
                pytest.skip(f"the official packages for {runtime} cannot be had here: {exc}")
            self._keys[runtime] = await self._site.worker.upload(code)
        payload = INPUT | {"program": f"programs/{program}/{ENTRIES[runtime]}"}
        return await run(self._site, runtime, self._keys[runtime], input=payload, memoryMb=512, modelId=model)

    def _assemble(self, runtime: str) -> Path:
        code = self._folder / runtime
        source = packages.for_python() if runtime == "python" else packages.for_nodejs()
        shutil.copytree(source, code, copy_function=os.link)
        (code / ENTRIES[runtime]).write_text(STARTERS[runtime])
        for name in ("ollama", "openai"):
            shutil.copytree(PROGRAMS / f"ai/{name}-{runtime}", code / f"programs/{name}")
        for number, block in enumerate(BLOCKS):
            place = code / f"programs/page-{number}"
            place.mkdir()
            (place / ENTRIES[block.runtime]).write_text(block.text, encoding="utf-8")
        return code


STARTERS: Final = {
    "python": "import json, os, runpy\n"
    "runpy.run_path(json.loads(os.environ['PAYLOAD'])['program'], run_name='__main__')\n",
    "nodejs": "require('./' + JSON.parse(process.env.PAYLOAD).program);\n",
}


@pytest.fixture(scope="module")
def bundles(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(site, tmp_path_factory.mktemp("bundles"))


@pytest.mark.parametrize("runtime", ["python", "nodejs"])
@pytest.mark.parametrize(("package", "due"), [("ollama", OLLAMA_PACKAGE), ("openai", OPENAI_PACKAGE)])
async def test_official_clients_work_unmodified_by_environment_alone(
    bundles: Bundles, runtime: str, package: str, due: tuple[Call, ...]
):
    check(await bundles.run(runtime, package), due)


@pytest.mark.parametrize("runtime", ["python", "nodejs"])
async def test_the_ollama_package_works_with_a_server_that_has_openais_api_only(
    bundles: Bundles, runtime: str
):
    check(await bundles.run(runtime, "ollama", OPENAI_MODEL), OLLAMA_PACKAGE)


async def test_the_workers_key_is_sent_and_the_runs_own_is_not(site: Site):
    source = (
        "import json, os, urllib.request\n"
        "body = json.dumps({'model': 'llama3:8b', 'prompt': 'a key'}).encode()\n"
        "headers = {'Authorization': 'Bearer ' + os.environ['OPENAI_API_KEY'], 'X-Api-Key': 'mine'}\n"
        "request = urllib.request.Request(os.environ['OPENAI_BASE_URL'] + '/completions', body, headers)\n"
        "print(json.load(urllib.request.urlopen(request))['choices'][0]['text'])\n"
    )
    result = await site.worker.run(s3Key=await site.worker.upload({"main.py": source}))
    assert (result["stdout"], result["stderr"]) == ("echo: a key\n", "")
    (asked,) = [asked for asked in site.models.log if b"a key" in asked.raw]
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert "X-Api-Key" not in asked.headers


# --- the page

SKY: Final = "echo: Why is the sky blue?"
SHOWN: Final = [SKY, "echo: 하늘은 왜 파란가?", "2 8", f"404 {SERVER} 404: {UNKNOWN}"]


async def test_the_page_shows_the_client_in_every_language_and_the_official_ones():
    assert {block.runtime for block in BLOCKS if not block.is_official} == set(ENTRIES)
    assert {block.runtime for block in BLOCKS if block.is_official} == {"python", "nodejs"}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
async def test_a_program_of_the_page_does_as_it_says(
    site: Site, bundles: Bundles, tmp_path: Path, number: int
):
    block = BLOCKS[number]
    if block.is_official:
        result = await bundles.run(block.runtime, f"page-{number}")
    else:
        (tmp_path / ENTRIES[block.runtime]).write_text(block.text, encoding="utf-8")
        result = await run(site, block.runtime, await site.worker.upload(tmp_path))
    assert result["status"] == "SUCCESS", result["stderr"]
    lines = result["stdout"].splitlines()
    if block.is_official:
        assert set(lines) == {SKY}
        assert result["llmTokenCount"] == len(lines) * (5 + 6)
    else:
        assert lines == SHOWN
        assert result["llmTokenCount"] == (5 + 6) + (3 + 4) + (2 + 1)


# --- the example


async def test_the_example_asks_and_writes_a_file(site: Site):
    folder = sources.folder("examples") / "python-llm"
    payload = json.loads((folder / "input.json").read_text())
    before = len(site.models.log)
    result = await run(site, "python", await site.worker.upload(folder), input=payload)
    assert result["status"] == "SUCCESS", result["stderr"]
    (link,) = result["outputFiles"]
    report = (await site.worker.output(link)).decode()
    assert payload["notes"][0] in report
    asked = site.models.log[before:]
    assert [each.path for each in asked] == ["/api/generate", "/api/chat"]
    assert result["llmTokenCount"] == sum(each.prompt_tokens + each.completion_tokens for each in asked)
