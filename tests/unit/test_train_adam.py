"""The portable Adam: PyTorch's own AdamW is the oracle."""

import copy

import pytest
import torch

from megatron_ko.train.adam import PortableAdam, install_portable_adam


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (11,), (3, 2, 2))]


def fill_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def groups(params: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]


def test_equals_torch_adamw() -> None:
    ours, theirs = parameters(), parameters()
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    mine, oracle = PortableAdam(groups(ours), **settings), torch.optim.AdamW(groups(theirs), **settings)
    for step in range(20):
        for optimizer, params in ((mine, ours), (oracle, theirs)):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (step + 1)
            fill_gradients(params, step)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


def test_state_is_that_of_a_fused_adam() -> None:
    params = parameters()
    optimizer = PortableAdam(groups(params))
    fill_gradients(params, 0)
    optimizer.step()
    assert {key for state in optimizer.state.values() for key in state} == {"exp_avg", "exp_avg_sq"}
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]


def test_continues_bit_for_bit_from_its_state_dict() -> None:
    straight, resumed = parameters(), parameters()
    first, second = PortableAdam(groups(straight)), PortableAdam(groups(resumed))
    for step in range(3):
        for optimizer, params in ((first, straight), (second, resumed)):
            fill_gradients(params, step)
            optimizer.step()
    fresh = PortableAdam(groups(resumed))
    fresh.load_state_dict(copy.deepcopy(second.state_dict()))
    for step in range(3, 6):
        for optimizer, params in ((first, straight), (fresh, resumed)):
            fill_gradients(params, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_steps_are_counted_without_gradients() -> None:
    params = parameters()
    optimizer = PortableAdam([{"params": params}, {"params": []}])
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]
    assert all(torch.equal(a, b) for a, b in zip(params, parameters(), strict=True))


def test_takes_the_place_of_the_torch_fallback() -> None:
    import megatron.core.optimizer as mcore
    from megatron.core.optimizer import distrib_optimizer

    install_portable_adam()
    install_portable_adam()
    assert not mcore.USING_PYTORCH_OPTIMIZER
    assert distrib_optimizer.HAVE_APEX_OR_TE
    if mcore.Adam.__module__.startswith(("transformer_engine", "apex")):
        pytest.skip("a fused Adam is installed; it is used as it is")
    assert mcore.Adam is distrib_optimizer.Adam is PortableAdam
