"""Faster arithmetic for CPUs: compiled kernels, and the modules of a loaded model that use them.

Knows C, torch and the shape of torch modules. Doesn't know gRPC, Ray, the services, requests, jobs, or the names of
architectures: a module is recognised by its structure and replaced only after `prove` has compared the results.
Data comes from the callers: the engine gives weights, hidden states and its cache, training gives packed batches.

Two entrances: `replace_modules` speeds up a loaded model; `ops` calls one kernel on tensors. `library` finds or
compiles what `csrc/` describes; without a compiler, AVX2 or NEON, PyTorch computes the same, slower. To add a kernel:
write it in `csrc/`, declare it in `csrc/kernels.h`, wrap it in `ops`. Nothing here imports torch at package level,
because `settings` must run before torch is imported.
"""
