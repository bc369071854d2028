"""HTTP/2 (RFC 9113) for gRPC: frames, flow control, HPACK."""
