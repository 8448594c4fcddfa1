"""`tripod`: the node's command line. It only calls the gRPC APIs that everyone can call."""

VERSION = "0.1.0"
