"""Who takes the lines that commands show: one logger, whose records go to who asked last, and to the user's logging."""

import logging
import subprocess
import sys
import threading

import pytest

from autoseg.lines import LOG, kept_by, rewritten, show, shown_by


def test_a_line_goes_to_who_asked_last():
    outer, inner, kept = [], [], []
    with shown_by(outer.append):
        LOG.info("one")
        with shown_by(inner.append):
            LOG.warning("two, 100%")
        with kept_by(kept.append):
            LOG.info("three")
        with shown_by(None):
            LOG.warning("four")
        LOG.info("five")
    LOG.info("six")
    assert (outer, inner, kept) == (["one", "three", "five"], ["two, 100%"], ["three"])


def test_lines_are_put_otherwise_for_everybody(caplog):
    caplog.set_level(logging.INFO, "autoseg")
    shown = []
    with shown_by(shown.append), rewritten(lambda text: f"fold 0  {text}"):
        LOG.info("100% of {cases}")
        LOG.info("%d cases", 5)
    LOG.info("after")
    assert shown == ["fold 0  100% of {cases}", "fold 0  5 cases"]
    assert caplog.messages == [*shown, "after"]


def test_two_threads_show_their_lines_in_two_places():
    """Both are installed at once; the second to begin is the first to end."""
    shown: dict[str, list[str]] = {"a": [], "b": []}
    both, first_ended = threading.Barrier(2), threading.Event()

    def work(name: str) -> None:
        with shown_by(shown[name].append):
            both.wait(timeout=10)
            LOG.info(f"{name} begins")
            if name == "b":
                first_ended.wait(timeout=10)
                LOG.info("b ends")
        if name == "a":
            first_ended.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown == {"a": ["a begins"], "b": ["b begins", "b ends"]}
    assert LOG.level == logging.NOTSET


def test_what_fails_while_a_line_is_shown_is_raised_and_nothing_stays_behind():
    def closed(_: str) -> None:
        raise BrokenPipeError

    before = (LOG.level, LOG.propagate, list(LOG.handlers))
    with pytest.raises(BrokenPipeError), shown_by(closed):
        LOG.info("one")
    assert (LOG.level, LOG.propagate, list(LOG.handlers)) == before


@pytest.mark.parametrize(("asked", "logged"), [(False, []), (True, ["one", "two"])])
def test_the_users_own_logging_has_the_lines_if_it_asked_for_them(asked, logged, caplog):
    """Handlers of the root logger take every record, whatever its level: they would show lines twice."""
    if asked:
        caplog.set_level(logging.INFO, "autoseg")
    shown = []
    with shown_by(shown.append):
        LOG.info("one")
        LOG.warning("two")
    assert shown == ["one", "two"]
    assert caplog.messages == logged


def test_silenced_lines_still_reach_the_users_logging(caplog):
    caplog.set_level(logging.INFO, "autoseg")
    with shown_by(None):
        LOG.info("one")
    assert caplog.messages == ["one"]


@pytest.mark.parametrize("body", ["pass", "logging.getLogger('autoseg').setLevel(logging.INFO)"])
def test_a_library_is_silent_until_it_is_asked(body):
    code = f"import logging\nfrom autoseg.lines import LOG\n{body}\nLOG.info('one')\nLOG.warning('two')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_line_is_shown_above_a_progress_bar(capsys):
    from tqdm import tqdm

    with tqdm(total=10, file=sys.stderr, disable=False, desc="working") as bar:
        bar.update(5)
        show("a line")
    captured = capsys.readouterr()
    assert captured.out == "a line\n"
    assert "\r" in captured.err  # the bar was taken away and drawn again


def test_without_progress_bars_none_are_imported():
    code = "import sys; from autoseg.lines import show; show('a line'); print('tqdm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a line\nFalse\n"
