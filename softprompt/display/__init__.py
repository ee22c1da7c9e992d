"""Progress of long work on a terminal or in a log: training and transfers. Imports no gRPC."""
