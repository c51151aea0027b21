from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, BertModel

from crossmodal.data.batches import Texts, length_mask
from crossmodal.data.processors import UniterProcessor
from crossmodal.data.tokenizers import train_tokenizer
from crossmodal.errors import CheckpointError, ConfigError
from crossmodal.model.checkpoints import (
    LoadReport,
    export_uniter,
    find_checkpoint,
    fingerprint,
    guess_layout,
    load,
    load_state,
    load_weights,
    read_state,
    save,
)
from crossmodal.model.checksums import write_sums
from crossmodal.model.transformer import Packing
from crossmodal.model.uniter import Uniter

CONFIG: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "img_dim": 8,
}
BERT = BertConfig(**{key: value for key, value in CONFIG.items() if key != "img_dim"}, initializer_range=0.3)
ONLY_UNITER = ("img_embeddings.", "itm_output", "rank_output")

State = dict[str, Tensor]


def uniter(seed: int = 0, **changes: Any) -> Uniter:
    torch.manual_seed(seed)
    return Uniter({**CONFIG, **changes}).eval()


def bert(cls: type[BertModel] | type[BertForPreTraining] = BertModel) -> Any:
    torch.manual_seed(5)
    return cls(BERT).eval()


def copied(model: torch.nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def without_rank_head(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("rank_output")}


# --- published layouts ---------------------------------------------------------------------------------------------


def test_exported_weights_come_back(tmp_path: Path) -> None:
    model = uniter()
    with torch.no_grad():
        model.rank_output.weight += 1  # trained away from the matching head
    export_uniter(model, tmp_path / "out" / "model.pt")
    other = uniter(seed=1)
    report = load_weights(other, tmp_path / "out" / "model.pt")
    assert_same(copied(other), copied(model))
    assert (report.new, report.ignored) == ([], [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt"]


def test_the_exported_file_is_a_plain_state_dict_with_published_keys(tmp_path: Path) -> None:
    export_uniter(uniter(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert type(state) is dict
    heads = {f"{head}_output.{kind}" for head in ("itm", "rank") for kind in ("weight", "bias")}
    assert heads <= state.keys()
    assert all(name.startswith("uniter.") for name in state.keys() - heads)
    assert state["uniter.img_embeddings.mask_embedding.weight"].shape == (2, CONFIG["img_dim"])
    assert state["uniter.encoder.layer.1.attention.self.query.weight"].shape == (16, 16)


def test_tied_tensors_are_exported_twice_and_kept_once(tmp_path: Path) -> None:
    model = uniter(pretraining=True)
    export_uniter(model, tmp_path / "model.pt")
    state = read_state(tmp_path / "model.pt")
    words, regions = state["cls.predictions.decoder.weight"], state["feat_regress.weight"]
    assert torch.equal(words, model.uniter.embeddings.word_embeddings.weight)
    assert torch.equal(regions, model.uniter.img_embeddings.img_linear.weight)
    assert load_state(uniter(seed=1, pretraining=True), state, layout="uniter").ignored == []


def test_pretraining_heads_are_ignored_by_the_retrieval_model(tmp_path: Path) -> None:
    export_uniter(uniter(pretraining=True), tmp_path / "model.pt")
    report = load_weights(uniter(seed=1), tmp_path / "model.pt")
    assert report.new == []
    assert "cls.predictions.bias" in report.ignored and "feat_regress.net.0.weight" in report.ignored
    assert not any(name.startswith(("uniter.", "itm_output")) for name in report.ignored)


@pytest.mark.parametrize("layout", [None, "uniter"])
def test_old_names_and_the_prefix_of_parallel_training(layout: str | None, tmp_path: Path) -> None:
    model = uniter()
    renamed = {}
    for name, value in copied(model).items():
        if "LayerNorm" in name or "layer_norm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        renamed["module." + name] = value
    torch.save(OrderedDict(renamed), tmp_path / "model.pt")
    other = uniter(seed=1)
    report = load_weights(other, tmp_path / "model.pt", layout)
    assert_same(copied(other), copied(model))
    assert (report.new, report.ignored) == ([], [])


def test_weights_under_the_key_model(tmp_path: Path) -> None:
    model = uniter()
    torch.save({"model": copied(model), "step": 3}, tmp_path / "model.pt")
    other = uniter(seed=1)
    load_weights(other, tmp_path / "model.pt")
    assert_same(copied(other), copied(model))


def test_half_precision_becomes_the_precision_of_the_model(tmp_path: Path) -> None:
    model = uniter().half()
    export_uniter(model, tmp_path / "model.pt")
    other = uniter(seed=1)
    load_weights(other, tmp_path / "model.pt")
    assert {value.dtype for value in other.state_dict().values()} == {torch.float32}
    assert_same(copied(other), copied(model.float()))


# --- BERT ----------------------------------------------------------------------------------------------------------


def test_a_text_alone_gives_the_hidden_states_of_bert(tmp_path: Path) -> None:
    reference = bert()
    reference.save_pretrained(tmp_path)
    model = uniter()
    report = load_weights(model, tmp_path, "bert")
    assert report.ignored == []
    assert report.new and all(any(part in name for part in ONLY_UNITER) for name in report.new)

    lengths = torch.tensor([4, 7, 7, 2, 9])
    ids = torch.randint(1, 50, (5, 9), generator=torch.Generator().manual_seed(0))
    real = length_mask(lengths, 9)
    ids = torch.where(real, ids, 0)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=real.long(), output_hidden_states=True)
        encoded = model.encode("text", Texts(ids, lengths))
        packing = Packing.of(lengths, CONFIG["hidden_size"], torch.device("cpu"))
        hidden = model.uniter.encoder(encoded.rows["tokens"], packing)
        first = model.uniter.encoder(encoded.rows["tokens"], packing, first_only=True)
    torch.testing.assert_close(encoded.rows["tokens"], expected.hidden_states[0][real], rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden, expected.last_hidden_state[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.uniter.pooler(first), expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("layout", [None, "bert"])
@pytest.mark.parametrize("cls", [BertModel, BertForPreTraining])
def test_bert_from_files_and_folders(name: str, layout: str | None, cls: Any, tmp_path: Path) -> None:
    reference = bert(cls)
    state = {key: value.clone() for key, value in reference.state_dict().items()}
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    expected = {f"uniter.{key}": value for key, value in copied(getattr(reference, "bert", reference)).items()}
    paths = [tmp_path / name] if layout is None else [tmp_path / name, tmp_path]
    for path in paths:
        model = uniter()
        report = load_weights(model, path, layout)
        assert set(report.matched) == expected.keys()
        found = copied(model)
        assert_same({key: found[key] for key in expected}, expected)
        # The heads of BERT's own pre-training; the decoder is the word table once more.
        assert all(key.startswith("cls.") for key in report.ignored)


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        ("uniter.pooler.dense.weight", "uniter"),
        ("module.uniter.pooler.dense.weight", "uniter"),
        ("bert.pooler.dense.weight", "bert"),
        ("embeddings.LayerNorm.gamma", "bert"),
        ("module.encoder.layer.0.output.dense.bias", "bert"),
    ],
)
def test_layouts_are_guessed_by_their_keys(key: str, layout: str) -> None:
    assert guess_layout({"other": torch.zeros(1), key: torch.zeros(1)}) == layout


# --- the rank head -------------------------------------------------------------------------------------------------


def test_the_rank_head_starts_as_a_copy_of_the_matching_head() -> None:
    source, model = uniter(), uniter(seed=1)
    report = load_state(model, without_rank_head(copied(source)), layout="uniter")
    assert report.new == ["rank_output.weight", "rank_output.bias"]
    assert torch.equal(model.rank_output.weight, source.itm_output.weight[1:2])
    assert torch.equal(model.rank_output.bias, source.itm_output.bias[1:2])
    with torch.no_grad():
        model.rank_output.weight.zero_()
    assert torch.equal(model.itm_output.weight, source.itm_output.weight)


def test_a_trained_rank_head_is_kept() -> None:
    state = copied(uniter())
    state["rank_output.weight"] += 1
    model = uniter(seed=1)
    load_state(model, state, layout="uniter")
    assert torch.equal(model.rank_output.weight, state["rank_output.weight"])


# --- what does not fit ---------------------------------------------------------------------------------------------


def test_every_shape_that_differs_is_named_and_nothing_is_loaded() -> None:
    model = uniter(seed=1)
    before = copied(model)
    with pytest.raises(CheckpointError) as error:
        load_state(model, copied(uniter(vocab_size=60, img_dim=9)), layout="uniter", where="big.pt")
    message = str(error.value)
    assert message.startswith("big.pt has other shapes than the model in 3 tensors: ")
    assert "uniter.embeddings.word_embeddings.weight (60, 16) instead of (50, 16)" in message
    assert "uniter.img_embeddings.img_linear.weight (16, 9) instead of (16, 8)" in message
    assert "uniter.img_embeddings.mask_embedding.weight (2, 9) instead of (2, 8)" in message
    assert message.endswith("use the model configuration that it was trained with")
    assert_same(copied(model), before)


def test_the_report_counts_and_names() -> None:
    state = without_rank_head(copied(uniter())) | {f"extra.{i}": torch.zeros(1) for i in range(6)}
    report = load_state(uniter(seed=1), state, layout="uniter")
    assert len(report.matched) == len(state) - 6
    assert str(report) == (
        f"{len(report.matched)} tensors matched, 2 newly initialised (rank_output.weight, rank_output.bias), "
        "6 ignored (extra.0, extra.1, extra.2, extra.3, ...)"
    )
    assert str(LoadReport(["a"])) == "1 tensors matched, 0 newly initialised, 0 ignored"


def test_strangers_and_unknown_layouts() -> None:
    with pytest.raises(CheckpointError, match="shares no tensor with the model"):
        load_state(uniter(), {"visual.proj": torch.zeros(2)}, layout="uniter")
    with pytest.raises(CheckpointError, match=r"layout .* is not recognised \(keys such as visual.proj\)"):
        guess_layout({"visual.proj": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"keys such as none"):
        guess_layout({})
    with pytest.raises(ConfigError, match="layout 'unter' is unknown to uniter; did you mean uniter"):
        load_state(uniter(), {}, layout="unter")


class Trap:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_file_with_more_than_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "args": Trap(tmp_path / "sprung")}, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"model\.pt cannot be read as plain weights \(it holds getattr, which is"
    ):
        read_state(tmp_path / "model.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [3, [torch.zeros(1)], {"step": 3}, {"a": torch.zeros(1), "step": 3}])
def test_a_file_that_holds_something_else(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds no plain state dict"):
        read_state(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut off"])
def test_damaged_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as plain weights"):
        read_state(tmp_path / name)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    export_uniter(uniter(), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as plain weights"):
        read_state(tmp_path / "model.pt")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt does not exist"):
        load_weights(uniter(), tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors, .*pytorch_model\.bin or model\.pt"):
        read_state(tmp_path)


# --- folders of our own --------------------------------------------------------------------------------------------


def checkpoint(folder: Path, model: Uniter) -> Path:
    folder.mkdir(parents=True)
    save(model, folder)
    return folder


def test_an_own_folder_gives_the_whole_model_back(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a red dog near a blue ball"], vocab_size=50)
    model = uniter(vocab_size=tokenizer.vocab_size)
    model.processor = UniterProcessor(
        tokenizer.cls, tokenizer.sep, tokenizer.mask, tokenizer.v_range, 8, tokenizer.identity, 18, tokenizer=tokenizer
    )
    found = load(checkpoint(tmp_path / "best", model))
    assert isinstance(found, Uniter)
    assert found.config == model.config
    assert_same(copied(found), copied(model))
    assert not any(module.training for module in found.modules())
    sentence = ["a blue dog"]
    assert torch.equal(found.processor("text", sentence).input_ids, model.processor("text", sentence).input_ids)


def test_weights_alone_from_an_own_folder(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", uniter())
    model = uniter(seed=1)
    report = load_weights(model, tmp_path)  # the run folder
    assert_same(copied(model), read_state(folder))
    assert (report.new, report.ignored) == ([], [])


def test_a_run_folder_stands_for_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    last = checkpoint(tmp_path / "last", uniter())
    assert find_checkpoint(tmp_path) == last
    best = checkpoint(tmp_path / "best", uniter())
    assert find_checkpoint(tmp_path) == best
    assert find_checkpoint(last) == last


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.json; give a checkpoint folder"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": "uniter"}', '{"model": "uniter", "config": 3}'])
def test_a_damaged_description(text: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", uniter())
    (folder / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.json does not describe a model"):
        load(folder)


def test_a_model_that_nobody_registered(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", uniter())
    (folder / "model.json").write_text(json.dumps({"model": "unter", "config": CONFIG}))
    with pytest.raises(CheckpointError, match="names the model 'unter'; did you mean uniter"):
        load(folder)


def test_an_own_folder_must_be_whole(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", uniter())
    save_file(without_rank_head(read_state(folder)), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors of its model \(rank_output.weight, rank_output.bias\)"):
        load(folder)


# --- checksums and fingerprints ------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_folder_that_was_changed_is_not_loaded(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", uniter())
    write_sums(folder)
    assert_same(copied(load(folder)), copied(uniter()))
    flip(folder / name)
    with pytest.raises(CheckpointError, match=rf"best/{name} is damaged: its content does not match SHA256SUMS"):
        load(tmp_path)


def test_weights_of_a_folder_that_was_changed_are_not_loaded(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", uniter())
    write_sums(folder)
    model = uniter(seed=1)
    before = copied(model)
    flip(folder / "model.safetensors")
    for path in (folder, tmp_path):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            load_weights(model, path)
    assert_same(copied(model), before)


def test_a_fingerprint_is_that_of_the_weights_wherever_they_stand(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run" / "best", uniter())
    weights = folder / "model.safetensors"
    found = fingerprint(weights)
    assert found == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert fingerprint(folder) == fingerprint(tmp_path / "run") == found
    write_sums(folder)
    assert fingerprint(folder) == fingerprint(tmp_path / "run") == found
    other = checkpoint(tmp_path / "other", uniter(seed=1))
    assert fingerprint(other) != found
    export_uniter(uniter(), tmp_path / "model.pt")
    assert fingerprint(tmp_path / "model.pt") == hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()


def test_a_fingerprint_is_read_from_the_checksums(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", uniter())
    write_sums(folder)
    found = fingerprint(folder)
    (folder / "model.safetensors").write_bytes(b"not looked at here: loading notices")
    assert fingerprint(folder) == found


def test_nothing_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.json"):
        fingerprint(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        fingerprint(tmp_path / "nowhere")
