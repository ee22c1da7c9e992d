"""Between the protocol's messages and the trainer's own types, both ways. The only place in the trainer that knows
both.

What comes in is checked for form here (unknown enum values, ranges, not-a-number, missing parts), with all violations
collected and named as the caller wrote them; what it means is `trainer_service.jobs.admission`'s to judge.
"""
