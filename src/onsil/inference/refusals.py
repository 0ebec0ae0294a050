"""What a model that writes refuses, in words for whoever asked."""

from onsil.errors import OnsilError


class Busy(Exception):
    """The queue is full, or the engine is closing: come back later."""


class TooLong(OnsilError):
    """A prompt that is empty or leaves no room. `tokens` is 0 where they were not even counted."""

    def __init__(self, tokens: int, context: int, size: int = 0):
        self.tokens, self.context = tokens, context
        en = f"{size:,} bytes, not counted in tokens" if size else f"{tokens:,} tokens"
        ko = f"{size:,}바이트여서 토큰을 세지 않았고" if size else f"{tokens:,}토큰인데"
        super().__init__(
            en=(
                f"The prompt has {en}; the model holds {context:,} tokens, the answer included.",
                "There is nothing to go on from, or no room to write in.",
                "Give a prompt that is neither empty nor longer than that.",
            ),
            ko=(
                f"입력이 {ko} 모델이 다루는 길이는 답까지 합쳐 {context:,}토큰입니다.",
                "이어 쓸 글이 없거나 쓸 자리가 없습니다.",
                "비어 있지 않고 그보다 짧은 입력을 주세요.",
            ),
        )


def impossible(what: str, vocabulary: int) -> OnsilError:
    return OnsilError(
        en=(
            f"The request cannot be met: {what}.",
            f"Tokens are 0 to {vocabulary - 1:,}; numbers are finite, temperature at least 0, "
            "top_p above 0 and at most 1, the limit at least 1.",
            "Correct the request.",
        ),
        ko=(
            f"들어줄 수 없는 요청입니다: {what}.",
            f"토큰은 0부터 {vocabulary - 1:,}까지이고, 수는 유한해야 하며, temperature는 0 이상, "
            "top_p는 0보다 크고 1 이하, 길이는 1 이상이어야 합니다.",
            "요청을 고쳐 주세요.",
        ),
    )


def no_states() -> OnsilError:
    return OnsilError(
        en=(
            "This model makes no vectors of texts.",
            "It is an encoder-decoder; only decoders and encoders give embeddings here.",
            "Ask a model that has an encoder or is a decoder.",
        ),
        ko=(
            "이 모델은 글을 벡터로 바꾸지 못합니다.",
            "인코더-디코더이기 때문입니다. 임베딩은 디코더와 인코더만 만듭니다.",
            "인코더가 있거나 디코더인 모델에 요청해 주세요.",
        ),
    )


def only_reads() -> OnsilError:
    return OnsilError(
        en=(
            "This model reads and does not write.",
            "It is an encoder: it makes vectors of texts, and no texts.",
            "Ask it for embeddings, or ask another model.",
        ),
        ko=(
            "읽기만 하고 쓰지 않는 모델입니다.",
            "인코더라서 글을 벡터로 바꿀 뿐 글을 만들지 않습니다.",
            "임베딩을 요청하거나 다른 모델에 요청해 주세요.",
        ),
    )


def no_template() -> OnsilError:
    return OnsilError(
        en=(
            "This model has no chat template.",
            "It continues texts; how a question and an answer are told apart it never learnt.",
            "Ask for a plain continuation (completions), or tune it on chats first.",
        ),
        ko=(
            "이 모델에는 대화 템플릿이 없습니다.",
            "글을 이어 쓰는 모델이라 질문과 답을 구별하는 법을 배우지 않았습니다.",
            "이어 쓰기(completions)를 요청하거나 먼저 대화로 미세조정해 주세요.",
        ),
    )


def bad_chat(what: str, ko: str = "") -> OnsilError:
    """Messages that the template cannot write down."""
    return OnsilError(
        en=(
            f"The chat cannot be written in this model's template: {what}.",
            "A chat model answers well only in the very form it was trained in.",
            "Change the messages, or use another model.",
        ),
        ko=(
            f"이 모델의 템플릿으로 쓸 수 없는 대화입니다: {ko or what}.",
            "대화 모델은 학습한 형식 그대로 물어야 제대로 답합니다.",
            "메시지를 고치거나 다른 모델을 써 주세요.",
        ),
    )
