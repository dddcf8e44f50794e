"""The ollama package, by OLLAMA_HOST alone."""

import json
import os

import ollama

given = json.loads(os.environ["PAYLOAD"])
prompt, count, model = given["prompt"], given["count"], os.environ["LLM_MODEL"]
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]

print("generate:", ollama.generate(model, prompt).response)
print("limited:", ollama.generate(model, count, options={"num_predict": 3}).response)
print("generate_stream:", "|".join(part.response for part in ollama.generate(model, count, stream=True)))
print("chat:", ollama.chat(model, messages).message.content)
print("chat_stream:", "|".join(part.message.content for part in ollama.chat(model, messages, stream=True)))
vectors = [*ollama.embed(model, prompt).embeddings, *ollama.embed(model, [prompt, count]).embeddings]
print("embed:", f"{vectors[0][0]:.6f}", *(f"{each[7]:.6f}" for each in vectors[1:]))
for unusable in ("no-such-model", "not-for-functions"):
    try:
        ollama.generate(unusable, prompt)
    except ollama.ResponseError as exc:
        print("refused:", exc.status_code, exc.error)
print("models:", json.dumps("llama3:8b" in [each.model for each in ollama.list().models]))
answers = 0
try:
    while True:
        ollama.generate(model, "count to 1")
        answers += 1
except ollama.ResponseError as exc:
    print("limit:", answers, exc.status_code, exc.error)
