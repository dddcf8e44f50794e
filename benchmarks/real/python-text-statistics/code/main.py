import collections
import json
import os
import re
import statistics

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

text = " ".join(
    " ".join(event["words"][(at * 17 + place * place * 5) % len(event["words"])] for place in range(at % 11 + 4)).capitalize() + "."
    for at in range(event["sentences"])
)
words = re.findall(r"[a-z']+", text.lower())
lengths = [len(sentence.split()) for sentence in text.split(".") if sentence.strip()]
pairs = collections.Counter(zip(words, words[1:]))
syllables = sum(max(1, len(re.findall(r"[aeiouy]+", word))) for word in words)
ease = 206.835 - 1.015 * len(words) / len(lengths) - 84.6 * syllables / len(words)
print(len(words), len(set(words)), round(statistics.mean(lengths), 3), round(statistics.stdev(lengths), 3), round(ease, 2))
for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:5]:
    print(*pair, count)
