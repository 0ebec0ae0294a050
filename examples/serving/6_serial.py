"""Pattern 6, serial: models and steps in order, the next one depending on the last.

When: an answer is made in stages (what kind of question, who answers it, is the answer in order).
For it: each stage is simple, can be replaced alone, and stands in the trace with its own time.
Against it: latencies add up and any stage can fail. So there is one deadline for all of them, each
gets what is left; and a breaker answers at once for a model that is broken.
"""

from onsil.graph import BadInput, breaker, cache, model, route, step
from onsil.serving.deployment import App

desk = breaker(model("desk@champion", timeout=20), failures=5, seconds=30)


@step
def classify(value: dict) -> dict:
    """Whether it is small talk (short, and asked often) or a question."""
    question = value.get("question")
    if not isinstance(question, str):
        raise BadInput("question must be text.")
    return {"question": question, "kind": "talk" if len(question.strip()) < 6 else "question"}


@step
def check(answer: dict) -> dict:
    """An answer from the documents names its passage."""
    assert answer["confidence"] == 1 or not answer["answered"] or answer["citations"]
    return answer


app = App()
app.serve(
    "/v1/ask",
    classify >> route("kind", {"talk": cache(desk, 1000, 3600), "question": desk}) >> check,
    timeout=30,
)

if __name__ == "__main__":
    app.run()
