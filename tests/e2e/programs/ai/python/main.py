"""Every call of ai_client, a line each; the same in all four languages."""

import json
import os

import ai_client

given = json.loads(os.environ["PAYLOAD"])
prompt, count = given["prompt"], given["count"]
messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]

print("generate:", ai_client.generate(prompt))
print("limited:", ai_client.generate(count, num_predict=3, temperature=0))
print("generate_stream:", "|".join(ai_client.generate_stream(count)))
print("chat:", ai_client.chat(messages))
print("chat_stream:", "|".join(ai_client.chat_stream(messages)))
print("embed:", f"{ai_client.embed(prompt)[0]:.6f}", *(f"{each[7]:.6f}" for each in ai_client.embed([prompt, count])))
for model in ("no-such-model", "not-for-functions"):
    try:
        ai_client.generate(prompt, model)
    except ai_client.AIError as exc:
        print("refused:", exc.status, exc)
answers = 0
try:
    while True:
        ai_client.generate("count to 1")
        answers += 1
except ai_client.AIError as exc:
    print("limit:", answers, exc.status, exc)
