"""Errors end a command with a message and a status; Ctrl-C asks first and insists then."""

import errno
import json
import os
import signal
import warnings

import pytest
import typer

from scheduler.screens.exits import errors_as_messages, print_json, stop_on_signals


def status_of(error: BaseException, *, debug: bool = False) -> int:
    with (
        pytest.raises(typer.Exit) as caught,
        errors_as_messages(debug=debug, unusable=(LookupError,)),
    ):
        raise error
    return caught.value.exit_code


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("no such step"), "stackyard: 'no such step'\n"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "stackyard: out: Permission denied\n"),
        (OSError("odd"), "stackyard: odd\n"),
        (IndexError("a\x1b[31m"), "stackyard: a\\x1b[31m\n"),
    ],
)
def test_what_cannot_be_used_ends_with_2_and_one_message(capsys, error, said):
    assert status_of(error) == 2
    assert capsys.readouterr() == ("", said)


def test_a_fault_of_ours_ends_with_1_and_says_how_to_see_more(capsys):
    assert status_of(RuntimeError("oops")) == 1
    assert capsys.readouterr().err == (
        "stackyard:\ninternal error: RuntimeError: oops\n(the same with --debug says where)\n"
    )


@pytest.mark.parametrize("error", [RuntimeError("oops"), KeyError("oops")])
def test_debug_prints_the_traceback(capsys, error):
    status_of(error, debug=True)
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert "in status_of" in err
    assert "--debug" not in err


def test_exits_and_interrupts_pass():
    assert status_of(typer.Exit(7)) == 7
    with pytest.raises(KeyboardInterrupt), errors_as_messages(debug=False, unusable=()):
        raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_to_stop_and_the_second_insists(number):
    said: list[str] = []

    def interrupted_twice() -> None:
        with stop_on_signals(said.append) as stop:
            os.kill(os.getpid(), number)
            assert stop.wait(10)
            assert said == ["stopping; what is done is kept. Ctrl-C again stops at once."]
            os.kill(os.getpid(), number)
            signal.pause()

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(number) is before


def test_no_signal_no_stop():
    with stop_on_signals(print) as stop:
        pass
    assert not stop.is_set()


def test_json_is_one_object(capsys):
    print_json({"a": [1, None], "b": "ä"})
    out = capsys.readouterr().out
    assert out.startswith("{")
    assert out.endswith("}\n")


@pytest.mark.parametrize("log_json", [False, True])
@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_message_without_the_line_that_it_comes_from(capfd, log_json):
    before = warnings.showwarning
    with errors_as_messages(debug=False, unusable=(), log_json=log_json):
        warnings.warn("1 of 2 stacks\x1b[2J is short", UserWarning, stacklevel=1)
    assert warnings.showwarning is before
    said = capfd.readouterr().err
    if log_json:
        event = json.loads(said)
        assert (event["event"], event["text"]) == ("warning", "1 of 2 stacks\x1b[2J is short")
    else:
        assert said == "stackyard: 1 of 2 stacks\\x1b[2J is short\n"
