"""The engines on a tiny model: right tokens, observed batches, faults, resets."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from asking import conditions_of, settled
from sweeps import few
from transformers import AttentionInterface, GPTJConfig, GPTJForCausalLM

from detcheck.engines import in_process
from detcheck.engines.continuous import ContinuousEngine, paged_attention
from detcheck.engines.in_process import InProcessEngine
from detcheck.engines.static import StaticEngine
from detcheck.errors import OutOfMemory, UsageError
from detcheck.experiment import Experiment
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.settings import KernelSettings
from detcheck.models import LoadedModel
from detcheck.targets import InProcess
from detcheck.traffic import plan_trials

ENGINES = {"continuous": ContinuousEngine, "static": StaticEngine}


def experiment(**changes: Any) -> Experiment:
    defaults = {
        "prompts": ("What is the sea?",),
        "batch_sizes": (1, 5),
        "completions": 12,
        "max_new_tokens": 12,
        "traffic": "mixed",
    }
    return settled(**(defaults | changes))


def greedy(loaded: LoadedModel, prompt_ids: tuple[int, ...], tokens: int) -> list[int]:
    """What plain transformers generates for one prompt alone."""
    ids = torch.tensor([prompt_ids])
    with torch.inference_mode():
        out = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    return out[0, len(prompt_ids) :].tolist()


@few("name", ENGINES)
@few("kernels", ["stock", "batch-invariant"])
def test_completions_are_what_transformers_generates(
    tiny_model: LoadedModel, name: str, kernels: str
) -> None:
    asked = experiment(engine=name, kernels=(kernels,))
    engine = ENGINES[name](tiny_model, asked)
    expected = greedy(tiny_model, engine.encode(asked.prompts[0]), asked.max_new_tokens)
    for condition in conditions_of(asked):
        for trial in plan_trials(asked, condition):
            result = engine.run_trial(trial)
            assert len(result.completions) == trial.num_probes
            for position, completion in result.completions:
                assert trial.requests[position].is_probe
                assert list(completion.token_ids or ()) == expected
                assert completion.token_ends is not None
                assert completion.token_ends[-1] == len(completion.text)
                assert completion.finish_reason in ("stop", "length")


@pytest.mark.parametrize("name", ENGINES)
def test_observed_batches_are_counted_over_forward_passes(
    tiny_model: LoadedModel, name: str
) -> None:
    asked = experiment(engine=name, kernels=("stock",), traffic="alone")
    engine = ENGINES[name](tiny_model, asked)
    for condition in conditions_of(asked):
        for trial in plan_trials(asked, condition)[:2]:
            for _, completion in engine.run_trial(trial).completions:
                observed = completion.observed_batch
                assert observed is not None
                assert observed.rows_max == condition.batch_size
                assert observed.steps == completion.num_tokens
                assert observed.rows_min >= 1


@few("name", ENGINES)
@few("kernels", ["stock", "batch-invariant"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_attention_interface_is_left_as_it_was(
    tiny_model: LoadedModel, name: str, kernels: str, interrupted: bool
) -> None:
    """Of the model and of transformers: on some versions continuous batching changes both."""
    table = dict(AttentionInterface._global_mapping)
    asked = experiment(engine=name, kernels=(kernels,), batch_sizes=(2,))
    seen = []

    def look(_: int) -> None:
        seen.append(tiny_model.model.config._attn_implementation)
        if interrupted:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        ENGINES[name](tiny_model, asked).run_trial(
            plan_trials(asked, conditions_of(asked)[0])[0], look
        )
    assert set(seen) <= {"sdpa", "paged|sdpa"}, "never an implementation that nobody asked for"
    assert seen
    assert tiny_model.model.config._attn_implementation == "sdpa"
    assert AttentionInterface._global_mapping == table


def test_attention_is_restored_where_versions_have_a_paged_entry(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin on every version: an entry is planted, and the model must be on it, then off."""
    table = AttentionInterface._global_mapping
    monkeypatch.setitem(table, "paged|sdpa", table["sdpa"])
    config = tiny_model.model.config
    asked = []
    monkeypatch.setattr(
        tiny_model.model,
        "set_attn_implementation",
        lambda name: (asked.append(name), setattr(config, "_attn_implementation_internal", name)),
    )

    def run_out_of_memory() -> None:
        with paged_attention(tiny_model.model):
            assert config._attn_implementation == "paged|sdpa"
            raise MemoryError

    with pytest.raises(MemoryError):
        run_out_of_memory()
    assert asked == ["paged|sdpa", "sdpa"]
    assert config._attn_implementation == "sdpa"


def test_arrivals_are_staggered_and_seen(tiny_model: LoadedModel) -> None:
    asked = experiment(kernels=("stock",), traffic="alone", batch_sizes=(4,), completions=12)
    engine = ContinuousEngine(tiny_model, asked)
    trials = plan_trials(asked, conditions_of(asked)[0])
    together = engine.run_trial(trials[0])
    staggered = engine.run_trial(trials[2])
    assert {c.observed_batch.rows_min for _, c in together.completions} == {4}  # type: ignore[union-attr]
    assert min(c.observed_batch.rows_min for _, c in staggered.completions) < 4  # type: ignore[union-attr]


@pytest.mark.sweep
@few("name", ENGINES)
def test_invariant_kernels_give_bitwise_equal_log_probabilities(
    tiny_model: LoadedModel, name: str
) -> None:
    asked = experiment(engine=name, batch_sizes=(1, 3, 8), completions=24)
    engine = ENGINES[name](tiny_model, asked)
    digests: dict[str, set[str | None]] = {"stock": set(), "batch-invariant": set()}
    for condition in conditions_of(asked):
        for trial in plan_trials(asked, condition):
            for _, completion in engine.run_trial(trial).completions:
                digests[condition.kernels].add(completion.logprob_digest)
    assert len(digests["batch-invariant"]) == 1
    assert len(digests["stock"]) > 1, "the control must be able to differ"


@pytest.mark.parametrize("name", ENGINES)
def test_proof_names_the_overrides_that_ran(tiny_model: LoadedModel, name: str) -> None:
    asked = experiment(engine=name)
    engine = ENGINES[name](tiny_model, asked)
    assert not engine.proof("batch-invariant").complete
    condition = next(c for c in conditions_of(asked) if c.kernels == "batch-invariant")
    engine.run_trial(plan_trials(asked, condition)[0])
    proof = engine.proof("batch-invariant")
    assert proof.complete
    assert proof.overrides["aten::linear"] > 0
    assert proof.overrides["transformers::sdpa"] > 0


@pytest.mark.sweep
@few("name", ENGINES)
def test_seeded_sampling_repeats_and_follows_the_seed(tiny_model: LoadedModel, name: str) -> None:
    answers = []
    for seed in (0, 0, 1):
        asked = experiment(
            kernels=("batch-invariant",), temperature=1.0, seeds=(seed,), batch_sizes=(5,)
        )
        engine = ENGINES[name](tiny_model, asked)
        result = engine.run_trial(plan_trials(asked, conditions_of(asked)[0])[0])
        texts = {completion.token_ids for _, completion in result.completions}
        assert len(texts) == 1
        answers.append(texts.pop())
    assert answers[0] == answers[1] != answers[2]


@few("name", ENGINES)
@few(
    ("fault", "text"),
    [
        (torch.OutOfMemoryError, "planted"),
        (MemoryError, ""),
        (RuntimeError, "can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_batch_size_and_leaves_the_engine_fit(
    tiny_model: LoadedModel,
    name: str,
    fault: type[Exception],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = experiment(engine=name, kernels=("stock",), batch_sizes=(5,))
    engine = ENGINES[name](tiny_model, asked)
    trial = plan_trials(asked, conditions_of(asked)[0])[0]
    good = engine.run_trial(trial)

    def explode(*_: Any, **__: Any) -> Any:
        raise fault(text)  # made here: its traceback keeps the engine

    with monkeypatch.context() as patch:
        patch.setattr(tiny_model.model, "forward", explode)
        with pytest.raises(OutOfMemory, match="batch size 5"):
            engine.run_trial(trial)
    again = engine.run_trial(trial)
    assert [c.token_ids for _, c in again.completions] == [c.token_ids for _, c in good.completions]


@few("name", ENGINES)
def test_an_interrupt_leaves_the_engine_fit(tiny_model: LoadedModel, name: str) -> None:
    asked = experiment(engine=name, kernels=("batch-invariant",), batch_sizes=(5,))
    engine: InProcessEngine = ENGINES[name](tiny_model, asked)
    trial = plan_trials(asked, conditions_of(asked)[0])[0]

    def interrupt(tokens: int) -> None:
        if tokens > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run_trial(trial, interrupt)
    assert len({c.fingerprint for _, c in engine.run_trial(trial).completions}) == 1


def test_the_identity_holds_what_was_really_sent(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template with today's date sends other token ids tomorrow: another question."""
    asked = experiment(kernels=("stock",), prompts=("One?", "Two?"))
    plain = StaticEngine(tiny_model, asked).model_identity()
    assert (plain.name, plain.dtype) == ("tiny", "float32")
    assert plain.chat_template_digest is None
    assert len(set(plain.prompt_digests)) == 2
    identities = []
    for day in ("Monday", "Tuesday"):
        template = f"It is {day}. {{{{ messages[0].content }}}}"
        monkeypatch.setattr(tiny_model.tokenizer, "chat_template", template)
        identities.append(StaticEngine(tiny_model, asked).model_identity())
    monday, tuesday = identities
    assert monday.chat_template_digest != tuesday.chat_template_digest
    assert not {*monday.prompt_digests} & {*tuesday.prompt_digests, *plain.prompt_digests}
    without = StaticEngine(tiny_model, asked, InProcess(engine="static", chat_template=False))
    assert without.model_identity() == plain


def test_the_targets_revision_is_loaded(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, Any] = {}

    def load(name: str, **options: Any) -> LoadedModel:
        loaded.update(options, name=name)
        return tiny_model

    monkeypatch.setattr(in_process.models, "load", load)
    StaticEngine.open(experiment(kernels=("stock",)), InProcess(model="a/b", revision="v2"))
    assert (loaded["name"], loaded["revision"]) == ("a/b", "v2")


def test_a_prompt_longer_than_the_context_is_refused(tiny_model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="exceeds the model's context of 512"):
        ContinuousEngine(tiny_model, experiment(prompts=("long " * 200,), traffic="alone"))


def test_invariant_kernels_on_a_device_without_them_are_refused(tiny_model: LoadedModel) -> None:
    elsewhere = replace(tiny_model, device=torch.device("meta"))
    with pytest.raises(UsageError, match="no batch-invariant kernels for meta"):
        ContinuousEngine(elsewhere, experiment())


class Cumulated(torch.nn.Module):
    """An op that no kernel covers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumprod(-1)


def test_an_engine_refuses_before_it_measures_and_takes_a_named_subset(
    tiny_model: LoadedModel,
) -> None:
    config = GPTJConfig(
        vocab_size=320, n_embd=64, n_layer=1, n_head=4, rotary_dim=8, bos_token_id=0, eos_token_id=1
    )
    gptj = GPTJForCausalLM(config)
    loaded = LoadedModel("J", gptj.eval(), tiny_model.tokenizer, torch.float32, torch.device("cpu"))
    gptj.transformer.ln_f = Cumulated()
    with pytest.raises(UsageError, match=r"J runs aten::cumprod \(in transformer\.ln_f\)"):
        StaticEngine(loaded, experiment())
    subset = experiment(kernels=("stock", "batch-invariant:matmul"))
    StaticEngine(loaded, subset).close()


@few(("pack_weights", "state"), [("auto", "on"), ("off", "off")])
def test_the_proof_says_whether_weights_were_packed(
    tiny_model: LoadedModel, pack_weights: str, state: str
) -> None:
    target = InProcess(engine="static", pack_weights=pack_weights)
    engine = StaticEngine(tiny_model, experiment(), target)
    for condition in conditions_of(engine.experiment):
        engine.run_trial(plan_trials(engine.experiment, condition)[0])
    proof = engine.proof("batch-invariant")
    engine.close()
    assert proof.pack_weights == state
    assert (proof.packed_bytes > 0) == (state == "on")


def prefilled_and_decoded(model: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of one sequence, (length, vocabulary): in one pass, and token by token."""
    ids = torch.arange(length)[None] * 7 % 300 + 2
    with torch.inference_mode():
        whole = model(ids).logits[0]
        cache, rows = None, []
        for at in range(length):
            out = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1])
    return whole, torch.stack(rows)


def test_fully_invariant_kernels_make_trainer_and_sampler_agree(tiny_model: LoadedModel) -> None:
    """What reinforcement learning needs; the level below, as its twin, does not promise it."""
    with batch_invariant(KernelSettings.parse("fully-invariant").families):
        whole, decoded = prefilled_and_decoded(tiny_model.model, 70)
    assert torch.equal(whole, decoded)
    with batch_invariant():
        whole, decoded = prefilled_and_decoded(tiny_model.model, 70)
    assert not torch.equal(whole, decoded)
