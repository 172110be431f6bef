# Sourced by the runners. `make_venv DIR REQUIREMENTS ...` creates a Python virtual environment, or keeps the existing one if it has the
# same requirements. An argument that is a file is a requirements file; any other argument is a requirement. The stamp is written last,
# so an environment whose installation was interrupted is created again. Of several runners that want the same environment, one creates it.
make_venv() {
  mkdir -p "$(dirname "$1")"
  (flock 9 && make_venv_alone "$@") 9> "$1.lock"
}

make_venv_alone() {
  local venv=$1 base=${PYTHON:-python3} stamp="" args=() arg start=$SECONDS
  shift
  command -v "$base" > /dev/null || { echo "$base is not installed" >&2; return 1; }
  for arg; do
    if [ -f "$arg" ]; then args+=(-r "$arg") stamp+=$(cat "$arg"); else args+=("$arg") stamp+=" $arg"; fi
  done
  stamp="$("$base" --version) $stamp"
  if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.complete" 2> /dev/null)" = "$stamp" ]; then return 0; fi
  echo "$venv: installing ${args[*]##*/}"
  rm -rf "$venv"
  "$base" -m venv "$venv" || { echo "$base has no venv module (on Debian: apt install python3-venv)" >&2; return 1; }
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-compile "${args[@]}" || { echo "pip could not install ${args[*]}" >&2; return 1; }
  printf '%s\n' "$stamp" > "$venv/.complete"
  echo "$venv: ready after $((SECONDS - start)) s"
}
