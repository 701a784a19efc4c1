"""What a model of a given shape weighs and costs: parameters, bytes, memory, FLOPs. Arithmetic alone, no torch.

Letters: V vocab_size, C emb_dim, F hidden_dim, L n_layers, H n_heads, B batch size, T tokens in a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from gptcli.config.model import GPT3_PRESETS, PRESETS, GPTConfig
from gptcli.errors import GptcliError, nearest
from gptcli.model.parameters import components

SIZES: dict[str, GPTConfig] = PRESETS | GPT3_PRESETS

WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8", "int4")
INT4_GROUP = 32
LOGITS_CHUNK_BYTES = 104 * 2**20  # as loss.py, which needs torch, has it
GPU_LOGITS_CHUNK_BYTES = 2**31
TORCH_BYTES = 140_000_000
FRAGMENTED = 0.4

GPT3_TRAINING_TOKENS = 300_000_000_000
V100_FLOPS_PER_SECOND = 28e12
SECONDS_PER_YEAR = 365 * 24 * 3_600


def size_named(size: str) -> GPTConfig:
    """The shape called ``size``, GPT-3's included. Raises GptcliError with the nearest name."""
    if size not in SIZES:
        raise GptcliError(f"There is no size {size!r}.", nearest(size, SIZES))
    return SIZES[size]


# Parameters


def parameter_count(config: GPTConfig) -> int:
    """All parameters; a tied head counts once, as the token embedding."""
    return sum(component.parameters for component in components(config))


def non_embedding_parameter_count(config: GPTConfig) -> int:
    """The blocks and the final norm: no token or position embedding, no head (Kaplan et al., 2020, section 2.1)."""
    outside = ("token embedding", "position embedding", "output head")
    return sum(component.parameters for component in components(config) if component.name not in outside)


def percentages(counts: Sequence[int]) -> list[float]:
    """The share of each count in per cent, with one decimal, adding up to exactly 100.0 as printed.

    Every share is rounded down; the tenths that are missing then go to the largest remainders, one each.
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

    float32 and bfloat16 take 4 and 2 bytes a parameter. int8 and int4 are quantization.py's: every matrix but the
    position embedding at 1 and 1/2 byte a weight, with a float32 scale for each output channel in int8, and a bfloat16
    scale for each group of 32 inputs of an output channel in int4. Positions, biases and norms stay float32.
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
    if len(shape) == 1 or name == "wpe.weight":
        return 4 * prod(shape)
    outputs, inputs = shape if name in ("wte.weight", "lm_head.weight") else shape[::-1]
    if weight_format == "int8":
        return outputs * inputs + 4 * outputs
    groups = -(-inputs // INT4_GROUP)
    return outputs * groups * (INT4_GROUP // 2 + 2)


# Inference


def kv_cache_bytes_per_token(config: GPTConfig, element_bytes: int = 4) -> int:
    """Bytes that one more token adds to the cache of one sequence: a key and a value of C elements in every layer."""
    return 2 * config.n_layers * config.emb_dim * element_bytes


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations for one token (a multiply-add is two); training is three times forward."""

    matrices: int
    attention: int

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.matrices + self.attention

    @property
    def training(self) -> int:
        """Forward, and backward at twice its cost: the gradient of the inputs and that of the weights."""
        return 3 * self.forward


def flops_per_token(config: GPTConfig, context: int | None = None) -> FlopsPerToken:
    """FLOPs for one token of a window of ``context`` tokens (default: the config's), averaged over the window.

    - matrices: 2 for every weight that multiplies, so all matrices of the blocks and the head, tied or not; looking up
      an embedding multiplies nothing. This is the 2N rule (6N in training) of Kaplan et al., "Scaling Laws for Neural
      Language Models" (2020), section 2.1, with the head counted in N, as every token of a training step passes it.
    - attention: Q·Kᵀ and weights·V, 2·C each for every pair of tokens and layer: 4·L·C·context, the whole square as in
      PaLM (Chowdhery et al., 2022, appendix B: 12·L·C·context in training). A kernel that skips the masked half does
      half of it, which is the term 2·L·C·context in Kaplan's table 1.

    Norms, biases, GELU, softmax and dropout are left out: below 1% of a model of GPT-2's width.
    """
    T = config.context_length if context is None else context
    multiplied = sum(
        prod(shape) * component.layers
        for component in components(config)
        for name, shape in component.tensors.items()
        if len(shape) == 2 and not name.startswith(("wte.", "wpe."))
    )
    if config.tie_weights:
        multiplied += config.vocab_size * config.emb_dim
    return FlopsPerToken(matrices=2 * multiplied, attention=4 * config.n_layers * config.emb_dim * T)


def forward_flops_rule(config: GPTConfig) -> int:
    """The rule of thumb 2N per token, N being all parameters with a tied head; training is 6N."""
    return 2 * parameter_count(config.with_changes(tie_weights=True))


def training_flops_rule(config: GPTConfig) -> int:
    """FLOPs to train on one token by the 6N rule: forward, and twice that backward."""
    return 3 * forward_flops_rule(config)


def training_compute(config: GPTConfig, tokens: int = GPT3_TRAINING_TOKENS) -> int:
    """FLOPs to train on ``tokens`` tokens by the 6N rule, as in table D.1 of the GPT-3 paper (Brown et al., 2020).

    All GPT-3 models saw 300 billion tokens (their table 2.1); the largest comes to the paper's 3.14e23.
    """
    return training_flops_rule(config) * tokens


def v100_years(flops: float) -> float:
    """Years that one V100 takes for ``flops``, at 28 TFLOP/s sustained and 365 days a year.

    28 TFLOP/s is the V100's theoretical half-precision rate in Lambda Labs' "OpenAI's GPT-3 Language Model: A Technical
    Overview" (2020), which so arrives at 355 V100-years for GPT-3. The tensor cores' peak is 125.
    """
    return flops / V100_FLOPS_PER_SECOND / SECONDS_PER_YEAR


# Training


def activation_bytes(
    config: GPTConfig, batch_size: int, context: int, recompute: bool = False, on_cpu: bool = True, itemsize: int = 4
) -> int:
    """Bytes that a forward pass in train mode holds for its backward pass, as gpt.py and dropout.py do it.

    With R = batch_size · context rows, a block holds, in bytes (of float32; half of what is not statistics or masks on
    a GPU in bfloat16):

        4RC    its input, which the residual and the first norm share
        16R    mean and 1/std of both norms
        4RC    the first norm's output, input of the qkv projection
        12RC   queries, keys and values, one tensor        (4RC more: scaled otherwise, no dropout)
        4RC    the heads' output, input of the output projection
        4RC    the stream after attention, input of the second norm
        4RC    the second norm's output, input of the feed-forward
        8RF    before and after GELU                        (ReLU: 4RF, after it)
        2RC    two dropout masks, a byte an element         (dropout only)
        BHT²   the mask of the attention weights            (dropout on a CPU)
        4BHT   the log of every softmax's sum               (without dropout, or on a GPU)

    Around the blocks: ids and positions (8 bytes each), the embedding's mask (RC, dropout only), the final norm's
    input (4RC) and statistics (8R), and the gradient of its output (4RC), which the chunked loss makes at once; no
    logits stay. The heads never hold their (T, T) weights in float32.

    Args:
        config: the shape; its drop_rate decides which masks there are.
        batch_size: windows in a step.
        context: tokens in a window, at most config.context_length.
        recompute: hold only the blocks' inputs, and one block in full while its backward pass runs.
        on_cpu: False for a GPU, whose fused attention draws its mask again instead of holding it.
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
    """What is held when the loss is known, before a block is computed again."""
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
    """The most bytes of logits that exist at once: the loss makes chunks of so many bytes at most."""
    rows = batch_size * context
    chunks = max(
        1, -(-itemsize * rows * config.vocab_size // (LOGITS_CHUNK_BYTES if on_cpu else GPU_LOGITS_CHUNK_BYTES))
    )
    return itemsize * config.vocab_size * -(-rows // chunks)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of the tensors of one training step.

    Attributes:
        weights: 4 a parameter.
        gradients: 4 a parameter, once the backward pass is through.
        optimizer: AdamW's two moments, 8 a parameter.
        activations: see `activation_bytes`.
        logits: see `logits_bytes`.
        peak: the most that exists at once: there are no gradients in the forward pass, and the backward pass frees
            the activations of a block as it makes the gradients of its weights.
        resident: what a process takes for it on a CPU, beyond what it held before the model was made. Measured and
            not derived (glibc's allocator, float32, tiny to small): torch's libraries take TORCH_BYTES more when they
            first compute, and freed memory lies in pieces of which the next request finds a part too small, which
            costs FRAGMENTED of all that comes and goes in a step. Within 15% of the peaks measured.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int

    @property
    def resident(self) -> int:
        """Bytes of main memory; see above."""
        transient = self.peak - self.weights - self.optimizer
        return self.peak + TORCH_BYTES + int(FRAGMENTED * transient)


def training_memory(
    config: GPTConfig, batch_size: int, context: int, recompute: bool = False, on_cpu: bool = True, itemsize: int = 4
) -> TrainingMemory:
    """What a step of AdamW on ``batch_size`` windows of ``context`` tokens takes; arguments as `activation_bytes`.

    Weights and moments are there all the time; the peak is where the rest is largest, at one of four moments:

    - the end of the forward pass, in the loss: activations, the head's gradient (the chunked loss makes it at once),
      the final norm's output and the logits of a chunk;
    - the backward pass of the last block, which comes first: activations, the head's gradient, and the gradient of
      the stream on its way through the feed-forward (4RF);
    - that of the first block: its activations instead of all, and the gradients of the other blocks' weights;
    - the end: all gradients, and with a tied head the embedding's share of its gradient before the two are added.
    """
    parameters, L = parameter_count(config), config.n_layers
    stream = itemsize * batch_size * context * config.emb_dim
    head = 4 * config.vocab_size * config.emb_dim
    activations = activation_bytes(config, batch_size, context, recompute, on_cpu, itemsize)
    logits = logits_bytes(config, batch_size, context, on_cpu, itemsize)
    in_loss = _bytes_after_forward(config, batch_size, context, recompute, on_cpu, itemsize) + head + stream + logits
    if not on_cpu:  # the padded head in the products' dtype, and a chunk's share of its gradient
        in_loss += 2 * itemsize * config.vocab_size * config.emb_dim
    last_block = activations + head + itemsize * batch_size * context * config.hidden_dim
    freed = stream if recompute else _block_bytes(config, batch_size, context, on_cpu, itemsize)
    made = 4 * non_embedding_parameter_count(config) // L
    first_block = last_block + (L - 1) * (made - freed)
    end = 4 * parameters + (head if config.tie_weights else 0)
    return TrainingMemory(
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer=8 * parameters,
        activations=activations,
        logits=logits,
        peak=12 * parameters + max(in_loss, last_block, first_block, end),
    )
