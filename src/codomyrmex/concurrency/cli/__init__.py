"""The command line. Knows nothing of gRPC, protobuf or keys; nothing imports it."""
