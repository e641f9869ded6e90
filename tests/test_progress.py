"""Progress lines with a clock that the test turns, and the live bar on a pretended terminal."""

import io

import pytest

from rsdmri.progress import progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(steps, seconds, *, total, done=0, **values):
    stream, clock = io.StringIO(), Clock()
    with progress("Training teacher", total, done=done, stream=stream, clock=clock) as bar:
        for _ in range(steps):
            clock.now += seconds
            bar.advance(**values)
    return stream.getvalue().splitlines()


def test_lines_tell_what_how_far_values_and_time_left():
    lines = run(100, 1, total=100, loss=0.12345)
    assert lines[0] == "Training teacher: 10 % (10/100), loss 0.1235, 10 s elapsed, about 1 min 30 s left"
    assert lines[-1] == "Training teacher: done, 100 in 1 min 40 s, loss 0.1235"
    assert len(lines) == 10


def test_a_slow_task_speaks_every_ten_seconds_and_a_fast_one_not_more_than_every_two():
    assert len(run(30, 5, total=3000)) == 16  # every second step of 5 s, and the end
    assert len(run(1000, 0.01, total=1000)) == 5  # 10 s: tenths pass each second, lines come every two, and the end


def test_a_short_task_is_silent():
    assert run(100, 0.01, total=100) == []


def test_work_done_before_does_not_count_for_the_speed():
    first = run(25, 1, total=200, done=100)[0]
    assert first == "Training teacher: 55 % (110/200), 10 s elapsed, about 1 min 30 s left"


def test_an_unknown_total_has_no_percentage():
    lines = run(25, 1, total=None)
    assert lines == [
        "Training teacher: 10, 10 s elapsed",
        "Training teacher: 20, 20 s elapsed",
        "Training teacher: done, 25 in 25 s",
    ]


def test_a_failure_says_where_it_stopped():
    stream, clock = io.StringIO(), Clock()

    def fail():
        with progress("Sampling", 4, stream=stream, clock=clock) as bar:
            clock.now += 3
            bar.advance()
            bar.note("a sentence")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert stream.getvalue().splitlines()[-2:] == ["a sentence", "Sampling: stopped, 25 % (1/4) in 3 s"]


def test_a_changed_total_and_long_durations():
    stream, clock = io.StringIO(), Clock()
    with progress("Training", 10, stream=stream, clock=clock) as bar:
        bar.set_total(100)
        clock.now += 3600
        bar.advance(50, stage="teacher")
    first = stream.getvalue().splitlines()[0]
    assert first == "Training: 50 % (50/100), stage teacher, 1 h 00 min elapsed, about 1 h 00 min left"


def test_plain_lines_hold_no_control_characters():
    assert all(line.isprintable() for line in run(100, 1, total=100, loss=1.0))


def test_a_terminal_gets_a_live_bar_with_the_values():
    stream = Terminal()
    with progress("Training [x] teacher", 4, stream=stream) as bar:
        for _ in range(4):
            bar.advance(loss=0.5)
        bar.set_total(5)
        bar.note("checkpoint [kept]")
    text = stream.getvalue()
    assert "Training [x] teacher" in text
    assert "loss 0.5" in text
    assert "80%" in text
    assert "checkpoint [kept]" in text


def test_standard_error_is_the_default(capsys, monkeypatch):
    clock = Clock()
    with progress("Work", 2, clock=clock) as bar:
        clock.now += 60
        bar.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Work: 50 % (1/2), 1 min 00 s elapsed")
