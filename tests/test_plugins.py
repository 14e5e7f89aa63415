"""Plugins: run when the command line names them and never otherwise, the same content everywhere, asked for again."""

import hashlib
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg.cli import main
from autoseg.commands.folds import TrainOptions
from autoseg.commands.parser import COMMANDS, build_parser
from autoseg.errors import StateError, UsageError
from autoseg.imaging.formats.readers import READERS, ending_of
from autoseg.launch.jobs import train_arguments
from autoseg.messages import WITH_PLUGINS, suggest
from autoseg.plugins import LOADED, Imported, load_plugins, recorded_plugins, require_plugins
from autoseg.processes import map_in_processes
from autoseg.workspace import Workspace

FORMAT = """
from autoseg.imaging.formats.readers import READERS
READERS[".voxels"] = READERS[".nii"]
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test loads and registers is gone after it."""
    monkeypatch.setitem(READERS, ".voxels", None)
    del READERS[".voxels"]
    yield
    LOADED.clear()


def plugin(folder: Path, content: str = FORMAT, name: str = "format.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


def test_a_plugin_registers_and_is_known_by_its_name_and_digest(tmp_path):
    file = plugin(tmp_path / "with a blank", name="my format.py")
    assert ending_of("a.voxels") is None
    load_plugins([file, file])
    assert ending_of("a.voxels") == ".voxels"
    digest = hashlib.sha256(FORMAT.encode()).hexdigest()
    assert recorded_plugins() == [{"name": "my format.py", "sha256": digest}]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("plugin.txt", "", "is not a Python file"),
        ("plugin.py", "x = 1\nx = 1 / 0\n", "cannot be imported: line 2: ZeroDivisionError: division by zero"),
        ("plugin.py", "x = (1\n", "cannot be imported: line 1: SyntaxError: '(' was never closed"),
        ("plugin.py", "import no_such_module", "cannot be imported: line 1: ModuleNotFoundError"),
        ("plugin.py", "raise SystemExit(0)", "cannot be imported: line 1: SystemExit"),
        ("plugin.py", "def f():\n    raise KeyError('a')\n\n\nf()", "cannot be imported: line 2: KeyError: 'a'"),
    ],
)
def test_a_plugin_that_cannot_be_run_is_named(tmp_path, name, content, what):
    file = plugin(tmp_path, content, name)
    with pytest.raises(UsageError) as caught:
        load_plugins([file])
    assert str(file) in caught.value.what
    assert what in caught.value.what
    assert LOADED == []


def test_a_plugin_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.py does not exist"):
        load_plugins([tmp_path / "gone.py"])
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UsageError, match=r"folder\.py cannot be read"):
        load_plugins([tmp_path / "folder.py"])


def test_two_plugins_of_one_name_are_refused(tmp_path):
    files = [plugin(tmp_path / "a"), plugin(tmp_path / "b", "x = 1\n")]
    with pytest.raises(UsageError, match="have the same name but differ"):
        load_plugins(files)
    assert ending_of("a.voxels") is None  # neither was run


def test_the_next_command_knows_nothing_of_a_plugin(tmp_path, capsys):
    load_plugins([plugin(tmp_path)])
    assert main(["env"]) == 0
    assert LOADED == []


def test_commands_that_read_a_plan_or_images_take_plugins(tmp_path, capsys):
    parser = build_parser()
    for command in COMMANDS:
        more = {"check": ["d"], "plan": ["d"], "predict": ["-i", "i", "-o", "o"], "compare": ["a", "b"]}.get(
            command, []
        )
        words = [command, *more, "--plugin", "a.py", "--plugin", "b.py"]
        if command in WITH_PLUGINS:
            assert parser.parse_args(words).plugins == [Path("a.py"), Path("b.py")]
        else:
            with pytest.raises(SystemExit):
                parser.parse_args(words)


def test_a_failing_plugin_ends_the_command_with_one_message(tmp_path, capsys):
    file = plugin(tmp_path, "raise ValueError('not today')\n")
    assert main(["status", "-w", str(tmp_path), "--plugin", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"error: --plugin {file} cannot be imported: line 1: ValueError: not today\n  -> fix the file" in said


# What was trained with a plugin asks for it


def test_the_same_files_are_asked_for(tmp_path):
    file = plugin(tmp_path, name="my format.py")
    load_plugins([file, plugin(tmp_path, "x = 1\n", "other.py")])
    recorded = recorded_plugins()
    require_plugins(recorded, "fold_0")
    load_plugins([file])
    require_plugins(recorded[:1], "fold_0")
    require_plugins((), "fold_0")
    with pytest.raises(StateError) as missing:
        require_plugins(recorded, "fold_0")
    assert missing.value.what.startswith("fold_0 was trained with the plugin other.py (sha256 ")
    assert "repeat the command with --plugin other.py" in missing.value.remedy
    load_plugins([])
    with pytest.raises(StateError) as quoted:
        require_plugins(recorded, "fold_0")
    assert "--plugin 'my format.py'" in quoted.value.remedy


def test_a_plugin_that_changed_is_refused(tmp_path):
    load_plugins([plugin(tmp_path)])
    recorded = recorded_plugins()
    load_plugins([plugin(tmp_path, FORMAT + "\n")])
    with pytest.raises(StateError) as changed:
        require_plugins(recorded, "fold_0")
    assert recorded[0]["sha256"][:12] in changed.value.what
    assert recorded_plugins()[0]["sha256"][:12] in changed.value.what
    assert "restore the previous file" in changed.value.remedy


# Other processes


def test_processes_for_many_cases_run_the_content_that_was_read(tmp_path):
    file = plugin(tmp_path)
    load_plugins([file])
    file.write_text("raise SystemError('changed while the command runs')")
    assert map_in_processes(ending_of, ["a.voxels", "b.nii"], title="endings", workers=2) == [".voxels", ".nii"]


@pytest.mark.thorough
def test_what_is_sent_to_a_process_is_read_with_the_plugins(tmp_path):
    """As for processes that prepare batches, where they are not forked."""
    load_plugins([plugin(tmp_path, FORMAT + "class Mine:\n    value = 7\n")])
    mine = sys.modules[f"autoseg_plugin_{recorded_plugins()[0]['sha256'][:16]}"].Mine()
    (tmp_path / "sent").write_bytes(pickle.dumps((Imported(), mine)))
    code = (
        "import pickle, sys; from autoseg.plugins import LOADED; assert not LOADED;"
        "_, mine = pickle.loads(open(sys.argv[1], 'rb').read());"
        "from autoseg.imaging.formats.readers import ending_of; print(mine.value, ending_of('a.voxels'), len(LOADED))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "sent")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["7", ".voxels", "1"]


def test_folds_in_processes_of_their_own_are_given_the_plugins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_plugins([plugin(Path("a b"))])
    arguments = train_arguments(Workspace(tmp_path / "w"), TrainOptions())
    assert build_parser().parse_args(arguments).plugins == [tmp_path / "a b" / "format.py"]


def test_suggested_commands_name_the_plugins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_plugins([plugin(Path("a b"))])
    assert suggest("train", "-f", 0, workspace=None) == "autoseg train -f 0 --plugin 'a b/format.py'"
    assert build_parser().parse_args(shlex.split(suggest("evaluate", workspace=None))[1:]).plugins == LOADED_PATHS
    assert suggest("env", workspace=None) == "autoseg env"


LOADED_PATHS = [Path("a b/format.py")]
