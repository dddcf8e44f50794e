"""Where calls go at well-known model servers; the OpenAI column is the official client's."""

from __future__ import annotations

from typing import Any

import pytest

from nanoagent.ai import addresses
from nanoagent.ai.refusals import Api
from nanoagent.ai.upstreams import HttpUpstream

# Base URLs as the providers' documents give them to the official client, → what it then asks.
PROVIDERS: dict[str, str] = {
    "https://api.openai.com/v1": "https://api.openai.com/v1",
    "https://api.openai.com/v1/": "https://api.openai.com/v1",
    "https://openrouter.ai/api/v1": "https://openrouter.ai/api/v1",
    "https://generativelanguage.googleapis.com/v1beta/openai/": (
        "https://generativelanguage.googleapis.com/v1beta/openai"
    ),
    "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/openapi": (
        "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/openapi"
    ),
    "https://open.bigmodel.cn/api/paas/v4": "https://open.bigmodel.cn/api/paas/v4",
    "https://open.bigmodel.cn/api/paas/v4/": "https://open.bigmodel.cn/api/paas/v4",
    "https://api.z.ai/api/paas/v4/": "https://api.z.ai/api/paas/v4",
    "https://api.deepinfra.com/v1/openai": "https://api.deepinfra.com/v1/openai",
    "https://api.groq.com/openai/v1": "https://api.groq.com/openai/v1",
    "https://api.mistral.ai/v1": "https://api.mistral.ai/v1",
    "https://api.together.xyz/v1": "https://api.together.xyz/v1",
    "https://api.fireworks.ai/inference/v1": "https://api.fireworks.ai/inference/v1",
    "https://api.deepseek.com/v1": "https://api.deepseek.com/v1",
    "https://api.perplexity.ai": "https://api.perplexity.ai",
    "https://api.x.ai/v1": "https://api.x.ai/v1",
    "https://api.cohere.ai/compatibility/v1": "https://api.cohere.ai/compatibility/v1",
    "https://api.anthropic.com/v1/": "https://api.anthropic.com/v1",
    "https://api.cerebras.ai/v1": "https://api.cerebras.ai/v1",
    "https://api.sambanova.ai/v1": "https://api.sambanova.ai/v1",
    "https://api.moonshot.ai/v1": "https://api.moonshot.ai/v1",
    "https://dashscope.aliyuncs.com/compatible-mode/v1": "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "https://ark.cn-beijing.volces.com/api/v3": "https://ark.cn-beijing.volces.com/api/v3",
    "https://qianfan.baidubce.com/v2": "https://qianfan.baidubce.com/v2",
    "https://router.huggingface.co/v1": "https://router.huggingface.co/v1",
    "https://integrate.api.nvidia.com/v1": "https://integrate.api.nvidia.com/v1",
    "https://api.studio.nebius.com/v1/": "https://api.studio.nebius.com/v1",
    "https://models.github.ai/inference": "https://models.github.ai/inference",
    "https://api.cloudflare.com/client/v4/accounts/a/ai/v1": (
        "https://api.cloudflare.com/client/v4/accounts/a/ai/v1"
    ),
    "https://gateway.ai.cloudflare.com/v1/a/g/openai": "https://gateway.ai.cloudflare.com/v1/a/g/openai",
    "https://gateway.ai.cloudflare.com/v1/a/g/compat": "https://gateway.ai.cloudflare.com/v1/a/g/compat",
    "https://ai-gateway.vercel.sh/v1": "https://ai-gateway.vercel.sh/v1",
    "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1": (
        "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1"
    ),
    "https://r.openai.azure.com/openai/v1/": "https://r.openai.azure.com/openai/v1",
    "http://vllm:8000/v1": "http://vllm:8000/v1",
    "http://llama-cpp:8080/v1": "http://llama-cpp:8080/v1",
    "http://localhost:1234/v1": "http://localhost:1234/v1",
    "http://litellm:4000/v1": "http://litellm:4000/v1",
    "http://localai:8080/v1": "http://localai:8080/v1",
    "http://tgi:3000/v1/": "http://tgi:3000/v1",
    "http://localhost:11434/v1": "http://localhost:11434/v1",
    "https://user:password@proxy.example/models/v1": "https://user:password@proxy.example/models/v1",
}
# Addresses without a path are servers' roots.
ROOTS: dict[str, tuple[str, str]] = {
    "http://host:11434": ("http://host:11434/v1", "http://host:11434"),
    "http://host:11434/": ("http://host:11434/v1", "http://host:11434"),
    "http://vllm:8000": ("http://vllm:8000/v1", "http://vllm:8000"),
    "https://api.openai.com": ("https://api.openai.com/v1", "https://api.openai.com"),
    "https://api.deepseek.com": ("https://api.deepseek.com/v1", "https://api.deepseek.com"),
    "http://[::1]:11434": ("http://[::1]:11434/v1", "http://[::1]:11434"),
    "http://host:11434/api": ("http://host:11434/v1", "http://host:11434"),  # as Ollama's documents have it
    "http://host:11434/v1": ("http://host:11434/v1", "http://host:11434"),
}
CALLS = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models")


def asked(address: addresses.Address, path: str) -> str:
    return address.root + address.target(path)


@pytest.mark.parametrize(("url", "base"), PROVIDERS.items(), ids=PROVIDERS.keys())
@pytest.mark.parametrize("api", [None, Api.OPENAI])
def test_calls_of_openais_api_go_where_the_official_client_sends_them(url: str, base: str, api: Api | None):
    address = addresses.parse(url, api)
    for call in CALLS:
        assert asked(address, f"/v1{call}") == base + call


@pytest.mark.parametrize(("url", "bases"), ROOTS.items(), ids=ROOTS.keys())
def test_an_address_without_a_path_is_a_servers_root(url: str, bases: tuple[str, str]):
    address = addresses.parse(url, None)
    assert asked(address, "/v1/chat/completions") == f"{bases[0]}/chat/completions"
    assert asked(address, "/api/chat") == f"{bases[1]}/api/chat"
    assert address.may_be_ollama


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://h:11434", "http://h:11434"),
        ("http://h:11434/v1", "http://h:11434"),
        ("http://h:11434/api/", "http://h:11434"),
        ("https://h/ollama", "https://h/ollama"),
        ("https://h/ollama/api", "https://h/ollama"),
        ("https://h/ollama/v1/", "https://h/ollama"),
    ],
)
def test_an_ollama_that_the_setting_names_may_be_below_a_path(url: str, root: str):
    address = addresses.parse(url, Api.OLLAMA)
    assert asked(address, "/api/chat") == f"{root}/api/chat"
    assert asked(address, "/v1/models") == f"{root}/v1/models"


def test_a_path_that_is_openais_base_and_looks_like_ollamas_is_chosen_by_the_setting():
    open_webui = addresses.parse("http://open-webui:3000/api", Api.OPENAI)
    assert asked(open_webui, "/v1/chat/completions") == "http://open-webui:3000/api/chat/completions"


@pytest.mark.parametrize(
    "url", ["https://generativelanguage.googleapis.com/v1beta/openai/", "https://models.github.ai/inference"]
)
def test_at_a_base_that_no_ollama_has_nobody_is_asked_for_one(url: str):
    assert not addresses.parse(url, None).may_be_ollama


def test_a_query_stands_behind_each_path_and_azures_key_in_its_own_header():
    session: Any = None
    url = "https://r.openai.azure.com/openai/deployments/gpt-4o?api-version=2024-10-21"
    server = HttpUpstream(session, url, key="k")
    assert asked(server.address, "/v1/chat/completions") == (
        "https://r.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    )
    assert server._headers["api-key"] == "k"
    assert "api-key" not in HttpUpstream(session, "https://api.openai.com/v1", key="k")._headers
