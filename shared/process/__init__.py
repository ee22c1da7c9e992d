"""A service's process and machine: life cycle, threads, memory, container limits, standard streams.

Also thread pools that call external systems with a time limit.
"""
