"""Floating-point operations of a training step, without those that recomputation repeats. Torch-free."""

from megatron_davinci.models.sizes import ModelSizes

# Dense peak without sparsity, operations per second, in the vendor's data sheets. The first name that is part of the
# device's counts: an H100 that says nothing else is the SXM part.
_DENSE_BF16_PEAK = {"A100": 312e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "H200 NVL": 835e12,
                    "GH200": 989.4e12, "H200": 989.4e12, "GB200": 2500e12, "B200": 2250e12}  # fmt: skip
_DENSE_FP8_PEAK = {name: 2 * peak for name, peak in _DENSE_BF16_PEAK.items() if name != "A100"}


def training_flops(model: ModelSizes, tokens: int, squared_lengths: int, labels: int) -> float:
    """Model FLOPs of forward and backward (twice the forward) over packed documents.

    A matrix product costs 2 per weight and row. Attention, causal and inside documents, costs per layer
    2 * 2 * (heads * d) * length^2 / 2: `squared_lengths` is the sum of length^2, not the sequence length squared. The
    output layer is computed for `labels` rows, the embedding costs nothing. Norms and activations are left out, as is
    usual (Narayanan et al. 2021, arXiv:2104.04473).
    """
    weights = sum(layer.num_weights for layer in model.linear_layers)
    layer = 2.0 * weights * tokens + 2.0 * model.query_size * squared_lengths
    return 3.0 * (model.num_layers * layer + 2.0 * model.hidden_size * model.vocab_size * labels)


def dense_peak(device_name: str, fp8: bool) -> tuple[float | None, str | None]:
    """Peak of a GPU by its name, and what it is called; None where it is not known: then no share of it is reported."""
    peaks = _DENSE_FP8_PEAK if fp8 else _DENSE_BF16_PEAK
    for name, peak in peaks.items():
        if name in device_name:
            return peak, f"{name}'s dense {'FP8' if fp8 else 'BF16'} peak, {peak / 1e12:,.0f} TFLOP/s"
    return None, None
