# Sourced by the runners. `first_answer WHAT SCRIPT` runs SCRIPT as a newcomer would: in an empty directory, with nothing in the environment but a home
# directory and the system's PATH, and without a network for pip and npm. SCRIPT installs the program from files, and ends with `exec` of the server on
# port 0. The function sends the request of the README, prints the seconds from the start of SCRIPT until the answer, and stops the server.
#
# The seconds depend on what else the machine does, so they are printed and not checked. Without an answer in five minutes the function fails. Expects
# $root, the root of the repository. FIRST_ANSWER_PATH names directories that PATH begins with.
first_answer() {
  local what=$1 script=$2 work start=${EPOCHREALTIME/[.,]/} url="" request answer="" process
  work=$(mktemp -d)
  mkdir "$work/home" "$work/here"
  (cd "$work/here" && exec env -i PATH="${FIRST_ANSWER_PATH:+$FIRST_ANSWER_PATH:}/usr/local/bin:/usr/bin:/bin" HOME="$work/home" \
    npm_config_offline=true npm_config_update_notifier=false PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    timeout 300 bash -euc "$script" > "$work/output" 2> "$work/log") &
  process=$!
  while [ -z "$url" ] && kill -0 $process 2> /dev/null; do
    sleep 0.05
    url=$(sed -n 's/^listening on //p' "$work/output")
  done
  if [ -n "$url" ]; then
    request=$(sed -n '/^curl -X POST/,/embeddings$/p' "$root/README.md" | sed "s|http://localhost:5000|${url%/}|; s|^curl|curl -sS --retry 60|")
    answer=$(bash -c "$request" 2>> "$work/log") || true
  fi
  start=$((${EPOCHREALTIME/[.,]/} - start))
  kill $process 2> /dev/null || true
  wait $process 2> /dev/null || true
  if [[ $answer != *'"embedding":['* ]]; then
    echo "$what: the README's request was not answered: $answer" >&2
    cat "$work/output" "$work/log" >&2
    return 1
  fi
  rm -rf "$work"
  printf '%s: the first answer after %d.%d s\n' "$what" $((start / 1000000)) $((start / 100000 % 10))
}
