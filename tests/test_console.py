import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayeffdet.console import PLAIN_LINE_SECONDS, Console, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def console(**options):
    stream = io.StringIO()
    return Console(stream=stream, **options), stream


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.5, "1 h 00 min"),
        (10_260, "2 h 51 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_are_worded_for_people(seconds, text):
    assert duration(seconds) == text


# Rich reads these as markup, links, emoji, numbers to colour, or lines to fold.
@pytest.mark.parametrize(
    "text",
    [
        "spec.yaml:100: train.num_epochs: 'a' is not a number",
        "[red]dataset.train_tfrecords: ['a', 'b'][/red]",
        ":warning: C:\\data\\[1] :1234:",
        "see https://example.org/a?b=c",
        "x" * 500,
        "",
    ],
)
def test_lines_are_printed_as_they_are(text):
    speaker, stream = console()
    speaker.say(text)
    speaker.errors([text])
    assert stream.getvalue() == f"{text}\n{text}\n"


@given(st.text(st.characters(blacklist_categories=["C", "Zl", "Zp"]), max_size=40))
def test_any_printable_text_survives(text):
    speaker, stream = console()
    speaker.say(text)
    assert stream.getvalue() == text + "\n"


def test_labels_have_a_column_of_their_own():
    speaker, stream = console()
    speaker.rows([("model", "d0"), ("workers", "2 x 1 CPU")])
    speaker.notice("no GPU")
    assert stream.getvalue().splitlines() == [
        "model    d0",
        "workers  2 x 1 CPU",
        "notice   no GPU",
    ]


def test_quiet_keeps_errors_only_and_the_log_keeps_all():
    speaker, stream = console(quiet=True)
    speaker.say("said")
    speaker.notice("noticed")
    speaker.errors(["a problem", "another"])
    assert stream.getvalue() == "a problem\nanother\n"
    assert speaker.take_log() == "said\nnotice   noticed\na problem\nanother\n"
    assert speaker.take_log() == ""


def test_people_are_told_on_stderr_and_machines_on_stdout(capsys):
    speaker = Console(as_json=True)
    speaker.say("for people")
    speaker.result("evaluate", {"AP": 0.5})
    told = capsys.readouterr()
    assert told.err == "for people\n"
    assert json.loads(told.out) == {"task": "evaluate", "AP": 0.5}
    assert told.out.count("\n") == 1


def test_without_json_stdout_stays_empty(capsys):
    Console().result("evaluate", {"AP": 0.5})
    assert capsys.readouterr().out == ""


def test_a_traceback_is_shown_on_request():
    speaker, stream = console()
    try:
        raise ValueError("the cause")
    except ValueError:
        speaker.trace()
    assert "the cause" in stream.getvalue()
    assert "test_console.py" in stream.getvalue()


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    speaker, stream = console()
    with speaker.progress(100) as bar:
        bar.update(1, "first")
        now += PLAIN_LINE_SECONDS / 2
        bar.update(2, "too soon")
        now += PLAIN_LINE_SECONDS
        bar.update(3, "loss [0.5] :100:")
    assert stream.getvalue() == "first\nloss [0.5] :100:\n"
    assert speaker.take_log() == "first\nloss [0.5] :100:\n"


def test_on_a_terminal_progress_is_a_bar_that_leaves_no_line_and_no_log():
    stream = Terminal()
    speaker = Console(stream=stream)
    with speaker.progress(4, done=1) as bar:
        bar.update(2, "step 2 [of] 4")
    assert "50 %" in stream.getvalue()
    assert "step 2 [of] 4" in stream.getvalue()
    assert speaker.take_log() == ""


def test_a_quiet_console_shows_no_progress():
    speaker, stream = console(quiet=True)
    with speaker.progress(4) as bar:
        bar.update(2, "half")
    assert stream.getvalue() == ""
