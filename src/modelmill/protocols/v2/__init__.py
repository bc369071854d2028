"""Open Inference Protocol v2 with Triton's extensions, over HTTP; `grpc` speaks it over gRPC.

Binary tensors, classification, statistics, model configuration and repository, trace and log
settings, system shared memory, and the generate extension.
"""

from modelmill.protocols.base import simple_error
from modelmill.protocols.v2 import generate, http

NAME = "v2_http"
error = simple_error
ROUTES = [*http.ROUTES, *generate.ROUTES]
