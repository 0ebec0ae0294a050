"""Pattern 2, synchronous: the caller waits, the model has a process of its own.

When: the answer is needed to go on, and the API must stay up when the model does not.
For it: a model that dies or hangs is ended and started again, while /health goes on answering; the
deadline goes along to the model, and past `max_inflight` the next caller hears 503 + Retry-After.
Against it: the caller's time is the model's time, and a queue of callers is a queue of open lines.
"""

from onsil.graph import model
from onsil.serving.deployment import App

app = App()
app.serve("/v1/ask", model("desk@champion", on="process", max_inflight=16), timeout=30)

if __name__ == "__main__":
    app.run()
