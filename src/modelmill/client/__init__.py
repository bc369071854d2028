"""The Python SDK: the same verbs as the command line, over the REST API.

from modelmill import Client

mill = Client()                                  # the platform of this machine's home
mill.add_data("waste", "photos.zip", task="image-classification") job = mill.train("waste",
task="image-classification", data="waste", recipe="resnet", wait=True) mill.deploy("waste",
wait=True) mill.predict("waste", "bottle.jpg")              # [{"input": "bottle.jpg", "output":
[{"label": ...}]}]
"""

from modelmill.client import rows
from modelmill.client._client import Client
from modelmill.client._connection import home_of

__all__ = ["Client", "home_of", "rows"]
