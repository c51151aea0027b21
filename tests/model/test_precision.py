"""Lower precisions at inference: close to float32, and refused where they cannot be had."""

from __future__ import annotations

import pytest
import torch

from crossmodal.errors import ConfigError
from crossmodal.model.base import Encoded, inference
from crossmodal.model.precision import HALF, in_precision, int8
from crossmodal.model.uniter import Uniter, UniterConfig
from crossmodal.retrieve.scoring import score_matrix


def small() -> Uniter:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    return Uniter({**sizes, "vocab_size": 50, "img_dim": 16, "initializer_range": 0.1}).eval()


def encoded(lengths: list[int], seed: int) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    return Encoded(torch.tensor(lengths), {"tokens": torch.randn(sum(lengths), 64, generator=draw)})


def test_scores_stay_close_and_the_model_as_it_was() -> None:
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantised = int8(model)
    a, b = encoded([4, 9, 6, 12], 1), encoded([10, 3, 7, 22, 5], 2)
    with inference(model), inference(quantised):
        exact = score_matrix(model.scorers["itm"], a, b)
        close = score_matrix(quantised.scorers["itm"], a, b)
    assert not torch.equal(exact, close)  # it does compute otherwise
    assert (exact - close).abs().max() < 0.1 * exact.std()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_both_sides_are_encoded_as_before() -> None:
    model = small()
    table = int8(model).get_parameter("uniter.embeddings.word_embeddings.weight")
    assert torch.equal(table, model.uniter.embeddings.word_embeddings.weight)


def test_other_precisions_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes a float32 model on the CPU"):
        int8(Uniter(UniterConfig(hidden_size=24, num_hidden_layers=1, vocab_size=10, img_dim=4)).double())
    with pytest.raises(ConfigError, match="precision 'int4' is unknown; did you mean int8"):
        in_precision(small(), "int4")


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_scores_in_float32(precision: str) -> None:
    a, b = encoded([4, 9, 6], 1), encoded([10, 3, 7, 22], 2)
    with torch.no_grad():
        exact = score_matrix(small().scorers["itm"], a, b)
        half = in_precision(small(), precision)
        halved = [Encoded(x.lengths, {"tokens": x.rows["tokens"].to(HALF[precision])}) for x in (a, b)]
        close = score_matrix(half.scorers["itm"], *halved)
    assert close.dtype == torch.float32 and not torch.equal(exact, close)
    assert (exact - close).abs().max() < 0.1 * exact.std()
