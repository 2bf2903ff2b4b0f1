"""The groups of a profile: names of kernels as torch, cuDNN, cuBLAS and Triton give them, and the ideal beside each."""

import pytest
import torch
from torch import nn

from fastcifar.config.config import Model
from fastcifar.models.counts import train_flop
from fastcifar.models.networks import make_model
from fastcifar.observers.kernel_groups import (
    DGRAD,
    FORWARD,
    GROUPS,
    LOADER,
    NORM,
    OTHER,
    UPDATE,
    WGRAD,
    Row,
    Work,
    group_of,
    report,
    step_work,
)

RECORDED = {
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_warpgroupsize1x1x1_g1_"
    "execute_segment_k_off_kernel__5x_cudnn": FORWARD,
    "void convolve_common_engine_float_NHWC<__nv_bfloat16, __nv_bfloat16, 128, 5, 5, 3, 3, 3, 1, false, true, true>"
    "(int, int, int)": FORWARD,
    "sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64": DGRAD,
    "sm90_xmma_wgrad_indexed_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": WGRAD,
    "_ZN17cutlass__5x_cudnn6KernelINS_4conv6kernel23ImplicitGemmConvolutionINS1_11threadblock21ImplicitGemm"
    "MultistageINS_4conv32Conv2dWgradOutputGradientTileE": WGRAD,
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_64x64_64x5_nhwc_align8>": FORWARD,
    "void cask_plugin__5x_cudnn::xmma__5x_cudnn::init_device_workspace_for_wgrad<unsigned int>(int)": WGRAD,
    "void at::native::(anonymous namespace)::max_pool_backward_nhwc<c10::BFloat16, int>": NORM,
    "void at::native::batch_norm_collect_statistics_channels_last_kernel<at::native::Var, c10::BFloat16>": NORM,
    "statistics": NORM, "normalize": NORM, "gradient_sums": NORM, "input_gradient": NORM,
    "input_gradient_of_pooled": DGRAD, "weight_gradient_of_pooled": WGRAD, "add_parts": WGRAD,
    "conv_pool_stats": FORWARD, "bias_activation": NORM, "activation_gradient": NORM,
    "void at::native::vectorized_elementwise_kernel<8, at::native::(anonymous namespace)::silu_kernel(at::"
    "TensorIteratorBase&)::{lambda()#1}>": NORM,
    "prepare": UPDATE, "gram": UPDATE, "steps": UPDATE, "apply": UPDATE, "sgd": UPDATE, "take": LOADER,
    "nvjet_hsh_128x64_64x8_1x2_h_bz_coopA_NNT": UPDATE,
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
    "TensorListMetadata<2>, BinaryOpScalarFunctor>": UPDATE,
    "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long, unsigned int, 2>": LOADER,
    "void at::native::vectorized_gather_kernel<16, long>": LOADER,
    "void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda(at::TensorIterator"
    "Base&)::{lambda(float)#1}>": "casts",
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::"
    "{lambda()#3}, at::native::memory::LoadWithCast<1>>": "casts",
    "void (anonymous namespace)::softmax_warp_forward<float, float, float, 4, true, false>": "loss",
    "void at::native::(anonymous namespace)::nll_loss_forward_reduce_cuda_kernel_2d<float, float, long>": "loss",
    "Memcpy DtoD (Device -> Device)": "copies, fills", "Memset (Device)": "copies, fills",
    "void cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half, float, false, true>": "copies, fills",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<c10::BFloat16, MaxNanFunctor>>": OTHER,
    "aten::mkldnn_convolution": FORWARD, "aten::convolution_backward": "convolution, both gradients",
    "aten::native_batch_norm": NORM, "aten::cross_entropy_loss": "loss", "aten::index_select": LOADER,
    "aten::_log_softmax_backward_data": "loss", "aten::copy_": "copies, fills", "aten::_to_copy": "casts",
}  # fmt: skip


@pytest.mark.parametrize(("name", "group"), RECORDED.items())
def test_a_name_has_its_group(name, group):
    assert group_of(name) == group


def test_every_group_has_a_name_in_this_file():
    assert set(RECORDED.values()) == {*GROUPS, OTHER}


def test_the_report_of_recorded_kernels():
    """Of five steps: all rows with whole names, times per step, groups that add up, and the ideals."""
    rows = [Row(name, 5 * n, 50.0 * n) for n, name in enumerate(RECORDED, 1)]
    work = {FORWARD: Work(989e6, 6.7e6), NORM: Work(0.0, 33.5e6)}
    text = report(rows, 5, work, (989e12, 3.35e12), "the heading")
    lines = text.splitlines()
    assert lines[0] == "the heading" and all(any(line.endswith(f"  {name}") for line in lines) for name in RECORDED)
    groups = {line.split("  ")[-1]: line.split() for line in lines[3 : lines.index("", 3) - 1]}
    assert set(groups) == {*GROUPS, OTHER}
    for group, cells in groups.items():
        assert float(cells[0]) == sum(10.0 * n for n, g in enumerate(RECORDED.values(), 1) if g == group)
    assert groups[FORWARD][3:5] == ["1.0", "2.0"] and groups[NORM][3:5] == ["-", "10.0"]
    assert groups[OTHER][3:5] == ["-", "-"]
    assert "989 TFLOP/s and 3.35 TB/s" in text
    unknown = report(rows, 5, work, None, "another card")
    assert "TFLOP/s" not in unknown and " 1.0 " not in unknown.split("name")[0].splitlines()[3]


def test_the_least_work_of_a_step_of_two_convolutions():
    """By hand: 4 images of 8 pixels, 3 -> 4 channels, then 4 -> 6, kernels 3x3 with padding, two bytes a value."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
    work = step_work(network, batch=4, size_px=8)
    pixels, first, second = 4 * 64, 4 * 27, 6 * 36
    assert work[FORWARD].flop == work[WGRAD].flop == 2 * pixels * (first + second)
    assert work[DGRAD].flop == 2 * pixels * second  # the images need no gradient
    assert work[FORWARD].moved == 2 * (pixels * (3 + 4 + 4 + 6) + first + second)
    assert work[NORM] == Work(0.0, 2 * pixels * (3 * 4 + 3 * 6 + 2 * 4))
    assert work[LOADER].moved == 2 * 2 * 4 * 3 * 64
    assert work[UPDATE].flop == sum(4 * r**2 * k + 18 * r**3 for r, k in ((4, 27), (6, 36)))
    assert UPDATE not in step_work(network, batch=4, size_px=8, muon=False)


def test_the_arithmetic_of_resnet9_is_that_of_the_record():
    model = make_model(Model(scale="small"), 10, seed=0)
    work, heads = step_work(model, 100, 32), 3 * 2 * model.head.weight.numel()
    convolutions = sum(work[group].flop for group in (FORWARD, DGRAD, WGRAD)) / 100
    assert convolutions + heads == pytest.approx(train_flop(model, 32)) and torch.is_grad_enabled()
