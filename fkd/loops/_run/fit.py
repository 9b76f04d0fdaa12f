"""`fit` and `run`: the loop as users call it."""

from __future__ import annotations

from collections.abc import Iterator

from fkd._base.arguments import called_with

from .events import Event, Result
from .loop import Events
from .options import Arguments


@called_with(Arguments)
def fit(arguments: Arguments) -> Iterator[Event]:
    """Train, and yield what happens: log points, evaluations, checkpoints, ends of epochs.

        for event in fit(step, step.init(seed=0), loader, epochs=3, checkpoint_dir="run"):
            ...

    A run that was interrupted goes on where it was when the same call is made again: the same
    parameters after the same number of steps, bit for bit on the CPU. The order of the data is
    a function of (seed, epoch), all other randomness of (seed, step). What the run does not own
    is not in its checkpoints: 0-d tensors that were given as knobs, state that an optimizer
    keeps in its parameter groups, and what a loader without a `state_dict` remembers from one
    epoch to the next.

    A resumed run begins at its place in the data: at once where the loader can be put there (a
    list; a `DataLoader` over a dataset with indices; a loader, or the iterable dataset of one
    without workers, that has `state_dict` and `load_state_dict`), and by drawing the batches
    before it again where it cannot, with a word and a bar. A dataset with indices must be a
    function of the index and of the global generators, which are seeded for every batch, also in
    workers; if it holds a generator of its own, its batches are drawn again.

    `epochs` and `steps` are totals: of the whole run, with what a checkpoint, or the given
    state, has behind it. To extend a run that is finished, make the same call with more of them.

    Nothing is done before the first event is asked for. Then, before the first step, everything
    that the run will use is tried: folders and logs are opened, and a batch of `dev` is
    evaluated with all metrics. Leaving the `for` loop early ends the run and saves nothing more.

    Args:
      step: from `train_step`.
      state: from `step.init(seed)`. It is updated in place, so do not use it again.
      loader: batches, iterated again for every epoch: a `DataLoader`, a list, any iterable, or a
        function of a seed that makes the batches of an epoch.
      epochs: how many passes over the loader in all.
      steps: how many steps in all. One of the two is needed; with both, what comes first.
      prepare: `prepare(state, batch)` returns the batch to use instead: a student that writes,
        teachers' values from elsewhere, mixup. It is called after a batch is drawn and before it
        is copied to the device, without gradients, with all generators seeded from the seed and
        the step; never for batches that a resumed run has behind it. So it must be a function of
        its arguments and the generators, and must not keep the state, which the step uses up; or
        have `state_dict` and `load_state_dict`, and what it keeps is in the checkpoints. The log
        has the seconds of both halves of a step. See `on_policy`.
      dev: batches to evaluate on.
      metrics: measured on `dev`, by name; see `evaluate`.
      evaluate_every: steps between evaluations; None: at the end of every epoch. There is one
        at the end of the run in any case.
      compile_evaluation: compile the evaluation, too (for each shape of `dev`). Worth it for
        long dev sets of few shapes.
      best: the evaluated value that decides which checkpoint is best.
      higher_is_better: None: by the name of `best`, if it says so; see
        `fkd.metrics.higher_is_better`.
      patience: end the run after so many evaluations without improvement.
      log_dir: folder of `metrics.jsonl`, TensorBoard events, table and drawing.
      log_every: steps between log points. Logged losses and gradient norms are means over the
        finite steps since the last one; everything else is the value of the last step. Only
        here does the host wait for the device.
      tensorboard: None: if there is a `log_dir` and the package is installed.
      progress: show how far the run is, and that it is compiling: a bar on a terminal, HTML in a
        notebook, lines on standard error elsewhere. False shows nothing.
      checkpoint_dir: folder of the checkpoints.
      save_every: steps between checkpoints; None: after every evaluation, and at the end of
        every epoch. An evaluation that is the best so far is always saved, and so is the end.
      save_async: the copy of the state is taken between two steps, as ever, and the writing goes on
        in a thread beside the next ones. At most one checkpoint is under way. An error in writing
        is raised at the next one, or at the end; a run does not end before all is on the disk. It
        needs memory for one more state on the host. Of several processes that each write their
        part (parameters cut along an axis `shard`), all make it whole between two steps, when the
        last of them has written; an error of one ends all before the next step.
      keep_last, keep_best: how many checkpoints are kept.
      export_best: folder that has the student of the best evaluation, as `export` writes it: at
        every moment one that is whole, and also after a kill and a resume the best one. The file
        `fkd-best.json` beside it says which evaluation that was.
      export_model: which model that is, if it is not `student` or the only one that is trained.
      resume: go on from the newest good checkpoint, if there is one. False moves the
        checkpoints of an earlier run into a folder `earlier-1` beside the new ones.
      max_nonfinite: end the run after so many updates in a row that were left out. The run
        looks at its log points.
      callbacks: functions of an `Event`, called before it is yielded.
      loggers: functions of a step and `{name: value}`, called at log points and after
        evaluations, such as those of `fkd.interop.loggers`. One that fails does not end the run.
      config: more hyper-parameters to log.

    Raises:
      ValueError: an option is out of range, or is ignored without another one; `dev` cannot be
        evaluated.
      CheckpointError: a checkpoint cannot be written, or is of another objective or optimizer,
        or another run holds the folder.
      ObjectiveError: the objective does not fit the first batch.
      LoopError: the loader or the step failed, at which batch; the state was saved.
      NonFiniteError: names the terms that were not finite.
      Interrupted: after SIGINT or SIGTERM, when the step is done and saved; exit code 75.
    """
    return Events(arguments)


@called_with(Arguments)
def run(arguments: Arguments) -> Result:
    """`fit` to its end, with the arguments of `fit`.

    Returns:
      A `Result`: the last state, and what the evaluations measured.
    """
    state = arguments.state
    message, best, evaluations = "", {}, ()
    for event in Events(arguments):
        state, message = event.state, event.message or message
        if event.kind == "end":
            best, evaluations = event.values, event.evaluations
    at = best.get("best_step")
    return Result(
        state=state,
        evaluations=evaluations,
        best=best.get("best"),
        best_step=None if at is None else int(at),
        message=message,
    )
