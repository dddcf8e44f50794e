"""Translates calls of Ollama's API for model servers that have only OpenAI's API.

`/api/generate` and `/api/chat` become chat completions (with `raw` or `suffix`: completions). `/api/embed`
and `/api/embeddings` become embeddings. The translated request is read and checked like a direct call of
OpenAI's API (`calls.read`), so a translation allows nothing that a direct call would not.

Read `requests.py` first, then `answers.py`. `tool_calls.py` translates tool calls in both directions,
`errors.py` translates errors, and `models.py` translates lists of models.

Sources: docs.ollama.com/api; platform.openai.com, API reference, chat, completions, embeddings. The field
with the thinking of the model is `reasoning_content` for DeepSeek and vLLM, and `reasoning` for OpenRouter.
"""
