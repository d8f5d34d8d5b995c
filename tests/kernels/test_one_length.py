"""Models that compute with their padding: held for requests of one length, padding is refused."""

from __future__ import annotations

import pytest
import torch
from sweeps import few

from detcheck.errors import UsageError
from detcheck.kernels.coverage import coverage, require_coverage
from detcheck.kernels.mode import batch_invariant
from detcheck.kernels.one_length import counts_padding, refuse_padding, why_not_one_length
from detcheck.kernels.positions import positions_of, takes_positions
from detcheck.kernels.short_runs import drops_mask
from detcheck.models.tiny import config_of, shrunk, tiny_model

ROWS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5], [4, 5, 4, 5, 4]])
PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture(name="bart", scope="module")
def _bart() -> torch.nn.Module:
    """Its learned positions count padding."""
    return tiny_model(shrunk(config_of("bart")))


@pytest.mark.sweep
def test_learned_positions_are_held_for_one_length(bart: torch.nn.Module) -> None:
    found = coverage(bart)
    assert (found.uncovered, found.padding_matters, found.batch_matters) == ((), True, False)
    assert found.one_length
    assert require_coverage(bart, "Bart", one_length=True).one_length
    with pytest.raises(UsageError, match=r"^Bart computes with its padding, so it is held for req"):
        require_coverage(bart, "Bart")


def test_a_model_that_ignores_its_padding_is_not_limited() -> None:
    llama = tiny_model(shrunk(config_of("llama")))
    assert not coverage(llama).one_length
    assert not require_coverage(llama, "Llama", one_length=True).one_length


def test_the_mode_computes_rows_of_one_length_and_refuses_padding(bart: torch.nn.Module) -> None:
    with torch.no_grad(), batch_invariant(model=bart):
        together = bart(input_ids=ROWS, attention_mask=torch.ones_like(ROWS)).logits
        for row in range(len(ROWS)):
            assert torch.equal(bart(input_ids=ROWS[row : row + 1]).logits[0], together[row])
        with pytest.raises(UsageError, match=r"of one length only, and a row .* is padded: batch"):
            bart(input_ids=ROWS, attention_mask=PADDED)
        with pytest.raises(UsageError, match=r"of one length only, and a row .* is padded: batch"):
            bart.base_model(input_ids=ROWS, attention_mask=PADDED)
        hidden = bart.base_model(input_ids=ROWS, attention_mask=torch.ones_like(ROWS))[0]
        assert torch.equal(bart.base_model(input_ids=ROWS[:1])[0][0], hidden[0])
    bart(input_ids=ROWS, attention_mask=PADDED)  # outside the mode the model is as it was


def test_without_the_check_padded_rows_differ(bart: torch.nn.Module) -> None:
    """The twin: the refused batch really gives a row other bits."""
    with torch.no_grad(), batch_invariant():
        padded = bart(input_ids=ROWS, attention_mask=PADDED).logits[0, 2:]
        assert not torch.equal(bart(input_ids=ROWS[:1, 2:]).logits[0], padded)


@pytest.mark.filterwarnings("ignore")
@few("name", ["mamba2", "bart", "qwen3_next", "rwkv", "roformer", "cpmant", "xlnet", "xlm"])
def test_without_the_check_the_proof_says_that_padding_matters(name: str) -> None:
    model = tiny_model(shrunk(config_of(name)))
    with torch.no_grad(), batch_invariant() as mode:
        model(input_ids=ROWS)
    fault = mode.proof().fault
    assert fault is not None
    assert fault.startswith(f"the rows of {type(model).__name__} depend on their padding")


@pytest.mark.filterwarnings("ignore")
@few("bias", [True, False])
@few(
    ("name", "attribute"),
    [
        ("lfm2", "conv_bias"), ("mamba", "use_bias"), ("falcon_mamba", "use_bias"),
        ("jamba", "mamba_proj_bias"), ("zaya", "attention_bias"), ("lfm3", "conv_bias"),
    ],
)  # fmt: skip
def test_a_bias_in_front_of_a_convolution_follows_the_padding(
    name: str, attribute: str, bias: bool
) -> None:
    """Without the bias padding is zero there, and changes no row."""
    config = shrunk(config_of(name))
    setattr(config, attribute, bias)
    model = tiny_model(config)
    own = {"position_ids": positions_of(PADDED, 0)} if takes_positions(model) else {}
    with torch.no_grad(), batch_invariant() as mode:
        padded = model(input_ids=ROWS, attention_mask=PADDED, **own).logits[0, 2:]
        assert torch.equal(model(input_ids=ROWS[:1, 2:]).logits[0], padded) is not bias
    assert (mode.proof().fault is not None) is bias
    assert (mode.proof().unchecked == (type(model).__name__,)) is bias


@pytest.mark.filterwarnings("ignore")
@few("name", ["llama", "mamba", "roberta", "opt", "xglm", "bloom", "mpt", "gpt_neo"])
def test_a_model_whose_padding_does_not_matter_needs_no_check(name: str) -> None:
    """The twin."""
    model = tiny_model(shrunk(config_of(name)))
    with torch.no_grad(), batch_invariant() as mode:
        model(input_ids=ROWS, attention_mask=PADDED)
    assert mode.proof().fault is None


def test_positions_of_an_encoder_are_no_fault() -> None:
    """An encoder's padding stands behind its tokens, and positions do not count it."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    assert not counts_padding(model)
    assert not counts_padding(torch.nn.Linear(2, 2))


def test_what_the_check_found_is_known_to_a_mode_without_it(bart: torch.nn.Module) -> None:
    with torch.no_grad(), batch_invariant(model=bart) as checked:
        bart(input_ids=ROWS)
    assert checked.proof().fault is None
    with torch.no_grad(), batch_invariant() as mode:
        bart(input_ids=ROWS)
    assert mode.proof().unchecked == (type(bart).__name__,)


class SeesItsNeighbours(torch.nn.Module):
    """Adds the mean of all rows to each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(0, keepdim=True)


def test_a_model_whose_rows_depend_on_each_other_is_refused() -> None:
    model = tiny_model(shrunk(config_of("bart")))
    model.model.decoder.layers[1].final_layer_norm = SeesItsNeighbours()
    found = coverage(model)
    assert found.batch_matters
    assert not found.one_length
    with pytest.raises(UsageError, match="Mixed computes with the other rows of its batch"):
        require_coverage(model, "Mixed", one_length=True)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({}, None),
        ({"attention_mask": torch.ones(2, 4), "position_ids": torch.arange(4)[None]}, None),
        ({"attention_mask": torch.ones(2, 9), "position_ids": torch.tensor([[8]])}, None),
        ({"attention_mask": PADDED}, "a row of this forward pass is padded"),
        ({"attention_mask": PADDED.flip(1)}, "a row of this forward pass is padded"),
        ({"attention_mask": torch.ones(2, 1, 4, 4)}, "is not (rows, tokens)"),
        ({"attention_mask": {"full_attention": None}}, "is not (rows, tokens)"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]])}, "do not count up by one"),
        ({"kwargs": {"cu_seq_lens_q": torch.tensor([0, 2])}}, "holds several sequences"),
    ],
)
def test_the_inputs_that_are_refused(inputs: dict[str, object], problem: str | None) -> None:
    found = why_not_one_length(inputs)
    assert found is None if problem is None else problem in str(found)


def test_a_mask_that_is_given_by_place_is_seen(bart: torch.nn.Module) -> None:
    leave = refuse_padding(bart, "Bart")
    with pytest.raises(UsageError, match="is padded"):
        bart(ROWS, PADDED)
    leave()
    bart(ROWS, PADDED)


def test_passes_outside_the_condition_are_not_looked_at(bart: torch.nn.Module) -> None:
    on = [False]
    leave = refuse_padding(bart, "Bart", when=lambda: on[0])
    bart(ROWS, PADDED)
    on[0] = True
    with pytest.raises(UsageError, match="is padded"):
        bart(ROWS, PADDED)
    leave()


@pytest.mark.filterwarnings("ignore")
def test_a_mask_that_does_not_reach_the_forward_pass_is_seen() -> None:
    """XLNet's own code leaves it out when it generates, and computes with the padding."""
    xlnet = tiny_model(shrunk(config_of("xlnet")))
    assert coverage(xlnet).one_length
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), batch_invariant(model=xlnet):
        xlnet.generate(input_ids=ROWS, attention_mask=torch.ones_like(ROWS), **options)
        with pytest.raises(UsageError, match=r"of one length only, and a row .* is padded"):
            xlnet.generate(input_ids=ROWS, attention_mask=PADDED, **options)
    assert "prepare_inputs_for_generation" not in vars(xlnet)
    xlnet.generate(input_ids=ROWS, attention_mask=PADDED, **options)


def test_masks_of_other_models_reach_the_forward_pass(bart: torch.nn.Module) -> None:
    assert drops_mask(tiny_model(shrunk(config_of("xlnet"))))
    assert not drops_mask(bart)
