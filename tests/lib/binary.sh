# Sourced by the runners. Sets EMBEDDING_SERVER_BIN to the program under test, unless the caller chose one, and fails if the program
# has not been built. Expects $root, the root of the repository.
export EMBEDDING_SERVER_BIN=${EMBEDDING_SERVER_BIN:-$root/target/release/embedding-server}
[ -x "$EMBEDDING_SERVER_BIN" ] || { echo "$EMBEDDING_SERVER_BIN is missing. Run cargo build --release first." >&2; exit 1; }
