"""Text databases and token-bucket batches against recorded ones."""

from __future__ import annotations

import random
from typing import Any

import lz4.frame
import msgpack
import numpy as np

from crossmodal.data.samplers import token_buckets
from crossmodal.data.texts import TextDB, decode_record, encode_record

from .harness import Case, kind


@kind("uniter_iais", "text_lmdb")
def text_database(case: Case) -> None:
    recorded = case.json
    (folder,) = (path.parent for path in (case.folder / "txt_db").glob("*/data.mdb"))
    whole = TextDB(folder)
    kept = TextDB(folder, max_len=recorded["max_txt_len"])

    def same(name: str, ours: Any) -> None:
        case.checked.add(name)
        assert ours == recorded[name], f"{name}: {ours} instead of {recorded[name]}"

    same("id2len_all", whole.lengths)
    same("ids_kept_with_max_txt_len", kept.ids)
    same("cls", whole.cls)
    same("sep", whole.sep)
    same("mask", whole.mask)
    same("v_range", list(whole.v_range))
    same("txt2img", whole.image_of)
    same("img2txts", whole.texts_of)
    assert whole.ids == list(recorded["id2len_all"])
    assert whole.images == list(recorded["img2txts"])

    first = whole.ids[0]
    record = whole.record(first)
    same("record_0", record)
    same("record_0_msgpack_hex", msgpack.packb(record, use_bin_type=True).hex())
    assert lz4.frame.decompress(encode_record(record)).hex() == recorded["record_0_msgpack_hex"]
    assert decode_record(bytes.fromhex(recorded["record_0_stored_hex"])) == record

    for name in case.arrays:
        _, number, field = name.split("/")
        item = whole[whole.ids[int(number)]]
        assert len(item.input_ids) == whole.lengths[item.id]
        pieces = item.input_ids if field == "input_ids" else (whole.cls, *item.input_ids, whole.sep)
        case.array(name, np.asarray(pieces))


@kind("uniter_iais", "token_bucket")
def token_bucket(case: Case) -> None:
    hyper = case.hyper
    lengths = case.arrays["in/lens"].tolist()
    batches = token_buckets(
        lengths,
        max_tokens=hyper["batch_size_tokens"],
        bucket_size=hyper["bucket_size"],
        size_multiple=hyper["size_multiple"],
        droplast=hyper["droplast"],
        rng=random.Random(hyper["seed"]),
    )
    flat = [i for batch in batches for i in batch]
    case.array("out/flat", np.asarray(flat))
    case.array("out/offsets", np.cumsum([0, *map(len, batches)]))
    multiple = hyper["size_multiple"]
    for batch in batches:
        groups = -(-len(batch) // multiple)
        assert max(lengths[i] for i in batch) * groups * multiple <= hyper["batch_size_tokens"]
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)
    assert len(set(flat)) == len(flat)
    assert hyper["droplast"] or len(flat) == len(lengths)
