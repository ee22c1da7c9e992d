"""A service's process and machine: life cycle, threads, memory, containers, standard streams.

Includes pools that call outside systems with a time limit.
"""
