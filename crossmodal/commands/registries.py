"""`crossmodal losses` and `crossmodal models`: what is registered and what goes with what."""

from __future__ import annotations


def losses() -> None:
    """List the losses: the fields each needs, its options, and the models that can feed it."""
    import inspect

    from crossmodal import losses as registry
    from crossmodal.data.datasets import DATASETS
    from crossmodal.model.checkpoints import registered

    added = {name for dataset in DATASETS.values() for name in dataset.adds}  # type: ignore[attr-defined]
    for name in registry.names():
        signature = registry.signature(name)
        summary = (inspect.getdoc(registry.get(name)) or "").split("\n", 1)[0]
        fed = [
            model
            for model, cls in registered().items()
            if signature.fed_by(
                {*cls.all_fields, *added},
                matrix=any(f"{scorer}_scores" in cls.all_fields for scorer in cls.scorer_names),
            )
        ]
        print(f"{name}: {summary}")
        print(f"    fields   {', '.join(f'{k} ({kind})' for k, kind in signature.fields.items())}")
        if signature.options:
            print(f"    options  {', '.join(f'{k}={v!r}' for k, v in signature.options.items())}")
        print(f"    models   {', '.join(fed) or 'none yet'}")


def models() -> None:
    """List the models: what each encodes, how it scores, and the fields it gives."""
    import inspect

    from crossmodal.model.checkpoints import registered

    for name, cls in registered().items():
        print(f"{name}: {(inspect.getdoc(cls) or '').split(chr(10), 1)[0]}")
        print(f"    sides    {', '.join(f'{side} ({items.__name__})' for side, items in cls.sides.items())}")
        for field, doc in cls.all_fields.items():
            print(f"    {field:<22} {doc}")
