"""The part of the checker that compares answers about versions and aliases with the prompt store's log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.simulation.history import Event
from tests.simulation.serving import NUM_TOKENS
from tests.simulation.world import World


def check_answers(world: World, log: Log) -> list[str]:
    """Every broken promise about moves of aliases and answers of replicas and routers, in words."""
    return [
        *_aliases_are_compare_and_set(world, log),
        *_streams_use_resolvable_versions(world, log),
        *_a_version_answers_alike(world),
        *_streams_are_of_one_version(world),
        *_routers_answer_at_the_end(world, log),
        *_replicas_agree_at_the_end(world, log),
    ]


class Log:
    """The prompt store's commits replayed: versions by prompt and by job, and the history of each alias."""

    def __init__(self, world: World) -> None:
        self.commits = [world.storage.commits[number] for number in sorted(world.storage.commits)]
        self.by_job: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self.published: dict[tuple[str, int], int] = {}
        self.deleted: dict[tuple[str, int], int] = {}
        self.aliases: defaultdict[tuple[str, str], list[tuple[int, str, list[int]]]] = defaultdict(list)
        """(revision, actor, versions) of each move."""
        self.publishing_job: dict[int, str] = {}
        """The job that a commit published, by revision."""
        self.digests: dict[tuple[str, int], str] = {}
        self._problems: list[str] = []
        latest: defaultdict[str, int] = defaultdict(int)
        for number, commit in enumerate(self.commits, 1):
            if commit.revision != number:
                self._problems.append(f"the log has no revision {number}")
                break
            for op in commit.ops:
                match op.op:
                    case "publish":
                        self.by_job[op.job].append((op.prompt, op.version))
                        self.publishing_job[number] = op.job
                        self.published[op.prompt, op.version] = number
                        self.digests[op.prompt, op.version] = op.digest
                        if op.version != latest[op.prompt] + 1:
                            self._problems.append(f"{op.prompt}@{op.version} follows {latest[op.prompt]}")
                        latest[op.prompt] = op.version
                    case "alias":
                        versions = [part.version for part in op.targets]
                        self.aliases[op.prompt, op.alias].append((number, commit.actor, versions))
                    case "delete":
                        self.deleted[op.prompt, op.version] = number

    def problems(self) -> list[str]:
        """Gaps, and jobs that published twice."""
        twice = [f"{job} published {versions}" for job, versions in self.by_job.items() if len(versions) > 1]
        return self._problems + twice

    def alias_before(self, key: tuple[str, str], revision: int) -> list[int]:
        """What the alias named just before this revision."""
        before = [versions for number, _, versions in self.aliases[key] if number < revision]
        return before[-1] if before else []


def _aliases_are_compare_and_set(world: World, log: Log) -> Iterator[str]:
    """The log is the order of all moves, so linearizability is: each move found what it expected, each answer is true,
    and no move is before one that had ended when it began.
    """
    revisions = {
        actor: (revision, key) for key, moves in log.aliases.items() for revision, actor, _ in moves if "/" in actor
    }
    asked = {event.actor: event for event in world.history.of("moving")}
    answered = {event.actor: event for event in world.history.of("moved")}
    for actor, (revision, key) in revisions.items():
        if (found := log.alias_before(key, revision)) != asked[actor].expected:
            yield f"{actor} moved {key} from {found}, expected {asked[actor].expected}"
    for actor, event in answered.items():
        wanted = asked[actor]
        is_change = [wanted.target] != wanted.expected
        if event.outcome == "done" and is_change and actor not in revisions:
            yield f"{actor} got the answer that it moved {wanted.prompt}@{wanted.alias}; the log has no such move"
        if event.outcome not in ("done", "unknown") and actor in revisions:
            yield f"{actor} got {event.outcome}, and the log has its move"
    # A move whose caller has given it up has not ended: it may yet happen.
    known = {actor: event.time for actor, event in answered.items() if event.outcome == "done" and actor in revisions}
    ended = [(time, revisions[actor][0]) for actor, time in known.items()]
    for actor, event in asked.items():
        before = [revision for time, revision in ended if time < event.time]
        if actor in revisions and before and revisions[actor][0] < max(before):
            yield f"{actor} is in the log before a move that had ended"


def _streams_use_resolvable_versions(world: World, log: Log) -> Iterator[str]:
    seen: dict[tuple[str, int], int] = {}
    cuts = world.history.of("power cut")
    for event in sorted(world.history.of("streamed"), key=_made_at):
        if any(_made_at(event) <= cut.time and event.revision > cut.newest for cut in cuts):
            continue  # the version was not acknowledged, and is lost
        key = (event.prompt, event.alias)
        named = {
            version for number, _, versions in log.aliases[key] if number <= event.revision for version in versions
        }
        if event.version not in named:
            yield f"{event.replica} streamed {event.prompt}@{event.version} for {event.alias}, which never named it"
        life = (event.replica, event.life)
        if event.life is None:  # `revision` is then that of the store, because a real replica doesn't report its own
            continue
        if log.deleted.get((event.prompt, event.version), event.revision + 1) <= event.revision:
            yield f"{event.replica} streamed {event.prompt}@{event.version}, which it knew to be deleted"
        if event.revision < seen.get(life, 0):
            yield f"{event.replica} went back from revision {seen[life]} to {event.revision}"
        seen[life] = event.revision


def _made_at(event: Event) -> float:
    """When the replica looked the version of an answer up; a real one doesn't say."""
    return float(event.facts.get("at", event.time))


def _streams_are_of_one_version(world: World) -> Iterator[str]:
    """All tokens of an answer are of one version and one replica, in order and without gaps, also through a router."""
    for event in world.history.of("streamed"):
        if "numbers" not in event.facts:  # a real replica does not number its tokens
            continue
        if not event.is_one:
            yield f"an answer of {event.via} for {event.prompt} is of several versions or replicas"
        if event.numbers != list(range(1, NUM_TOKENS + 1))[: len(event.numbers) if event.end else None]:
            yield f"an answer of {event.via} for {event.prompt} has the tokens {event.numbers}, and ended {event.end!r}"


def _routers_answer_at_the_end(world: World, log: Log) -> Iterator[str]:
    """All routers choose the same replica for a version. When a replica dies, calls without a message go elsewhere."""
    if not (routers := {router.name for router in world.routers}):
        return
    [quiet], [failing] = ([event.time for event in world.history.of(kind)] for kind in ("quiet", "failing"))
    chosen = defaultdict[tuple[str, int], set[str]](set)
    for event in world.history.of("refused"):
        moves = log.aliases[event.prompt, event.alias]
        if event.replica in routers and event.begun >= quiet and moves and moves[-1][2]:
            yield f"{event.replica} gave no answer for {event.prompt}@{event.alias}: {event.why}"
    for event in world.history.of("streamed"):
        if event.via in routers and quiet <= event.begun < failing:
            chosen[event.prompt, event.version].add(event.replica)
            if event.end:
                yield f"{event.via} did not end its answer for {event.prompt}@{event.alias}: {event.end}"
    for (prompt, version), replicas in chosen.items():
        if len(replicas) > 1:
            yield f"routers sent calls for {prompt}@{version} to {sorted(replicas)}, which were all idle"


def _a_version_answers_alike(world: World) -> Iterator[str]:
    texts: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for event in world.history.of("streamed"):
        if "text" in event.facts:  # a simulated replica has none
            texts[event.prompt, event.version, event.form].add(event.text)
    for (prompt, version, _), found in texts.items():
        if len(found) > 1:
            yield f"{prompt}@{version} answered one input with {sorted(found)}"


def _replicas_agree_at_the_end(world: World, log: Log) -> Iterator[str]:
    quiet = world.history.of("quiet")[-1].time
    answers = {
        (event.replica, event.prompt, event.alias): event.version
        for event in world.history.of("streamed")
        if event.begun >= quiet and event.via == event.replica
    }
    for (prompt, alias), moves in log.aliases.items():
        for replica in world.replicas:
            answer = answers.get((replica.name, prompt, alias))
            if moves and moves[-1][2] and answer not in moves[-1][2]:
                yield f"{replica.name} serves {prompt}@{alias} with version {answer}, not {moves[-1][2]}"
