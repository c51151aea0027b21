"""The classifier of prompts against plain loops."""

from __future__ import annotations

import numpy as np
import torch

from crossmodal.evaluate.zero_shot import classifier, classify


def test_mean_of_unit_vectors_made_unit_again() -> None:
    prompts = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    weights = classifier(prompts)
    for c, of_class in enumerate(prompts.numpy()):
        mean = np.mean([prompt / np.linalg.norm(prompt) for prompt in of_class], axis=0)
        np.testing.assert_allclose(weights[:, c], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)


def test_logits_are_a_hundred_cosines() -> None:
    images = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    weights = classifier(images[:2, None])
    logits = classify(images, weights)
    assert logits.shape == (6, 2) and torch.allclose(logits[[0, 1], [0, 1]], torch.tensor(100.0))
    assert float(logits.abs().max()) <= 100.0001


def test_one_prompt_of_one_class() -> None:
    assert classifier(torch.tensor([[[3.0, 4.0]]])).tolist() == [[0.6000000238418579], [0.800000011920929]]
