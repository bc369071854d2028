"""What the Open Inference Protocol promises over HTTP and gRPC."""
