"""Parameters, bytes, memory and FLOPs of a model, computed from its config without torch.

Letters: V vocab_size, C emb_dim, F hidden_dim, L n_layers, H n_heads, B batch size, T tokens in a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from gptcli.config.lora import LoRAConfig
from gptcli.config.model import GPT3_PRESETS, PRESETS, GPTConfig
from gptcli.errors import GptcliError, nearest
from gptcli.model.parameters import adapter_size, components

SIZES: dict[str, GPTConfig] = PRESETS | GPT3_PRESETS

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8", "int4")
INT4_GROUP = 32
LOGITS_CHUNK_BYTES = 104 * 2**20  # equal to loss.CHUNK_BYTES; loss.py imports torch
GPU_LOGITS_CHUNK_BYTES = 2**31
TORCH_BYTES = 140_000_000
FRAGMENTED = 0.4

GPT3_TRAINING_TOKENS = 300_000_000_000
V100_FLOPS_PER_SECOND = 28e12
SECONDS_PER_YEAR = 365 * 24 * 3_600


def size_named(size: str) -> GPTConfig:
    """The GPT-2 or GPT-3 config named ``size``. Raises GptcliError with the nearest name if there is none."""
    if size not in SIZES:
        raise GptcliError(f"There is no size {size!r}.", nearest(size, SIZES))
    return SIZES[size]


# Parameters


def parameter_count(config: GPTConfig) -> int:
    """All parameters; a tied head and the token embedding count once."""
    return sum(component.parameters for component in components(config))


def non_embedding_parameter_count(config: GPTConfig) -> int:
    """The blocks and the final norm: no token or position embedding, no head (Kaplan et al., 2020, section 2.1)."""
    outside = ("token embedding", "position embedding", "output head")
    return sum(component.parameters for component in components(config) if component.name not in outside)


def percentages(counts: Sequence[int]) -> list[float]:
    """The share of each count in per cent, with one decimal; the shares add up to exactly 100.0.

    Every share is rounded down to tenths; the shares with the largest remainders then get one missing tenth each.
    """
    total = sum(counts)
    tenths = [count * 1_000 // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] * 1_000 % total, reverse=True)
    for i in by_remainder[: 1_000 - sum(tenths)]:
        tenths[i] += 1
    return [tenth / 10 for tenth in tenths]


# Bytes of the weights


def weight_bytes(config: GPTConfig, weight_format: WeightFormat) -> int:
    """Bytes of all weights in one format, without the few kB of a file's header.

    float32 and bfloat16 take 4 and 2 bytes a parameter. int8 and int4 have the layouts of quantization.py: every matrix
    except the position embedding and a classifier's head takes 1 or 1/2 byte a weight; int8 adds a float32 scale for
    each output channel, int4 a bfloat16 scale for each group of 32 inputs of an output channel. Position embedding,
    a classifier's head, biases and norms are float32.
    """
    if weight_format == "float32":
        return 4 * parameter_count(config)
    if weight_format == "bfloat16":
        return 2 * parameter_count(config)
    return sum(
        _packed_bytes(name, shape, weight_format) * component.layers
        for component in components(config)
        for name, shape in component.tensors.items()
    )


def _packed_bytes(name: str, shape: tuple[int, ...], weight_format: WeightFormat) -> int:
    if len(shape) == 1 or name in ("wpe.weight", "score.weight"):
        return 4 * prod(shape)
    outputs, inputs = shape if name in ("wte.weight", "lm_head.weight") else shape[::-1]
    if weight_format == "int8":
        return outputs * inputs + 4 * outputs
    groups = -(-inputs // INT4_GROUP)
    return outputs * groups * (INT4_GROUP // 2 + 2)


# Inference


def kv_cache_bytes_per_token(config: GPTConfig, element_bytes: int = 4) -> int:
    """Bytes that one token takes in the cache of one sequence: a key and a value of C elements in every layer."""
    return 2 * config.n_layers * config.emb_dim * element_bytes


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations for one token; a multiply-add counts as two."""

    matrices: int
    attention: int

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.matrices + self.attention

    @property
    def training(self) -> int:
        """Forward, plus a backward pass at twice its cost: the gradients of the inputs and of the weights."""
        return 3 * self.forward


def flops_per_token(config: GPTConfig, context: int | None = None) -> FlopsPerToken:
    """FLOPs for one token of a window of ``context`` tokens (default: the config's), averaged over the window.

    - matrices: 2 for every weight of the blocks' matrices and of the head, tied or not; an embedding lookup has no
      product. This is the 2N rule (6N in training) of Kaplan et al., "Scaling Laws for Neural Language Models" (2020),
      section 2.1, except that N includes the head, because a training step computes the head for every token.
    - attention: Q·Kᵀ and weights·V, 2·C each for every pair of tokens and layer: 4·L·C·context, for the whole (T, T)
      square as in PaLM (Chowdhery et al., 2022, appendix B: 12·L·C·context in training). A kernel that skips the masked
      half computes 2·L·C·context, the term in table 1 of Kaplan et al.

    Norms, biases, GELU, softmax and dropout are not counted: below 1% of the total at GPT-2's width.
    """
    T = config.context_length if context is None else context
    multiplied = sum(
        prod(shape) * component.layers
        for component in components(config)
        for name, shape in component.tensors.items()
        if len(shape) == 2 and not name.startswith(("wte.", "wpe."))
    )
    if config.embedding_is_head:
        multiplied += config.vocab_size * config.emb_dim
    return FlopsPerToken(matrices=2 * multiplied, attention=4 * config.n_layers * config.emb_dim * T)


def forward_flops_rule(config: GPTConfig) -> int:
    """FLOPs of a forward pass for one token by the 2N rule; N is the number of all parameters with a tied head."""
    return 2 * parameter_count(config.with_changes(tie_weights=True))


def training_flops_rule(config: GPTConfig, frozen: bool = False) -> int:
    """FLOPs to train on one token by the 6N rule: 2N forward and 4N backward, half of these for the weights' gradients,
    which ``frozen`` ones beside adapters have not."""
    return (2 if frozen else 3) * forward_flops_rule(config)


def training_compute(config: GPTConfig, tokens: int = GPT3_TRAINING_TOKENS) -> int:
    """FLOPs to train on ``tokens`` tokens by the 6N rule, as in table D.1 of the GPT-3 paper (Brown et al., 2020).

    All GPT-3 models were trained on 300 billion tokens (table 2.1 there); the result for the largest is the paper's
    3.14e23.
    """
    return training_flops_rule(config) * tokens


def v100_years(flops: float) -> float:
    """Years that one V100 takes for ``flops``, at 28 TFLOP/s sustained and 365 days a year.

    28 TFLOP/s is the V100's theoretical half-precision rate in Lambda Labs' "OpenAI's GPT-3 Language Model: A Technical
    Overview" (2020), whose estimate for GPT-3 is 355 V100-years. The peak of the tensor cores is 125 TFLOP/s.
    """
    return flops / V100_FLOPS_PER_SECOND / SECONDS_PER_YEAR


# Training


def activation_bytes(
    config: GPTConfig, batch_size: int, context: int, recompute: bool = False, on_cpu: bool = True, itemsize: int = 4
) -> int:
    """Bytes that a forward pass in train mode of gpt.py and dropout.py holds for its backward pass.

    With R = batch_size · context rows, a block holds, in bytes of float32 (on a GPU in bfloat16 half of each line,
    except statistics and masks):

        4RC    its input, shared by the residual sum and the first norm
        16R    mean and 1/std of both norms
        4RC    the first norm's output, input of the qkv projection
        12RC   queries, keys and values, one tensor        (4RC more if queries are scaled and there is no dropout)
        4RC    the heads' output, input of the output projection
        4RC    the residual stream after attention, input of the second norm
        4RC    the second norm's output, input of the feed-forward
        8RF    before and after GELU                        (ReLU: 4RF, after it)
        2RC    two dropout masks, a byte an element         (dropout only)
        BHT²   the mask of the attention weights            (dropout on a CPU)
        4BHT   the log of every softmax's sum               (without dropout, or on a GPU)

    Outside the blocks: ids and positions (8 bytes each), the embedding's dropout mask (RC, dropout only), the final
    norm's input (4RC) and statistics (8R), and the gradient of its output (4RC), which the chunked loss computes in the
    forward pass; no logits are held. The (T, T) attention weights are not held in float32.

    Args:
        config: the model's shape; its drop_rate decides which masks are held.
        batch_size: windows in a step.
        context: tokens in a window, at most config.context_length.
        recompute: hold only the blocks' inputs, and one block in full while its backward pass runs.
        on_cpu: False for a GPU, whose fused attention generates its mask again in the backward pass.
        itemsize: bytes of an activation: 4, or 2 on a GPU that trains in bfloat16.
    """
    held = _bytes_after_forward(config, batch_size, context, recompute, on_cpu, itemsize)
    if recompute:
        block = _block_bytes(config, batch_size, context, on_cpu, itemsize)
        held += block - itemsize * batch_size * context * config.emb_dim
    return held


def _bytes_after_forward(
    config: GPTConfig, batch_size: int, context: int, recompute: bool, on_cpu: bool, itemsize: int
) -> int:
    """Bytes held at the end of the forward pass, before any block is recomputed."""
    rows = batch_size * context
    RC = rows * config.emb_dim
    around = 8 * (rows + context) + (RC if config.drop_rate > 0 else 0) + 2 * itemsize * RC + 8 * rows
    block = itemsize * RC if recompute else _block_bytes(config, batch_size, context, on_cpu, itemsize)
    return around + config.n_layers * block


def _block_bytes(config: GPTConfig, batch_size: int, context: int, on_cpu: bool, itemsize: int) -> int:
    rows = batch_size * context
    RC = rows * config.emb_dim
    scaled = config.drop_rate == 0 and (config.scale_attn_by_layer or not config.scale_attn)
    streams = (9 if scaled else 8) * itemsize * RC
    hidden = (1 if config.activation == "relu" else 2) * itemsize * rows * config.hidden_dim
    masks = 2 * RC if config.drop_rate > 0 else 0
    mask_or_log_sums = context if config.drop_rate > 0 and on_cpu else 4
    return streams + hidden + 16 * rows + masks + rows * config.n_heads * mask_or_log_sums


def logits_bytes(config: GPTConfig, batch_size: int, context: int, on_cpu: bool = True, itemsize: int = 4) -> int:
    """The most bytes of logits that exist at once: those of one chunk of the loss."""
    rows = batch_size * context
    chunks = max(
        1, -(-itemsize * rows * config.n_outputs // (LOGITS_CHUNK_BYTES if on_cpu else GPU_LOGITS_CHUNK_BYTES))
    )
    return itemsize * config.n_outputs * -(-rows // chunks)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of the tensors of one training step.

    Attributes:
        weights: 4 a parameter.
        gradients: 4 a trained parameter, at the end of the backward pass.
        optimizer: AdamW's two moments, 8 a trained parameter.
        activations: see `activation_bytes`.
        logits: see `logits_bytes`.
        peak: the most that exists at once: there are no gradients in the forward pass, and the backward pass frees
            the activations of a block when it makes the gradients of the block's weights.
        resident: main memory of the process on a CPU, beyond that held before the model was made. An empirical formula
            (glibc's allocator, float32, sizes tiny to small): torch's libraries take TORCH_BYTES at their first
            computation, and heap fragmentation costs the fraction FRAGMENTED of the bytes that a step allocates and
            frees. Within 15% of the measured peaks.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int

    @property
    def resident(self) -> int:
        """Bytes of main memory; see the class."""
        transient = self.peak - self.weights - self.optimizer
        return self.peak + TORCH_BYTES + int(FRAGMENTED * transient)


def _packed_base_bytes(config: GPTConfig, weight_format: WeightFormat) -> int:
    """Bytes of the weights of `quantized.packed_base`: the embeddings and the head are float32."""
    return sum(
        part.layers * (_packed_bytes(name, shape, weight_format) if name.startswith("h.") else 4 * prod(shape))
        for part in components(config)
        for name, shape in part.tensors.items()
    )


def training_memory(
    config: GPTConfig,
    batch_size: int,
    context: int,
    recompute: bool = False,
    on_cpu: bool = True,
    itemsize: int = 4,
    adapter: LoRAConfig | None = None,
) -> TrainingMemory:
    """Memory of an AdamW step on ``batch_size`` windows of ``context`` tokens; arguments as `activation_bytes`.

    With an ``adapter``, the model's own weights and head have no gradients and no moments.

    Weights and moments exist throughout; the peak is where the rest is largest, at one of four moments:

    - the loss, at the end of the forward pass: activations, the head's gradient (which the chunked loss computes here),
      the final norm's output and the logits of a chunk;
    - the backward pass of the last block, the first to run: activations, the head's gradient, and the gradient of the
      hidden layer of the feed-forward (4RF);
    - the backward pass of the first block: its activations only, and the gradients of the other blocks' weights;
    - the end: all gradients, and with a tied head the embedding's part of its gradient before the two are added.
    """
    parameters, L = parameter_count(config), config.n_layers
    stream = itemsize * batch_size * context * config.emb_dim
    trained = parameters if adapter is None else adapter_size(config, adapter)
    head = 4 * config.n_outputs * config.emb_dim if adapter is None else 0
    activations = activation_bytes(config, batch_size, context, recompute, on_cpu, itemsize)
    logits = logits_bytes(config, batch_size, context, on_cpu, itemsize)
    in_loss = _bytes_after_forward(config, batch_size, context, recompute, on_cpu, itemsize) + head + stream + logits
    if not on_cpu:  # the padded head in the products' dtype, and one chunk's gradient of it
        in_loss += 2 * itemsize * config.n_outputs * config.emb_dim
    last_block = activations + head + itemsize * batch_size * context * config.hidden_dim
    freed = stream if recompute else _block_bytes(config, batch_size, context, on_cpu, itemsize)
    made = 4 * (non_embedding_parameter_count(config) if adapter is None else trained) // L
    first_block = last_block + (L - 1) * (made - freed)
    end = 4 * trained + (head if config.embedding_is_head else 0)
    bits = 32 if adapter is None else adapter.base_bits
    weights = 4 * parameters if bits == 32 else _packed_base_bytes(config, "int8" if bits == 8 else "int4")
    return TrainingMemory(
        weights=weights,
        gradients=4 * trained,
        optimizer=8 * trained,
        activations=activations,
        logits=logits,
        peak=weights + 8 * trained + max(in_loss, last_block, first_block, end),
    )
