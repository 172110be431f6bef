# Sourced by the runners. `make_node_packages DIR PROJECT` installs the packages of PROJECT/package-lock.json into DIR/node_modules. The
# stamp is written last, so a directory whose installation was interrupted is created again.
make_node_packages() {
  local dir=$1 project=$2 start=$SECONDS
  command -v npm > /dev/null || { echo "npm is not installed" >&2; return 1; }
  if cmp -s "$project/package-lock.json" "$dir/.complete"; then return 0; fi
  echo "$dir: installing $project/package.json"
  rm -rf "$dir"
  mkdir -p "$dir"
  cp "$project/package.json" "$project/package-lock.json" "$dir"
  npm ci --silent --no-audit --no-fund --prefix "$dir"
  cp "$project/package-lock.json" "$dir/.complete"
  echo "$dir: ready after $((SECONDS - start)) s"
}
