"""What a run writes beside its checkpoints: its log, its table and drawing, its settings."""

from __future__ import annotations

import contextlib

from fkd._base.types import TensorBatch
from fkd._draw.draw import draw

from .._data.epochs import Loader
from .._log.log import open_log
from .._log.loggers import Loggers
from .display import open_display
from .fingerprint import optimizer_settings
from .run import Run
from .totals import total_steps


def describe(run: Run, batch: TensorBatch) -> None:
    """Log the table and the drawing of the objective."""
    if run.log is None:
        return
    run.log.text("check", str(run.step.checked(batch)))
    drawing = draw(run.step.objective)
    run.log.graph(drawing.svg, text=drawing.mermaid)


def open_records(run: Run, loader: Loader, stack: contextlib.ExitStack, *, resumed: bool) -> None:
    """Open the log and the display of a run."""
    options = run.options
    total = total_steps(options, loader)
    shown = open_display(shown=options.progress, total=total, initial=run.state.step)
    run.display = shown
    stack.callback(shown.close)
    run.loggers = Loggers(options.loggers)
    if options.logs is None:
        return
    run.log = stack.enter_context(
        open_log(
            options.logs,
            tensorboard=options.with_tensorboard,
            progress=False,
            resume_step=run.state.step if resumed else None,
        )
    )
    plain = {n: v for n, v in vars(options).items() if isinstance(v, int | float | str)}
    chosen = {n: v for n, v in plain.items() if not n.endswith("_dir")}
    chosen |= {"higher_is_better": options.higher} if options.dev is not None else {}
    optimizer = optimizer_settings(run.fingerprint["optimizer"])
    seed = {"seed": run.state.seed}
    run.log.hyperparameters(
        {**chosen, **seed, **optimizer, **run.fingerprint["step"], **(options.config or {})}
    )
