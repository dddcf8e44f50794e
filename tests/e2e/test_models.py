"""Functions that call models, through a worker process: what the result says, and what is written down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nanoagent.dev.stub_model_server import StubModelServer
from support.agents.worker import WorkerUnderTest

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

KEY = "sk-canary-of-the-worker"

# With nothing but the standard library, and what the environment says.
CALLER = """
import json, os, pathlib, urllib.request

def post(path, body):
    request = urllib.request.Request(
        os.environ["AI_ENDPOINT"] + path, json.dumps(body).encode(), {"Authorization": "Bearer forged"}
    )
    return urllib.request.urlopen(request)

with post("/api/chat", {"messages": [{"role": "user", "content": "count to 5"}]}) as answer:
    print(*(json.loads(line)["message"]["content"] for line in answer))
with post("/v1/chat/completions", {"messages": [{"role": "user", "content": "one two"}]}) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
forged = pathlib.Path("/output/.nanoagent/ai.jsonl")
forged.parent.mkdir()
forged.write_text("forged")
pathlib.Path("/output/mine.txt").write_text("mine")
"""
SAID = "1  2  3  4  5 \necho: one two\n"
TOKENS = (3 + 5) + (2 + 3)

# Streams on for longer than it may run.
STREAMER = """
import json, os, urllib.request
body = {"model": "fault/hold", "prompt": "count to 9"}
with urllib.request.urlopen(os.environ["OLLAMA_HOST"] + "/api/generate", json.dumps(body).encode()) as answer:
    for line in answer:
        print(json.loads(line)["response"], flush=True)
"""


async def test_tokens_are_in_the_result_and_exchanges_beside_the_outputs_and_replayed_without_a_server(
    stack: EmbeddedStack, tmp_path: Path
):
    settings = {"AI_RECORD": "store", "WARM_POOL_NODEJS_SIZE": "0", "WARM_POOL_CPP_SIZE": "0"}
    settings["WARM_POOL_GO_SIZE"] = "0"
    async with StubModelServer(key=KEY) as stub_model_server:
        server = {"AI_ENDPOINT": stub_model_server.url, "AI_API_KEY": KEY}
        async with WorkerUnderTest(stack, tmp_path, settings | server) as worker:
            code = await worker.upload({"main.py": CALLER})
            result = await worker.run(s3Key=code, modelId="mistral")
            assert (result["status"], result["stdout"]) == ("SUCCESS", SAID), result["stderr"]
            assert result["llmTokenCount"] == TOKENS
            # The record is no output of the job's, and nothing of the job's can stand in its place.
            assert [link.rpartition("/")[2] for link in result["outputFiles"]] == ["mine.txt"]
            assert [error["path"] for error in result["outputErrors"]] == [".nanoagent/ai.jsonl"]
            assert await worker.metric("worker_llm_tokens_total", model="mistral") == TOKENS
            assert {request.headers["Authorization"] for request in stub_model_server.log} == {
                f"Bearer {KEY}"
            }

            cut = await worker.run(s3Key=await worker.upload({"main.py": STREAMER}), timeoutMs=3000)
            assert cut["status"] == "TIMEOUT"
            assert cut["stdout"].split() == ["1", "2", "3"]
            assert cut["llmTokenCount"] >= 3
            await stub_model_server.until(lambda log: log[-1].state == "cut")
            assert KEY not in worker.log.read_text()

        record = tmp_path / "replay" / "ai.jsonl"
        record.parent.mkdir()
        key = f"outputs/{result['requestId']}/.nanoagent/ai.jsonl"
        record.write_bytes(await stack.buckets.read(stack.data_bucket, key))
    exchanges = [json.loads(line) for line in record.read_text().splitlines()]
    assert [exchange["path"] for exchange in exchanges] == ["/api/chat", "/v1/chat/completions"]
    assert [exchange["completionTokens"] for exchange in exchanges] == [5, 3]
    assert KEY not in record.read_text()
    assert "forged" not in record.read_text()

    settings = settings | {"AI_REPLAY": str(record.parent)}
    async with WorkerUnderTest(stack, tmp_path, settings) as worker:
        again = await worker.run(s3Key=await worker.upload({"main.py": CALLER}), modelId="mistral")
        assert (again["stdout"], again["llmTokenCount"]) == (SAID, TOKENS), again["stderr"]
