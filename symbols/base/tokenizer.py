"""An embedded base's tokenizer: byte-level BPE, a token for each digit or for two, a ChatML template.

Every digit is its own token, with a second form for a digit that follows a space, so that numbers are read and
written place by place. Or every two digits are, counted from the right: base 100, in half the tokens. Everything else is
ordinary BPE learned from the prompts, which makes a prompt short; beside pairs of digits, across words too (SuperBPE,
arXiv 2503.13423), and in a scratchpad across what always stands together.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
_PIECES = {
    1: r" ?\\boxed\{| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+",
    2: r"(?: ;)? ?\\boxed\{|CORRECT\}| = [+−×÷]|(?: ?[A-Za-z]+)+| ?\p{L}"
       r"| ?\p{N}{1,2}(?=(?:\p{N}{2})*(?!\p{N}))| ?[^\s\p{L}\p{N}]|\s+"}

CHAT_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


def build_tokenizer(corpus: list[str], digits: int = 1) -> PreTrainedTokenizerFast:
    """Learn the merges from a corpus; any other text still encodes, byte by byte. digits: 1 or 2, of a token of a number."""
    if digits == 2:
        corpus = [*corpus, *(f"{space}{pair:02}" for pair in range(100) for space in ("", " "))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES[digits]), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE, model_max_length=1024)


def chat_ids(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> list[int]:
    """The prompt's token ids as the chat template renders it, ready for the answer, thinking off."""
    return list(tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, tokenize=True, return_dict=False))
