"""apex in every state in which it is met, as packages written here: absent, another one, without extensions, whole.

The kernels themselves need a GPU and are not run; what stands around them is, on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossmodal.errors import ConfigError
from crossmodal.model.fused import Fused, look, probe, swap_layer_norms, with_fused_layer_norm
from crossmodal.model.uniter import Uniter, UniterConfig

# As in apex: half precision under autocast, and a group's number of updates in the group.
NORMALIZATION = """
import torch
from torch import nn
from torch.nn import functional as F

class FusedLayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, memory_efficient=False):
        super().__init__()
        shape = [normalized_shape] if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = torch.Size(shape)
        self.eps, self.weight, self.bias = eps, *(nn.Parameter(torch.empty(self.normalized_shape)) for _ in range(2))
        nn.init.ones_(self.weight), nn.init.zeros_(self.bias)

    def forward(self, input):
        if not input.numel():
            raise RuntimeError("CUDA error: invalid configuration argument")
        tensors = input, self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            tensors = [x.to(torch.bfloat16) for x in tensors]
        with torch.autocast("cpu", enabled=False):
            return F.layer_norm(tensors[0], self.normalized_shape, *tensors[1:], self.eps)
"""
OPTIMIZERS = """
import torch

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
                 weight_decay=0.0):
        super().__init__(params, dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps,
                                      weight_decay=weight_decay))
        self.adam_w_mode = adam_w_mode

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = (1 - beta ** group["step"] if group["bias_correction"] else 1 for beta in group["betas"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.mul_(group["betas"][0]).add_(p.grad, alpha=1 - group["betas"][0])
                v.mul_(group["betas"][1]).addcmul_(p.grad, p.grad, value=1 - group["betas"][1])
                update = m / first / ((v / second).sqrt() + group["eps"]) + group["weight_decay"] * p
                p.sub_(group["lr"] * update)
"""
WITHOUT_EXTENSIONS = {
    "normalization": """
import importlib
from torch import nn

class FusedLayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-5):
        super().__init__()
        importlib.import_module("fused_layer_norm_cuda")
""",
    "optimizers": """
import torch

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, dict(lr=lr))
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")
""",
}

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(normalization="...")``: a package apex of these modules; the only apex that can be imported."""
    kept = [path for path in sys.path if not (Path(path) / "apex").exists()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *kept])

    def forget() -> None:
        probe.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
            del sys.modules[name]

    def write(init: str | None = "", **modules: str) -> Path:
        for name, source in modules.items():
            (tmp_path / "apex" / name).mkdir(parents=True)
            (tmp_path / "apex" / name / "__init__.py").write_text(source)
        if init is not None:
            (tmp_path / "apex").mkdir(exist_ok=True)
            (tmp_path / "apex" / "__init__.py").write_text(init)
        return tmp_path / "apex"

    forget()
    yield write
    forget()


@pytest.fixture
def fused(install: Install) -> Fused:
    install(normalization=NORMALIZATION, optimizers=OPTIMIZERS)
    return look("cpu")


# --- which apex --------------------------------------------------------------------------------------------------


def test_no_apex(install: Install) -> None:
    assert look("cpu") == look(None) == probe() == Fused(None, None, "apex: none")


def test_a_folder_that_is_called_apex_is_none(install: Install) -> None:
    install(init=None, csrc="", tests="")
    assert look("cpu").said == "apex: none"


@pytest.mark.parametrize("device", ["cpu", None])
def test_another_package_of_that_name_is_refused(install: Install, device: str | None) -> None:
    """PyPI's: a toolkit for pyramid."""
    folder = install("from pyramid_mailer.interfaces import IMailer", lib="", ext="", scaffolds="")
    with pytest.raises(ConfigError, match="not NVIDIA's") as refused:
        look(device)
    assert str(folder) in str(refused.value) and "`pip uninstall apex`" in str(refused.value)
    with pytest.raises(ConfigError):
        with_fused_layer_norm(nn.Linear(1, 1))
    assert "apex" not in sys.modules


def test_without_a_gpu_nothing_is_imported(install: Install) -> None:
    install("raise AssertionError", normalization="", optimizers="")
    assert look(None) == Fused(None, None, "apex: not used without a GPU")


def test_without_its_extensions(install: Install) -> None:
    install(**WITHOUT_EXTENSIONS)
    assert look("cpu") == Fused(
        None,
        None,
        "apex: installed, but nothing of it runs (No module named 'fused_layer_norm_cuda'; "
        "apex.optimizers.FusedAdam requires cuda extensions)",
    )


def test_an_apex_that_cannot_be_imported(install: Install) -> None:
    install("raise ImportError('undefined symbol')", normalization="", optimizers="")
    assert look("cpu").said == "apex: installed, but nothing of it runs (undefined symbol; undefined symbol)"


def test_half_of_it(install: Install) -> None:
    install(normalization=NORMALIZATION, optimizers=WITHOUT_EXTENSIONS["optimizers"])
    found = look("cpu")
    assert found.layer_norm is not None and found.adam is None
    assert found.said == "apex: fused layer-norm (apex.optimizers.FusedAdam requires cuda extensions)"


def test_all_of_it(fused: Fused) -> None:
    assert fused.said == "apex: fused layer-norm and Adam"
    assert {name for name in sys.modules if name.startswith("apex")} == {
        "apex",
        "apex.normalization",
        "apex.optimizers",
    }


# --- layer norms -------------------------------------------------------------------------------------------------


def norms(fused: Fused) -> tuple[nn.Module, nn.Module]:
    """torch's and apex's with the same random parameters."""
    assert fused.layer_norm is not None
    torchs, apexs = nn.LayerNorm(16, eps=1e-12), fused.layer_norm(16, eps=1e-12)
    nn.init.normal_(torchs.weight), nn.init.normal_(torchs.bias)
    apexs.load_state_dict(torchs.state_dict())
    return torchs, apexs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computes_what_torch_computes(fused: Fused, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 16)
    results = []
    for norm in norms(fused):
        norm.to(dtype)
        x = values.to(dtype).requires_grad_()
        y = norm(x)
        y.square().sum().backward()
        assert x.grad is not None
        results.append([y, x.grad, *(p.grad for p in norm.parameters() if p.grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)  # their types too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_float32_as_torch_has_it_on_gpus(fused: Fused, dtype: torch.dtype) -> None:
    torchs, apexs = norms(fused)
    x = torch.randn(5, 16).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = apexs(x)
    torch.testing.assert_close(y, torchs(x.float()))


def test_no_rows(fused: Fused) -> None:
    _, norm = norms(fused)
    x = torch.zeros(0, 16, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 16)


def test_a_model_keeps_parameters_names_and_results(fused: Fused) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Uniter(UniterConfig.of({**sizes, "intermediate_size": 32, "img_dim": 8, "pretraining": True})).eval()
    before, parameters = model.state_dict(), list(model.named_parameters())
    ids = torch.tensor([1, 5, 7])
    expected = model.uniter.embeddings(ids, ids, torch.zeros_like(ids))
    assert fused.layer_norm is not None
    swap_layer_norms(model, fused.layer_norm)
    assert not any(type(module) is nn.LayerNorm for module in model.modules())
    swapped = [module for module in model.modules() if isinstance(module, fused.layer_norm)]
    assert len(swapped) == sum(name.endswith("orm.bias") for name in before) + 2  # two in Sequential, numbered
    assert not any(module.training for module in swapped)
    assert [(name, id(p)) for name, p in model.named_parameters()] == [(name, id(p)) for name, p in parameters]
    assert list(model.state_dict()) == list(before)
    assert torch.equal(model.uniter.embeddings(ids, ids, torch.zeros_like(ids)), expected)


def test_a_model_on_the_cpu_is_left_alone(install: Install) -> None:
    install(normalization=NORMALIZATION, optimizers=OPTIMIZERS)
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    assert with_fused_layer_norm(model) is model
    assert type(model[1]) is nn.LayerNorm
    assert probe() is probe()


# --- Adam --------------------------------------------------------------------------------------------------------

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.98), "eps": 1e-6}
Optimizers = list[type[torch.optim.Optimizer]]


def train(kinds: Optimizers, steps: int = 4) -> list[Tensor]:
    """Parameters after some steps with each kind in turn, which takes up what the one before it has saved."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    saved = None
    for kind in kinds:
        groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]
        optimizer = kind(torch.optim.AdamW(groups, **OPTIONS).param_groups, **OPTIONS)
        if saved is not None:
            optimizer.load_state_dict(saved)
        for _ in range(steps):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert params[0].grad is None
        saved = optimizer.state_dict()
    return [p.detach() for p in params]


def test_adam_equals_torchs_and_each_goes_on_from_the_other(fused: Fused) -> None:
    torchs, apexs = torch.optim.AdamW, fused.adam
    assert apexs is not None
    expected = train([torchs] * 3)
    orders: list[Optimizers] = [[apexs, apexs, apexs], [torchs, apexs, torchs], [apexs, torchs, apexs]]
    for kinds in orders:
        for ours, theirs in zip(train(kinds), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_adam_writes_what_torch_writes(fused: Fused) -> None:
    def written(kind: type[torch.optim.Optimizer]) -> dict[str, object]:
        p, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        optimizer = kind(torch.optim.AdamW([p, unused], **OPTIONS).param_groups, **OPTIONS)
        assert optimizer.state_dict()["state"] == {}
        optimizer.step()
        return optimizer.state_dict()

    assert fused.adam is not None
    ours, theirs = written(fused.adam), written(torch.optim.AdamW)
    torch.testing.assert_close(ours, theirs)


def test_adam_goes_on_from_the_largest_count_of_a_group(fused: Fused) -> None:
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(params, **OPTIONS)
    for step in range(3):
        params[0].grad, params[1].grad = torch.ones(2), torch.ones(2) if step else None
        optimizer.step()
    assert fused.adam is not None
    resumed = fused.adam(torch.optim.AdamW(params, **OPTIONS).param_groups, **OPTIONS)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.step()
    assert [float(state["step"]) for state in resumed.state_dict()["state"].values()] == [4, 4]
