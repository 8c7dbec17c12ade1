"""The commands, gathered."""

from __future__ import annotations

from cyclopts import App

from labelsmooth import __version__
from labelsmooth.cli.compare import compare
from labelsmooth.cli.data import data
from labelsmooth.cli.doctor import doctor
from labelsmooth.cli.evaluate import evaluate
from labelsmooth.cli.explain import explain
from labelsmooth.cli.output import console
from labelsmooth.cli.predict import predict
from labelsmooth.cli.report import report
from labelsmooth.cli.schedule import schedule
from labelsmooth.cli.smooth import smooth
from labelsmooth.cli.train import train


def build() -> App:
    app = App(
        name="labelsmooth",
        help="Train classifiers with label smoothing, and see what it does.",
        help_epilogue="With --debug an error shows its traceback.",
        version=__version__,
        version_flags=["--version"],
        console=console(False),
        suppress_keyboard_interrupt=False,
        help_format="plaintext",  # its default loads a Markdown parser, 60 ms
    )
    for command in (train, compare, evaluate, predict, report, data, smooth, explain, schedule, doctor):
        app.command(command)
    return app
