"""Both services and the gateway on this machine, as child processes that never outlive the program.

`services` starts them with one data directory and ends all of their processes; `process` starts one service, waits
until it serves, and ends it; `child` makes sure that nothing remains; `interrupts` handles signals; `machine_checks` is
for `softprompt doctor`. `softprompt up`, the demo and the examples use it. Imports no gRPC.
"""
