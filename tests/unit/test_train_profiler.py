"""The summary of a profile: overlapping work counts once, kinds add up to what ran."""

import pytest

from megatron_ko.train.profiler import Work, describe_summary, kind_of, summarise_events


def test_overlapping_work_is_busy_once_and_kinds_add_up() -> None:
    work = [
        Work("sm90_gemm_bf16", 0, 2000, 2000),
        Work("ncclDevKernel_AllReduce", 1000, 3000, 2000),
        Work("vectorized_elementwise_kernel", 5000, 6000, 1000),
        Work("gemm_again", 5500, 5600, 100),
    ]
    summary = summarise_events(work, wall_ms=8.0, steps=2)
    assert summary["device_busy_ms"] == pytest.approx(2.0)
    assert (summary["wall_ms"], summary["kernels"]) == (4.0, 2)
    assert summary["by_kind"] == pytest.approx(
        {"matrix products": 1.05, "communication": 1.0, "elementwise and others": 0.5}
    )
    assert "device busy 2.0 of 4.0 ms a step" in describe_summary(summary)[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "attention"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("void transformer_engine::normalization::rmsnorm_fwd_tuned_kernel", "norms"),
        ("multi_tensor_apply_kernel<AdamFunctor>", "optimizer"),
        ("cross_entropy_backward_kernel", "cross entropy"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("aten::mm", "matrix products"),
    ],
)
def test_kernels_are_told_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind
