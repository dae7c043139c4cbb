"""How many tokens a chat request is, by estimate, for each kind of provider. Pure.

No tokenizer: characters per token, which differ little between the models of one vendor, and tables for what is no
text. Against the vocabularies o200k, cl100k and Claude 2's: code and technical English come out 0 to 12 % too high,
plain prose 25 to 35 %; indented JSON 30 to 40 % too low; German within 16 %, Chinese and Japanese within 26 %; other
scripts within 35 % of the older vocabularies, and up to 3.4 times too high by o200k. What is decided by it, whether a
conversation must be shortened, can be set with a margin; what is held of budgets goes by bounds
(`budgets.bound`), never by this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import msgspec

from providers.canonical import Call
from providers.catalog import Kind

TOKENS_PER_MESSAGE = 4  # role and separators, as OpenAI counts its own chat format
TOKENS_PER_CONVERSATION = 3  # what introduces the answer
TOKENS_PER_TOOL_CALL = 8  # beside its name and arguments
# Each further UTF-8 byte of a character: tokenizers are made of English, other scripts have about a token for each
# Chinese or Hindi character and for two Cyrillic ones.
TOKENS_PER_EXTRA_BYTE = 0.4
# No image of a vendor counts as more, no page as less; sound is taken to be MP3 of 128 kbit/s at 32 tokens a second.
AUDIO_CHARACTERS_PER_TOKEN = 680
FILE_CHARACTERS_PER_TOKEN = 40  # a page of 1,500 tokens is commonly 60 KB of a PDF, in base64
LEAST_FILE = 1500
LEAST_AUDIO = 32
# A learned ratio is of whole bodies, and of whatever was asked of late: it corrects the table, within these bounds.
LEARNED_LEAST, LEARNED_MOST = 0.5, 1.25

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Weights:
    """What things weigh with one kind of provider, in tokens.

    `bytes_per_token` is of English text. `extra_byte`: each further byte of a character. `image` is one of common size
    (about a megapixel), `small_image` one that was asked to be looked at roughly. `tools`: what the provider says
    itself as soon as tools are offered.
    """

    bytes_per_token: float
    image: int = 1024
    small_image: int = 1024
    tools: int = 16
    extra_byte: float = TOKENS_PER_EXTRA_BYTE

    @property
    def most_per_byte(self) -> float:
        """The most tokens that a byte of a canonical body counts as, media left out."""
        return max(1 / self.bytes_per_token, self.extra_byte)


# Images: OpenAI 85 + 170 for each tile of 512 pixels, 85 at low detail; Anthropic width x height / 750, at most 1,600;
# Gemini 258 for each tile of 768 pixels; servers of one's own commonly 576 (CLIP, 24 x 24) to 1,280 (Qwen-VL).
# Tools: Anthropic's documented system prompt for tool use.
OPENAI = Weights(3.8, image=765, small_image=85)
ANTHROPIC = Weights(3.5, image=1600, small_image=1600, tools=346)
GOOGLE = Weights(4.0, image=1032, small_image=258)
LOCAL = Weights(3.7, image=768, small_image=768)
OTHER = Weights(4.0)

_BY_KIND: Mapping[str, Weights] = MappingProxyType(
    {
        **dict.fromkeys(("openai", "azure", "deepseek", "mistral", "groq", "grok", "openrouter"), OPENAI),
        "anthropic": ANTHROPIC,
        "google": GOOGLE,
    }
)
_BY_ADAPTER: Mapping[str, Weights] = MappingProxyType({"anthropic": ANTHROPIC, "google": GOOGLE})


def weights_of(kind: Kind, learned: float | None = None) -> Weights:
    """The weights of a kind of provider; `learned` are the bytes per token that answers of the model have shown."""
    found = _BY_KIND.get(kind.name)
    if found is None:
        found = LOCAL if kind.local else _BY_ADAPTER.get(kind.adapter, OTHER)
    if learned is None:
        return found
    least, most = found.bytes_per_token * LEARNED_LEAST, found.bytes_per_token * LEARNED_MOST
    ratio = min(max(learned, least), most)
    # It is of bytes: what the model makes of its users' script is in it.
    return replace(found, bytes_per_token=ratio, extra_byte=1 / ratio)


def most_of(call: Call, weights: Weights) -> int:
    """What `prompt_tokens` comes to at most, by size and counts alone."""
    text = (len(call.body) - call.media_bytes) * weights.most_per_byte
    media = call.images * max(weights.image, weights.small_image)
    media += call.media_bytes // FILE_CHARACTERS_PER_TOKEN
    media += call.audios * LEAST_AUDIO + (call.files + call.others) * LEAST_FILE
    return math.ceil(text + media) + weights.tools + TOKENS_PER_CONVERSATION + TOKENS_PER_MESSAGE * call.messages


def prompt_tokens(doc: Mapping[str, Any], weights: Weights) -> int:
    """A whole canonical chat request, decoded: its messages, and everything else it says."""
    return besides_messages(doc, weights) + sum(message_tokens(message, weights) for message in doc["messages"])


def besides_messages(doc: Mapping[str, Any], weights: Weights) -> int:
    """What of a canonical chat request is no message: tools, the schema of the answer, and what introduces it.

    Values may be decoded, or JSON as bytes.
    """
    found = float(TOKENS_PER_CONVERSATION)
    for name in ("tools", "functions", "response_format"):
        told = doc.get(name)
        if not told:
            continue
        data = bytes(told) if isinstance(told, msgspec.Raw) else _encode(told)
        if data in (b"null", b"[]"):
            continue
        found += len(data) / weights.bytes_per_token
        if name != "response_format":
            found += weights.tools
    return math.ceil(found)


def message_tokens(message: Mapping[str, Any], weights: Weights) -> int:
    """One canonical message: its text, media, tool calls and reasoning."""
    content = message.get("content")
    if type(content) is str:
        found = text_tokens(content, weights)
    elif type(content) is list:
        found = sum(_part(part, weights) for part in content)
    else:
        found = 0.0
    if len(message) > 2:
        found += _further(message, weights)
    return TOKENS_PER_MESSAGE + math.ceil(found)


def text_tokens(text: str, weights: Weights) -> float:
    """Plain text."""
    found = len(text) / weights.bytes_per_token
    if not text.isascii():
        found += (len(text.encode("utf-8", "surrogatepass")) - len(text)) * weights.extra_byte
    return found


def _further(message: Mapping[str, Any], weights: Weights) -> float:
    """What a message says beside its role and content."""
    found = 0.0
    for name in ("name", "refusal", "reasoning_content", "reasoning", "tool_call_id"):
        if type(text := message.get(name)) is str:
            found += text_tokens(text, weights)
    calls = message.get("tool_calls")
    for call in calls if type(calls) is list else ():
        function = call.get("function") if type(call) is dict else None
        found += TOKENS_PER_TOOL_CALL + _strings((function or call or {}).values(), weights)
    if type(function := message.get("function_call")) is dict:
        found += TOKENS_PER_TOOL_CALL + _strings(function.values(), weights)
    details = message.get("reasoning_details")
    for detail in details if type(details) is list else ():
        if type(detail) is dict:
            found += _strings((detail.get("text"), detail.get("summary"), detail.get("data")), weights)
    return found


def _strings(values: Iterable[Any], weights: Weights) -> float:
    found = 0.0
    for value in values:
        if type(value) is str:
            found += text_tokens(value, weights)
        elif type(value) is dict or type(value) is list:
            found += len(_encode(value)) / weights.bytes_per_token
    return found


def _part(part: Any, weights: Weights) -> float:
    kind = part.get("type") if type(part) is dict else None
    if kind == "text" and type(text := part.get("text")) is str:
        return text_tokens(text, weights)
    if kind == "image_url":
        holder = part.get(kind)
        small = type(holder) is dict and holder.get("detail") == "low"
        return weights.small_image if small else weights.image
    if kind in ("input_audio", "audio_url"):
        return max(LEAST_AUDIO, _payload(part.get(kind)) // AUDIO_CHARACTERS_PER_TOKEN)
    if kind == "file":
        return max(LEAST_FILE, _payload(part.get(kind)) // FILE_CHARACTERS_PER_TOKEN)
    if kind in ("refusal", "thinking", "reasoning"):
        return _strings(part.values(), weights)
    return LEAST_FILE


def _payload(holder: Any) -> int:
    """The characters of what a part carries, 0 where it only names it."""
    values = holder.values() if type(holder) is dict else (holder,)
    texts = [value for value in values if type(value) is str]
    return max((len(text) for text in texts if not text.startswith("http")), default=0)
