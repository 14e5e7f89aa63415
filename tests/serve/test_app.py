"""Every endpoint against a server in a thread, and its labels against `predict` and `Refinement`, voxel by voxel."""

import gzip
import json
import zlib
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoseg.datasets.dataset import Case
from autoseg.datasets.inputs import FileNames
from autoseg.errors import DataError, StateError
from autoseg.imaging.components import as_slices
from autoseg.imaging.formats.readers import read_image, read_labels
from autoseg.imaging.geometry import Geometry
from autoseg.imaging.labels import LabelSet, Thing
from autoseg.imaging.prompts import Click, InBox, Scribble
from autoseg.inference.predict import predict_cases
from autoseg.inference.saliency import Asked, explain
from autoseg.planning.plan import Plan
from autoseg.serve.cases import MOST_PROMPTS
from autoseg.serve.client import Client
from autoseg.serve.saving import TrainingSet
from exported import plan_for_tests
from files import affine_along, nifti
from plans import plan_of, with_cascade
from served import SHAPE, Program, engine_of, serving, voxels_of
from tiny import image, label, picture

PROMPTS = [
    ({"kind": "click", "points": [[3, 4, 5]], "label": "label2"}, Click((3, 4, 5), 2)),
    ({"kind": "scribble", "points": [[6, 2, 3], [6, 9, 11]], "label": "background"},
     Scribble(((6, 2, 3), (6, 9, 11)), 0)),
    ({"kind": "box", "points": [[8, 9, 20], [2, 15, 12]], "label": "label1"}, InBox((2, 9, 12), (9, 16, 21), 1)),
]  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    return engine_of()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images, one of which has its axes turned and mirrored."""
    made = tmp_path_factory.mktemp("images")
    nifti(made / "plain.nii.gz", image(1, SHAPE), affine_along("LPS", (1.0, 1.0, 2.0)))
    turned = affine_along("RAI", (1.0, 1.0, 2.0), (4.0, 5.0, 6.0))
    nifti(made / "turned.nii.gz", image(2, SHAPE), turned)
    return made


@pytest.fixture(scope="module")
def server(engine, folder):
    with serving(engine, folder) as found:
        yield found


@pytest.fixture
def program(server):
    made = Program(server)
    yield made
    made.ask("DELETE", "/api/session")


def scan(path: Path, seed: int) -> Path:
    """An image on the grid of the model."""
    return nifti(path, image(seed, SHAPE), affine_along("LPS", (1.0, 1.0, 2.0)))


def predicted(engine, path: Path, out: Path) -> np.ndarray:
    (made,) = predict_cases(engine.models, [Case("x", "x", (str(path),), None)], out)
    return read_labels(made.path).array


def labels_of(program, case) -> np.ndarray:
    return voxels_of(program.ask("GET", f"/api/cases/{case}/labels.nii.gz")[2])


@pytest.mark.parametrize("name", ["plain", "turned"])
def test_labels_are_those_of_predict_and_corrections_those_of_refinement(engine, program, folder, tmp_path, name):
    case = program.json("POST", "/api/cases", {"image": name})["cases"][0]["id"]
    assert not labels_of(program, case).any()
    before = program.segmented(case)
    expected = predicted(engine, folder / f"{name}.nii.gz", tmp_path / "out")
    assert np.array_equal(labels_of(program, case), expected)
    counts = {row["name"]: (row["voxels"], row["ml"]) for row in before["labels"]}
    assert counts == {
        f"label{n}": (int((expected == n).sum()), round(int((expected == n).sum()) * 2 / 1000, 6)) for n in (1, 2)
    }
    loaded, _ = engine.load(Case("x", "x", (str(folder / f"{name}.nii.gz"),), None))
    refinement, seen = engine.refine(loaded, expected.astype(np.uint8)), [expected]
    for document, prompt in PROMPTS:
        answer = program.json("POST", f"/api/cases/{case}/prompts", document)
        refinement.add(prompt)
        seen.append(refinement.labels.copy())
        assert np.array_equal(labels_of(program, case), seen[-1])
        assert np.array_equal(patched(seen[-2], answer["changed"]), seen[-1])
        assert answer["changed"]["voxels"] == (seen[-2] != seen[-1]).sum()
        rows = answer["case"]["labels"]
        assert [row["voxels"] for row in rows] == [int((seen[-1] == n).sum()) for n in (1, 2)]
    assert seen[1][3, 4, 5] == 2
    assert seen[2][6, 2, 3] == seen[2][6, 9, 11] == 0
    for number in (2, 1, 0):
        answer = program.json("POST", f"/api/cases/{case}/undo")
        assert (answer["case"]["prompts"], answer["case"]["labels"][0]["voxels"]) == (
            number, int((seen[number] == 1).sum())
        )  # fmt: skip
        assert np.array_equal(labels_of(program, case), seen[number])
    assert program.json("POST", f"/api/cases/{case}/undo")["changed"] is None


def patched(labels: np.ndarray, changed: dict) -> np.ndarray:
    """Labels with what an answer says has changed."""
    result, box = labels.copy(), tuple(slice(*edges) for edges in changed["box"])
    values = np.frombuffer(zlib.decompress(b64decode(changed["data"])), np.dtype(changed["dtype"]).newbyteorder("<"))
    result[box] = values.reshape(result[box].shape)
    return result


def test_a_case_can_be_corrected_from_nothing(engine, program, folder):
    case = program.json("POST", "/api/cases", {"image": "plain"})["cases"][0]["id"]
    loaded, _ = engine.load(Case("x", "x", (str(folder / "plain.nii.gz"),), None))
    refinement = engine.refine(loaded, np.zeros(SHAPE, np.uint8))
    program.json("POST", f"/api/cases/{case}/prompts", PROMPTS[0][0])
    refinement.add(PROMPTS[0][1])
    assert np.array_equal(labels_of(program, case), refinement.labels)
    assert program.ask("POST", f"/api/cases/{case}/save", {"where": "download"})[0] == 200


def test_where_the_models_looked_is_what_predict_shows(engine, program, folder):
    """On the grid of the file, whose axes are turned; a label that does not exist is refused by name."""
    case = program.upload(("turned.nii.gz", folder / "turned.nii.gz"))["cases"][0]["id"]
    program.segmented(case)
    status, _, body = program.ask("GET", f"/api/cases/{case}/saliency.nii.gz?label=label1")
    assert status == 200
    found = voxels_of(body)
    loaded, _ = engine.load(Case("x", "x", (str(folder / "turned.nii.gz"),), None))
    labels = loaded.from_stored(labels_of(program, case))
    made = explain(engine.models, loaded, labels, Asked("label1"))
    whole = np.zeros(labels.shape, np.float32)
    whole[as_slices(made.box)] = made.maps[0].values
    np.testing.assert_array_equal(found, loaded.to_stored(whole))
    assert found.max() > 0
    status, _, body = program.ask("GET", f"/api/cases/{case}/saliency.nii.gz?label=liver")
    assert (status, "the model has no such label" in body.decode()) == (400, True)


def test_the_image_is_what_was_read(program, folder):
    case = program.json("POST", "/api/cases", {"image": "turned"})["cases"][0]
    status, headers, content = program.ask("GET", f"/api/cases/{case['id']}/image.nii.gz?channel=0")
    assert (status, headers["content-type"]) == (200, "application/gzip")
    assert np.array_equal(voxels_of(content), read_image(folder / "turned.nii.gz").array[0])
    assert np.allclose(case["affine"], nibabel.load(folder / "turned.nii.gz").affine)
    assert program.refused("GET", f"/api/cases/{case['id']}/image.nii.gz?channel=1")[0] == 404
    assert program.refused("GET", f"/api/cases/{case['id']}/image.nii.gz?channel=-1")[0] == 404


def test_what_the_server_has_is_listed(program, folder):
    about = program.json("GET", "/api/about")
    assert (about["models"], about["channels"], about["prompts"]) == (["3d_fullres-unet"], ["MR"], True)
    assert [row["name"] for row in about["labels"]] == ["label1", "label2"]
    listing = program.json("GET", "/api/folder")
    assert listing["folder"] == folder.name
    assert [(one["name"], one["saved"]) for one in listing["images"]] == [("plain", False), ("turned", False)]
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, headers, content = program.ask("GET", path)
        assert (status, headers["content-type"].partition(";")[0], len(content) > 1000) == (200, kind, True)


def test_a_case_is_closed(program):
    case = program.json("POST", "/api/cases", {"image": "plain"})["cases"][0]["id"]
    assert program.ask("DELETE", f"/api/cases/{case}")[0] == 204
    assert program.refused("GET", f"/api/cases/{case}")[0] == 404
    assert program.json("GET", "/api/cases") == {"cases": []}


# ---- uploads


def test_the_client_gets_what_predict_and_refinement_give(engine, server, folder, tmp_path):
    client = Client(server.address)
    opened = client.open(folder / "turned.nii.gz")
    assert (opened["name"], opened["source"], opened["beside"]) == ("turned", "upload", None)
    client.segment()
    expected = predicted(engine, folder / "turned.nii.gz", tmp_path / "out")
    assert np.array_equal(voxels_of(client.labels()), expected)
    loaded, _ = engine.load(Case("x", "x", (str(folder / "turned.nii.gz"),), None))
    refinement = engine.refine(loaded, expected.astype(np.uint8))
    refinement.add(Click((3, 4, 5), 2))
    client.click(3, 4, 5, "label2")
    client.save(tmp_path / "saved.nii.gz")
    saved, read = read_labels(tmp_path / "saved.nii.gz"), read_image(folder / "turned.nii.gz")
    assert np.array_equal(saved.array, refinement.labels)
    assert saved.geometry == read.geometry
    client.undo()
    assert np.array_equal(voxels_of(client.labels()), expected)
    with pytest.raises(RuntimeError, match="there is no label 'liver'"):
        client.click(0, 0, 0, "liver")


def test_files_go_when_the_case_is_closed(server, program, folder):
    case = program.upload(("a.nii.gz", folder / "plain.nii.gz"))["cases"][0]["id"]
    before = program.json("GET", "/api/about")["room"]
    (there,) = server.visitors.folder.rglob("a.nii.gz")
    program.ask("DELETE", f"/api/cases/{case}")
    assert not there.exists()
    assert program.json("GET", "/api/about")["room"] > before


def test_several_files_are_several_cases_and_the_bad_one_is_named(program, folder):
    answer = program.upload(
        ("a.nii.gz", folder / "plain.nii.gz"), ("b.nii.gz", b"nonsense"), ("c.nii.gz", folder / "turned.nii.gz"),
        ("notes.txt", b"text"),
    )  # fmt: skip
    assert [case["name"] for case in answer["cases"]] == ["a", "c"]
    (bad,) = [problem for problem in answer["problems"] if problem["severity"] == "error"]
    assert (bad["file"], "b.nii.gz" in bad["error"], bool(bad["remedy"])) == ("b", True, True)


@pytest.mark.parametrize("change", [lambda a: b"nonsense", lambda a: gzip.compress(a)[:200], lambda a: b""])
def test_a_damaged_upload_is_refused_as_predict_refuses_it(program, folder, tmp_path, engine, change):
    content = change(gzip.decompress((folder / "plain.nii.gz").read_bytes()))
    (tmp_path / "a.nii.gz").write_bytes(content)
    draft = program.json("POST", "/api/drafts")["id"]
    program.json("PUT", f"/api/drafts/{draft}/a.nii.gz", content)
    status, error, remedy = program.refused("POST", f"/api/drafts/{draft}")
    with pytest.raises(DataError) as expected:
        engine.load(Case("a", "a", (str(tmp_path / "a.nii.gz"),), None))
    assert error.partition("a.nii.gz")[2] == expected.value.what.partition("a.nii.gz")[2]
    assert (status, remedy) == (422, expected.value.remedy)


def test_nan_and_foreign_files_are_refused_with_the_remedy(program, tmp_path):
    spoilt = image(1, SHAPE)
    spoilt[1, 2, 3] = np.nan
    draft = program.json("POST", "/api/drafts")["id"]
    program.json("PUT", f"/api/drafts/{draft}/a.nii.gz", nifti(tmp_path / "a.nii.gz", spoilt).read_bytes())
    status, error, remedy = program.refused("POST", f"/api/drafts/{draft}")
    assert (status, "1 NaN voxels" in error, "replace them" in remedy) == (422, True, True)
    draft = program.json("POST", "/api/drafts")["id"]
    program.json("PUT", f"/api/drafts/{draft}/notes.txt", b"text")
    status, error, remedy = program.refused("POST", f"/api/drafts/{draft}")
    assert (status, "no image" in error or "not an image" in error, bool(remedy)) == (status, True, True)
    assert status in (400, 422)
    assert program.json("GET", "/api/cases") == {"cases": []}


def test_a_dicom_series_is_one_case(engine, program, tmp_path):
    dicom = pytest.importorskip("dicom")
    pytest.importorskip("pydicom")
    geometry = Geometry(SHAPE, (2.0, 1.0, 1.0), (3.0, 4.0, 5.0))
    series = dicom.slices(tmp_path / "patient7", image(3, SHAPE).astype(np.int16), geometry)
    answer = program.upload(*((f"patient7/{file.name}", file) for file in sorted(series.iterdir())))
    (case,) = answer["cases"]
    assert (case["name"], case["shape"]) == ("patient7", list(SHAPE))
    program.segmented(case["id"])
    expected = predicted(engine, series, tmp_path / "out")
    assert np.array_equal(labels_of(program, case["id"]), expected)
    status, headers, content = program.ask("POST", f"/api/cases/{case['id']}/save", {"where": "download"})
    assert (status, "patient7_seg.nii.gz" in headers["content-disposition"]) == (200, True)
    assert np.array_equal(voxels_of(content), expected)


def test_a_picture_is_one_slice(tmp_path):
    plan = plan_of(spacing=(1.0, 1.0, 1.0), shape=(1, 40, 48))
    configuration = replace(plan.configurations["2d"], patch_size=(16, 16), batch_size=2)
    plan = replace(plan, configurations={"2d": configuration}, recommended="2d", file_names=FileNames("suffix", ("",)))
    engine = engine_of(plan, "2d")
    path = picture(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (40, 48)).astype(np.uint8))
    with serving(engine) as server:
        program = Program(server)
        case = program.upload(("a.png", path))["cases"][0]
        assert (case["flat"], case["shape"], case["sized"]) == (True, [1, 40, 48], False)
        found = program.segmented(case["id"])
        assert [row["ml"] for row in found["labels"]] == [None, None]
        expected = predicted(engine, path, tmp_path / "out")
        assert np.array_equal(labels_of(program, case["id"]), expected)
        click = {"kind": "click", "points": [[5, 6]], "label": "label2"}  # flat images: y, x
        program.json("POST", f"/api/cases/{case['id']}/prompts", click)
        loaded, _ = engine.load(Case("a", "a", (str(path),), None))
        refinement = engine.refine(loaded, expected.astype(np.uint8))
        refinement.add(Click((5, 6), 2))
        assert np.array_equal(labels_of(program, case["id"]), refinement.labels)
        _, headers, content = program.ask("POST", f"/api/cases/{case['id']}/save", {"where": "download"})
        assert "a_seg.png" in headers["content-disposition"]
        (tmp_path / "b.png").write_bytes(content)
        assert np.array_equal(read_labels(tmp_path / "b.png").array, refinement.labels)


def test_channels_in_files_of_their_own_are_one_case(tmp_path):
    plan = replace(
        plan_for_tests(), channels=("T1", "T2"), file_names=FileNames("suffix", ("_0000", "_0001")), grids=None
    )
    plan = replace(plan, normalization=plan.normalization * 2)
    engine = engine_of(plan, prompts=False)
    files = [scan(tmp_path / f"a_000{n}.nii.gz", n) for n in range(2)]
    with serving(engine) as server:
        program = Program(server)
        case = program.upload(*((file.name, file) for file in files))["cases"][0]
        assert (case["name"], case["channels"]) == ("a", ["T1", "T2"])
        for n, file in enumerate(files):
            shown = voxels_of(program.ask("GET", f"/api/cases/{case['id']}/image.nii.gz?channel={n}")[2])
            assert np.array_equal(shown, read_image(file).array[0])
        program.segmented(case["id"])
        (made,) = predict_cases(engine.models, [Case("a", "a", tuple(map(str, files)), None)], tmp_path / "out")
        assert np.array_equal(labels_of(program, case["id"]), read_labels(made.path).array)
        draft = program.json("POST", "/api/drafts")["id"]
        program.json("PUT", f"/api/drafts/{draft}/b_0000.nii.gz", files[0].read_bytes())
        status, error, remedy = program.refused("POST", f"/api/drafts/{draft}")
        assert (status, "add the file whose name ends in _0001" in remedy) == (422, True), error


# ---- kinds of labels

REGIONS = LabelSet({"oedema": 1, "core": 4}, {"whole": (1, 4), "inner": (4,)}, (1, 4), ignore=9)
THINGS = LabelSet({"core": 1, "border": 2}, things={"nucleus": Thing(1, 2, 0.0, 0.0)})


def test_regions_are_segmented_and_corrected_as_by_the_engine(tmp_path):
    engine = engine_of(plan_with(REGIONS))
    path = scan(tmp_path / "a.nii.gz", 5)
    with serving(engine, tmp_path) as server:
        program = Program(server)
        case = program.json("POST", "/api/cases", {"image": "a"})["cases"][0]["id"]
        rows = program.segmented(case)["labels"]
        expected = predicted(engine, path, tmp_path / "out")
        assert np.array_equal(labels_of(program, case), expected)
        assert [(row["name"], row["value"], row["voxels"]) for row in rows] == [
            ("oedema", 1, (expected == 1).sum()), ("core", 4, (expected == 4).sum())
        ]  # fmt: skip
        click = {"kind": "click", "points": [[3, 4, 5]], "label": "core"}
        answer = program.json("POST", f"/api/cases/{case}/prompts", click)
        after = labels_of(program, case)
        assert after[3, 4, 5] == 4
        assert np.array_equal(patched(expected, answer["changed"]), after)


def test_objects_are_numbered_and_counted(tmp_path):
    engine = engine_of(plan_with(THINGS), prompts=False)
    path = scan(tmp_path / "a.nii.gz", 5)
    with serving(engine, tmp_path) as server:
        program = Program(server)
        case = program.json("POST", "/api/cases", {"image": "a"})["cases"][0]["id"]
        (row,) = program.segmented(case)["labels"]
        expected = predicted(engine, path, tmp_path / "out")
        assert np.array_equal(labels_of(program, case), expected)
        assert (row["name"], row["objects"]) == ("nucleus", np.count_nonzero(np.unique(expected)))
        assert row["objects"] > 1


def plan_with(labels: LabelSet) -> Plan:
    """A plan of small networks for these labels."""
    plan = with_cascade(plan_of(labels))
    return replace(plan, file_names=FileNames("suffix", ("",)), grids=None)


# ---- what is refused


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ({"kind": "wand", "points": [[0, 0, 0]], "label": "label1"}, "is not a kind of prompt"),
        ({"kind": "click", "points": [[0, 0, 0]], "label": "liver"}, "there is no label 'liver'"),
        ({"kind": "click", "points": [[0, 0, 0]], "label": 1}, "there is no label 1"),
        ({"kind": "click", "points": [[12, 0, 0]], "label": "label1"}, "lies outside the image"),
        ({"kind": "click", "points": [[-1, 0, 0]], "label": "label1"}, "lies outside the image"),
        ({"kind": "click", "points": [[0, 0]], "label": "label1"}, "lies outside the image"),
        ({"kind": "click", "points": [[0, 0, 0.5]], "label": "label1"}, "expected one voxel"),
        ({"kind": "click", "points": [[0, 0, True]], "label": "label1"}, "expected one voxel"),
        ({"kind": "click", "points": [[0, 0, 0], [1, 1, 1]], "label": "label1"}, "expected one voxel"),
        ({"kind": "click", "points": "x", "label": "label1"}, "expected one voxel"),
        ({"kind": "box", "points": [[0, 0, 0]], "label": "label1"}, "two opposite voxels"),
        ({"kind": "scribble", "points": [[0, 0, 0]] * 2001, "label": "label1"}, "1 to 2000 voxels"),
        ({}, "is not a kind of prompt"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused_and_changes_nothing(program, document, what):
    case = program.json("POST", "/api/cases", {"image": "plain"})["cases"][0]["id"]
    status, error, remedy = program.refused("POST", f"/api/cases/{case}/prompts", document)
    assert (status, what in error, bool(remedy)) == (400, True, True), error
    assert program.json("GET", f"/api/cases/{case}")["prompts"] == 0


@pytest.mark.parametrize("body", [b"[1]", b"{", b"\xff", b"[" * 10**5, b" " * (2**20 + 1)])
def test_a_body_that_is_not_an_object_is_refused(program, body):
    case = program.json("POST", "/api/cases", {"image": "plain"})["cases"][0]["id"]
    assert program.refused("POST", f"/api/cases/{case}/prompts", body)[0] in (400, 413)


def test_without_prompts_the_page_says_what_enables_them(folder):
    with serving(engine_of(prompts=False), folder, no_prompts="train: autoseg train --prompts -w w") as server:
        program = Program(server)
        about = program.json("GET", "/api/about")
        assert (about["prompts"], about["no_prompts"]) == (False, "train: autoseg train --prompts -w w")
        case = program.json("POST", "/api/cases", {"image": "plain"})["cases"][0]["id"]
        program.segmented(case)
        status, _, remedy = program.refused("POST", f"/api/cases/{case}/prompts", PROMPTS[0][0])
        assert (status, remedy) == (409, "train: autoseg train --prompts -w w")


def test_a_failure_while_segmenting_is_answered(folder, monkeypatch):
    engine = engine_of(prompts=False)
    monkeypatch.setattr(engine, "segment", lambda loaded, report: (_ for _ in ()).throw(MemoryError("no room")))
    with serving(engine, folder) as server:
        program = Program(server)
        case = program.json("POST", "/api/cases", {"image": "plain"})["cases"][0]["id"]
        found = program.json("POST", f"/api/cases/{case}/segment")
        while found["state"] in ("waiting", "running"):
            found = program.json("GET", f"/api/cases/{case}")
        assert (found["state"], found["error"]) == ("failed", "out of memory: no room")
        assert "close other cases" in found["remedy"]


def test_an_image_for_which_there_is_no_memory_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("autoseg.serve.engine.free_memory", lambda: 1000)
    monkeypatch.setattr("autoseg.serve.engine.load_for", lambda *_: pytest.fail("it was read"))
    with serving(engine_of(prompts=False), folder) as server:
        status, error, remedy = Program(server).refused("POST", "/api/cases", {"image": "plain"})
        assert (status, "does not suffice" in error, "predict on the command line" in remedy) == (507, True, True)


def test_prompts_are_few_enough_to_be_undone(program, monkeypatch):
    monkeypatch.setattr("autoseg.serve.cases.MOST_PROMPTS", 1)
    case = program.json("POST", "/api/cases", {"image": "plain"})["cases"][0]["id"]
    program.json("POST", f"/api/cases/{case}/prompts", PROMPTS[0][0])
    assert program.refused("POST", f"/api/cases/{case}/prompts", PROMPTS[0][0])[0] == 409
    assert MOST_PROMPTS > 100


# ---- saving


def test_a_segmentation_is_saved_beside_its_image_and_never_over_a_file_unasked(engine, tmp_path):
    scan(tmp_path / "a.nii.gz", 1)
    with serving(engine, tmp_path) as server:
        program = Program(server)
        case = program.json("POST", "/api/cases", {"image": "a"})["cases"][0]["id"]
        assert program.refused("POST", f"/api/cases/{case}/save", {"where": "beside"})[:2] == (
            409, "a is not segmented yet"
        )  # fmt: skip
        program.segmented(case)
        assert program.json("POST", f"/api/cases/{case}/save", {"where": "beside"}) == {"saved": "a_seg.nii.gz"}
        first = (tmp_path / "a_seg.nii.gz").read_bytes()
        assert np.array_equal(read_labels(tmp_path / "a_seg.nii.gz").array, labels_of(program, case))
        listing = program.json("GET", "/api/folder")
        assert [(one["name"], one["saved"]) for one in listing["images"]] == [("a", True)]
        assert listing["problems"] == []
        program.json("POST", f"/api/cases/{case}/prompts", PROMPTS[0][0])
        status, _, content = program.ask("POST", f"/api/cases/{case}/save", {"where": "beside"})
        assert (status, json.loads(content)["exists"]) == (409, True)
        assert (tmp_path / "a_seg.nii.gz").read_bytes() == first
        program.json("POST", f"/api/cases/{case}/save", {"where": "beside", "overwrite": True})
        assert np.array_equal(read_labels(tmp_path / "a_seg.nii.gz").array, labels_of(program, case))
        assert program.refused("POST", f"/api/cases/{case}/save", {"where": "/tmp/x"})[0] == 400
        assert program.refused("POST", f"/api/cases/{case}/save", {"where": "training set"})[0] == 409
        uploaded = program.upload(("b.nii.gz", tmp_path / "a.nii.gz"))["cases"][0]["id"]
        program.segmented(uploaded)
        status, error, remedy = program.refused("POST", f"/api/cases/{uploaded}/save", {"where": "beside"})
        assert (status, "download" in remedy) == (409, True), error


def dataset(root: Path, suffix: str, images: str = "images", labels: str = "labels") -> Path:
    for number, name in enumerate("pq"):
        scan(root / images / f"{name}{suffix}.nii.gz", number)
        nifti(root / labels / f"{name}.nii.gz", label(1, 2, shape=SHAPE))
    return root


@pytest.mark.parametrize("suffix", ["", "_0000"])
@pytest.mark.parametrize("layout", ["plain", "nnU-Net"])
def test_a_case_is_added_to_the_training_set_once(tmp_path, layout, suffix):
    images, labels = ("images", "labels") if layout == "plain" else ("imagesTr", "labelsTr")
    if layout == "nnU-Net" and not suffix:
        pytest.skip("nnU-Net numbers its channels")
    root = dataset(tmp_path / "set", suffix, images, labels)
    if layout == "nnU-Net":
        description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "label1": 1, "label2": 2}}
        (root / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz", "numTraining": 2}))
    plan = replace(plan_for_tests(), file_names=FileNames("suffix", (suffix,)))
    source = scan(tmp_path / "new" / f"new{suffix}.nii.gz", 9)
    into = TrainingSet(root, plan, Path("w"))
    with serving(engine_of(plan), source.parent, training_set=into) as server:
        program = Program(server)
        case = program.json("POST", "/api/cases", {"image": "new"})["cases"][0]["id"]
        program.segmented(case)
        before = {path: path.read_bytes() for path in root.rglob("*.nii.gz")}
        for name in ("p", "P"):
            answer = program.ask("POST", f"/api/cases/{case}/save", {"where": "training set", "name": name})
            assert (answer[0], json.loads(answer[2])["exists"]) == (409, True)
        assert {path: path.read_bytes() for path in root.rglob("*.nii.gz")} == before
        added = program.json("POST", f"/api/cases/{case}/save", {"where": "training set"})
        assert added == {
            "saved": "new.nii.gz", "images": [f"new{suffix}.nii.gz"], "command": f"autoseg plan {root} -w w"
        }  # fmt: skip
        assert (root / images / f"new{suffix}.nii.gz").read_bytes() == source.read_bytes()
        assert np.array_equal(read_labels(root / labels / "new.nii.gz").array, labels_of(program, case))
        assert program.refused("POST", f"/api/cases/{case}/save", {"where": "training set"})[0] == 409
        again = program.json("POST", f"/api/cases/{case}/save", {"where": "training set", "name": "../other"})
        assert again["saved"] == "_other.nii.gz"
    assert len([*root.rglob("*.part*")]) == 0
    assert [case.id for case in into._cases()] == sorted(["p", "q", "new", Path(again["saved"]).name[:-7]])


def test_a_case_that_would_not_be_understood_is_taken_out_again(tmp_path):
    root = dataset(tmp_path / "set", "")
    plan = replace(plan_for_tests(), file_names=FileNames("folder", ("MR",)))  # cases in folders, here they are files
    source = scan(tmp_path / "new" / "case9" / "MR.nii.gz", 9)
    with serving(engine_of(plan), source.parents[1], training_set=TrainingSet(root, plan, Path("w"))) as server:
        program = Program(server)
        case = program.json("POST", "/api/cases", {"image": "case9"})["cases"][0]["id"]
        program.segmented(case)
        before = sorted(root.rglob("*.nii.gz"))
        status, error, remedy = program.refused("POST", f"/api/cases/{case}/save", {"where": "training set"})
        assert (status, "in another way" in error, "by hand" in remedy) == (409, True, True)
        assert sorted(root.rglob("*.nii.gz")) == before


def test_another_layout_is_refused_with_what_helps(tmp_path):
    scan(tmp_path / "a" / "MR.nii.gz", 1)
    nifti(tmp_path / "a" / "seg.nii.gz", label(1, shape=SHAPE))
    with pytest.raises(StateError) as refused:
        TrainingSet(tmp_path, plan_for_tests(), Path("w"))
    assert "--training-set DIR" in refused.value.remedy
