#!/bin/sh
# Runs the function in the sandbox of a worker, and checks that a model has answered. AI_ENDPOINT is the URL of
# the model server, such as http://localhost:11434 for Ollama; --model is the name of a model that it has.
set -eu
cd "$(dirname "$0")"
output=$(nanoagent exec . --input @input.json "$@")
[ -n "$output" ] && echo "The model has answered: $output"
