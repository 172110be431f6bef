import pytest

_LINES = []


@pytest.fixture
def note(request):
    """Records a measurement, or the name of a reference implementation, to print at the end of the run."""
    return lambda text: _LINES.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter):
    if _LINES:
        terminalreporter.section("measured")
        for line in _LINES:
            terminalreporter.write_line(line)
