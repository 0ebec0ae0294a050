"""Pattern 1, web single: preprocessing, model and API in one process.

When: the first release, one machine, one model. Nothing to connect, nothing to keep in step.
For it: fewest parts, lowest latency; ready only after a warm answer; one copy of the model.
Against it: a crash takes everything along, and a bigger model or a second one slows the API too.

    ONSIL_HOME=… onsil serve examples/serving/1_web_single.py
    curl -H "Authorization: Bearer $(cat $ONSIL_HOME/key)" \
         -d '{"question": "연차는 며칠까지 이월되나요?"}' http://127.0.0.1:8000/v1/ask
"""

from onsil.graph import model
from onsil.serving.deployment import App

app = App()
app.serve("/v1/ask", model("desk@champion"))

if __name__ == "__main__":
    app.run()
