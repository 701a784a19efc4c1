"""Prompts as token ids, through the template that a checkpoint was taught with."""

from typing import TYPE_CHECKING

from gptcli.errors import SettingError
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.offsets import end_text, special_in

if TYPE_CHECKING:
    from gptcli.tokenizers.template import Template


class Prompting:
    """How a checkpoint reads prompts.

    Args:
        tokenizer: the checkpoint's.
        raw: whether to leave the template out.
        allow_special: whether <|endoftext|> in a prompt is the token.
        ignore_eot: whether to go on past the end of an answer.

    Attributes:
        template: None where there is none, or it is left out.
        stops: the texts that end an answer, where the end-of-text token does not.

    Raises:
        GptcliError: the template is damaged.
    """

    def __init__(self, tokenizer: Tokenizer, *, raw: bool, allow_special: bool, ignore_eot: bool) -> None:
        self.tokenizer, self.allow_special = tokenizer, allow_special
        self.template: Template | None = None
        if tokenizer.chat_template is not None and not raw:
            from gptcli.tokenizers.template import stored  # imports Jinja2

            self.template = stored(tokenizer)
        end, special = self.template.end() if self.template is not None else "", end_text(tokenizer)
        ends_by_text = end and (special is None or not end.startswith(special)) and not ignore_eot
        self.stops = (end,) if ends_by_text else ()

    def encode(self, prompt: str) -> list[int]:
        """The ids of ``prompt``, as a user's message where there is a template, up to where the answer begins.

        Raises:
            GptcliError: a character is not in the vocabulary, the template refuses the prompt, or the prompt has a
                special token in it that the template would make one of.
        """
        if self.template is None:
            return self.tokenizer.encode(prompt, allow_special=self.allow_special)
        special = None if self.allow_special else special_in([prompt], self.tokenizer)
        if special is not None:
            raise SettingError(
                f"The prompt has {special!r} in it, which the checkpoint's template would take for the token.",
                "Remove it; {allow_special} takes it for the token, {raw} leaves the template out.",
            )
        return self.tokenizer.encode(self.template.wrap(prompt), allow_special=True) if prompt else []
