"""What a request may say: one class a door, used to check it and to describe it (OpenAPI).

Every field of OpenAI's own request is named here (openai/openai-openapi 2.3.0): taken, checked and
without effect, or refused by name. A field nobody knows is refused too, for what an engine would
make of it is anybody's guess. Sizes are bounded before anything is worked out from them.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from onsil.serving.guard import Refused

MOST_MESSAGES, MOST_TOKENS, MOST_INPUTS = 1_000, 1_000_000, 256
NEUTRAL = (None, False, [], {}, 0, "auto", "default")


def _readable(text: str) -> str:
    if "\0" in text or any(0xD800 <= ord(c) < 0xE000 for c in text):
        raise ValueError("The text holds NUL or half of a surrogate pair")
    return text


def _unable(value: Any) -> None:
    if not any(value is n or (value == n and type(value) is type(n)) for n in NEUTRAL):
        raise ValueError("This server cannot do that; leave the field out")


def _not_kept(value: bool) -> bool:
    if value:
        raise ValueError("Nothing is kept between calls; leave it out or say false")
    return value


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 16.0 is 16."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[
    str, AfterValidator(_readable), Field(json_schema_extra={"pattern": "^[^\\u0000]*$"})
]
WHOLE = BeforeValidator(_whole)
Given = Annotated[Text, Field(min_length=1)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]
Short = Annotated[Text, Field(max_length=512)]
Identifier = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Unable = Annotated[
    Any,
    BeforeValidator(_unable),
    WithJsonSchema({"enum": [*NEUTRAL], "description": "Not supported"}),
]
Stops = Annotated[list[Annotated[Text, Field(min_length=1, max_length=200)]], Field(max_length=4)]
Metadata = Annotated[dict[Annotated[Text, Field(max_length=64)], Short], Field(max_length=16)]
Bias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=1024),
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Drawing(Strict):
    """How the next token is picked, and how many there may be."""

    model: Name
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS), WHOLE] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE] | None = None
    n: Annotated[int, Field(ge=1, le=1), WHOLE] | None = None
    stop: Annotated[Text, Field(min_length=1, max_length=200)] | Stops | None = None
    logit_bias: Bias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Short | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_at_end(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


# ── chat ────────────────────────────────────────────────────────────────────────────────────────


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class CalledFunction(Strict):
    name: Identifier
    arguments: Text


class ToolCall(Strict):
    id: Short
    type: Literal["function"]
    function: CalledFunction


Content = Text | Annotated[list[TextPart], Field(max_length=100)]


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Short | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=64)] | None = None
    tool_call_id: Short | None = None
    refusal: Text | None = None
    annotations: Annotated[list[dict[str, Any]], Field(max_length=100)] | None = None
    audio: Unable = None
    function_call: Unable = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or [])


class NamedFunction(Strict):
    name: Identifier


class Function(NamedFunction):
    description: Annotated[Text, Field(max_length=4096)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    name: Identifier
    description: Short | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


# Of chat, what cannot be said of one field alone.
TOGETHER: Any = [
    {
        "if": {"required": ["top_logprobs"], "properties": {"top_logprobs": {"type": "number"}}},
        "then": {"required": ["logprobs"], "properties": {"logprobs": {"const": True}}},
    },
    {
        "if": {
            "required": ["tool_choice"],
            "properties": {"tool_choice": {"not": {"enum": [None, "none", "auto"]}}},
        },
        "then": {
            "required": ["tools"],
            "properties": {"tools": {"type": "array", "minItems": 1}},
        },
    },
]


class ChatRequest(Drawing):
    model_config = ConfigDict(json_schema_extra={"allOf": TOGETHER})
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | SchemaFormat | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    audio: Unable = None
    function_call: Unable = None
    functions: Unable = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    moderation: Unable = None
    prediction: Unable = None
    prompt_cache_key: Unable = None
    prompt_cache_options: Unable = None
    prompt_cache_retention: Unable = None
    reasoning_effort: Unable = None
    safety_identifier: Short | None = None
    service_tier: Unable = None
    verbosity: Unable = None
    web_search_options: Unable = None

    @model_validator(mode="after")
    def _whole(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedTool) else None
        offered = {tool.function.name for tool in self.tools or []}
        _offered(choice == "required", named, offered)
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


# ── completions, embeddings ─────────────────────────────────────────────────────────────────────

TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=2**31), WHOLE]], Field(min_length=1, max_length=100_000)
]


class CompletionRequest(Drawing):
    prompt: Given | TokenIds
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    echo: Unable = None
    best_of: Annotated[int, Field(ge=1, le=1), WHOLE] | None = None
    suffix: Unable = None


class EmbeddingRequest(Strict):
    model: Name
    input: Given | Annotated[list[Given], Field(min_length=1, max_length=MOST_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Unable = None
    user: Short | None = None


# ── responses ───────────────────────────────────────────────────────────────────────────────────


class InputText(Strict):
    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Annotated[list[dict[str, Any]], Field(max_length=100)] | None = None
    logprobs: Annotated[list[dict[str, Any]], Field(max_length=100_000)] | None = None


class InputMessage(Strict):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[InputText], Field(max_length=100)]
    id: Short | None = None
    status: Short | None = None


class InputCall(Strict):
    type: Literal["function_call"]
    call_id: Short
    name: Identifier
    arguments: Text
    id: Short | None = None
    status: Short | None = None


class InputOutput(Strict):
    type: Literal["function_call_output"]
    call_id: Short
    output: Text
    id: Short | None = None
    status: Short | None = None


class FunctionTool(Function):
    type: Literal["function"]


class NamedFunctionTool(NamedFunction):
    type: Literal["function"]


class SchemaText(JsonSchema):
    type: Literal["json_schema"]


class ResponseText(Strict):
    format: TextFormat | SchemaText | None = None
    verbosity: Unable = None


InputItem = InputMessage | InputCall | InputOutput


class ResponseRequest(Strict):
    model: Name
    input: Given | Annotated[list[InputItem], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS), WHOLE] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    metadata: Metadata | None = None
    stream: bool | None = None
    store: Annotated[bool, AfterValidator(_not_kept), WithJsonSchema({"const": False})] | None = (
        None
    )
    stream_options: StreamOptions | None = None
    truncation: Literal["disabled"] | None = None
    safety_identifier: Short | None = None
    user: Short | None = None
    background: Unable = None
    context_management: Unable = None
    conversation: Unable = None
    include: Unable = None
    max_tool_calls: Unable = None
    moderation: Unable = None
    previous_response_id: Unable = None
    prompt: Unable = None
    prompt_cache_key: Unable = None
    prompt_cache_options: Unable = None
    prompt_cache_retention: Unable = None
    reasoning: Unable = None
    service_tier: Unable = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseRequest":
        named = self.tool_choice.name if isinstance(self.tool_choice, NamedFunctionTool) else None
        _offered(self.tool_choice == "required", named, {tool.name for tool in self.tools or []})
        return self


def _offered(required: bool, named: str | None, tools: set[str]) -> None:
    """Raises ValueError when a tool has to be called that was not offered."""
    if named is not None and named not in tools:
        raise ValueError(f"tool_choice names {named!r}, which is not among tools")
    if required and not tools:
        raise ValueError("tool_choice is required and there are no tools")


R = TypeVar("R", bound=BaseModel)


def checked(kind: type[R], request: dict[str, Any]) -> R:
    """The request as its class. Raises Refused (400) that names the first field that is wrong."""
    try:
        return kind.model_validate(request)
    except ValidationError as e:
        raise refusal(e) from None


def refusal(error: ValidationError) -> Refused:
    """The most telling of the errors: of the branches of a union, the one that got furthest."""
    errors = error.errors(include_url=False, include_context=False)
    found = max(errors, key=lambda error: len(error["loc"]))
    place = ".".join(str(part) for part in found["loc"] if _is_field(part))
    field = str(found["loc"][0]) if found["loc"] else None
    given = repr(found.get("input"))
    given = given if len(given) <= 80 else given[:77] + "…"
    if found["type"] == "extra_forbidden":  # its own name is what was written, whatever that is
        parts = [*filter(_is_field, found["loc"][:-1]), found["loc"][-1]]
        return Refused(400, f"Unknown field: {'.'.join(map(str, parts))}.", param=field)
    message = found["msg"].removeprefix("Value error, ")
    about = f"{place}: " if place else ""
    shown = "" if found["type"] in ("missing", "value_error") else f" (given {given})"
    return Refused(400, f"{about}{message}{shown}.", param=field)


def _is_field(part: Any) -> bool:
    """Not the name pydantic gives to a branch of a union."""
    return isinstance(part, int) or (part.islower() and "[" not in part and "-" not in part)
