"""The table of parameter names: ours, which are Hugging Face's, and OpenAI's.

The functions translate a source's tensors to our names; `checkpoint.check_tensors` then checks them against the config.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from gptcli.checkpoints.verify import listed, plain_names
from gptcli.config.model import GPTConfig
from gptcli.errors import GptcliError

# Ours -> OpenAI's; {} stands for the number of the layer.
TABLE = {
    "wte.weight": "model/wte",
    "wpe.weight": "model/wpe",
    "h.{}.ln_1.weight": "model/h{}/ln_1/g",
    "h.{}.ln_1.bias": "model/h{}/ln_1/b",
    "h.{}.attn.c_attn.weight": "model/h{}/attn/c_attn/w",
    "h.{}.attn.c_attn.bias": "model/h{}/attn/c_attn/b",
    "h.{}.attn.c_proj.weight": "model/h{}/attn/c_proj/w",
    "h.{}.attn.c_proj.bias": "model/h{}/attn/c_proj/b",
    "h.{}.ln_2.weight": "model/h{}/ln_2/g",
    "h.{}.ln_2.bias": "model/h{}/ln_2/b",
    "h.{}.mlp.c_fc.weight": "model/h{}/mlp/c_fc/w",
    "h.{}.mlp.c_fc.bias": "model/h{}/mlp/c_fc/b",
    "h.{}.mlp.c_proj.weight": "model/h{}/mlp/c_proj/w",
    "h.{}.mlp.c_proj.bias": "model/h{}/mlp/c_proj/b",
    "ln_f.weight": "model/ln_f/g",
    "ln_f.bias": "model/ln_f/b",
}
INVERSE = {openai: ours for ours, openai in TABLE.items()}
HEAD = "lm_head.weight"

# Projection weights: OpenAI stores them as 1×1 convolutions (1, in, out), torch.nn.Linear as (out, in).
_PROJECTION = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias$")


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    number = re.search(r"(?<=\bh)\.?(\d+)(?=[./])", name)
    if number is None:
        return table.get(name)
    template = table.get(name[: number.start(1)] + "{}" + name[number.end(1) :])
    # Reject other spellings of a layer's number, such as h.01.
    if template is None or str(int(number[1])) != number[1]:
        return None
    return template.format(number[1])


def from_openai(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's tensors by our names, as views; names that are not in the table are unchanged."""
    found = {}
    for name, tensor in tensors.items():
        ours = _translate(name, INVERSE) or name
        is_convolution = _PROJECTION.search(ours) and tensor.dim() == 3 and tensor.size(0) == 1
        found[ours] = tensor[0] if is_convolution else tensor
    return found


def to_openai(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_openai`."""
    return {
        _translate(name, TABLE) or name: tensor[None] if _PROJECTION.search(name) else tensor
        for name, tensor in tensors.items()
    }


def transpose_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Projections transposed between our (in, out) and torch.nn.Linear's (out, in), as views; its own inverse."""
    return {
        name: tensor.t() if _PROJECTION.search(name) and tensor.dim() == 2 else tensor
        for name, tensor in tensors.items()
    }


def from_hugging_face(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors without the prefixes that wrappers add and without the causal masks that old files store.

    Raises:
        GptcliError: two names become the same name.
    """
    found = plain_names(tensors, where)
    return {name: tensor for name, tensor in found.items() if not _MASK_BUFFER.fullmatch(name)}


def settle_head(tensors: dict[str, Tensor], tied: bool, where: str) -> dict[str, Tensor]:
    """With a tied head, the shared matrix as wte.weight only, under whichever of its two names the file has it.

    Raises:
        GptcliError: the head is tied, but the file has two different matrices.
    """
    if not tied or HEAD not in tensors:
        return tensors
    found = dict(tensors)
    head = found.pop(HEAD)
    embedding = found.setdefault("wte.weight", head)
    if embedding.shape != head.shape or not embedding.equal(head):
        raise GptcliError(
            f"{where}: lm_head.weight differs from wte.weight, but config.json says that the head is tied to it.",
            'If the model has its own head, write "tie_word_embeddings": false into config.json.',
        )
    return found


def infer_config(tensors: Mapping[str, Tensor], where: str) -> GPTConfig:
    """The shape of a model without config.json, inferred from its tensors; head_dim is assumed to be GPT-2's 64.

    Raises:
        GptcliError: the tensors are not a GPT-2's, or emb_dim is not a multiple of 64.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layers = {int(number[1]) for name in shapes if (number := re.match(r"h\.(\d{1,6})\.", name))}
    embedding = shapes.get("wte.weight", shapes.get(HEAD, ()))
    positions, up = shapes.get("wpe.weight", ()), shapes.get("h.0.mlp.c_fc.weight", ())
    if not layers or any(len(shape) != 2 or 0 in shape for shape in (embedding, positions, up)):
        raise GptcliError(
            f"{where} has no config.json, and its tensors ({listed(sorted(shapes))}) are not GPT-2's.",
            "Only GPT-2's architecture is supported; a config.json beside the file would say what it is.",
        )
    (vocab_size, emb_dim), context_length, ffn_dim = embedding, positions[0], up[1]
    if emb_dim % 64:
        raise GptcliError(
            f"{where} has no config.json, and emb_dim {emb_dim} does not tell the number of heads, which are 64 wide.",
            "Put the model's config.json beside the file.",
        )
    own_head = HEAD in tensors and "wte.weight" in tensors and not tensors[HEAD].equal(tensors["wte.weight"])
    return GPTConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        emb_dim=emb_dim,
        n_heads=emb_dim // 64,
        n_layers=len(layers),
        tie_weights=not own_head,
        ffn_dim=None if ffn_dim == 4 * emb_dim else ffn_dim,
    )
