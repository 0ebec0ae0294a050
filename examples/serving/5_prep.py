"""Pattern 5, prep-pred: preprocessing apart from the model.

When: preprocessing is heavy or changes at its own pace, or the model sits on a machine of its own.
For it: each side grows and restarts alone, and both stay small.
Against it: the two can drift apart. Here they cannot do so unnoticed: what `prep` gives carries the
digest of its tokenizer and template, and a model that was made with another one refuses it; at the
start a pair that does not fit is not ready.
"""

from onsil.graph import model, prep
from onsil.serving.deployment import App

app = App()
app.serve(
    "/v1/ask",
    prep("desk@champion", on="process") >> model("desk@champion", on="process", timeout=30),
)

if __name__ == "__main__":
    app.run()
