"""The openai package, by OPENAI_BASE_URL and OPENAI_API_KEY alone."""

import asyncio
import json
import os

import openai

given = json.loads(os.environ["PAYLOAD"])
prompt, count, model = given["prompt"], given["count"], os.environ["LLM_MODEL"]
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
counting = [{"role": "user", "content": count}]
client = openai.OpenAI()

print("chat:", client.chat.completions.create(model=model, messages=messages).choices[0].message.content)
short = client.chat.completions.create(model=model, messages=counting, max_tokens=3)
print("limited:", short.choices[0].message.content, short.choices[0].finish_reason, short.usage.total_tokens)
chunks = list(client.chat.completions.create(model=model, messages=counting, stream=True))
print("chat_stream:", "|".join(chunk.choices[0].delta.content or "" for chunk in chunks))
chunks = list(
    client.chat.completions.create(
        model=model, messages=counting, stream=True, stream_options={"include_usage": True}
    )
)
print("with usage:", chunks[-1].usage.total_tokens, len(chunks[-1].choices))
print("completion:", client.completions.create(model=model, prompt=prompt).choices[0].text)
chunks = list(client.completions.create(model=model, prompt=count, stream=True))
print("completion_stream:", "|".join(chunk.choices[0].text for chunk in chunks))
vectors = [each.embedding for each in client.embeddings.create(model=model, input=[prompt, count]).data]
print("embed:", *(f"{vector[0]:.6f}" for vector in vectors))
for unusable in ("no-such-model", "not-for-functions"):
    try:
        client.chat.completions.create(model=unusable, messages=messages)
    except openai.NotFoundError as exc:
        print("refused:", exc.status_code, exc.body["message"])
print("models:", json.dumps("llama3:8b" in [each.id for each in client.models.list()]))


async def together() -> list[str]:
    """Several at once, over one client."""
    async with openai.AsyncOpenAI() as several:
        answers = await asyncio.gather(
            *(several.completions.create(model=model, prompt=f"count to {most}") for most in range(1, 6))
        )
    return [answer.choices[0].text for answer in answers]


print("together:", ",".join(asyncio.run(together())))
answers = 0
try:
    while True:
        client.completions.create(model=model, prompt="count to 1")
        answers += 1
except openai.RateLimitError as exc:
    print("limit:", answers, exc.status_code, exc.body["message"])
