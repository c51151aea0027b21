"""UNITER's forward passes, heads, losses and hard-negative steps against recorded vectors."""

from __future__ import annotations

import random
from typing import Any

import torch

from crossmodal.data.batches import Batch, Regions, Texts, length_mask
from crossmodal.data.corpus import Corpus, open_corpus
from crossmodal.data.datasets import Pools
from crossmodal.data.processors import UniterProcessor
from crossmodal.data.samplers import draw_negatives
from crossmodal.data.texts import TextDB
from crossmodal.evaluate.ranks import ranks
from crossmodal.evaluate.recall import recall
from crossmodal.evaluate.retrieval import fixed_galleries, score_corpus
from crossmodal.losses.iais import aligned_index, iais, iais_terms
from crossmodal.losses.pretraining import (
    masked_region_classes_terms,
    masked_region_features_terms,
    masked_region_kl_terms,
    masked_words_terms,
)
from crossmodal.losses.ranking import margin_ranking, margin_ranking_terms
from crossmodal.losses.transport import transport_distance, word_region_alignment
from crossmodal.model.checkpoints import load_state
from crossmodal.model.transformer import Packing
from crossmodal.model.uniter import ATTENTION_FIELDS, Uniter, join
from crossmodal.train.engine import Engine
from crossmodal.train.mining import Hardest, with_index
from crossmodal.train.objectives import build_objectives
from crossmodal.train.optim import build_optimizer, parameter_groups
from crossmodal.train.recipe import parse_recipe
from crossmodal.train.schedules import anneal

from . import inputs
from .harness import Case, kind

SIDES = {"L": "linguistic", "V": "visual"}
BLOCKS = dict(zip(("LL", "VV", "LV", "VL"), ATTENTION_FIELDS, strict=False))


@kind("uniter_iais", "forward")
def forward(case: Case) -> None:
    model = inputs.model(case, prefix="uniter.").eval()
    given = case.under("in")
    mask = given["attn_masks"].bool()
    if "input_ids" in given and "img_feat" in given:
        batch = inputs.batch(given, 1)
        a = model.encode("text", batch.roles["text"][1])
        b = model.encode("image", batch.roles["image"][1])
        joint = join(a, b, batch.pairs)
        x, packing, place = joint.x, joint.packing, joint.place
    elif "input_ids" in given:
        a = model.encode("text", Texts(given["input_ids"], given["txt_lens"], given.get("txt_type_ids")))
        x, packing, place = (
            a.rows["tokens"],
            Packing.of(a.lengths, 1, torch.device("cpu")),
            torch.arange(len(a)),
        )
    else:
        regions = Regions(given["img_feat"], given["img_pos_feat"], given["num_bbs"], masked=given.get("img_masks"))
        b = model.encode("image", regions)
        x, packing, place = (
            b.rows["tokens"],
            Packing.of(b.lengths, 1, torch.device("cpu")),
            torch.arange(len(b)),
        )

    starts = (packing.lengths.cumsum(0) - packing.lengths)[place]
    case.array("out/embedding", inputs.padded(x, starts, mask), where=mask)
    for k, layer in enumerate(model.uniter.encoder.layer):
        attention = layer.attention.inner
        wide = inputs.padded(x, starts, mask)
        probabilities = attention.probabilities(attention.query(wide), attention.key(wide), mask)
        case.array(f"out/attn{k}", probabilities.transpose(1, 2), where=mask,
                   expected=case.tensor(f"out/attn{k}").transpose(1, 2))  # fmt: skip
        x = layer(x, packing)
        case.array(f"out/hidden{k}", inputs.padded(x, starts, mask), where=mask)
    case.array("out/pooled", model.uniter.pooler(x[packing.first][place]))


@kind("uniter_iais", "rank_margin")
def rank_margin(case: Case) -> None:
    model = inputs.model(case)
    given = case.under("in")
    given["img_feat"].requires_grad_()
    given["img_pos_feat"].requires_grad_()
    batch = inputs.batch(given, case.hyper["sample_size"])
    scores = model(batch, {"rank_scores"})["rank_scores"]
    case.array("out/rank_scores", scores.reshape(-1, 1))
    terms = margin_ranking_terms(scores, margin=case.hyper["margin"])
    case.array("out/rank_loss", terms)
    loss = margin_ranking(scores, margin=case.hyper["margin"])
    case.scalar("rank_loss_mean", loss)
    case.scalar("n_active", (terms > 0).sum())
    loss.backward()
    inputs.gradients(case, model)
    case.array("grad/img_feat", given["img_feat"].grad)
    case.array("grad/img_pos_feat", given["img_pos_feat"].grad)


@kind("uniter_iais", "hard_negative_step", "iais_hard_negative_step")
def hard_negative_step(case: Case) -> None:
    model = inputs.model(case)
    given, hyper = case.under("in"), case.hyper
    batch = inputs.batch(given, hyper["pool"])
    if case.config.get("gather_offset") == "last_text_length":
        batch = with_index(batch, torch.where(given["attn_masks"].bool(), given["gather_index"], -1))
    defect = "no_index" if case.config.get("second_pass_gather_index") is False else None
    miner = Hardest(keep=hyper["hard_size"], published_defect=defect)

    case.array("out/pool_scores", miner.score(model, batch).reshape(-1, 1))
    kept = miner(model, batch)
    _kept_batch(case, batch, kept)

    iais_kind = hyper.get("iais")
    want = {"rank_scores"} | (ATTENTION_FIELDS.keys() if iais_kind else set())
    fields = model(kept, want)
    terms = margin_ranking_terms(fields["rank_scores"], margin=hyper["margin"])
    case.array("out/rank_loss", terms)
    rank_name = "rank_loss_mean" if case.json["kind"] == "hard_negative_step" else "rank_loss_mean_over_negatives"
    case.scalar(rank_name, terms.mean())
    total = terms.mean() / hyper["train_batch_size"]
    if "rank_term" in case.json["scalars"]:
        case.scalar("rank_term", total)
    if iais_kind:
        side, alignment = iais_kind.split("-")
        weight = anneal(hyper["tsa"].removesuffix("_schedule"), hyper["global_step"], hyper["num_train_steps"])
        regulariser = iais(*(fields[f] for f in ATTENTION_FIELDS), alignment=alignment, side=SIDES[side])
        case.scalar("tsa_weight", weight)
        case.scalar("self_attn_loss", regulariser)
        total = total + weight * regulariser
    case.scalar("total", total)
    total.backward()
    inputs.gradients(case, model)


def _kept_batch(case: Case, pool: Batch, kept: Batch) -> None:
    """The second pass holds the rows the reference chose, cut as it cuts them."""
    texts, regions = kept.roles["text"][1], kept.roles["image"][1]
    left, right = kept.pairs.unbind(1)
    rows = case.arrays["out/hard_rows_in_reference_order"]
    pool_texts, pool_regions = pool.roles["text"][1], pool.roles["image"][1]
    recorded = torch.as_tensor(rows)
    chosen = sorted(zip(texts.input_ids[left].sum(1).tolist(), regions.boxes[right].sum((1, 2)).tolist(), strict=True))
    wanted = sorted(
        zip(
            pool_texts.input_ids[pool.pairs[recorded, 0]].sum(1).tolist(),
            pool_regions.boxes[pool.pairs[recorded, 1]].sum((1, 2)).tolist(),
            strict=True,
        )
    )
    for ours, theirs in zip(chosen, wanted, strict=True):
        assert ours[0] == theirs[0] and abs(ours[1] - theirs[1]) < 1e-4
    case.checked |= {"out/hard_rows_in_reference_order", "out/hard_indices_sorted_by_score"}

    anchor = case.config["anchor"]
    width = pool_texts.input_ids.shape[1]  # the published second pass keeps the pool's text width
    expand = torch.zeros(len(left), width, dtype=torch.int64)
    expand[:, : texts.input_ids.shape[1]] = texts.input_ids[left]
    case.array("out/hard_batch/input_ids", expand)
    if "out/hard_batch/img_pos_feat" in case.arrays:
        case.array("out/hard_batch/img_pos_feat", regions.boxes[right])
    text_mask = length_mask(texts.lengths[left], width)
    region_mask = length_mask(regions.lengths[right], regions.boxes.shape[1])
    if "out/hard_batch/attn_masks" in case.arrays:
        total = texts.lengths[left] + regions.lengths[right]
        columns = case.arrays["out/hard_batch/attn_masks"].shape[1]
        compact = case.config["layout"] == "compact"
        mask = length_mask(total, columns) if compact else torch.cat([text_mask, region_mask], dim=1)
        case.array("out/hard_batch/attn_masks", mask.long())
    if "out/hard_batch/txt_attn_masks" in case.arrays:
        words = text_mask[:1].clone()
        words[:, 0] = False
        words[:, texts.lengths[left[0]] - 1] = False
        case.array("out/hard_batch/txt_attn_masks", torch.cat([words, region_mask[:1] & False], dim=1).long())
        case.array("out/hard_batch/img_attn_masks", torch.cat([words & False, region_mask[:1]], dim=1).long())
    assert anchor in ("text", "image")


@kind("uniter_iais", "iais_core")
def iais_core(case: Case) -> None:
    for sample in sorted({name.split("/")[1] for name in case.arrays if name.startswith("in/")}):
        blocks = {b: case.tensor(f"in/{sample}/{b}")[None].requires_grad_() for b in ("LL", "VV", "LV", "VL")}
        counts = [torch.tensor([blocks[b].shape[1]]) for b in ("LL", "VV")]
        case.array(f"out/{sample}/argmax_L", aligned_index(blocks["LV"])[0])
        case.array(f"out/{sample}/argmax_V", aligned_index(blocks["VL"])[0])
        for alignment in ("singular", "distributed"):
            for letter, side in SIDES.items():
                for block in blocks.values():
                    block.grad = None
                loss = iais(*blocks.values(), *counts, alignment=alignment, side=side)
                case.scalar(f"{sample}/{alignment}/{letter}", loss)
                loss.backward()
                for name, block in blocks.items():
                    assert block.grad is None or block.grad.isfinite().all()
                    recorded = f"grad/{sample}/{alignment}/{letter}/{name}"
                    if recorded in case.arrays:
                        case.array(recorded, (block.grad if block.grad is not None else block * 0)[0])


@kind("uniter_iais", "iais_batch")
def iais_batch(case: Case) -> None:
    model = inputs.model(case, prefix="uniter.")
    given = case.under("in")
    group = case.hyper.get("pairs_num", 1)
    counts = given["txt_attn_masks"].sum(dim=1), given["img_attn_masks"].sum(dim=1)
    given["img_feat"].requires_grad_()
    batch = inputs.batch(given, group)
    for mode in case.json["scalars"]:
        letter, alignment = mode.split("-")
        model.zero_grad()
        given["img_feat"].grad = None
        fields = model(batch, ATTENTION_FIELDS)
        assert torch.equal(fields["word_counts"], counts[0]) and torch.equal(fields["region_counts"], counts[1])
        loss = iais_terms(*(fields[f] for f in ATTENTION_FIELDS), alignment=alignment, side=SIDES[letter]).mean()
        case.scalar(mode, loss)
        loss.backward()
        case.array(f"grad/{mode}/img_feat", given["img_feat"].grad)
        parameters = {k.removeprefix("uniter."): p for k, p in model.named_parameters()}
        for name in case.arrays:
            key = name.removeprefix(f"grad/{mode}/")
            if key in parameters:
                case.array(name, parameters[key].grad)
    texts, regions = batch.roles["text"][1], batch.roles["image"][1]
    joint = join(model.encode("text", texts), model.encode("image", regions), batch.pairs)
    below = model.uniter.encoder.below_last(joint.x, joint.packing)
    mask = given["attn_masks"].bool()
    case.array("out/last_layer_input", inputs.padded(below, joint.starts, mask), where=mask)
    for name, field in BLOCKS.items():
        recorded = case.tensor(f"out/block_{name}")
        ours = torch.zeros_like(recorded)
        _, rows, columns = fields[field].shape  # ours are as wide as the widest positive
        ours[:, :rows, :columns] = fields[field]
        case.array(f"out/block_{name}", ours)


@kind("uniter_iais", "pretrain_heads")
def pretrain_heads(case: Case) -> None:
    model = inputs.model(case, pretraining=True)
    given = case.under("in")
    plain = {k: v for k, v in given.items() if "/" not in k}

    def check(task: str, loss: torch.Tensor) -> None:
        model.zero_grad()
        loss.backward()
        case.scalar(task, loss)
        inputs.gradients(case, model, f"grad/{task}/")

    labels = given["mlm/txt_labels"]
    texts = {**plain, "input_ids": given["mlm/input_ids"]}
    text_lengths, regions_count = inputs.lengths(plain)
    texts |= {"txt_lens": text_lengths, "num_bbs": regions_count}
    logits = model(inputs.batch(texts, 1, masked_words=labels != -1), {"word_logits"})["word_logits"]
    case.array("out/mlm_scores", logits)
    terms = masked_words_terms(logits, labels[labels != -1])
    case.array("out/mlm_loss", terms)
    check("mlm", terms.mean())

    masked = {**plain, "img_feat": given["mrm/img_feat"]}
    batch = inputs.batch(masked, 1)
    regions = batch.roles["image"][1]
    hidden = Regions(regions.features, regions.boxes, regions.lengths, masked=given["mrm/img_masks"].bool())
    batch = Batch({**batch.roles, "image": ("image", hidden)}, batch.pairs)
    for task, field, function, target in (
        ("mrfr", "region_predictions", masked_region_features_terms, "mrm/feat_targets"),
        ("mrc", "region_logits", masked_region_classes_terms, "mrm/label_targets"),
        ("mrckl", "region_logits", masked_region_kl_terms, "mrm/label_targets"),
    ):
        terms = function(model(batch, {field})[field], given[target])
        case.array(f"out/{task}_loss", terms)
        check(task, terms.mean())

    targets = given["itm/targets"]
    states = ["word_states", "region_states", "word_pad", "region_pad"]
    fields = model(inputs.batch(plain, 1), {"itm_logits", *states})
    case.array("out/itm_scores", fields["itm_logits"][:, 0])
    terms = torch.nn.functional.cross_entropy(fields["itm_logits"][:, 0], targets, reduction="none")
    case.array("out/itm_loss", terms)
    case.array("in/itm/txt_pad", fields["word_pad"])
    case.array("in/itm/img_pad", fields["region_pad"])
    options = {k: case.hyper["ot"][o] for k, o in (("beta", "beta"), ("iterations", "iterations"), ("inner", "k"))}
    distance = transport_distance(*(fields[s] for s in states), **options)
    case.array("out/ot_pos", distance[targets == 1])
    case.array("out/ot_neg", distance[targets == 0])
    check("itm", terms.mean())
    fields = model(inputs.batch(plain, 1), {"itm_logits", *states})
    terms = torch.nn.functional.cross_entropy(fields["itm_logits"][:, 0], targets, reduction="none")
    alignment = word_region_alignment(*(fields[s] for s in states), targets[:, None])
    check("itm_ot", terms.mean() + case.hyper["itm_ot_lambda"] * alignment)


@kind("uniter_iais", "checkpoint_load")
def checkpoint_load(case: Case) -> None:
    model = Uniter(case.config)
    report = load_state(model, case.under("in/ckpt"), layout="uniter")
    assert set(report.new) == set(case.json["missing"])
    assert set(report.ignored) == set(case.json["unexpected"])
    model.start_rank_head()  # the training scripts always do, whether the checkpoint had a rank head or not
    expected = case.under("out/model")
    assert expected.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        case.array(f"out/model/{name}", value)
    assert model.rank_output.weight.data_ptr() != model.itm_output.weight[1:].data_ptr()


@kind("uniter_iais", "end_to_end_eval")
def end_to_end_eval(case: Case) -> None:
    options = dict(case.json["img_db_open_with"])
    options["compressed"] = options.pop("compress")
    corpus = open_corpus([str(case.folder / case.json["txt_db"])], [str(case.folder / case.json["img_db"])], **options)
    model = inputs.model(case).eval()
    texts = corpus.parts[0].texts
    model.processor = UniterProcessor(texts.cls, texts.sep, texts.mask, texts.v_range, model.config.img_dim)
    scores = score_corpus(model, corpus).scores
    assert [k for _, k in corpus.anchors] == case.json["txt_ids"]
    assert [k for _, k in corpus.image_keys] == case.json["img_ids"]
    case.array("out/score_matrix", scores)
    ranked = ranks(scores, corpus.image_of_texts())
    for name, reference in (("correct", False), ("float32", True)):
        metrics = recall(ranked, reference_count=reference)
        for key in case.json["scalars"][f"eval_log_{name}"]:
            case.scalar(f"eval_log_{name}/{key}", metrics[key])
    rounded = recall(ranks(scores.half(), corpus.image_of_texts()), reference_count=True)
    for key in case.json["scalars"]["eval_log_float16_scores"]:
        case.scalar(f"eval_log_float16_scores/{key}", rounded[key])


@kind("uniter_iais", "dataset_batches")
def dataset_batches(case: Case) -> None:
    options = dict(case.json["img_db_open_with"])
    options["compressed"] = options.pop("compress")
    corpus = open_corpus(
        [str(case.folder / case.json["txt_db"])],
        [str(case.folder / case.json["img_db"])],
        max_text=case.hyper["max_txt_len"],
        **options,
    )
    texts, regions = corpus.parts[0].texts, corpus.parts[0].regions
    assert texts.ids == case.json["ids"]
    assert corpus.lengths() == case.json["lens"]
    order = [k for _, k in corpus.image_keys]
    assert order == case.json["eval_image_order"]
    size = case.json["mini_batch_size"]
    widths = [max(regions.lengths[k] for k in order[i : i + size]) for i in range(0, len(order), size)]
    assert widths == case.json["eval_minibatch_widths"]
    unfiltered = TextDB(texts.path)
    gallery = fixed_galleries(unfiltered, size)
    assert gallery == case.json["val_batches"]
    processor = UniterProcessor(texts.cls, texts.sep, texts.mask, texts.v_range, regions.feature_dim)
    for item in case.json["items"]:
        _pool(case, item, corpus, processor)


def _pool(case: Case, item: dict[str, Any], corpus: Corpus, processor: UniterProcessor) -> None:
    letter, layout, position = item["key"].split("/")
    anchor = int(position)
    texts = corpus.parts[0].texts
    assert corpus.anchors[anchor] == (0, item["anchor"])
    image = texts.image_of[item["anchor"]]
    truth = [image] if letter == "t" else texts.texts_of[image]
    assert truth == item["ground_truths"]
    candidates = texts.images if letter == "t" else texts.ids
    size = case.hyper["negative_size"]
    assert draw_negatives(candidates, size, frozenset(truth), random.Random(item["random_seed"])) == item["negatives"]

    drawn = [(0, key) for key in item["negatives"]]
    side = {"t": "text", "i": "image"}[letter]
    defect = Pools(corpus, processor, anchor=side, pool=size + 1, published_defect="last_text_offset")
    batch = defect.collate_pools(defect.pool_of(anchor, drawn))
    name = f"out/{item['key']}"
    text, region = batch.roles["text"][1], batch.roles["image"][1]
    left, right = batch.pairs.unbind(1)
    case.array(f"{name}/input_ids", text.input_ids)
    case.array(f"{name}/position_ids", torch.arange(text.input_ids.shape[1])[None])
    case.array(f"{name}/img_pos_feat", region.boxes)
    case.array(f"{name}/img_feat_first8", region.features[:, :, :8].float())
    case.array(f"{name}/img_feat_sum", region.features.double().sum(dim=2))
    n_text, n_image = text.lengths[left], region.lengths[right]
    width = text.input_ids.shape[1]
    text_mask, region_mask = length_mask(n_text, width), length_mask(n_image, region.boxes.shape[1])
    if layout == "plain":
        columns = int((n_text + n_image).max())
        real = length_mask(n_text + n_image, columns)
        case.array(f"{name}/attn_masks", real.long())
        position = torch.arange(columns)
        correct = torch.where(position < n_text[:, None], position, position - n_text[:, None] + width)
        correct = torch.where(real, correct, position)
        recorded = f"{name}/gather_index_correct" if letter == "i" else f"{name}/gather_index"
        case.array(recorded, correct)
        if letter == "i":
            index = batch.extras["joint_index"]
            case.array(f"{name}/gather_index", torch.where(index >= 0, index, position))
    else:
        case.array(f"{name}/attn_masks", torch.cat([text_mask, region_mask], dim=1).long())
        words = text_mask[:1].clone()
        words[:, 0] = False
        words[:, n_text[0] - 1] = False
        case.array(f"{name}/txt_attn_masks", torch.cat([words, region_mask[:1] & False], dim=1).long())
        case.array(f"{name}/img_attn_masks", torch.cat([words & False, region_mask[:1]], dim=1).long())


@kind("uniter_iais", "train_steps")
def train_steps(case: Case) -> None:
    """Whole updates through the engine: micro-steps, both streams, annealed weight, clip, rate, optimizer."""
    hyper = case.hyper
    model = Uniter({**case.config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    start = {k: v for k, v in case.under("weights").items()}
    model.to(next(iter(start.values())).dtype)
    load_state(model, start)
    size = hyper["train_batch_size"]

    def stream(anchor: str, side: str) -> dict[str, Any]:
        iais = {
            "use": "iais",
            "alignment": hyper["iais"],
            "side": side,
            "weight": {"schedule": "exp", "scale": size},
        }
        return {
            "data": {"use": "train", "anchor": anchor, "pool": hyper["pool"]},
            "miner": {"use": "hardest", "keep": hyper["hard_size"]},
            "losses": [
                {"use": "margin_ranking", "margin": hyper["margin"]},
                *([iais] if hyper["iais"] else []),
            ],
        }

    recipe = parse_recipe({
        "steps": hyper["num_train_steps"], "batch": size, "accumulate": size,
        "data": {"train": {"texts": "unused", "images": "unused"}},
        "streams": [stream("image", "visual"), stream("text", "linguistic")],
        "optimizer": {"lr": hyper["learning_rate"], "betas": hyper["betas"], "warmup": hyper["warmup_steps"],
                      "clip": hyper["grad_norm"], "weight_decay": hyper["weight_decay"]},
    })  # fmt: skip
    objectives, _ = build_objectives(recipe, model)
    groups = parameter_groups(model, weight_decay=hyper["weight_decay"])
    optimizer = build_optimizer("published_adamw", groups, learning_rate=1.0, betas=hyper["betas"], eps=hyper["eps"])
    engine = Engine(model, objectives, optimizer, recipe.optimizer, steps=recipe.steps)
    log = case.json["log"]
    for update in range(len(log) // size):
        micro = range(update * size, (update + 1) * size)
        batches = [[inputs.batch(case.under(f"in/micro{m}/{a}"), hyper["pool"]) for m in micro] for a in "it"]
        ours = engine.update(update, batches)
        for a, side in (("i", "0_image"), ("t", "1_text")):
            recorded = [log[m][a] for m in micro]
            case.equal(
                f"log/{update}/{a}/rank",
                ours[f"{side}/margin_ranking"],
                sum(r["rank_term"] for r in recorded),
            )
            if hyper["iais"]:
                mean = sum(r["self_attn_loss"] for r in recorded) / size
                case.equal(f"log/{update}/{a}/iais", ours[f"{side}/iais"], mean)
        case.equal(f"log/{update}/loss", ours["loss"], sum(log[m][a]["loss"] for m in micro for a in "it"))
        case.equal(f"log/{update}/lr", ours["lr"], log[micro[-1]]["lr"])
        case.equal(f"log/{update}/grad_norm", ours["grad_norm"], log[micro[-1]]["grad_norm"])
    for name, value in model.state_dict().items():
        case.array(f"out/weights_after/{name}", value)
