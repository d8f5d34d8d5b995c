"""A control from another run: it must have had the same load, or it shows nothing."""

from __future__ import annotations

from detcheck.analysis.compare import in_words
from detcheck.analysis.evidence import CONTROL_ALIVE, ENOUGH_COMPARISONS, lacking
from detcheck.analysis.model_differences import other_token_ids
from detcheck.analysis.results import Analysis
from detcheck.errors import UsageError
from detcheck.kernels.settings import AS_SERVED, STOCK
from detcheck.rundir import Run
from detcheck.text import count

SAME_LOAD = (
    *("model", "engine", "dtype", "max_new_tokens", "temperature", "chat_template", "traffic"),
    *("top_k", "top_p", "min_p"),
)
"""Settings in which a control must agree with the run."""
AS_ASKED_FOR = {"model": "weights_digest", "dtype": "dtype"}
"""Of these, the name of the revision that was loaded. If both runs know it, it counts instead."""


def check_control(control: Analysis, analysis: Analysis) -> None:
    """Raise UsageError if `control` cannot be the control of the run in `analysis`.

    It must be another run with stock kernels or of a server, ask one of the same prompts under the
    same load, and be whole itself.
    """
    ours, theirs = analysis.run.experiment, control.run.experiment
    if control.run.run_id == analysis.run.run_id:
        raise UsageError("`control` is the run itself: leave it out, or give another run.")
    groups = [group for group in control.groups if group.kernels in (STOCK, AS_SERVED)]
    if not groups:
        raise UsageError(
            f"`control` has no stock kernels, only {', '.join(theirs.kernels)}: give a run of "
            "stock kernels."
        )
    for lack in lacking(control, groups):
        if lack.rule not in (CONTROL_ALIVE, ENOUGH_COMPARISONS):
            raise UsageError(f"`control` is no evidence: {lack.sentence}")
    if not set(ours.prompts) & set(theirs.prompts):
        raise UsageError("`control` asks other prompts than the run: give one that asks the same.")
    known = _known_of_both(control.run, analysis.run)
    for name in SAME_LOAD:
        our_value, their_value = analysis.run.setting(name), control.run.setting(name)
        if our_value != their_value and not (name in AS_ASKED_FOR and AS_ASKED_FOR[name] in known):
            raise UsageError(
                f"`control` has another {name.replace('_', ' ')} ({in_words(their_value)}) than "
                f"the run ({in_words(our_value)}): give one under the same load."
            )
    _check_model(control.run, analysis.run)
    if max(theirs.batch_sizes) > max(ours.batch_sizes):
        raise UsageError(
            f"`control` has larger batches ({max(theirs.batch_sizes)}) than the run "
            f"({max(ours.batch_sizes)}): give one under the same load."
        )
    if control.run.traits.choices > analysis.run.traits.choices:
        raise UsageError(
            f"`control` asks each request for more choices ({control.run.traits.choices}) than the "
            f"run ({analysis.run.traits.choices}): give one under the same load."
        )


def _known_of_both(control: Run, run: Run) -> set[str]:
    """The facts about a model that both runs recorded."""
    names = control.model.__struct_fields__
    return {name for name in names if getattr(control.model, name) and getattr(run.model, name)}


def _check_model(control: Run, run: Run) -> None:
    """Raise UsageError if the control's model is known to be another one.

    A server's revision is that of the server too, which may differ by its settings; its model is
    known by the name that it is served under.
    """
    names = ["weights_digest", "config_digest", "dtype"]
    if control.traits.computes_here == run.traits.computes_here:
        names.insert(0, "revision" if run.traits.computes_here else "name")
    for name in names:
        theirs, ours = getattr(control.model, name), getattr(run.model, name)
        if name in _known_of_both(control, run) and theirs != ours:
            raise UsageError(
                f"`control` is of another model than the run: its {name.replace('_', ' ')} is "
                f"{theirs}, the run's is {ours}. Give one of the same model."
            )
    if changed := other_token_ids(run, control):
        raise UsageError(
            f"`control` was asked something else: {count(changed, 'prompt')} became other token "
            "ids than in the run. Give one of the same chat template."
        )
