#!/bin/sh
# Runs the function in the sandbox of a worker, and compares its output with expected.txt.
set -eu
cd "$(dirname "$0")"
output=$(nanoagent exec . --input @input.json)
printf '%s\n' "$output" | diff expected.txt - && echo "The output is as expected."
