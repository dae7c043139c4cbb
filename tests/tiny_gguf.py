"""A llama-architecture model file of 0.65 MB with random weights, for a real llama.cpp server in tests.

The text it makes is nonsense of short words, so every byte is valid UTF-8. One hidden dimension is held constant, so
that column of the output matrix acts as a bias per token: `end_bias` makes the end of the answer likelier (both finish
reasons are reachable), `tool_happy` makes the tool-call marker likely.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

_WIDTH, _FEED_FORWARD, _LAYERS, _HEADS, _KV_HEADS = 64, 128, 2, 4, 2
_BOS, _EOS, _UNK = 1, 4, 0
_TEXT = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or had by hot word "
    "but what some we can out other were all there when up use your how said an each she which do their time if will "
    "way about many then them write would like so these her long make thing see him two has look more day could go "
    "come did number sound no most people my over know water than call first who may down side been now find any new "
    "work part take get place made live where after back little only round man year came show every good me give our "
    "under name very through just form great think say help low line"
)
_WORDS = _TEXT.split()
_CHAT_TEMPLATE = (
    "{%- if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content or [] %}{{ p.text }}{% endfor %}{% endif %}"
    '{%- for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Matrix = npt.NDArray[np.float32]
Token = tuple[str, float, int]


def write(
    path: Path,
    *,
    seed: int = 1,
    context: int = 131_072,
    layers: int = _LAYERS,
    end_bias: float = 0.0,
    tool_happy: bool = False,
) -> Path:
    """Write the model file and return its path. The same arguments make the same weights."""
    tokens = _vocabulary()
    writer = gguf.GGUFWriter(str(path), "llama")
    _write_shape(writer, context=context, layers=layers, vocabulary=len(tokens))
    _write_tokenizer(writer, tokens)
    random = np.random.default_rng(seed)
    _write_weights(writer, tokens, random, layers=layers, end_bias=end_bias, tool_happy=tool_happy)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary() -> list[Token]:
    kinds = gguf.TokenType
    tokens: list[Token] = [("<unk>", 0.0, kinds.UNKNOWN)]
    tokens += [(text, 0.0, kinds.CONTROL) for text in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")]
    tokens += [(text, 0.0, kinds.USER_DEFINED) for text in ("<tool_call>", "</tool_call>")]
    tokens += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    pieces = ["\u2581" if code == 0x20 else chr(code) for code in range(0x20, 0x7F)]
    tokens += [(piece, -1000.0 - index, kinds.NORMAL) for index, piece in enumerate(pieces)]
    seen = set(pieces)
    for word in _WORDS:
        whole = "\u2581" + word
        # The tokenizer merges step by step, so every beginning of a word must be a token too.
        for length in range(2, len(whole) + 1):
            piece = whole[:length]
            if piece not in seen:
                seen.add(piece)
                tokens.append((piece, 50.0 * length - len(tokens), kinds.NORMAL))
    return tokens


def _write_shape(writer: gguf.GGUFWriter, *, context: int, layers: int, vocabulary: int) -> None:
    writer.add_name("tiny-random")
    writer.add_context_length(context)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _write_tokenizer(writer: gguf.GGUFWriter, tokens: list[Token]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text.encode() for text, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([int(kind) for _, _, kind in tokens])
    writer.add_bos_token_id(_BOS)
    writer.add_eos_token_id(_EOS)
    writer.add_unk_token_id(_UNK)
    # Otherwise a forced beginning of the reply (a grammar, a required tool) does not match its own tokens.
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)


def _write_weights(
    writer: gguf.GGUFWriter,
    tokens: list[Token],
    random: np.random.Generator,
    *,
    layers: int,
    end_bias: float,
    tool_happy: bool,
) -> None:
    def matrix(rows: int, columns: int, scale: float = 0.15) -> Matrix:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    ones = np.ones(_WIDTH, dtype=np.float32)
    embedding = matrix(len(tokens), _WIDTH, 1.0)
    embedding[:, 0] = 8.0  # the constant dimension
    output = matrix(len(tokens), _WIDTH, 0.35)
    output[:, 0] = 0.0
    words = {"\u2581" + word for word in _WORDS}
    for index, (text, _, _) in enumerate(tokens):
        if text not in words and index != _EOS:
            output[index] = 0.0  # bytes, markers and beginnings of words: rarely sampled
    output[_EOS, 0] = end_bias
    numbers = {text: index for index, (text, _, _) in enumerate(tokens)}
    if end_bias:  # prompts end with a newline; the end does not follow one, so that no answer is empty
        embedding[:, 1], output[:, 1] = 0.0, 0.0
        embedding[numbers["<0x0A>"], 1], output[_EOS, 1] = 32.0, -2.5
    if tool_happy:
        output[numbers["<tool_call>"], 0] = 6.0
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", ones)
    kv_width = _WIDTH // _HEADS * _KV_HEADS
    shapes = {
        "attn_q": (_WIDTH, _WIDTH),
        "attn_k": (kv_width, _WIDTH),
        "attn_v": (kv_width, _WIDTH),
        "attn_output": (_WIDTH, _WIDTH),
        "ffn_gate": (_FEED_FORWARD, _WIDTH),
        "ffn_up": (_FEED_FORWARD, _WIDTH),
        "ffn_down": (_WIDTH, _FEED_FORWARD),
    }
    for layer in range(layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
        for name, (rows, columns) in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(rows, columns))
