"""The help of every command, and its examples."""

import shlex
import shutil
from pathlib import Path

import pytest

import jcl
from jcl.__main__ import COMMANDS, main

REPOSITORY = Path(__file__).parent.parent
SMALL = "--layers 1 --width 8 --heads 1 --length 64 --steps 1 --boundary-batches 1 --memory 4"


def shown(capsys, *arguments):
    capsys.readouterr()
    try:
        status = main([*arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == 0
    return capsys.readouterr().out


def example(capsys, command):
    """The words of the first example in a command's help, behind "jcl"."""
    lines = map(str.strip, shown(capsys, command, "--help").splitlines())
    found = [line for line in lines if line.startswith(f"jcl {command} ")]
    assert found, command
    return shlex.split(found[0])[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    assert len(example(capsys, command)) > 1
    assert shown(capsys, command, "-h") == shown(capsys, command, "--help")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The working directory, with the configs that the examples name, and little text."""
    text = ["The statement of the day. " * 60]
    tasks = (jcl.data.text_task("little", text, text, jcl.data.ByteTokenizer(), 64),)
    folder = tmp_path_factory.mktemp("help")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(jcl.data, "domains", lambda **_: jcl.data.Stream("little", tasks))
        yield folder


@pytest.fixture
def run(place, capsys):
    """The folder of the run that the example of `jcl run` makes, at a small size."""
    found = place / "runs" / "quickstart" / "replay"
    if not found.exists():
        assert main([*example(capsys, "run"), *SMALL.split()]) == 0
    return found


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("generate", None),
        ("report", "methods.html"),
        ("memory", "memory.npz"),
        ("export", "exported/model.safetensors"),
        ("list", None),
    ],
)
def test_the_examples_work(command, written, place, run, capsys):
    """Those of online, search, select and forget are run by their own tests."""
    other = place / "runs" / "quickstart" / "naive"
    if not other.exists():
        shutil.copytree(run, other)
    assert shown(capsys, *example(capsys, command)) or command == "report"
    assert written is None or (place / written).stat().st_size


def test_the_example_of_plan_is_understood(place, capsys):
    """Up to the devices, of which this process has others."""
    assert main(example(capsys, "plan")) == 1
    assert "JAX is in use already" in capsys.readouterr().err
