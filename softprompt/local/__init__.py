"""Both services on this machine, as child processes that never outlive the program. Imports no gRPC."""
