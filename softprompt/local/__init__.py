"""Both services on this machine, as child processes that never outlive the program that started them. Imports no gRPC."""
