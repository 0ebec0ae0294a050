"""Pattern 7, parallel: one request to several models, their answers joined.

When: several opinions are worth more than one, or the quickest of several is wanted.
For it: a slow or broken branch fails nobody: two of three are enough, the third is cancelled, and
the header Server-Timing says who voted.
Against it: every request costs as much as all branches, and the join decides what is true. With a
quorum below all, who votes depends on who was quick: let `join` give the same for any of them.

The three are one model here, at three places; in earnest they are three models.
"""

from collections import Counter

from onsil.graph import model, par, step
from onsil.graph.values import canonical
from onsil.serving.deployment import App


def majority(votes: dict) -> dict:
    """The answer that most gave; of equals the first."""
    most, _ = Counter(map(canonical, votes.values())).most_common(1)[0]
    return next(answer for answer in votes.values() if canonical(answer) == most)


@step
def verdict(panel: dict) -> dict:
    """The joint answer alone; `voted` and `errors` are in it too."""
    return panel["answer"]


a = model("desk@champion", name="a")
b = model("desk@champion", name="b", on="process")
c = model("desk@champion", name="c")

app = App()
app.serve("/v1/ask", par(a, b, c, join=majority, quorum=2, timeout=8) >> verdict)

if __name__ == "__main__":
    app.run()
