"""Nobody without the secret, no other site and no other machine gets an answer; two visitors do not mix."""

import http.client
import re

import pytest

from autoseg.serve import visitors
from autoseg.serve.visitors import MOST_CASES, MOST_DRAFTS, Visitors
from files import affine_along, nifti
from served import SHAPE, Program, engine_of, serving
from tiny import image


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    nifti(folder / "one.nii.gz", image(1, SHAPE), affine_along("LPS", (1.0, 1.0, 2.0)))
    with serving(engine_of(), folder, max_upload=200_000) as found:
        yield found


@pytest.fixture
def program(server):
    made = Program(server)
    yield made
    made.ask("DELETE", "/api/session")


ENDPOINTS = [
    ("GET", "/"), ("GET", "/page.js"), ("GET", "/niivue.js"), ("GET", "/api/about"), ("GET", "/api/folder"),
    ("GET", "/api/cases"), ("POST", "/api/cases"), ("POST", "/api/drafts"), ("POST", "/api/session"),
    ("PUT", "/api/drafts/x/a.nii"), ("POST", "/api/cases/x/segment"), ("DELETE", "/api/cases/x"), ("GET", "/nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
@pytest.mark.parametrize("secret", [None, "Bearer ", "Bearer wrong", "Basic abc", "token"])
def test_without_a_secret_nothing_is_answered(program, method, path, secret):
    status, _, content = program.ask(method, path, b"{}", {"Authorization": secret})
    assert (status, b"session" in content or b"another page" in content) == (401 if secret else status, True)
    assert status in (401, 403)


def test_the_token_of_the_server_gives_a_session_and_nothing_else(server, program):
    token = {"Authorization": f"Bearer {server.visitors.token}"}
    assert program.ask("GET", "/api/cases", None, token)[0] == 401
    assert program.ask("GET", f"/api/cases?token={server.visitors.token}", None, {"Authorization": None})[0] == 401
    assert program.ask("POST", "/api/session", b"{}", token)[0] == 201


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1.evil.example:{port}", ""])
def test_a_request_meant_for_another_machine_is_refused(program, host):
    headers = {"Host": host.format(port=program.port)}
    assert program.ask("GET", "/api/cases", None, headers)[0] in (400, 403)
    assert program.ask("GET", "/api/cases", None, {"Host": f"localhost:{program.port}"})[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_another_page_changes_nothing(program, origin):
    headers = {"Origin": origin.format(port=program.port)}
    status, error, _ = program.refused("POST", "/api/drafts", {}, headers)
    assert (status, error) == (403, "the request comes from another page")
    headers = {"Origin": f"http://127.0.0.1:{program.port}", "Sec-Fetch-Site": "cross-site"}
    assert program.refused("POST", "/api/drafts", {}, headers)[0] == 403


def cookie_of(server, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.getheader("Set-Cookie"), answer


def test_the_address_gives_a_cookie_that_scripts_and_other_sites_cannot_use(server, program):
    status, cookie, answer = cookie_of(server, f"/?token={server.visitors.token}")
    assert status == 200
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert server.visitors.token not in cookie
    policy = answer.getheader("Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*|unsafe", policy)
    kept = {"Cookie": cookie.partition(";")[0], "Authorization": None}
    assert program.ask("GET", "/api/cases", None, kept)[0] == 200
    own = {"Origin": f"http://127.0.0.1:{program.port}"}
    assert program.ask("POST", "/api/drafts", b"{}", kept | own)[0] == 201
    assert program.ask("POST", "/api/drafts", b"{}", kept)[0] == 403, "a cookie alone, from who knows where"
    again, none, _ = cookie_of(server, "/", Cookie=kept["Cookie"])
    assert (again, none) == (200, None), "who is known keeps the session"
    assert cookie_of(server, "/?token=wrong")[0] == 401


def test_two_visitors_do_not_see_each_other(server, program):
    other = Program(server)
    mine = program.json("POST", "/api/cases", {"image": "one"})["cases"][0]["id"]
    draft = program.json("POST", "/api/drafts")["id"]
    assert other.json("GET", "/api/cases") == {"cases": []}
    for method, path in (
        ("GET", f"/api/cases/{mine}"), ("DELETE", f"/api/cases/{mine}"), ("POST", f"/api/cases/{mine}/segment"),
        ("GET", f"/api/cases/{mine}/labels.nii.gz"), ("GET", f"/api/cases/{mine}/image.nii.gz"),
        ("POST", f"/api/cases/{mine}/undo"), ("POST", f"/api/drafts/{draft}"), ("PUT", f"/api/drafts/{draft}/a.nii"),
    ):  # fmt: skip
        assert other.refused(method, path, {})[0] == 404
    assert [one["id"] for one in program.json("GET", "/api/cases")["cases"]] == [mine]
    theirs = other.json("POST", "/api/cases", {"image": "one"})["cases"][0]["id"]
    program.segmented(mine)
    assert not other.json("GET", f"/api/cases/{theirs}")["segmented"]
    other.ask("DELETE", "/api/session")
    assert other.refused("GET", "/api/cases")[0] == 401
    assert program.json("GET", f"/api/cases/{mine}")["segmented"]


@pytest.mark.parametrize("name", ["../one", "/etc/passwd", "one.nii.gz", "..", "", "one/../one", "%2e%2e/one"])
def test_the_folder_is_left_by_no_name(program, name):
    status, error, remedy = program.refused("POST", "/api/cases", {"image": name})
    assert (status, "no image" in error, "/api/folder" in remedy) == (404, True, True)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    nifti(tmp_path / "secret" / "b.nii.gz", image(2, SHAPE))
    folder = tmp_path / "images"
    nifti(folder / "a.nii.gz", image(1, SHAPE))
    (folder / "b.nii.gz").symlink_to(tmp_path / "secret" / "b.nii.gz")
    with serving(engine_of(prompts=False), folder) as server:
        program = Program(server)
        status, error, _ = program.refused("POST", "/api/cases", {"image": "b"})
        assert (status, error) == (403, "b: b.nii.gz leads out of the folder")
        program.json("POST", "/api/cases", {"image": "a"})


def test_names_of_uploads_lead_nowhere_else(server, program):
    draft = program.json("POST", "/api/drafts")["id"]
    for name in ("..%2F..%2Fescaped.nii", "%2Fetc%2Fescaped.nii", "a%2F..%2F..%2Fescaped2.nii"):
        program.json("PUT", f"/api/drafts/{draft}/{name}", b"x")
    found = sorted(p.relative_to(server.visitors.folder).parts[2:] for p in server.visitors.folder.rglob("escaped*"))
    assert found == [("scan", "a", "escaped2.nii"), ("scan", "escaped.nii"), ("scan", "etc", "escaped.nii")]
    assert program.refused("PUT", f"/api/drafts/{draft}/..", b"x")[0] in (400, 404)
    assert program.ask("DELETE", f"/api/drafts/{draft}")[0] == 204
    assert not [*server.visitors.folder.rglob("escaped*")]


def test_uploads_are_bounded_in_all(program):
    draft, other = (program.json("POST", "/api/drafts")["id"] for _ in range(2))
    program.json("PUT", f"/api/drafts/{draft}/a.nii", bytes(150_000))
    status, error, remedy = program.refused("PUT", f"/api/drafts/{other}/b.nii", bytes(60_000))
    assert (status, "larger than the 50 kB" in error, "--max-upload" in remedy) == (413, True, True)
    assert program.json("GET", "/api/about")["room"] == 50_000
    program.json("PUT", f"/api/drafts/{other}/b.nii", bytes(40_000))
    program.ask("DELETE", f"/api/drafts/{draft}")
    assert program.json("GET", "/api/about")["room"] == 160_000


def test_cases_and_uploads_of_a_visitor_are_few(program):
    for _ in range(MOST_CASES):
        program.json("POST", "/api/cases", {"image": "one"})
    status, error, remedy = program.refused("POST", "/api/cases", {"image": "one"})
    assert (status, error) == (429, f"{MOST_CASES} cases are open and 1 would be added, of at most {MOST_CASES}")
    assert "close some" in remedy
    for _ in range(MOST_DRAFTS):
        program.json("POST", "/api/drafts")
    assert program.refused("POST", "/api/drafts")[0] == 429


def test_who_is_not_heard_of_for_an_hour_is_forgotten(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(visitors, "monotonic", lambda: now[0])
    everyone = Visitors(tmp_path)
    one, other = everyone.enter(), everyone.enter()
    draft = one.new_draft()
    now[0] += visitors.IDLE_SECONDS - 1
    assert everyone.known(other.secret) is other
    now[0] += 2
    everyone.forget_idle()
    assert everyone.known(one.secret) is None
    assert everyone.known(other.secret) is other
    assert not draft.folder.exists()


def test_nothing_is_left_at_the_end(tmp_path):
    with serving(engine_of(prompts=False)) as server:
        program = Program(server)
        program.upload(("a.nii.gz", nifti(tmp_path / "a.nii.gz", image(1, SHAPE))))
        assert [*server.visitors.folder.rglob("a.nii.gz")]
    assert not server.visitors.folder.exists()


def test_only_this_machine_is_served(server):
    assert server._socket.getsockname()[0] == "127.0.0.1"
