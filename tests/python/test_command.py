"""The command that pip installs behaves as the program: arguments, exit codes, signals, and closed pipes."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from conftest import BINARY, BROKEN, COMMAND, LLAMA

PROGRAMS = {"command": [COMMAND], "module": [sys.executable, "-m", "embedding_server"]}


def run(program, *arguments, **options):
    return subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(params=PROGRAMS)
def program(request):
    return PROGRAMS[request.param]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["serve", "--help"],
        ["--prot", "1"],
        ["check"],
        ["check", "--model", LLAMA, "--port", "1"],
        ["check", "--port", "99999"],
        ["inspect", LLAMA],
        ["inspect", BROKEN / "nan"],
        ["inspect", "no/such/path/at/all"],
        ["--model", BROKEN / "no-config", "--port", "0"],
        ["health", "--port", "1"],
        ["completions", "bash"],
        ["man"],
        ["embed", "--model", LLAMA, "-"],
        ["embed", "no-such-file.jsonl"],
        ["inspect", "caf\udce9"],
    ],
    ids=lambda arguments: " ".join(ascii(str(a)) for a in arguments)[-40:],
)
def test_it_prints_what_the_program_prints(program, arguments):
    options = {"input": '{"text": "hello"}\n', "errors": "surrogateescape"} if "-" in arguments else {"errors": "surrogateescape"}
    ours, theirs = run(program, *arguments, **options), run([BINARY], *arguments, **options)

    def plain(done):
        # Times differ from run to run.
        return done.returncode, done.stdout, re.sub(r"\d+\.\d s|\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", done.stderr)

    assert plain(ours) == plain(theirs)


def serve(program):
    process = subprocess.Popen([*program, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline()
    return process, line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_cleanly(program, number):
    process, url = serve(program)
    with urllib.request.urlopen(url.rstrip("/") + "/health", timeout=60) as answer:
        assert answer.status == 200
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0


def test_ctrl_c_ends_other_commands_by_the_signal(program, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "hello"}\n' * 200_000)
    process = subprocess.Popen([*program, "embed", "--model", str(LLAMA), str(tmp_path / "in.jsonl")], stdout=subprocess.PIPE)
    # The command has embedded a line, and waits for a reader of the others.
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT


def test_a_closed_pipe_is_exit_code_74_without_a_message(program):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*program, "man", "serve"], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (74, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_files(tmp_path, program, closed):
    (tmp_path / "in.jsonl").write_text('{"text": "hello"}\n')
    for words in (program, [BINARY]):
        out = tmp_path / "out.npy"
        out.unlink(missing_ok=True)
        line = " ".join([*words, "embed", "--model", str(LLAMA), "in.jsonl", "-o", "out.npy", closed])
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=60)
        assert done.returncode == 0 and out.read_bytes().startswith(b"\x93NUMPY")


def test_health_asks_the_server_of_the_package(program):
    process, url = serve(program)
    try:
        assert run(program, "health", "--live", "--port", url.rstrip("/").rsplit(":", 1)[1]).returncode == 0
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_command_starts_without_numpy():
    code = "import sys; sys.argv[1:] = ['--version']; from embedding_server._command import main; main(); print('numpy' in sys.modules)"
    assert run([sys.executable], "-c", code).stdout.endswith("False\n")
