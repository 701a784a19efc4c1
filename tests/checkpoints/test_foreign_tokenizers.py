"""A model that brings its own tokenizer.json, through every command; and no reader takes GPT-2's for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import CONFIG, write_hf, write_nanogpt, write_openai
from tokenizers import Tokenizer
from vocabularies import TEXTS, directory, edited, trained, unigram

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint, formats
from gptcli.config.model import GPTConfig
from gptcli.data import token_shards
from gptcli.data.encoding_chunks import PORTION
from gptcli.data.prepare import Preparation, PreparationRequest
from gptcli.inference.open import obstacle
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.template import stored

needs_numba = pytest.mark.skipif(obstacle(GPTConfig()) is not None, reason="numba cannot compile here")


def test_a_model_of_another_language_speaks_and_travels(gptcli: Any, tmp_path: Path) -> None:
    """load-gpt2, generate, evaluate, train on, quantize, export and AutoTokenizer."""
    from transformers import AutoTokenizer

    theirs = trained()
    directory(tmp_path / "german", theirs, vocab_size=512, eos_token="<|endoftext|>")
    loaded = gptcli("load-gpt2", "--from", "german")
    assert loaded.code == 0, loaded.err
    assert "bpe tokenizer" in loaded.out
    assert f"The tokenizer is {Path('german/tokenizer.json')}: " in loaded.err
    path = Path("checkpoints/german")
    assert (path / "tokenizer.json").read_bytes() == Path("german/tokenizer.json").read_bytes()
    assert json.loads((path / "config.json").read_text(encoding="utf-8"))["eos_token_id"] == 0
    auto = AutoTokenizer.from_pretrained(path)
    assert auto(TEXTS[0]).input_ids == theirs.encode(TEXTS[0]).ids
    assert auto.eos_token_id == 0
    made = gptcli("generate", "Grüße", "-c", path, "-t", 5, "-n", 80, "--json", "--dtype", "float32")
    assert made.code == 0, made.err
    text = made.json
    assert text["prompt_ids"] == theirs.encode("Grüße").ids
    assert text["samples"][0]["text"] == theirs.decode(text["samples"][0]["ids"], skip_special_tokens=False)
    shown = gptcli("tokenize", "Grüße", "-c", path, "--json").json
    assert shown["schemes"]["bpe"]["ids"] == theirs.encode("Grüße").ids
    (tmp_path / "text.txt").write_text(TEXTS[0] * 3, encoding="utf-8")
    assert gptcli("evaluate", "text.txt", "-c", path).code == 0
    run = ("--max-steps", 2, "--sample-every", 1, "--dtype", "float32", "--out", "run", "--context-length", 8)
    trained_on = gptcli("train", "text.txt", "--init-from", path, *run)
    assert trained_on.code == 0, trained_on.err
    assert gptcli("export", "run", "out", "--dtype", "float32").code == 0
    assert gptcli("quantize", "run", "--out", "small").code == 0
    for made in ("run", "out", "small"):
        assert checkpoint.load(Path(made)).tokenizer.fingerprint == checkpoint.load(path).tokenizer.fingerprint
    assert gptcli("export", "run", "file", "--format", "gguf").code == 0
    gptcli("prepare", "text.txt", "--tokenizer", "bpe", "--out", "tokens").assert_user_error("'bpe'", "bpe:4096")
    assert not Path("tokens").exists()
    (path / "tokenizer.json").write_text(trained(300).to_str(), encoding="utf-8")
    gptcli("generate", "Grüße", "-c", path).assert_user_error("fingerprint")
    (path / "tokenizer.json").unlink()
    gptcli("generate", "Grüße", "-c", path).assert_user_error("has no tokenizer.json")


GPT2_SIZED = CONFIG.with_changes(vocab_size=50_257, emb_dim=8)


@pytest.mark.parametrize("source", ["hf", "lone file", "openai", "nanogpt", "nanogpt, padded"])
def test_no_reader_takes_gpt2s_for_a_tokenizer_that_is_there(gptcli: Any, tmp_path: Path, source: str) -> None:
    folder = tmp_path / "model"
    name: str = "model"
    if source.startswith("hf"):
        write_hf(folder, config=GPT2_SIZED)
    elif source == "lone file":
        write_hf(folder, config=GPT2_SIZED.with_changes(emb_dim=64, n_heads=1))
        (folder / "config.json").unlink()
        name = "model/model.safetensors"
    elif source == "openai":
        write_openai(folder, config=GPT2_SIZED)
    else:
        padded = GPT2_SIZED.with_changes(vocab_size=50_304)
        write_nanogpt(folder / "ckpt.pt", config=padded if "padded" in source else GPT2_SIZED)
    (folder / "tokenizer.json").write_text(unigram(), encoding="utf-8")
    gptcli("load-gpt2", "--from", name, "--out", "out").assert_user_error("tokenizer.json", "Unigram")
    (folder / "tokenizer.json").write_text(trained().to_str(), encoding="utf-8")
    result = gptcli("load-gpt2", "--from", name, "--out", "out")
    assert result.code == 0, result.err
    assert checkpoint.load(Path("out")).tokenizer.kind == "bpe"
    (folder / "tokenizer.json").unlink()
    result = gptcli("load-gpt2", "--from", name, "--out", "out", "--force")
    assert "50,257 tokens are taken to be GPT-2's" in result.err
    assert checkpoint.load(Path("out")).tokenizer.kind == "gpt2"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("spiece.model", "x", ("SentencePiece",)),
        ("vocab.txt", "x", ("WordPiece",)),
        ("vocab.json", "{}", ("merges.txt",)),
        ("merges.txt", "", ("vocab.json",)),
        ("encoder.json", "{}", ("vocab.bpe",)),
        ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', ("T5Tokenizer", "tokenizer.json is missing")),
    ],
)
def test_nor_for_one_whose_files_are_others_or_not_all_there(
    gptcli: Any, tmp_path: Path, name: str, content: str, words: tuple[str, ...]
) -> None:
    write_hf(tmp_path / "model", config=GPT2_SIZED)
    (tmp_path / "model" / name).write_text(content, encoding="utf-8")
    gptcli("load-gpt2", "--from", "model").assert_user_error(name, *words)
    write_hf(tmp_path / "model", config=CONFIG)
    assert gptcli("load-gpt2", "--from", "model").code == 0
    assert checkpoint.load(Path("checkpoints/model")).tokenizer.kind == "none"


@pytest.mark.parametrize("engine", [pytest.param("cpu", marks=needs_numba), "torch"])
def test_holes_are_never_drawn(gptcli: Any, tmp_path: Path, engine: str) -> None:
    def renumber(content: dict[str, Any]) -> None:
        content["model"]["vocab"] = {token: 2 * i for token, i in content["model"]["vocab"].items()}

    base = trained()
    folder = directory(tmp_path / "model", edited(renumber, base), vocab_size=1_200)
    tensors = formats.read(folder).tensors
    tensors["wte.weight"] = torch.randn_like(tensors["wte.weight"])
    write_hf(folder, tensors, CONFIG.with_changes(vocab_size=1_200, emb_dim=8))
    assert gptcli("load-gpt2", "--from", "model").code == 0
    known = set(Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8")).get_vocab().values())
    options = ("-t", 9, "-n", 300, "--engine", engine, "--dtype", "float32", "--json", "--ignore-eot")
    ids = gptcli("generate", "a", *options).json["samples"][0]["ids"]
    assert len(ids) == 300
    assert set(ids) <= known
    shown = gptcli("inspect-logits", "a b c")
    assert shown.code == 0, shown.err
    assert isinstance(checkpoint.load(Path("checkpoints/model")).tokenizer, BPETokenizer)


def test_tokens_on_disk_are_those_of_the_whole_text(tmp_path: Path) -> None:
    """Large texts are encoded in parts; the folder of tokens keeps the tokenizer."""
    base = trained()
    tokenizer = formats.read(directory(tmp_path / "model", base)).tokenizer
    text = "".join(TEXTS) * 1_300
    assert len(text) > 2 * PORTION
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="\n")
    folder = tmp_path / "tokens"
    Preparation(folder, PreparationRequest((str(tmp_path / "text.txt"),), "bpe"), tokenizer).run(2)
    about = token_shards.read_manifest(folder)["tokenizer"]
    opened = tokenizers.load(folder, about["kind"], about["fingerprint"])
    found = token_shards.open_shards(folder)
    assert list(found.part(0, len(found)).rows([0], len(found))[0]) == base.encode(text).ids == opened.encode(text)


def test_what_transformers_saves_is_read(gptcli: Any, tmp_path: Path) -> None:
    """GPT-2's own tokenizer, and one trained anew from it, each with nothing but what save_pretrained writes."""
    from transformers import AutoTokenizer

    tokenizers.build("gpt2").save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    own = AutoTokenizer.from_pretrained(tmp_path)
    new = own.train_new_from_iterator(TEXTS, 400)
    for theirs, kind in ((own, "gpt2"), (new, "bpe")):
        folder = write_hf(tmp_path / kind, config=GPT2_SIZED)
        theirs.save_pretrained(folder)
        for name in ("vocab.json", "merges.txt"):  # transformers 4 wrote them too
            (folder / name).unlink(missing_ok=True)
        assert gptcli("load-gpt2", "--from", folder, "--out", f"{kind}-out").code == 0
        read = checkpoint.load(Path(f"{kind}-out")).tokenizer
        assert read.kind == kind
        assert read.encode(TEXTS[0]) == theirs(TEXTS[0]).input_ids
        assert read.eot_id == theirs.eos_token_id


CHATML = (
    "{% for message in messages %}\n"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n"
)
MESSAGES = [{"role": "user", "content": "Grüße?"}, {"role": "assistant", "content": " Ja. "}]


@pytest.mark.parametrize("place", ["field", "several", "file"])
@pytest.mark.parametrize("bos", [None, "<s>", {"__type": "AddedToken", "content": "<s>"}, "<|im_end|>"])
def test_a_chat_template_is_taken_over_and_writes_what_transformers_writes(
    gptcli: Any, tmp_path: Path, place: str, bos: Any
) -> None:
    from transformers import AutoTokenizer

    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    source = "\n{{ bos_token }}" + CHATML
    config |= {} if bos is None else {"bos_token": bos}
    config |= {"field": {"chat_template": source}, "file": {}}.get(
        place, {"chat_template": [{"name": "tools", "template": "?"}, {"name": "default", "template": source}]}
    )
    folder = directory(tmp_path / "theirs", trained(special=special), **config)
    if place == "file":
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    loaded = gptcli("load-gpt2", "--from", "theirs")
    assert loaded.code == 0, loaded.err
    assert "The model has a chat template" in loaded.err
    template = stored(checkpoint.load(Path("checkpoints/theirs")).tokenizer)
    assert template is not None
    again: Any = AutoTokenizer.from_pretrained(Path("checkpoints/theirs").resolve())
    for messages, prompt in ((MESSAGES, False), (MESSAGES[:1], True)):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert template.render(messages, prompt=prompt).text == expected
        assert again.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) == expected
    ids = theirs.apply_chat_template(MESSAGES[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    made = ("generate", "Grüße?", "-c", "checkpoints/theirs", "-n", 2, "--dtype", "float32", "--json")
    assert gptcli(*made).json["prompt_ids"] == ids
    assert gptcli(*made, "--raw").json["prompt_ids"] == theirs.encode("Grüße?", add_special_tokens=False)


@pytest.mark.parametrize("source", ["{% if %}", "{{ raise_exception('only tools') }}", "{{ strftime_now('%d') }}"])
def test_a_chat_template_that_fails_is_left_out(gptcli: Any, tmp_path: Path, source: str) -> None:
    directory(tmp_path / "theirs", trained(), tokenizer_class="PreTrainedTokenizerFast", chat_template=source)
    loaded = gptcli("load-gpt2", "--from", "theirs")
    assert loaded.code == 0
    assert "The model's chat template is left out. The template of the checkpoint" in loaded.err
    assert checkpoint.load(Path("checkpoints/theirs")).tokenizer.chat_template is None


def test_learning_with_a_template_that_marks_no_answers_names_the_ways_out(gptcli: Any, tmp_path: Path) -> None:
    directory(tmp_path / "theirs", trained(), tokenizer_class="PreTrainedTokenizerFast", chat_template=CHATML)
    assert gptcli("load-gpt2", "--from", "theirs").code == 0
    rows = [{"prompt": f"Grüße {n}", "completion": "aaaa"} for n in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ("finetune", "rows.json", "--init-from", "checkpoints/theirs", "--out", "run", "--max-steps", 1)
    gptcli(*words).assert_user_error("of the checkpoint has no {% generation %}", "--template chat", "--loss-on all")
    assert gptcli(*words, "--template", "plain").code == 0
