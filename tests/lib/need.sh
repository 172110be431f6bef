# Sourced by the runners. `need COMMAND=PACKAGES ...` installs the Debian packages of each command that is not in PATH. It needs root and
# apt-get to install anything, and names the missing packages otherwise. Only one runner at a time installs packages.
need() {
  local pair missing=()
  for pair; do type -P "${pair%=*}" > /dev/null || missing+=(${pair#*=}); done
  [ ${#missing[@]} = 0 ] && return
  [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || { echo "not installed: ${missing[*]}" >&2; return 1; }
  (
    flock 9
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "${missing[@]}" > /dev/null
  ) 9> "${TMPDIR:-/tmp}/embedding-server-apt.lock"
}
