"""The thread that computes: in order, one at a time, and what fails belongs to whom it failed for."""

import threading

import pytest

from autoseg.errors import DataError
from autoseg.serve.refusals import Refused
from autoseg.serve.work import MOST_WAITING, Cancelled, Worker


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


def blocked(worker, owner="a"):
    """A job that runs until the event it is given is set."""
    go, begun = threading.Event(), threading.Event()

    def run(job):
        begun.set()
        go.wait(20)
        job.report(0.5)

    job = worker.submit(owner, "segment", run)
    assert begun.wait(20)
    return job, go


def test_jobs_run_in_the_order_in_which_they_came(worker):
    seen = []
    _, go = blocked(worker)
    jobs = [worker.submit("a", "correct", lambda job, n=n: seen.append(n) or n) for n in range(5)]
    assert [worker.place(job) for job in jobs] == [1, 2, 3, 4, 5]
    go.set()
    assert [job.result.result(20) for job in jobs] == [0, 1, 2, 3, 4]
    assert seen == [0, 1, 2, 3, 4]
    assert worker.place(jobs[-1]) == 0


def test_what_a_job_raises_is_its_result_and_the_next_one_runs(worker):
    def fail(job):
        raise DataError("bad", remedy="good")

    failed, sound = worker.submit("a", "open", fail), worker.submit("b", "open", lambda job: 7)
    with pytest.raises(DataError):
        failed.result.result(20)
    assert (sound.result.result(20), failed.state, sound.state, sound.progress) == (7, "failed", "done", 1.0)


def test_a_job_that_was_given_up_ends_where_it_reports_or_never_begins(worker):
    running, go = blocked(worker)
    waiting = worker.submit("a", "segment", lambda job: pytest.fail("it ran"))
    running.cancel()
    waiting.cancel()
    go.set()
    for job in (running, waiting):
        with pytest.raises(Cancelled):
            job.result.result(20)
        assert job.state == "cancelled"


def test_progress_grows_and_stays_within_one(worker):
    seen = []

    def run(job):
        for share in (0.2, 0.1, 0.7, 3.0):
            job.report(share)
            seen.append(job.progress)

    worker.submit("a", "segment", run).result.result(20)
    assert seen == [0.2, 0.2, 0.7, 1.0]


def test_one_visitor_cannot_fill_the_queue_for_others(worker):
    _, go = blocked(worker)
    for _ in range(MOST_WAITING):
        worker.submit("a", "correct", lambda job: None)
    with pytest.raises(Refused) as refused:
        worker.submit("a", "correct", lambda job: None)
    assert refused.value.status == 429
    other = worker.submit("b", "correct", lambda job: "mine")
    go.set()
    assert other.result.result(20) == "mine"


def test_the_thread_outlives_what_is_done_between_jobs(capsys):
    def tick():
        raise OSError("the disk is gone")

    worker = Worker(tick)
    try:
        assert [worker.submit("a", "open", lambda job, n=n: n).result.result(20) for n in range(3)] == [0, 1, 2]
    finally:
        worker.close()
    assert "the disk is gone" in capsys.readouterr().err


def test_what_waits_at_the_end_is_given_up():
    worker = Worker()
    running, go = blocked(worker)
    waiting = worker.submit("a", "segment", lambda job: pytest.fail("it ran"))
    closing = threading.Thread(target=worker.close)
    closing.start()
    go.set()
    closing.join(20)
    assert (running.state, waiting.state) == ("cancelled", "cancelled")
    with pytest.raises(Refused):
        worker.submit("a", "open", lambda job: None)
