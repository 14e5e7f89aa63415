"""Values on the command line that make no sense: a mistake of usage or of state, in words, and never a traceback."""

import json

import pytest

from autoseg.workspace import Workspace
from commands import outcome, run
from hostile_values import HOSTILE, leaves, put
from phantom import tiny_dataset

pytestmark = pytest.mark.thorough
ELSEWHERE = {2, 3, 4, 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", cases=5)


@pytest.fixture(scope="module")
def workspace(data, tmp_path_factory) -> Workspace:
    """Planned; every command below must be refused before it changes anything."""
    workspace = Workspace(tmp_path_factory.mktemp("planned") / "workspace")
    run("plan", data, "-w", workspace.root, "--no-preprocess")
    return workspace


TRAIN = [
    *(("--epochs", value) for value in ("0", "-1", "1.5", "x", "", "10000000", "9" * 5000, "²", "1e3", "nan")),
    *(("--steps", value) for value in ("0", "-5", "x", "10000000000")),
    *(("--time-budget", value) for value in ("0s", "0", "-1h", "x", "", "1y", "nan", "inf", "9" * 400, "5m5m")),
    *(("--stop-after", value) for value in ("0s", "-3", "soon")),
    *(("--checkpoint-every", value) for value in ("0", "0s", "never", "-1s")),
    *(("--gpus", value) for value in ("x", "-1", "", "0,", "0,x", "99")),
    *(("--device", value) for value in ("quantum", "", "cuda:99", "cuda:x", "meta", "cpu:7x", "vulkan", "9")),
    *(("-f", value) for value in ("9", "-1", "0..99", "x", "", "3..1", "0..99999999999", "..", "1.0", "0-4")),
    *(("--slurm", value) for value in ("x", "time=24", "partition=", "gpus=2", "time=0h,partition=g", "cpus=-1")),
    *(("-c", value) for value in ("4d", "", "../..", "2d/x")),
    *(("--network", value) for value in ("resnet", "", "../x")),
    *(("--init-from", value) for value in ("/nowhere", "", "/etc/passwd")),
    *(("--set", value) for value in ("x", "=", "training", "training.=1", "training.seed", "..=3", "version=9")),
]


@pytest.mark.parametrize(("option", "value"), TRAIN)
def test_train_refuses(option, value, workspace, capsys):
    before = {path: path.read_bytes() for path in workspace.root.glob("*.json")}
    code, said = outcome(capsys, "train", "-w", workspace.root, f"{option}={value}" if option != "-f" else f"-f{value}")
    assert code in ELSEWHERE
    assert "Traceback" not in said
    assert "error: " in said
    assert {path: path.read_bytes() for path in workspace.root.glob("*.json")} == before
    assert not list(workspace.root.rglob("*.pt"))


PLAN = [
    *(("--vram", value) for value in ("-1", "0", "nan", "inf", "1e9", "x", "", "8GB")),
    *(("--workers", value) for value in ("-3", "x", "1.5", "100000")),
    *(("--preset", value) for value in ("xxl", "")),
    *(("--rules", value) for value in ("mine", "")),
    *(("--network", value) for value in ("resnet", "../x")),
    *(("-c", value) for value in ("4d", "2d,,4d", "../..")),
    *(("--channels", value) for value in ("", ",", "a,b,c,d,e", "a,a")),
    *(("--labels", value) for value in ("", "x", "x=", "=1", "x=y", "x=0", "x=-1", "x=1,y=1", f"x={10**30}", "x=1.5")),
    *(("--regions", value) for value in ("", "x", "x=9", "x=", "x=1+", "x=y")),
    *(("--ignore", value) for value in ("0", "x", "1", f"{10**30}", "1.5", "")),
    *(("--patient-regex", value) for value in ("(", "[", "x", "(?P<a", "*", "(a)(", "(zzz)")),
    *(("--set", value) for value in ("training.seed=-1", "configurations.2d.batch_size=0", "seed=1", "x")),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), PLAN)
def test_plan_refuses_and_stores_nothing(option, value, data, tmp_path, capsys):
    code, said = outcome(
        capsys, "plan", data, "-w", tmp_path / "w", f"{option}={value}" if len(option) > 2 else f"{option}{value}"
    )
    assert code in ELSEWHERE
    assert "Traceback" not in said
    assert "error: " in said
    assert not (tmp_path / "w" / "plan.json").exists()


OTHERS = [
    ("check", "DATA", "--workers", "-1"),
    ("check", "/nowhere"),
    ("check", "/dev/null"),
    ("check", ""),
    ("plan", "/nowhere", "-w", "NEW"),
    ("plan", "DATA", "-w", "FILE"),
    ("plan", "DATA", "-w", "FILE/below"),
    ("train", "-w", "FILE"),
    ("train", "-w", "/nowhere"),
    ("evaluate", "-w", "FILE"),
    ("evaluate", "-w", "WORKSPACE"),
    ("evaluate", "-w", "WORKSPACE", "--test"),
    ("evaluate", "-w", "WORKSPACE", "--predictions", "DATA"),
    ("evaluate", "-w", "WORKSPACE", "--predictions", "/nowhere", "--references", "DATA/labelsTr"),
    ("evaluate", "-w", "WORKSPACE", "--predictions", "DATA/labelsTr", "--references", "/nowhere"),
    ("evaluate", "-w", "WORKSPACE", "--predictions", "FILE", "--references", "FILE"),
    ("evaluate", "-w", "WORKSPACE", "--workers", "-3"),
    ("evaluate", "-w", "WORKSPACE", "-c", "4d"),
    ("predict", "-w", "WORKSPACE", "-i", "DATA/imagesTr", "-o", "NEW"),
    ("predict", "-w", "WORKSPACE", "-i", "/nowhere", "-o", "NEW"),
    ("predict", "-w", "WORKSPACE", "-i", "DATA/imagesTr", "-o", "NEW", "--step", "0"),
    ("predict", "-w", "WORKSPACE", "-i", "DATA/imagesTr", "-o", "NEW", "--step", "nan"),
    ("predict", "-w", "WORKSPACE", "-i", "DATA/imagesTr", "-o", "NEW", "--step", "1.5"),
    ("predict", "-w", "WORKSPACE", "-i", "DATA/imagesTr", "-o", "NEW", "-f", "x"),
    ("predict", "-w", "WORKSPACE", "-i", "DATA/imagesTr", "-o", "NEW", "-m", "a-b"),
    ("predict", "-w", "WORKSPACE", "-i", "DATA/imagesTr", "-o", "NEW", "-m", ""),
    ("predict", "-w", "WORKSPACE", "-i", "DATA/imagesTr", "-o", "NEW", "--device", "quantum"),
    ("calibrate", "--device", "quantum"),
    ("calibrate", "--device", "meta"),
    ("demo", "-o", "FILE"),
    ("demo", "-o", "NEW", "--time-budget", "0s"),
    ("status", "--nonsense"),
    ("nonsense",),
    (),
]


@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_other_commands_refuse(arguments, data, workspace, tmp_path, capsys):
    (tmp_path / "file").write_text("text")
    paths = {"DATA": data, "WORKSPACE": workspace.root, "FILE": tmp_path / "file", "NEW": tmp_path / "new"}
    filled = []
    for argument in arguments:
        name, slash, rest = argument.partition("/")
        filled.append(f"{paths[name]}{slash}{rest}" if name in paths else argument)
    code, said = outcome(capsys, *filled)
    assert code in ELSEWHERE
    assert "Traceback" not in said
    assert "error: " in said


# The records of a workspace, edited by hand


@pytest.mark.parametrize("name", ["dataset.json", "fingerprint.json", "splits.json", "plan.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '"x"', "null", "{}", '{"version": 1}', '{"a": 1, "a": 2}', "\\ud800"]
)
def test_a_record_of_another_kind_is_named(name, content, workspace, capsys):
    path = workspace.root / name
    sound = path.read_bytes()
    try:
        path.write_text(content)
        commands: list[tuple[str, ...]] = [("train", "--network", "fcn"), ("status",), ("evaluate",)]
        if name != "fingerprint.json":  # which the planned network can do without: it would be trained
            commands.append(("train",))
        for command in commands:
            code, said = outcome(capsys, *command, "-w", workspace.root)
            assert code in (0, 4)
            assert code == 0 or name in said or "is not trained" in said or "no trained fold" in said
    finally:
        path.write_bytes(sound)
        for made in workspace.root.glob("plan-*.json"):
            made.unlink()


@pytest.mark.slow
def test_hostile_values_in_the_dataset_json_of_a_user(data, capsys):
    """`check` reports them, or understands them."""
    path = data / "dataset.json"
    sound = path.read_bytes()
    plain = json.loads(sound)
    codes = set()
    try:
        for place in leaves(plain):
            for value in HOSTILE.values():
                path.write_text(json.dumps(put(plain, place, value)))
                code, _ = outcome(capsys, "check", data, "--workers", "1")
                codes.add(code)
        for content in ("", "{", "[]", "3", "null", "{}", '{"labels": {"a": 1, "a": 2}}', "[" * 100000, "9" * 6000):
            path.write_text(content)
            codes.add(outcome(capsys, "check", data, "--workers", "1")[0])
    finally:
        path.write_bytes(sound)
    assert codes <= {0, 2, 3, 4}
    assert codes & {2, 3}


TABLES = [
    "", "\n", "case", "case,patient", "patient,case\n1", "case,patient\n,\n", "case,patient\ncase_00,p,extra\n",
    "case,patient\ncase_00\n", "case,case\na,b\n", "case,patient\ncase_00,a\ncase_00,b\n", "case;patient\ncase_00;p\n",
    'case,patient\n"case_00,p\n', "case,patient\ncase_00," + "x" * 200_000 + "\n", "case,patient\nnobody,p\n",
    "case,patient,fold\ncase_00,p,x\n", "case,patient,fold\ncase_00,p,-1\n", "case,patient,fold\ncase_00,p,9\n",
    "\x00", "case,patient\ncase_00,\x00\n", "\ufeffcase,patient\ncase_00,p\n",
]  # fmt: skip


@pytest.mark.parametrize("content", [*(text.encode("utf-8") for text in TABLES), b"\xff\xfe", bytes(range(256))])
def test_a_hostile_patients_csv(content, data, capsys):
    path = data / "patients.csv"
    try:
        path.write_bytes(content)
        code, said = outcome(capsys, "check", data, "--workers", "1")
    finally:
        path.unlink()
    assert code in (0, 2, 3)
    assert code == 0 or "error" in said or "patients.csv" in said
